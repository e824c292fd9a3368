"""What is wrong inside a text: spoilt encoding, invisible characters, mark-up, stock answers, control tokens.

Not here: which language it is in (language), personal data and secrets (personal), what a fix makes of it (fix).
Called by check; fix uses `strip_controls`.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache

from tunesmith.chat import Message
from tunesmith.data.checks.boilerplate import boilerplate_findings
from tunesmith.data.checks.markup import ABOUT_HTML, find_html, plain_text
from tunesmith.data.checks.mojibake import repair
from tunesmith.data.finding import Finding
from tunesmith.data.load import SourceRow

MAX_SHOWN_CHARS = 60
FORMAT_SHARE = 0.3  # of the texts of a role: from here on mark-up is how this file is written, not a fault of its rows
MIN_FORMAT_TEXTS = 10

SPECIAL_TOKEN = re.compile(
    r"<\|[A-Za-z0-9_]{1,40}\|>|<\uff5c[^<>\uff5c]{1,40}\uff5c>|\[/?INST\]|<</?SYS>>|</?s>|<(?:bos|eos|pad|unk)>"
    r"|<(?:start|end)_of_turn>"
)
# Characters that show nothing and that no text needs, wherever they stand.
NEVER = "\x00-\x08\x0b\x0e-\x1f\x7f-\x9f\xad\u180e\u2060-\u2064\u206a-\u206f\u202d\u202e\ufeff\ufff9-\ufffb\ufffe\uffff"
# Characters that some scripts, emoji and page breaks need: see `_needed`.
SOMETIMES = "\x0c\u200b-\u200f\u202a-\u202c\u2066-\u2069\U000e0020-\U000e007f"
CONTROL = re.compile(f"[{NEVER}{SOMETIMES}]")
RIGHT_TO_LEFT = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufeff]")
JOINING = re.compile("[\u0600-\u0dff\u0f00-\u0fff\u1000-\u109f\u1780-\u18af\ufb50-\ufdff\ufe70-\ufefe]")
UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u9fff]")
EMOJI = re.compile("[\u2190-\u2bff\ufe0f\u3030\U0001f000-\U0001faff\xa9\xae]")


def text_findings(rows: Sequence[SourceRow]) -> Iterator[Finding]:
    """Everything about characters and mark-up row by row, then the answers that say nothing."""
    tags = {(row.line, number): tag for row, number, tag in _html(rows)}
    formats = _html_formats(rows, tags)
    for role, (found, of) in formats.items():
        detail = f"{found} of {of} {role} texts hold HTML: taken as the form of this file, no row is reported for it."
        yield Finding(None, "html", "info", detail, "Leave it, if what reads the answers shows HTML.")
    suspect = lru_cache(maxsize=1000)(_suspect)  # labels and system prompts come again and again
    for row in rows:
        for number, message in enumerate(row.example.messages, start=1):
            tag = None if message.role in formats else tags.get((row.line, number))
            if tag or suspect(message.content):
                yield from _message_findings(row, number, message, tag=tag)
    yield from boilerplate_findings(rows)


def _suspect(text: str) -> bool:
    """Whether a closer look at the characters is worth it; False for most texts."""
    return not text.isascii() or "<" in text or "[" in text or CONTROL.search(text) is not None


def _message_findings(row: SourceRow, number: int, message: Message, *, tag: str | None) -> Iterator[Finding]:
    text, where = message.content, f"message {number} ({message.role})"
    if not text.isascii():
        yield from _mojibake(row.line, where, text)
    if CONTROL.search(text):
        yield from _controls(row.line, where, text)
    if tag:
        detail = f"{where} holds HTML: {_short(tag)}."
        yield Finding(row.line, "html", "warning", detail, f"Write it as plain text: {_short(plain_text(text))}.")
    if match := SPECIAL_TOKEN.search(text):
        detail = f"{where} holds {match.group()!r}, which models read as a control token."
        suggestion = "Take it out, unless the text is about such tokens; the chat template adds them."
        yield Finding(row.line, "special_token_text", "warning", detail, suggestion)


def _mojibake(line: int, where: str, text: str) -> Iterator[Finding]:
    meant = repair(text)
    if meant != text:
        at = next((at for at, (old, new) in enumerate(zip(text, meant, strict=False)) if old != new), len(meant))
        detail = f"{where} was UTF-8 but was read as Latin-1 or Windows-1252: {_short(text, at)}."
        yield Finding(line, "mojibake", "warning", detail, f"Write {_short(meant, at)}.")
    elif lost := text.count("\ufffd"):
        detail = (
            f"{where} holds {lost} U+FFFD, left where a character was lost: {_short(text, text.index(chr(0xFFFD)))}."
        )
        yield Finding(line, "mojibake", "warning", detail, "Take the text from its source again, read as UTF-8.")


def _controls(line: int, where: str, text: str) -> Iterator[Finding]:
    text = repair(text)  # half of a spoilt character may look like a control character
    if names := Counter(_name(text[at]) for at in _control_places(text)):
        listed = ", ".join(f"{name} ({count} times)" if count > 1 else name for name, count in names.items())
        suggestion = f"Take it out: {_short(strip_controls(text))}."
        if not strip_controls(text).strip():
            yield Finding(line, "empty_content", "error", f"{where} shows nothing: only {listed}.", "Write the text.")
        yield Finding(line, "control_chars", "warning", f"{where} holds {listed}, which nobody sees.", suggestion)


def strip_controls(text: str) -> str:
    """The text without characters that nobody sees; those that emoji and some scripts need stay."""
    if not CONTROL.search(text):
        return text
    places = set(_control_places(text))
    return "".join(char for at, char in enumerate(text) if at not in places) if places else text


def _control_places(text: str) -> list[int]:
    return [match.start() for match in CONTROL.finditer(text) if not _needed(text, match.start())]


def _needed(text: str, at: int) -> bool:
    """Joiners in emoji and joining scripts, breaks in scripts without spaces, direction marks beside right-to-left."""
    char, before, after = text[at], text[at - 1 : at], text[at + 1 : at + 2]
    if char == "\x0c":
        return before in ("", "\n") or after in ("", "\n")
    if char == "\u200b":
        return bool(UNSPACED.match(before) and UNSPACED.match(after))
    if char in "\u200c\u200d" and (JOINING.match(before) or JOINING.match(after)):
        return True
    if char == "\u200d":
        return bool(EMOJI.match(before) and EMOJI.match(after))
    if char in "\u200e\u200f\u202a\u202b\u202c\u2066\u2067\u2068\u2069":
        return RIGHT_TO_LEFT.search(text) is not None
    return char >= "\U000e0020" and "\U0001f3f4" in text


def _html(rows: Sequence[SourceRow]) -> Iterator[tuple[SourceRow, int, str]]:
    """Row, number of the message, and first tag of each text with HTML in rows that are not about HTML."""
    for row in rows:
        found = [
            (number, tag)
            for number, message in enumerate(row.example.messages, start=1)
            if message.content and message.role not in ("system", "developer") and (tag := find_html(message.content))
        ]
        if found and not any(ABOUT_HTML.search(message.content or "") for message in row.example.messages):
            yield from ((row, number, tag) for number, tag in found)


def _html_formats(rows: Sequence[SourceRow], tags: Collection[tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """The roles whose texts are HTML by habit, each with how many of how many are."""
    roles: Counter[str] = Counter()
    found: Counter[str] = Counter()
    for row in rows if len(tags) >= MIN_FORMAT_TEXTS else ():
        for number, message in enumerate(row.example.messages, start=1):
            roles[message.role] += 1
            found[message.role] += (row.line, number) in tags
    return {
        role: (count, roles[role])
        for role, count in found.items()
        if count >= max(MIN_FORMAT_TEXTS, FORMAT_SHARE * roles[role])
    }


def _name(char: str) -> str:
    name = unicodedata.name(char, "")
    return f"U+{ord(char):04X}" + (f" {name}" if name else "")


def _short(text: str, at: int = 0) -> str:
    """The text around a place, quoted, with what is not printable escaped."""
    start = max(0, min(at - MAX_SHOWN_CHARS // 2, len(text) - MAX_SHOWN_CHARS))
    cut = text[start : start + MAX_SHOWN_CHARS]
    return repr(("..." if start else "") + cut + ("..." if start + len(cut) < len(text) else ""))
