"""UTF-8 that was read as Latin-1 or Windows-1252 ("donâ€™t"), once or several times: found and repaired.

Not here: bytes that are no UTF-8 at all (load), other wrong code pages, what is lost for good (U+FFFD; text says it).
Called by text, and by fix.
"""

from __future__ import annotations

import re

MAX_ROUNDS = 4  # text that was spoilt more than three times in a row is not seen in the wild
EXTENDED = "ąćęłńśźżčďěňřšťůžğışőűăşţāēģīķļņūœ"  # of Latin Extended-A only what languages use: Ŕ or Ĕ would be chance
EXTENDED_LETTERS = frozenset(EXTENDED + EXTENDED.upper() + "İŸ")
CLOSING = frozenset("»”’“…–—™®°·ªº")  # may follow a capital by right: "IRMÃ”", "«MAÇÃ»"


def _bytes_by_char() -> dict[str, int]:
    """What each character above ASCII was as a byte, by both code pages."""
    table = {chr(byte): byte for byte in range(0x80, 0x100)}
    for byte in range(0x80, 0xA0):
        if char := bytes([byte]).decode("cp1252", "ignore"):
            table[char] = byte
    return table


BYTES_BY_CHAR = _bytes_by_char()
TAIL = "[" + "".join(re.escape(char) for char, byte in BYTES_BY_CHAR.items() if 0x80 <= byte < 0xC0) + "]"
RUN = re.compile(f"(?:[Â-ß]{TAIL}|[à-ï]{TAIL}{{2}}|[ð-ô]{TAIL}{{3}})+")
# What stays when the last byte got lost: a closing quote (its 0x9D has no character) and à or a space that was trimmed.
REMAINS = re.compile(r"â€\ufffd?|(?<=[a-zß-ÿ])Ã[ \xa0]?(?!\w)|(?<![A-ZÀ-Þ])Â(?=\s|$)")


def repair(text: str) -> str:
    """The text as it was meant; the same text when nothing in it is mojibake beyond doubt."""
    if text.isascii():
        return text
    for _ in range(MAX_ROUNDS):
        better = RUN.sub(_decode, text)
        if better == text:
            break
        text = better
    return REMAINS.sub(_guess, text)


def _decode(match: re.Match[str]) -> str:
    run = match.group()
    try:
        meant = bytes(BYTES_BY_CHAR[char] for char in run).decode("utf-8")
    except UnicodeDecodeError:
        return run
    before = match.string[max(0, match.start() - 1) : match.start()]
    if len(meant) == 1 and before.isupper() and run[-1] in CLOSING and len(run) == 2:
        return run
    return meant if _plausible(meant) else run


def _plausible(meant: str) -> bool:
    """One character is believed where chance does not make it; of other scripts it takes two letters in a row."""
    if all("\xa0" <= char <= "\xff" or char in EXTENDED_LETTERS for char in meant):
        return True
    if any("\u2000" <= char <= "\u2bff" or "\U0001f000" <= char <= "\U0001faff" for char in meant):
        return True
    return len(meant) > 1 and sum(char.isalpha() for char in meant) > 1


def _guess(match: re.Match[str]) -> str:
    found = match.group()
    if found.startswith("â€"):
        return "”"
    return "" if found == "Â" else "à" + ("" if len(found) == 1 else " ")
