"""Rows of a training file that stand in the file it will be judged on, word for word or nearly so.

Not here: duplicates inside one file (near).
Called by data.check when a second file is named.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tunesmith.data.checks.near import request_pairs
from tunesmith.data.checks.wording import normal_text, request_text
from tunesmith.data.finding import Finding
from tunesmith.data.load import SourceRow

TAKE_OUT = "Take it out of one of the two files: a score on it says nothing."


def leaks(rows: Sequence[SourceRow], against: Sequence[SourceRow]) -> Iterator[Finding]:
    """Rows that ask what a row of `against` asks, whatever the answers. Verbatim (but for whitespace) is an error: the
    row must not be trained on. Another spelling or a changed function word is a warning. `related` is its line there.
    """
    verbatim: dict[str, int] = {}
    normal: dict[str, int] = {}
    for row in against:
        text = request_text(row.example)
        verbatim.setdefault(" ".join(text.split()), row.line)
        normal.setdefault(normal_text(text), row.line)
    rest: dict[str, list[SourceRow]] = {}
    for row in rows:
        text = request_text(row.example)
        if line := verbatim.get(" ".join(text.split())):
            yield _finding(row.line, line, "leaked_test", "error")
        elif line := normal.get(normal_text(text)):
            yield _finding(row.line, line, "leaked_test_near", "warning")
        else:
            rest.setdefault(normal_text(text), []).append(row)
    yield from _near_leaks(list(rest.values()), against)


def _near_leaks(groups: Sequence[Sequence[SourceRow]], against: Sequence[SourceRow]) -> Iterator[Finding]:
    """`groups` hold rows with one normal form each, none of which stands in `against`."""
    tests = list({normal_text(request_text(row.example)): row for row in reversed(against)}.values())
    texts = [request_text(row.example) for row in (*(group[0] for group in groups), *tests)]
    line_of: dict[int, int] = {}
    for first, second in request_pairs(texts, wanted=lambda one, two: one < len(groups) <= two):
        line = tests[second - len(groups)].line
        line_of[first] = min(line, line_of.get(first, line))
    for number, line in sorted(line_of.items()):
        for row in groups[number]:
            yield _finding(row.line, line, "leaked_test_near", "warning")


def _finding(line: int, related: int, issue: str, severity: str) -> Finding:
    how = "word for word" if issue == "leaked_test" else "in nearly the same words"
    detail = f"asks what line {related} of the file to be judged on asks, {how}."
    return Finding(line, issue, severity, detail, TAKE_OUT, related=related)
