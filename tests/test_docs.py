"""The docs against the program: every command line shown exists, with its options, and so does every make target.

Also the lock file against pyproject.toml. That the commands do what the docs say is for the tests of each verb.
"""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
FENCE = re.compile(r"^[ \t]*(`{3,}|~{3,})[ \t]*(\S*)[^\n]*\n(.*?)^[ \t]*\1", re.MULTILINE | re.DOTALL)
SHELLS = ("", "sh", "bash", "shell", "zsh", "console")
SEPARATORS = frozenset("|&;<>()")


class Line(NamedTuple):
    place: str
    words: list[str]


def doc_files() -> list[Path]:
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md"), *ROOT.glob("recipes/**/*.md")]
    return sorted(path for path in found if path.exists())


def shown_commands(text: str, place: str) -> Iterator[Line]:
    """The simple commands in a page's fenced shell blocks; in a `console` block only what follows a `$`."""
    for fence in FENCE.finditer(text):
        language, body = fence[2].lower(), fence[3].replace("\\\n", " ")
        if language not in SHELLS:
            continue
        for line in body.splitlines():
            prompt, _, rest = line.strip().partition("$ ")
            if language == "console" and (prompt or not rest):
                continue
            yield from _simple_commands(rest if not prompt and rest else line, place)


def _simple_commands(line: str, place: str) -> Iterator[Line]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>()")
    lexer.whitespace_split = True
    try:
        tokens = list(lexer)
    except ValueError:  # a quote that ends on another line: not one of our commands
        return
    words: list[str] = []
    for token in [*tokens, ";"]:
        if set(token) <= SEPARATORS:
            while words and re.fullmatch(r"\w+=.*", words[0]):
                words.pop(0)  # NAME=value before a command
            if words:
                yield Line(f"{place}: {line.strip()}", words)
            words = []
        else:
            words.append(token)


def faults(line: Line, command: Any) -> Iterator[str]:
    """What of `tunesmith ...` the program does not know. `command` is the root of the command tree."""
    words, options = line.words[1:], _options(command)
    for position, word in enumerate(words):
        if word == "--":
            return
        if word.startswith("-") and len(word) > 1 and not word[1].isdigit():
            if word.partition("=")[0] not in options | {"--help"}:
                yield f"{line.place}: {command.name or 'tunesmith'} has no option {word}"
        elif getattr(command, "commands", None):
            if word not in command.commands:
                yield f"{line.place}: no command {' '.join(words[: position + 1])}"
                return
            command = command.commands[word]
            options = _options(command)


def _options(command: Any) -> set[str]:
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}


def all_lines() -> list[Line]:
    files = doc_files()
    return [
        line for file in files for line in shown_commands(file.read_text(encoding="utf-8"), str(file.relative_to(ROOT)))
    ]


def test_every_tunesmith_command_in_the_docs_exists_with_its_options() -> None:
    lines = [line for line in all_lines() if Path(line.words[0]).name == "tunesmith"]
    if not lines:
        pytest.skip("no page shows a tunesmith command yet")
    from typer.main import get_command

    from tunesmith.cli.main import app

    command = get_command(app)
    found = [fault for line in lines for fault in faults(line, command)]
    assert not found, "\n".join(found)


def test_every_make_target_in_the_docs_exists() -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    lines = [line for line in all_lines() if line.words[0] == "make"]
    for file in doc_files():
        inline = re.findall(r"`(make(?: [^`\n]+)?)`", file.read_text(encoding="utf-8"))
        lines += [line for text in inline for line in _simple_commands(text, file.name)]
    wrong = [
        f"{line.place}: no target {word}"
        for line in lines
        for word in line.words[1:]
        if re.fullmatch(r"[a-z][a-z-]*", word) and word not in targets
    ]
    assert not wrong, "\n".join(wrong)


PAGE = """
```bash
$ FAST=1 .venv/bin/tunesmith train data.jsonl --rank 8 | tee log   # a comment
tunesmith train --rnak=8 \\
    x.jsonl && tunesmith tarin -q
make demo FAST=1
```
```json
tunesmith nothing
```
```console
$ tunesmith --version
tunesmith 0.1.0
```
"""


def test_the_reader_of_the_docs_finds_commands_and_their_faults() -> None:
    import typer
    from typer.main import get_command

    app = typer.Typer()

    @app.command()
    def train(data: str, rank: int = typer.Option(16, "--rank", "-r")) -> None: ...

    @app.command()
    def check(data: str) -> None: ...

    @app.callback()
    def options(version: bool = typer.Option(False, "--version")) -> None: ...

    lines = list(shown_commands(PAGE, "page"))
    programs = [Path(line.words[0]).name for line in lines]
    assert programs == ["tunesmith", "tee", "tunesmith", "tunesmith", "make", "tunesmith"]
    found = [fault for line in lines if "tunesmith" in line.words[0] for fault in faults(line, get_command(app))]
    assert [fault.rsplit(": ", 1)[1] for fault in found] == ["train has no option --rnak=8", "no command tarin"]


def test_the_lock_pins_every_dependency_inside_its_range() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    pins = dict(line.split("==") for line in lock.splitlines() if line and not line.startswith("#"))
    for text in project["dependencies"] + project["optional-dependencies"]["dev"]:
        wanted = Requirement(text)
        assert wanted.specifier.contains(pins[canonicalize_name(wanted.name)]), f"{text}: run `make lock`"
