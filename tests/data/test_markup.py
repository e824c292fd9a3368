"""HTML left in prose is seen; code, generics, placeholders and talk about HTML are not taken for it."""

import pytest

from tunesmith.data.checks.markup import find_html, looks_like_code, plain_text


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("<p>Where is my card?</p>", "Where is my card?"),
        ('<div class="msg">Why?&nbsp;</div>', "Why?"),
        ("Thanks<br/><br/>Bye", "Thanks\n\nBye"),
        ("Tom &amp; Jerry don&#39;t", "Tom & Jerry don't"),
        ("a <b>bold</b> claim", "a bold claim"),
        ('see <a href="https://x.org">here</a>', "see here"),
        ("Terms &amp; conditions &ndash; 5 &euro;", "Terms & conditions – 5 €"),
    ],
)
def test_tags_and_entities_in_prose_are_found_and_taken_out(text: str, plain: str) -> None:
    assert find_html(text)
    assert plain_text(text) == plain
    assert find_html(plain) is None


@pytest.mark.parametrize(
    "text",
    [
        "List<String> and Map<K, V> and vector<int>",
        "I <3 this, and 2 < 3 > 1",
        "your order <order id> of <name>, {{Order Number}}",
        "p<0.05 was found, with a <b and c> d",
        "How do I centre a <div> in CSS?",
        "Use `<br>` to break, or:\n```\n<p>x</p>\n```",
        "The HTML says <p>hi</p>, what does it mean?",
        "write it using <br> between the lines",
        "AT&T and R&D; Q&A;",
        "wrapped in <<title>>, please",
        "const x = <div>{y}</div>;\nreturn x;\nif (a) {\n  b();\n}",
        "SELECT a FROM t WHERE a <> b AND c < 3",
        "<document>\ntext\n</document>",
    ],
)
def test_what_only_looks_like_html_is_left_alone(text: str) -> None:
    assert find_html(text) is None
    assert plain_text(text) == text


@pytest.mark.parametrize(
    "text", ['{"a": 1}', '[1, "b"]', "+import x\n-import y\n+def f():", "SELECT a FROM t", "x = 1\ny = f(x)"]
)
def test_code_is_known(text: str) -> None:
    assert looks_like_code(text)


@pytest.mark.parametrize(
    "text", ["Hello.\nHow are you?", "- milk\n- eggs", "Dear Ann,\n\nthanks!\n\nBob", "Select a seat from the map"]
)
def test_prose_is_no_code(text: str) -> None:
    assert not looks_like_code(text)
