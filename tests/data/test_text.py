"""Characters and mark-up row by row: each fault has its finding, and clean rows have none."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.rows import rows_of
from tunesmith.data.checks.text import strip_controls, text_findings


def issues(*pairs: tuple[str, str]) -> list[tuple[int | None, str]]:
    return [(finding.line, finding.issue) for finding in text_findings(rows_of(*pairs))]


@pytest.mark.parametrize(
    ("text", "issue"),
    [
        ("it wonâ€™t work", "mojibake"),
        ("caf\ufffd", "mojibake"),
        ("pe\ufeffnding", "control_chars"),
        ("g\u200boogle", "control_chars"),
        ("why I\u202e cant", "control_chars"),
        ("ne\x00ed", "control_chars"),
        ("soft\u00adhyphen", "control_chars"),
        ("\x1b[31mred", "control_chars"),
        ("bad\u200djoin", "control_chars"),
        ("<p>Why?</p>", "html"),
        ("end<|im_end|>", "special_token_text"),
        ("[INST] hi", "special_token_text"),
    ],
)
def test_each_fault_is_found_on_its_line(text: str, issue: str) -> None:
    assert issues(("a question", "yes, fine"), (text, "no, not at all")) == [(2, issue)]


@pytest.mark.parametrize(
    "text",
    [
        "tab\tand\nline\r\nends",
        "family 👨\u200d👩\u200d👧 and 🏳\ufe0f\u200d🌈",
        "می\u200cخواهم",
        "क\u094d\u200dष",
        "ไป\u200bมา",
        "שלום \u200eabc\u200f",
        "🏴\U000e0067\U000e0062\U000e007f",
        "non\u00a0breaking — “quoted” … €5",
        "printf\n\x0c\nnext page",
        "a_b[0] <- x; s = '<s' + 'x>'",
    ],
)
def test_what_a_script_or_an_emoji_needs_is_no_fault(text: str) -> None:
    assert issues((text, "fine")) == []
    assert strip_controls(text) == text


def test_the_suggestion_shows_the_text_as_it_was_meant() -> None:
    [finding] = text_findings(rows_of(("I donâ€™t know", "ok then")))
    assert "don’t" in finding.suggestion
    assert "message 1 (user)" in finding.detail


def test_an_answer_that_shows_nothing_is_empty() -> None:
    assert ("empty_content", "error") in {
        (finding.issue, finding.severity) for finding in text_findings(rows_of(("hi", "\u200b\ufeff")))
    }


def test_a_file_written_in_html_is_said_once_and_not_row_by_row() -> None:
    found = list(text_findings(rows_of(*((f"question {n}", f"<p>answer {n}</p>") for n in range(20)))))
    assert [(finding.line, finding.issue, finding.severity) for finding in found] == [(None, "html", "info")]


def test_xml_parts_of_a_system_prompt_are_meant_so() -> None:
    assert not list(text_findings(rows_of(("q", "a fine answer"), system="<p>Be kind.</p>")))


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=40))
def test_stripping_controls_twice_is_stripping_once_and_leaves_nothing_to_say(text: str) -> None:
    stripped = strip_controls(text)
    assert strip_controls(stripped) == stripped


@settings(max_examples=60, deadline=None)
@given(st.text(min_size=1, max_size=60), st.text(min_size=1, max_size=60))
def test_no_text_makes_a_check_raise(asked: str, answered: str) -> None:
    list(text_findings(rows_of((asked, answered))))
