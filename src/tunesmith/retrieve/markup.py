"""Markdown and HTML as sections under their headings. Scripts are left out, and nothing is fetched or run.

Not here: files and limits (documents).
Called by documents.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import unescape

from tunesmith.retrieve.section import Section

HEADING = re.compile(r" {0,3}(#{1,6})(?:[ \t]+(.*?))??(?:[ \t]+#+)?[ \t]*")
UNDERLINE = re.compile(r" {0,3}(=+|-+)[ \t]*")
FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
FRONT_MATTER = re.compile(r"---[ \t]*\n(.*?)^(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL | re.MULTILINE)
FRONT_TITLE = re.compile(r"^title:[ \t]*[\"']?(.+?)[\"']?[ \t]*$", re.MULTILINE)
NO_PARAGRAPH = re.compile(r"\s*(?:[-*+>|]|\d+[.)])\s")  # list, quote or table: a line of --- below is no underline
CHARSET = re.compile(rb"<meta[^>]{0,200}?charset=[\"']?([\w-]{2,30})", re.IGNORECASE)

# A comment, a declaration, or a tag with its attributes. Each runs to its end or the page's, as in a browser, and gives
# nothing back: Python's own parser takes minutes for 400 KB of made-up marks.
TAG = re.compile(
    r"<!--.*?(?:-->|\Z)|<[!?][^>]*+(?:>|\Z)|</(?![a-z])[^>]*+(?:>|\Z)"
    r"|<(/?)([a-z][^\s/>]*+)(?:[^>=]++|=\s*+(?:\"[^\"]*+(?:\"|\Z)|'[^']*+(?:'|\Z))?+)*+(?:>|\Z)",
    re.DOTALL | re.IGNORECASE,
)
HEADING_TAGS = ("h1", "h2", "h3", "h4", "h5", "h6")
RAW_TAGS = ("script", "style")
SILENT_TAGS = ("nav", "template")  # left out where they are closed: a tag never closed must not swallow the page
BLOCK_TAGS = (
    "address", "article", "aside", "blockquote", "body", "dd", "details", "div", "dl", "dt", "fieldset", "figcaption",
    "figure", "footer", "form", "header", "hr", "li", "main", "ol", "p", "pre", "section", "summary", "table", "tbody",
    "thead", "tr", "ul",
)  # fmt: skip


class Outline:
    """Headings seen so far; puts a section together for each."""

    def __init__(self, title: str = "") -> None:
        self.title = title  # of the whole document
        self.sections: list[Section] = []
        self.path: list[tuple[int, str]] = []

    def close(self, text: str) -> None:
        """End the section under the present headings. A heading with nothing below it still is text."""
        titles = tuple(title for _, title in self.path if title)
        if self.title and titles[:1] != (self.title,):
            titles = (self.title, *titles)
        if text.strip():
            self.sections.append(Section(titles, text))

    def open(self, level: int, title: str) -> None:
        self.path = [(above, name) for above, name in self.path if above < level] + [(level, title)]


def markdown_sections(text: str) -> list[Section]:
    """One section a heading (`#` or underlined); the heading's line is the first of its section. Code is never read for
    headings, and front matter gives only the document's title."""
    title = ""
    if front := FRONT_MATTER.match(text):
        found = FRONT_TITLE.search(front[1])
        title = found[1].strip() if found else ""
    outline = Outline(title)
    lines = text.splitlines(keepends=True)
    start = text[: front.end()].count("\n") if front and title else 0
    for number, level, name in _headings(lines, start):
        outline.close("".join(lines[start:number]))
        outline.open(level, name)
        start = number
    outline.close("".join(lines[start:]))
    return outline.sections


