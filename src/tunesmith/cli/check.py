"""`tunesmith check`: what is in a data file, what is wrong with it, and where.

Not here: the checks themselves (data.check). Listed in cli.main.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunesmith.cli.output import JsonFlag, Output

if TYPE_CHECKING:
    from tunesmith.data.check import CheckReport
    from tunesmith.errors import Problem

MAX_EXAMPLES = 3


def check(
    file: Annotated[Path, typer.Argument(help="A JSONL file: 'messages', or 'prompt' and 'completion', on each line.")],
    as_json: JsonFlag = False,
) -> None:
    """Check a data file: problems with line and column (exit code 2 if any), and what else to look at."""
    from tunesmith.data.check import check as check_rows
    from tunesmith.data.load import load

    output = Output(as_json=as_json)
    report = check_rows(load(file))
    _say_problems(output, report)
    _say_findings(output, report)
    if report.loaded.examples:
        _say_summary(output, report.summary)
    _say_verdict(output, report)
    output.result(report.as_dict())
    if not report.ok:
        raise typer.Exit(2)


def _say_problems(output: Output, report: CheckReport) -> None:
    from tunesmith.errors import MAX_SHOWN

    loaded = report.loaded
    if not loaded.problems:
        return
    output.heading(f"Problems ({loaded.num_problems})")
    shown = loaded.problems
    if loaded.num_problems > MAX_SHOWN:
        shown = _first_of_each_issue(loaded.problems)
    for problem in shown:
        output.say(f"  {problem}")
    if len(shown) < loaded.num_problems:
        output.say(f"  ... the first {MAX_EXAMPLES} of each kind, {loaded.num_problems} in all; --json lists them")
    output.say()
    places = [(problem.issue, problem.line) for problem in loaded.problems]
    output.table(("issue", "count", "lines"), _by_issue(places, loaded.problem_counts))


def _first_of_each_issue(problems: Sequence[Problem]) -> list[Problem]:
    """The first MAX_EXAMPLES of every kind, in the order of the lines."""
    seen: Counter[str] = Counter()
    shown = []
    for problem in problems:
        seen[problem.issue] += 1
        if seen[problem.issue] <= MAX_EXAMPLES:
            shown.append(problem)
    return shown


def _say_findings(output: Output, report: CheckReport) -> None:
    if report.loaded.notes:
        output.heading("Accepted")
        for note in report.loaded.notes:
            output.say(f"  {note}")
    if not report.findings:
        return
    output.heading(f"Worth a look ({len(report.findings)}; they stop nothing)")
    by_issue = defaultdict(list)
    for finding in report.findings:
        by_issue[finding.issue].append(finding)
    for issue, findings in by_issue.items():
        output.say(f"  {issue}: {len(findings)}. {findings[0].suggestion}")
        for finding in findings[:MAX_EXAMPLES]:
            place = "file" if finding.line is None else f"line {finding.line}"
            output.say(f"    {place}: {finding.detail}")


def _by_issue(places: Iterable[tuple[str, int | None]], counts: Any) -> list[tuple[str, int, str]]:
    """Rows of issue, count, and the first lines it was seen on; the most frequent first."""
    lines: dict[str, list[str]] = defaultdict(list)
    for issue, line in places:
        lines[issue].append("file" if line is None else str(line))
    ordered = sorted(counts, key=lambda issue: (-counts[issue], issue))
    return [(issue, counts[issue], _first(lines[issue], counts[issue])) for issue in ordered]


def _first(lines: list[str], count: int) -> str:
    return ", ".join(lines[:MAX_EXAMPLES]) + (", ..." if count > MAX_EXAMPLES else "")


def _say_summary(output: Output, summary: dict[str, Any]) -> None:
    output.heading("Sizes of the good rows")
    names = {"turns": "turns", "prompt_chars": "characters of the prompt", "answer_chars": "characters of the answer"}
    rows = [(name, *summary[key].values()) for key, name in names.items()]
    output.table(("", "min", "median", "p95", "max"), rows)
    share = summary["same_system_prompt"]
    if share is not None:
        output.say(f"{share:.1%} of the rows have the same system prompt.")
    labels = summary["labels"]
    if labels:
        span = f"{labels['smallest']} to {labels['largest']} rows each"
        output.say(f"The answers look like labels: {labels['count']} different ones, {span}.")


def _say_verdict(output: Output, report: CheckReport) -> None:
    loaded = report.loaded
    counted = f"{len(loaded.examples)} good rows of {loaded.num_lines} lines"
    output.say()
    if report.ok:
        output.say(f"ok: {counted}. {loaded.path} can be used.", "green")
    else:
        noun = "problem" if loaded.num_problems == 1 else "problems"
        output.say(f"not ok: {loaded.num_problems} {noun}, {counted}.", "red")
