"""The line that names a contender, read and written: `base:M+prompt:FILE+fewshot:4+rag:DOCS`, `url:http://h/v1#m?rpm=60`.

Not here: models and servers (generate.Builder makes what a line names), what the layers do (contender).
Called by generate and by commands that look at a line before anything is loaded.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from tunesmith.contender import (
    Contender,
    FewShotContender,
    Parts,
    PromptedContender,
    RetrievalContender,
    question_of,
    shots_of,
)
from tunesmith.errors import InputError, did_you_mean
from tunesmith.remote import RemoteOptions, UrlContender

PASSAGES = 3  # beside a question, where the line does not say
# kind -> how it is written
HEADS = {
    "base": "base:MODEL",
    "adapter": "adapter:DIR",
    "url": "url:http://host:port/v1#model?rpm=60&concurrency=4",
    "fewshot": "fewshot:MODEL:4 or fewshot:MODEL:4:nearest",
    "rag": "rag:MODEL:DOCS",
}
LAYERS = {"prompt": "+prompt:FILE", "fewshot": "+fewshot:4 or +fewshot:4:nearest", "rag": "+rag:DOCS or +rag:DOCS?k=5"}
_LAYER = re.compile(r"\+(\w+):")
_SHOTS = re.compile(r"([1-9]\d{0,3})(:nearest)?")
_PASSAGES = re.compile(r"(.+?)(?:\?k=([1-9]\d{0,2}))?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Spec:
    """A contender as its line says it. `str` gives the line in its plain form, which reads as the same Spec."""

    kind: str  # "base", "adapter" or "url"
    target: str  # a model's name or folder, a run or adapter, http://host/v1#model
    options: RemoteOptions = RemoteOptions()
    prompt: str = ""  # file of the system prompt
    shots: int = 0
    nearest: bool = False
    rag: str = ""  # an index, or documents
    passages: int = PASSAGES

    def __str__(self) -> str:
        line = f"{self.kind}:{self.target}{_write_options(self.options)}"
        if self.prompt:
            line += f"+prompt:{self.prompt}"
        if self.shots:
            line += f"+fewshot:{self.shots}{':nearest' if self.nearest else ''}"
        if self.rag:
            line += f"+rag:{self.rag}" + (f"?k={self.passages}" if self.passages != PASSAGES else "")
        return line


def parse_spec(line: str) -> Spec:
    """Raises InputError that names the nearest form for a line that cannot be read."""
    head, *rest = _LAYER.split(line.strip())
    spec = _parse_head(head, line)
    seen: set[str] = set()
    for name, argument in zip(rest[::2], rest[1::2], strict=True):
        if name not in LAYERS:
            raise _unreadable(line, did_you_mean(f"+{name}:", [f"+{known}:" for known in LAYERS], what="additions"))
        if name in seen or (name == "fewshot" and spec.shots) or (name == "rag" and spec.rag):
            raise _unreadable(line, f"It says +{name}: twice; say it once.")
        seen.add(name)
        spec = _add(spec, name, argument=argument, line=line)
    return spec


def is_spec(line: str) -> bool:
    """Whether a line begins as a contender does; otherwise it may be the name of a base."""
    return line.partition(":")[0] in HEADS


def _parse_head(head: str, line: str) -> Spec:
    kind, colon, target = head.partition(":")
    if kind not in HEADS or not colon:
        near = get_close_matches(kind, HEADS, n=1)
        raise _unreadable(line, f"Did you mean {HEADS[near[0]]}?" if near else _forms())
    if kind == "fewshot":
        if not (found := re.fullmatch(rf"(.+?):({_SHOTS.pattern})", target, re.DOTALL)):
            raise _unreadable(line, f"Write {HEADS[kind]}.")
        return _add(_parse_inner(found[1], line), "fewshot", argument=found[2], line=line)
    if kind == "rag":
        model, _, docs = target.rpartition(":")
        return _add(_parse_inner(model, line), "rag", argument=docs, line=line)
    if kind == "url":
        return _parse_url(target, line)
    if not target:
        raise _unreadable(line, f"Write {HEADS[kind]}.")
    return Spec(kind, target)


def _parse_inner(model: str, line: str) -> Spec:
    """Of `fewshot:` and `rag:`: a base by its name, or any contender in its own line."""
    if not model:
        raise _unreadable(line, _forms())
    return _parse_head(model if is_spec(model) else f"base:{model}", line)


def _parse_url(target: str, line: str) -> Spec:
    url, _, rest = target.partition("#")
    model, _, query = rest.partition("?")
    if not model or not url.startswith(("http://", "https://")):
        raise _unreadable(line, f"Write {HEADS['url']}.")
    return Spec("url", f"{url}#{model}", _parse_options(query, line))


def _add(spec: Spec, name: str, *, argument: str, line: str) -> Spec:
    if name == "prompt" and argument:
        return replace(spec, prompt=argument)
    if name == "fewshot" and (found := _SHOTS.fullmatch(argument)):
        return replace(spec, shots=int(found[1]), nearest=bool(found[2]))
    if name == "rag" and (found := _PASSAGES.fullmatch(argument)):
        return replace(spec, rag=found[1], passages=int(found[2] or PASSAGES))
    raise _unreadable(line, f"Write {LAYERS[name]}.")


# -- options of a server ---------------------------------------------------------------------------------------------


def _read_as() -> Mapping[str, type]:
    kinds = {"str": str, "int": int, "int | None": int}
    return {field.name: kinds.get(str(field.type), float) for field in dataclasses.fields(RemoteOptions)}


def _parse_options(query: str, line: str) -> RemoteOptions:
    found: dict[str, Any] = {}
    read_as = _read_as()
    for item in query.split("&") if query else []:
        name, _, value = item.partition("=")
        if name not in read_as:
            raise _unreadable(line, did_you_mean(name, read_as, what="options of a server"))
        try:
            found[name] = read_as[name](value)
        except ValueError as error:
            raise _unreadable(line, f"{name} is {value!r}: give a number.") from error
    return RemoteOptions(**found)


def _write_options(options: RemoteOptions) -> str:
    plain = RemoteOptions()
    changed = {name: value for name in _read_as() if (value := getattr(options, name)) != getattr(plain, name)}
    return "?" + "&".join(f"{name}={value}" for name, value in changed.items()) if changed else ""


def _unreadable(line: str, todo: str) -> InputError:
    return InputError(f"The contender {line!r} cannot be read.", todo)


def _forms() -> str:
    return f"Write one of: {'; '.join(HEADS.values())}; each with {', '.join(LAYERS.values())} after it."


# -- what a line names -----------------------------------------------------------------------------------------------


def remote_contender(spec: Spec) -> UrlContender:
    url, _, model = spec.target.partition("#")
    return UrlContender(url, model, options=spec.options)


def put_layers(model: Contender, spec: Spec, *, name: str, parts: Parts) -> Contender:
    """The contender that a line names, around its model. Examples see the question as it was asked, so they are
    outermost; passages are put beside it next, and the system prompt is replaced last.

    Raises InputError for files that cannot be read, and for parts that were not given.
    """
    contender = parts.keep(model)
    if spec.prompt:
        contender = PromptedContender(contender, _read_prompt(spec.prompt), name=name)
    if spec.rag:
        if parts.open_index is None:
            raise InputError(f"{name} needs documents, which this command does not open.", "Leave +rag: out.")
        contender = RetrievalContender(contender, parts.open_index(spec.rag, spec.passages), name=name)
    if spec.shots:
        contender = _few_shot(contender, spec, name=name, parts=parts)
    return contender


def _few_shot(contender: Contender, spec: Spec, *, name: str, parts: Parts) -> Contender:
    shots = shots_of(parts.examples)
    if not shots:
        raise InputError(f"{name} has no examples to show.", "Give training rows: --examples FILE.")
    nearest = None
    if spec.nearest:
        if parts.search_texts is None:
            raise InputError(f"{name} searches examples, which this command cannot.", "Leave :nearest out.")
        nearest = parts.search_texts([question_of(shot.prompt) for shot in shots])
    return FewShotContender(contender, shots, k=spec.shots, nearest=nearest, name=name)


def _read_prompt(file: str) -> str:
    try:
        text = Path(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The prompt file {file} cannot be read: {error}.", "Check its path.") from error
    if not text:
        raise InputError(f"The prompt file {file} is empty.", "Write the system prompt into it.")
    return text
