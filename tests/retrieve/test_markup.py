"""Markdown and HTML: headings become title paths, code and scripts do not."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.retrieve.markup import decode_html, html_sections, markdown_sections

MARKDOWN = """---
title: "The handbook"
tags: [a]
---
Before.

# Refunds
Money goes back.

```bash
# no heading
```

## Cards ##
To the card.

Deadlines
---------
30 days.
| a | b |
|---|---|

# Other
"""

PAGE = """<!doctype html><html><head><title>Shop &amp; help</title>
<style>h1 { color: red }</style><script>document.write("<h1>no</h1>")</script></head>
<body><nav><a href=/>Home</a></nav><p>Welcome <b>back</b>.</p><h1>Refunds</h1><ul><li>fast<li>free</ul>
<h2>By&nbsp;card</h2><table><tr><td>30</td><td>days</td></tr></table><pre>a
  b</pre></body></html>"""


def test_markdown_headings_become_the_path_above_each_section() -> None:
    sections = markdown_sections(MARKDOWN)
    assert [section.titles for section in sections] == [
        ("The handbook",),
        ("The handbook", "Refunds"),
        ("The handbook", "Refunds", "Cards"),
        ("The handbook", "Refunds", "Deadlines"),
        ("The handbook", "Other"),
    ]
    assert "# no heading" in sections[1].text
    assert sections[3].text.startswith("Deadlines\n---------\n30 days.")


LINES = ["# A", "## B", "#hash", "text", "text", "---", "===", "```", "~~~", "    # code", "", "- item", "| a |"]


@given(st.lists(st.sampled_from(LINES), max_size=25))
@settings(max_examples=150, deadline=None)
def test_markdown_sections_hold_every_line_once_and_in_order(lines: list[str]) -> None:
    text = "\n".join(["start", *lines])
    held = "\n".join(section.text for section in markdown_sections(text))
    assert [line for line in held.splitlines() if line.strip()] == [line for line in text.splitlines() if line.strip()]


def test_html_keeps_what_is_read_and_leaves_out_scripts_styles_and_navigation() -> None:
    sections = html_sections(PAGE)
    assert [(section.titles, " ".join(section.text.split())) for section in sections] == [
        (("Shop & help",), "Welcome back."),
        (("Shop & help", "Refunds"), "Refunds - fast - free"),
        (("Shop & help", "Refunds", "By card"), "By card | 30 | days a b"),
    ]
    assert "a\n  b" in sections[2].text


def test_tags_that_are_never_closed_do_not_swallow_the_page() -> None:
    text = "".join(section.text for section in html_sections("<title>T<body><nav><p>one<template><p>two<h2>three"))
    assert all(word in text for word in ("one", "two", "three"))


def test_html_is_decoded_by_what_it_declares_and_never_refused() -> None:
    assert decode_html('<meta charset="iso-8859-1">für'.encode("latin-1")).endswith("für")
    assert decode_html("für".encode()) == "für"
    assert decode_html("“für”".encode("cp1252")) == "“für”"
    assert decode_html(b"<meta charset=no-such>f") == "<meta charset=no-such>f"
    assert decode_html("ü".encode("utf-16")) == "\ufeffü".strip("\ufeff")


@given(st.text(alphabet="<>/!-abh1 p\"'=&;?[]", max_size=200))
@settings(max_examples=200, deadline=None)
def test_no_page_breaks_the_reader(page: str) -> None:
    html_sections(page)
