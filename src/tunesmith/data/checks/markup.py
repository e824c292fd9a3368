"""HTML that was left in prose: tags and entities, told apart from code, generics, placeholders and talk about HTML.

Not here: system prompts with XML-like parts, which are meant so (text does not ask about them).
Called by text and language, and by fix.
"""

from __future__ import annotations

import html
import re

# Tags that alone are proof; names that a placeholder could have ("<link>", "<title>", "<input>") count with attributes.
BLOCKS = "p|div|span|ul|ol|li|tr|td|th|table|tbody|thead|h[1-6]|strong|em|blockquote|center|font"
OTHERS = "a|b|i|u|img|html|body|head|meta|link|script|style|iframe|input|button|form|label|select|option|svg|sup|sub"
TAG = re.compile(
    rf"<(?:br|hr)\s*/?>|</(?:{BLOCKS}|a|b|i|u|html|body|sup|sub)\s*>|(?<!\w)<(?:{BLOCKS})\s*/?>"
    rf"|<(?:br|hr|{BLOCKS}|{OTHERS})\s+[a-z:-]+\s*=\s*[\"'\w][^<>]*>",
    re.IGNORECASE,
)
ENTITY = re.compile(r"&(?:[a-zA-Z][a-zA-Z0-9]{1,30}|#\d{2,6}|#[xX][0-9a-fA-F]{2,5});")
ABOUT_HTML = re.compile(
    r"\b(?:x?html\d?|xml|css|javascript|jsx|tsx|svg|php|markup|web ?pages?|wordpress|jinja)\b",
    re.IGNORECASE,
)
QUOTED_CODE = re.compile(r"```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)|`[^`\n]+`|(?<!\w)(['\"])<[^<>\n]{1,40}>\1", re.DOTALL)
CODE_LINE = re.compile(
    r"^[+-]?\s*(?:[@#]\s?\w+.*|//.*|/\*.*|\*/|import \w.*|from \w[\w.]* import .*|(?:def|class|function|func|fn|struct"
    r"|public|private|protected|static|const|let|var|return|if|for|while|elif|else|try|except|catch|switch|case)\b"
    r".*[:;{(].*"
    r"|[\w.$]+\s*(?:[+*/-]?=|:=|=>)\s*\S.*|.*[;{}]|[)\]}]+[,;]?|<\?.*|#include.*|\$ \w+.*)\s*$"
)
SQL = re.compile(
    r"^\s*(?:SELECT\b.+\bFROM\b|INSERT INTO\b|UPDATE \w+ SET\b|CREATE (?:TABLE|VIEW|INDEX)\b|DELETE FROM\b)", re.S
)
NAMED_TAG = re.compile(
    r"\b(?:using|use|uses|the|an?|with|insert|add|put|like|of|and|or|no)\s\Z", re.IGNORECASE
)  # talk of it
ANY_TAG = re.compile(r"<[^<>]+>")
BREAK = re.compile(r"<(?:br|hr|/p|/div|/li|/tr|/h[1-6])\b[^<>]*>", re.IGNORECASE)


def looks_like_code(text: str) -> bool:
    """Whether this is source, a diff, SQL or JSON rather than prose: half of its lines are, or it starts as one."""
    start = text.lstrip()[:1]
    if start in "{[" and text.rstrip()[-1:] in "}]" and '"' in text:
        return True
    if SQL.match(text):
        return True
    lines = [line for line in text.splitlines() if line.strip()]
    return len(lines) > 1 and 2 * sum(CODE_LINE.match(line) is not None for line in lines) >= len(lines)


def find_html(text: str) -> str | None:
    """The first tag or entity that was left in prose, or None."""
    if "<" not in text and "&" not in text:
        return None
    if not (TAG.search(text) or ENTITY.search(text)):
        return None
    prose = QUOTED_CODE.sub(" ", text)
    found = next((hit for hit in TAG.finditer(prose) if not NAMED_TAG.search(prose, 0, hit.start())), None)
    found = found or next((hit for hit in ENTITY.finditer(prose) if _is_entity(hit.group())), None)
    if found is None or ABOUT_HTML.search(ANY_TAG.sub(" ", prose)) or looks_like_code(prose):
        return None
    return found.group()


def plain_text(text: str) -> str:
    """The text without its tags and with its entities as characters; breaks and ends of blocks become line ends."""
    if find_html(text) is None:
        return text
    text = BREAK.sub("\n", text)
    text = re.sub(rf"</?(?:br|hr|{BLOCKS}|{OTHERS})(?:\s[^<>]*)?/?>", "", text, flags=re.IGNORECASE)
    text = html.unescape(text).replace("\xa0", " ")
    return re.sub(r"[ \t]+\n", "\n", re.sub(r"\n{3,}", "\n\n", text)).strip()


def _is_entity(text: str) -> bool:
    return html.unescape(text) != text and ";" not in html.unescape(text)
