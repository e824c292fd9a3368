"""A row of the test file in the training file is found in any spelling, whatever its answer."""

from __future__ import annotations

from tests.data.rows import rows_of
from tunesmith.data.checks.leaks import leaks


def test_verbatim_is_an_error_and_another_spelling_a_warning_and_both_name_the_test_line() -> None:
    test = rows_of(("How do I top up?", "top_up"), ("Where can I get a second card?", "spare"))
    rows = rows_of(
        ("Something else entirely", "x"),
        ("Where can I get  a second card?", "other"),
        ("where can i get a second card", "spare"),
        ("Hi, where can I get a secnod card?", "spare"),
        ("Where can I get a second phone?", "spare"),
        system="Another prompt",
    )
    found = [(item.line, item.issue, item.severity, item.related) for item in leaks(rows, test)]
    assert sorted(found) == [
        (2, "leaked_test", "error", 2),
        (3, "leaked_test_near", "warning", 2),
        (4, "leaked_test_near", "warning", 2),
    ]


def test_nothing_leaks_from_or_into_an_empty_file() -> None:
    rows = rows_of(("How do I top up?", "top_up"))
    assert list(leaks(rows, [])) == []
    assert list(leaks([], rows)) == []