def _headings(lines: list[str], start: int) -> Iterator[tuple[int, int, str]]:
    """Number of the heading's line, its level, its words."""
    fence = ""
    for number in range(start, len(lines)):
        line = lines[number].rstrip("\n")
        if opening := FENCE.match(line):
            if not fence:
                fence = opening[1]
            elif opening[1][0] == fence[0] and len(opening[1]) >= len(fence) and not line.strip().strip(fence[0]):
                fence = ""
        elif fence:
            continue
        elif heading := HEADING.fullmatch(line):
            yield number, len(heading[1]), (heading[2] or "").strip()
        elif (under := UNDERLINE.fullmatch(line)) and number > start and _may_be_underlined(lines, number - 1):
            yield number - 1, 1 if under[1][0] == "=" else 2, lines[number - 1].strip()


def _may_be_underlined(lines: list[str], number: int) -> bool:
    """A line of its own, no list, quote, table, code or heading."""
    line = lines[number]
    alone = number == 0 or not lines[number - 1].strip()
    other = NO_PARAGRAPH.match(line) or HEADING.fullmatch(line.rstrip("\n")) or FENCE.match(line) or "|" in line
    return bool(line.strip()) and alone and not other and not line.startswith(("    ", "\t"))


def decode_html(content: bytes) -> str:
    """By its byte order mark, its declared charset, UTF-8, or Windows-1252, which reads every byte, as browsers do."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16", errors="replace")
    declared = CHARSET.search(content[:2048])
    for name in (declared[1].decode() if declared else "utf-8", "utf-8-sig"):
        try:
            return content.decode(name).removeprefix("\ufeff")
        except (UnicodeDecodeError, LookupError):
            continue
    return content.decode("cp1252", errors="replace")


def html_sections(page: str) -> list[Section]:
    """One section a heading; blocks are paragraphs, cells are divided by bars, `pre` keeps its lines."""
    reader = _Reader()
    position = 0
    while match := TAG.search(page, position):
        reader.text(unescape(page[position : match.start()]))
        position = match.end()
        closing, name = match[1], (match[2] or "").lower()
        if closing:
            reader.end(name)
        elif name in RAW_TAGS:
            raw_end = re.compile(rf"</{name}(?=[\s/>])", re.IGNORECASE).search(page, position)
            position = raw_end.start() if raw_end else len(page)
        elif name:
            reader.start(name)
    reader.text(unescape(page[position:]))
    reader.close_section()
    return reader.outline.sections


class _Reader:
    """Tags and texts in the order of the page, to sections."""

    def __init__(self) -> None:
        self.outline = Outline()
        self.parts: list[str] = []
        self.heading = self.pre = 0
        self.in_title = False
        self.silent: list[tuple[str, int]] = []  # open tags whose text goes when they close: where it began

    def close_section(self) -> None:
        text = re.sub(r"[ \t]*\n[ \t]*\n\s*", "\n\n", "".join(self.parts)).strip()
        self.outline.close(text)
        self.parts, self.silent = [], []

    def start(self, tag: str) -> None:
        self.in_title = tag == "title"  # a title that is never closed must not swallow the page
        if tag in HEADING_TAGS:
            self.close_section()
            self.heading = int(tag[1])
        elif tag in BLOCK_TAGS:
            self.parts.append("\n\n- " if tag == "li" else "\n\n")
            self.pre += tag == "pre"
        elif tag in ("td", "th"):
            self.parts.append(" | ")
        elif tag == "br":
            self.parts.append("\n")
        elif tag in SILENT_TAGS:
            self.silent.append((tag, len(self.parts)))

    def end(self, tag: str) -> None:
        if tag == "title":
            self.in_title = False
        elif tag in HEADING_TAGS and self.heading:
            title = " ".join("".join(self.parts).split())
            self.outline.open(self.heading, title)
            self.parts, self.heading = [title, "\n\n"], 0
        elif tag in BLOCK_TAGS:
            self.parts.append("\n\n")
            self.pre -= tag == "pre" and self.pre > 0
        elif self.silent and self.silent[-1][0] == tag:
            del self.parts[self.silent.pop()[1] :]

    def text(self, text: str) -> None:
        if self.in_title:
            self.outline.title = self.outline.title or " ".join(text.split())
        elif text:
            self.parts.append(text if self.pre else re.sub(r"\s+", " ", text))
