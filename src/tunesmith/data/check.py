"""What a person should see before training on a file: what is wrong, what looks odd, what was passed over, how large.

Not here: reading and refusing (load), the checks (one module per kind), mending (fix), showing (cli.check, page).
Called by the command `check`, and by any surface that shows a data set.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from tunesmith.data.checks import labels, language, leaks, near, personal, targets, text
from tunesmith.data.finding import SEVERITIES, Finding
from tunesmith.data.load import MAX_KEPT_PROBLEMS, Loaded, SourceRow
from tunesmith.data.read.scan import Scanned
from tunesmith.data.summary import Base, Say, Sizes, measure, num_chars, spread, summarise
from tunesmith.errors import InputError, did_you_mean

LARGE_BYTES = 200_000_000  # from here on rows are not held in memory unless asked for
MAX_NOTE_LINES = 1000
EXAMPLES = 3
LONG_CHARS = 8_000  # about 2,000 tokens: shorter rows fit every base
LONG_RATIO = 8
STRUCTURAL = (
    *("unreadable_file", "empty_file", "not_jsonl", "broken_csv", "missing_column", "format", "packed"),
    *("bom", "crlf", "blank_line", "invalid_utf8", "broken_json", "not_object", "mixed_format", "unread_key"),
    *("missing_messages", "empty_messages", "missing_assistant", "empty_content", "null_content", "unknown_role"),
    *("bad_order", "unsupported_content"),
)

Rows = Sequence[SourceRow]


class Check(NamedTuple):
    """One look at all rows: the issues it may report, and whether `--quick` leaves it out."""

    name: str
    issues: tuple[str, ...]
    find: Callable[..., Iterable[Finding]]  # takes the rows and, `with_tests`, those of the files of --against
    slow: bool = False
    with_tests: bool = False


@dataclass(frozen=True, slots=True)
class IssueGroup:
    """An issue with its worst severity, how often it was found, and its first findings. `suggestion` is empty where
    each finding has its own."""

    issue: str
    severity: str
    count: int
    suggestion: str
    lines: list[int | None]
    examples: list[Finding]


@dataclass(frozen=True, slots=True)
class CheckReport:
    """All that is known about a file; `ok` says that it can be trained on."""

    loaded: Loaded
    findings: list[Finding]
    summary: dict[str, Any]
    sizes: Sizes
    seconds: dict[str, float]  # of each check that ran
    not_run: dict[str, str]  # check -> why

    @property
    def ok(self) -> bool:
        return not self.loaded.problems

    def lines(self) -> list[Finding]:
        """The report: problems and notes as findings among the others, in the order of the lines."""
        problems = [
            Finding(fault.line, fault.issue, "error", fault.what, fault.todo, fault.column)
            for fault in self.loaded.problems
        ]
        return sorted(
            [*problems, *_noted(self.loaded), *self.findings], key=lambda found: (found.line or 0, found.issue)
        )

    def groups(self) -> list[IssueGroup]:
        """All that was found, by issue."""
        counts = Counter(self.loaded.problem_counts)
        counts.update(self.summary["findings_by_issue"])
        return group_by_issue(self.lines(), counts)

    def as_dict(self) -> dict[str, Any]:
        """The JSON document of `tunesmith check --json`."""
        lines_by_note = self.loaded.lines_by_note
        notes = [
            {**note.as_dict(), "lines": lines_by_note.get(note.issue, [])[:MAX_NOTE_LINES]}
            for note in self.loaded.notes
        ]
        return {
            "file": str(self.loaded.path),
            "sha256": self.loaded.sha256,
            "rows": self.summary["rows"],
            "lines": self.loaded.num_lines,
            "ok": self.ok,
            "problems": [problem.as_dict() for problem in self.loaded.problems],
            "notes": notes,
            "findings": [finding.as_dict() for finding in self.findings],
            "summary": self.summary,
            "seconds": self.seconds,
            "not_run": self.not_run,
        }


def check(
    loaded: Loaded,
    *,
    against: Sequence[Loaded] = (),
    base: Base | None = None,
    issues: Collection[str] | None = None,
    quick: bool = False,
    say: Say = lambda text: None,
) -> CheckReport:
    """Look through the rows that could be read; never raises on bad data.

    `issues` are the names wanted (`choose_issues`); checks that report none of them do not run.
    """
    rows = loaded.examples
    wanted = set(ISSUES) if issues is None else set(issues)
    seconds: dict[str, float] = {}
    not_run: dict[str, str] = {}
    findings: list[Finding] = []
    tests = [row for test in against for row in test.examples]
    sizes = measure(rows, base, say=say)
    for one in (*CHECKS, _size_check(sizes), *_leak_checks(against)):
        if reason := _skipped(one, wanted, quick=quick):
            not_run[one.name] = reason
            continue
        say(one.name)
        started = time.perf_counter()
        findings += (found for found in one.find(rows, *[tests] * one.with_tests) if found.issue in wanted)
        seconds[one.name] = round(time.perf_counter() - started, 3)
    if not against:
        not_run["leaks"] = "no test file: name one with --against"
    elif unwanted := sorted(set(LEAKS) - wanted):
        not_run["leaks"] = f"not asked for: {', '.join(unwanted)}"
    findings.sort(key=lambda found: (found.line or 0, found.issue))
    summary = summarise(loaded, sizes, balance=_balance(rows))
    summary["findings_by_issue"] = dict(Counter(found.issue for found in findings).most_common())
    return CheckReport(loaded, findings, summary, sizes, seconds, not_run)


def check_large(scanned: Scanned, *, issues: Collection[str] | None = None) -> CheckReport:
    """What one pass over a file can say that is not held in memory; checks that need its rows are named as not run."""
    copies, num_copies = [], 0
    if issues is None or "exact_duplicate" in issues:
        for line, first in scanned.duplicates():
            num_copies += 1
            if num_copies <= MAX_KEPT_PROBLEMS:
                detail = f"the same messages as {scanned.unit} {first}."
                copies.append(Finding(line, "exact_duplicate", "warning", detail, near.KEEP_ONE, related=first))
    loaded = Loaded(
        scanned.path,
        scanned.sha256,
        examples=[],
        notes=scanned.notes,
        problems=scanned.problems,
        num_lines=scanned.num_lines,
        problem_counts=scanned.problem_counts,
        format=scanned.format,
        unit=scanned.unit,
    )
    sizes = measure([])
    summary = summarise(loaded, sizes, balance=Counter()) | {"rows": scanned.num_rows}
    summary["findings_by_issue"] = {"exact_duplicate": num_copies} if num_copies else {}
    left_out = f"above {LARGE_BYTES // 10**6} MB only what one pass sees is checked: --deep holds the rows and runs it"
    not_run = {one.name: left_out for one in CHECKS if one.name != "exact duplicates"}
    return CheckReport(loaded, copies, summary, sizes, {}, {**not_run, "length": left_out, "leaks": left_out})


def group_by_issue(findings: Iterable[Finding], counts: Mapping[str, int] = MappingProxyType({})) -> list[IssueGroup]:
    """Errors first, then the most frequent. `counts` is of all problems where not all of them are kept."""
    by_issue: dict[str, list[Finding]] = {}
    for found in findings:
        by_issue.setdefault(found.issue, []).append(found)
    groups = [
        IssueGroup(
            issue=issue,
            severity=min((found.severity for found in same), key=SEVERITIES.index),
            count=max(len(same), counts.get(issue, 0)),
            suggestion=same[0].suggestion if len({found.suggestion for found in same}) == 1 else "",
            lines=[found.line for found in same],
            examples=same[:EXAMPLES],
        )
        for issue, same in by_issue.items()
    ]
    return sorted(groups, key=lambda group: (SEVERITIES.index(group.severity), -group.count, group.issue))


def choose_issues(only: str | None, skip: str | None) -> set[str]:
    """The issue names that `--only` and `--skip` (comma-separated) leave.

    Raises:
        InputError: a name that is none; the text names the nearest.
    """
    chosen = set(_issue_names(only)) if only else set(ISSUES)
    return chosen - set(_issue_names(skip or ""))


def _issue_names(names: str) -> Iterator[str]:
    for name in filter(None, (part.strip() for part in names.split(","))):
        if name not in ISSUES:
            raise InputError(f"there is no issue {name!r}.", did_you_mean(name, ISSUES, what="names"))
        yield name


def _skipped(one: Check, wanted: set[str], *, quick: bool) -> str | None:
    if not wanted.intersection(one.issues):
        return "none of its issues was asked for"
    return "left out by --quick" if quick and one.slow else None


def _noted(loaded: Loaded) -> Iterator[Finding]:
    """What the reader accepted, once for each line it is about. A row of the other chat form is named so."""
    for note in loaded.notes:
        issue, detail = note.issue, NOTE_WORDS.get(note.issue, note.what)
        if issue == "mixed_format" and loaded.format == "chat":
            issue, detail = "missing_messages", "the row has a prompt and a completion, most rows have 'messages'."
        lines: Sequence[int | None] = loaded.lines_by_note.get(note.issue) or [None]
        yield from (Finding(line, issue, "info", detail, note.todo) for line in lines)


# -- the checks that are not a module of their own ---------------------------------------------------------------


def order_findings(rows: Rows) -> Iterator[Finding]:
    """Two turns in a row of one role; several results of tools after one call are in order."""
    for row in rows:
        roles = [message.role for message in row.example.messages]
        for number, (before, role) in enumerate(zip(roles, roles[1:], strict=False), start=2):
            if before == role != "tool":
                detail = f"messages {number - 1} and {number} are both from the {role}."
                suggestion = "Join them: some chat templates refuse two turns in a row."
                yield Finding(row.line, "bad_order", "warning", detail, suggestion)
                break


def imbalance_findings(rows: Rows) -> Iterator[Finding]:
    """Of the file as a whole: a label with ten times the rows of another."""
    common = _balance(rows).most_common()
    if not common:
        return
    (top, most), (rare, fewest) = common[0], common[-1]
    if most >= 10 * fewest:
        detail = f"{top!r} has {most} rows, {rare!r} only {fewest}."
        yield Finding(None, "class_imbalance", "info", detail, "Add rows for the rare answers, or judge by each label.")


def _balance(rows: Rows) -> Counter[str]:
    """Rows by label, variants counted as the label they stand for; empty where the answers are no labels."""
    answers = [row.example.answer for row in rows]
    forms = labels.label_forms(answers) or {}
    return Counter(forms[answer].strip() for answer in answers if answer in forms)


def _size_check(sizes: Sizes) -> Check:
    return Check("length", ("too_long", "template_refused"), lambda rows: size_findings(rows, sizes))


def size_findings(rows: Rows, sizes: Sizes) -> Iterator[Finding]:
    """Rows that the base cannot take, and rows far beyond the others: often several rows, or a page, glued together."""
    if base := sizes.base:
        refused = "Change the row, or use a base whose template takes it; training drops it."
        yield from (Finding(line, "template_refused", "error", why, refused) for line, why in sizes.refused.items())
    chars_N = [num_chars(row.example) for row in rows]
    p95 = (spread(chars_N) or {"p95": 0})["p95"]
    for row, chars, length in zip(rows, chars_N, sizes.length_N, strict=True):
        if base and length > base.context:
            detail = f"{length:,} tokens, {base.name} reads {base.context:,}."
            yield Finding(row.line, "too_long", "error", detail, "Shorten it: training drops what does not fit.")
        elif chars > max(LONG_CHARS, LONG_RATIO * p95):
            detail = f"{chars:,} characters, {chars // max(1, p95)} times what 95 % of the rows stay below ({p95:,})."
            yield Finding(row.line, "too_long", "warning", detail, "See whether it is one row; split or shorten it.")


def _leak_checks(against: Sequence[Loaded]) -> Iterator[Check]:
    for test in against:
        yield Check(f"leaks of {test.path.name}", LEAKS, lambda rows, test=test: leaks.leaks(rows, test.examples))


LEAKS = ("leaked_test", "leaked_test_near")
NOTE_WORDS = {
    "bom": "a byte order mark stands at the start of the line.",
    "crlf": "the line ends with CRLF (Windows).",
    "blank_line": "the line is blank.",
}
CHECKS = (
    Check("order", ("bad_order",), order_findings),
    Check("class balance", ("class_imbalance",), imbalance_findings),
    Check(
        "text",
        ("mojibake", "control_chars", "html", "boilerplate_answer", "special_token_text", "empty_content"),
        text.text_findings,
    ),
    Check("exact duplicates", ("exact_duplicate",), near.exact_duplicates),
    Check("near duplicates", ("near_duplicate",), near.near_duplicates, slow=True),
    Check(
        "labels",
        ("label_variant", "conflicting_label", "wrong_label"),
        labels.label_findings,
        slow=True,
        with_tests=True,
    ),
    Check(
        "targets",
        ("target_json_invalid", "target_type_mismatch", "value_not_in_text", "wrong_label"),
        targets.target_findings,
        slow=True,
    ),
    Check("language", ("mixed_language",), language.language_findings, slow=True),
    Check("personal data", ("pii", "secret"), personal.personal_findings),
)
ISSUES = tuple(
    dict.fromkeys(
        (*STRUCTURAL, *(issue for one in CHECKS for issue in one.issues), *LEAKS, "too_long", "template_refused")
    )
)
