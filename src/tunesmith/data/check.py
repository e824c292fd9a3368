"""What a person should see before training on a file: what is wrong, what was passed over, what looks odd, and sizes.

Not here: reading and refusing (load), printing (cli.check).
Called by the command `check`, and by any surface that shows a data set.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tunesmith.chat import Example, label_set
from tunesmith.data.load import Loaded, SourceRow
from tunesmith.data.split import normal_text

MAX_NOTE_LINES = 1000
MAX_LABELS_SHOWN = 100
SPECIAL_TOKEN = re.compile(
    r"<\|[a-z0-9_]{1,40}\|>|<\uff5c[^<>\uff5c]{1,40}\uff5c>|\[/?INST\]|<</?SYS>>|</?s>|<(?:bos|eos|pad|unk)>|<(?:start|end)_of_turn>"
)


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that stops nothing. `severity` is 'warning' (likely a mistake) or 'info'; `line` None: the file."""

    line: int | None
    issue: str
    severity: str
    detail: str
    suggestion: str


@dataclass(frozen=True, slots=True)
class CheckReport:
    """All that is known about a file; `ok` says that it can be trained on."""

    loaded: Loaded
    findings: list[Finding]
    summary: dict[str, Any]

    @property
    def ok(self) -> bool:
        return not self.loaded.problems

    def as_dict(self) -> dict[str, Any]:
        """The JSON document of `tunesmith check --json`."""
        lines_by_note = self.loaded.lines_by_note
        notes = [{**note.as_dict(), "lines": lines_by_note[note.issue][:MAX_NOTE_LINES]} for note in self.loaded.notes]
        return {
            "file": str(self.loaded.path),
            "rows": len(self.loaded.examples),
            "lines": self.loaded.num_lines,
            "ok": self.ok,
            "problems": [problem.as_dict() for problem in self.loaded.problems],
            "notes": notes,
            "findings": [asdict(finding) for finding in self.findings],
            "summary": self.summary,
        }


def check(loaded: Loaded) -> CheckReport:
    """Look through the rows that could be read; never raises on bad data."""
    rows = loaded.examples
    labels = label_set([row.example for row in rows])
    findings = [*_duplicates(rows), *_conflicts(rows, labelled=labels is not None), *_per_row(rows)]
    findings.sort(key=lambda finding: (finding.line or 0, finding.issue))
    balance = Counter(row.example.answer.strip() for row in rows) if labels else Counter()
    findings = [*_imbalance(balance), *findings]
    return CheckReport(loaded, findings, _summary(loaded, findings, balance=balance))


def _duplicates(rows: Sequence[SourceRow]) -> Iterator[Finding]:
    first_line: dict[tuple[tuple[str, str], ...], int] = {}
    for row in rows:
        key = tuple((message.role, " ".join(message.content.split())) for message in row.example.messages)
        line = first_line.setdefault(key, row.line)
        if line != row.line:
            suggestion = "Keep one, unless it should count twice."
            yield Finding(row.line, "exact_duplicate", "warning", f"the same messages as line {line}.", suggestion)


def _conflicts(rows: Sequence[SourceRow], *, labelled: bool) -> Iterator[Finding]:
    """Rows that ask the same and are answered differently: a mistake among labels, often fine among texts."""
    rows_by_prompt: dict[tuple[tuple[str, str], ...], list[SourceRow]] = defaultdict(list)
    for row in rows:
        key = tuple((message.role, normal_text(message.content)) for message in row.example.prompt)
        rows_by_prompt[key].append(row)
    severity = "warning" if labelled else "info"
    suggestion = "Decide which answer is right." if labelled else "Check that each of the answers is a good one."
    for same in rows_by_prompt.values():
        answers = {row.line: " ".join(row.example.answer.split()) for row in same}
        lines = {answer: line for line, answer in reversed(answers.items())}  # the first line of each answer
        if len(lines) < 2:
            continue
        two = sorted(lines, key=lambda answer: lines[answer])[:2]
        for line, answer in answers.items():
            other = two[answer == two[0]]
            detail = f"the same prompt as line {lines[other]}, but {_short(answer)!r} instead of {_short(other)!r}."
            yield Finding(line, "conflicting_label", severity, detail, suggestion)


def _per_row(rows: Sequence[SourceRow]) -> Iterator[Finding]:
    for row in rows:
        for number, message in enumerate(row.example.messages, start=1):
            if match := SPECIAL_TOKEN.search(message.content):
                detail = (
                    f"message {number} ({message.role}) holds {match.group()!r}, which models read as a control token."
                )
                suggestion = "Take it out, unless the text is about such tokens; the chat template adds them."
                yield Finding(row.line, "special_token_text", "warning", detail, suggestion)
        roles = [message.role for message in row.example.messages]
        for number, (before, role) in enumerate(zip(roles, roles[1:], strict=False), start=2):
            if before == role:
                detail = f"messages {number - 1} and {number} are both from the {role}."
                suggestion = "Join them: some chat templates refuse two turns in a row."
                yield Finding(row.line, "bad_order", "warning", detail, suggestion)
                break


def _imbalance(balance: Counter[str]) -> Iterator[Finding]:
    if not balance:
        return
    (top, most), (rare, fewest) = balance.most_common()[0], balance.most_common()[-1]
    if len(balance) == 1:
        detail = f"every answer is {_short(top)!r}."
        yield Finding(None, "class_imbalance", "warning", detail, "Add rows with other answers.")
    elif most >= 10 * fewest:
        detail = f"{_short(top)!r} has {most} rows, {_short(rare)!r} only {fewest}."
        yield Finding(None, "class_imbalance", "info", detail, "Add rows for the rare answers, or judge by each label.")


def _summary(loaded: Loaded, findings: Sequence[Finding], *, balance: Counter[str]) -> dict[str, Any]:
    examples = [row.example for row in loaded.examples]
    return {
        "rows": len(examples),
        "lines": loaded.num_lines,
        "blank_lines": len(loaded.blank_lines),
        "problems": loaded.num_problems,
        "problems_by_issue": dict(loaded.problem_counts),
        "findings_by_issue": dict(Counter(finding.issue for finding in findings)),
        "sha256": loaded.sha256,
        "turns": _spread([len(example.messages) for example in examples]),
        "prompt_chars": _spread([sum(len(turn.content) for turn in example.prompt) for example in examples]),
        "answer_chars": _spread([len(example.answer) for example in examples]),
        "same_system_prompt": _system_share(examples),
        "labels": _label_summary(balance) if balance else None,
    }


def _spread(values: list[int]) -> dict[str, int] | None:
    """Minimum, median, 95th percentile (nearest rank) and maximum; None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    ranks = {"min": 0.0, "median": 0.5, "p95": 0.95, "max": 1.0}
    return {name: ordered[max(0, math.ceil(share * len(ordered)) - 1)] for name, share in ranks.items()}


def _system_share(examples: Sequence[Example]) -> float | None:
    """Share of the rows (0 to 1) that have the most common system prompt; None without any system turn."""
    first = [example.messages[0] for example in examples]
    prompts = Counter(turn.content for turn in first if turn.role in ("system", "developer"))
    return round(max(prompts.values()) / len(examples), 4) if prompts else None


def _label_summary(balance: Counter[str]) -> dict[str, Any]:
    common = balance.most_common()
    return {
        "count": len(common),
        "largest": common[0][1],
        "smallest": common[-1][1],
        "rows_by_label": dict(common[:MAX_LABELS_SHOWN]),
    }


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
