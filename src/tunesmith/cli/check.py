"""`tunesmith check`: what is in a data file, what is wrong with it and where; with --fix, a mended copy and its ledger.

Not here: the checks (data.check), the rules (data.fix), the page (data.page). Listed in cli.main.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunesmith.cli.output import JsonFlag, Output

if TYPE_CHECKING:
    from tunesmith.data.check import CheckReport
    from tunesmith.data.load import Loaded
    from tunesmith.data.summary import Base
    from tunesmith.errors import Problem

MAX_EXAMPLES = 3
MAX_LINES_SHOWN = 10
BAR_WIDTH = 40
STYLES = {"error": "red", "warning": "yellow", "info": "dim"}


def check(
    file: Annotated[Path, typer.Argument(help="The data file: JSONL, a JSON array, CSV, Parquet or a folder of them.")],
    *,
    against: Annotated[
        list[Path] | None, typer.Option(help="A test or validation file: rows that stand in it, too, are reported.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="A base model: lengths in its tokens, and rows it cannot take.")
    ] = None,
    fix: Annotated[Path | None, typer.Option(help="Write a mended copy here, and its ledger beside it.")] = None,
    rules: Annotated[
        str | None, typer.Option(help="With --fix: rules to turn on, or off with 'no-', as in 'strip_html,no-lf'.")
    ] = None,
    mask_pii: Annotated[
        bool, typer.Option("--mask-pii", help="With --fix: put placeholders for personal data.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="With --fix: replace files that exist.")] = False,
    report: Annotated[Path | None, typer.Option(help="Write every finding here, one JSON object a line.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the summary here as one HTML page.")] = None,
    only: Annotated[str | None, typer.Option(help="Only these issues, with commas between.")] = None,
    skip: Annotated[str | None, typer.Option(help="All but these issues.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Leave out the slow checks; it is said which.")] = False,
    deep: Annotated[
        bool, typer.Option("--deep", help="Run every check on a file above 200 MB, too, holding it in memory.")
    ] = False,
    format: Annotated[
        str | None,
        typer.Option(help="chat, prompt_completion, preference, rl, sharegpt, alpaca or text; found out if unset."),
    ] = None,
    map: Annotated[str | None, typer.Option(help="Columns of a table: 'prompt=question,completion=answer'.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Check a data file: problems with line and column (exit code 2 if any), and what else to look at."""
    from tunesmith.data.check import choose_issues
    from tunesmith.data.fix import choose_rules
    from tunesmith.data.load import load_examples

    output = Output(as_json=as_json)
    issues, chosen = choose_issues(only, skip), choose_rules(rules, mask_pii=mask_pii)
    _refuse_own_input([file, *(against or [])], [path for path in (fix, report, html) if path])
    tests = [load_examples(path) for path in against or []]
    reading = {"format": format, "map": _parse_map(map)}
    if _is_large(file, deep=deep, fix=fix):
        found = _glance(output, file, issues, reading)
    else:
        options = {"against": tests, "base": _base(base, output), "issues": issues, "quick": quick}
        found = _look(output, file, reading, options)
    _say_report(output, found)
    _write_reports(output, found, report=report, html=html)
    document = found.as_dict()
    document["against"] = [{"file": str(test.path), "sha256": test.sha256} for test in tests]
    if fix:
        document["fix"] = _fix(output, found, fix, rules=chosen, tests=tests, force=force)
    output.result(document)
    if not found.ok and not fix:
        raise typer.Exit(2)


def _is_large(file: Path, *, deep: bool, fix: Path | None) -> bool:
    from tunesmith.data.check import LARGE_BYTES
    from tunesmith.errors import InputError

    large = not deep and file.is_file() and file.stat().st_size > LARGE_BYTES
    if large and fix:
        what = f"{file} is too large to mend in one pass; nothing was written."
        raise InputError(what, "Add --deep to hold it in memory.")
    return large


def _glance(output: Output, file: Path, issues: set[str], reading: dict[str, Any]) -> CheckReport:
    from tunesmith.data.check import check_large
    from tunesmith.data.read.scan import scan

    with output.console.status(f"reading {file}"):
        return check_large(scan(file, **reading), issues=issues)


def _look(output: Output, file: Path, reading: dict[str, Any], options: dict[str, Any]) -> CheckReport:
    from tunesmith.data.check import check as check_rows
    from tunesmith.data.load import load

    with output.console.status(f"reading {file}") as status:
        rows = load(file, **reading)
        return check_rows(rows, **options, say=lambda text: status.update(f"checking: {text}"))


def _refuse_own_input(inputs: Sequence[Path], outputs: Sequence[Path]) -> None:
    """A report must never fall on the data it is about."""
    from tunesmith.errors import InputError

    taken = {path.resolve() for path in inputs}
    for path in outputs:
        if path.resolve() in taken:
            raise InputError(f"{path} is one of the files to read; nothing was written.", "Give another name.")


def _parse_map(text: str | None) -> dict[str, str] | None:
    from tunesmith.errors import InputError

    if text is None:
        return None
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(ours.strip() and theirs.strip() for ours, _, theirs in pairs):
        raise InputError(f"--map {text!r} cannot be read.", "Write it as in 'prompt=question,completion=answer'.")
    return {ours.strip(): theirs.strip() for ours, _, theirs in pairs}


def _base(name: str | None, output: Output) -> Base | None:
    if name is None:
        return None
    from tunesmith.data.summary import Base
    from tunesmith.facts import read_facts
    from tunesmith.model import find_base, load_renderer

    folder = find_base(name, output.say)
    return Base(name, load_renderer(str(folder)), read_facts(folder).max_positions)


# -- what is said ------------------------------------------------------------------------------------------------


def _say_report(output: Output, report: CheckReport) -> None:
    from tunesmith.data.page import plural

    _say_problems(output, report)
    if report.loaded.notes:
        output.heading("Accepted")
    for note in report.loaded.notes:
        output.say(f"  {note.what} {note.todo}")
    _say_findings(output, report)
    if report.loaded.examples:
        _say_sizes(output, report)
    for why in dict.fromkeys(report.not_run.values()):
        names = ", ".join(name for name, reason in report.not_run.items() if reason == why)
        output.say(f"not checked: {names} ({why})", "dim")
    output.say()
    rows, lines = report.summary["rows"], plural(report.summary["lines"], report.loaded.unit)
    counted = f"{plural(rows, 'good row')} of {lines}."
    if report.ok:
        output.say(f"ok: {counted}", "green")
    else:
        output.say(f"not ok: {plural(report.loaded.num_problems, 'problem')}, {counted}", "red")


def _say_problems(output: Output, report: CheckReport) -> None:
    from tunesmith.errors import MAX_SHOWN

    loaded = report.loaded
    if not loaded.problems:
        return
    output.heading(f"Problems ({loaded.num_problems}; they stop training)")
    shown = loaded.problems
    if loaded.num_problems > MAX_SHOWN:
        shown = _first_of_each_issue(loaded.problems)
    for problem in shown:
        output.say(f"  {problem}")
    if len(shown) < loaded.num_problems:
        output.say(f"  ... the first {MAX_EXAMPLES} of each kind, {loaded.num_problems} in all; --report writes them")


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
    """The table of all issues, then three examples of each that is no problem (those are shown already)."""
    from rich.text import Text

    from tunesmith.data.check import group_by_issue

    groups = report.groups()
    if not groups:
        return
    output.heading("By issue")
    rows = [
        (Text(group.issue, STYLES[group.severity]), group.severity, f"{group.count:,}", _some(group.lines, group.count))
        for group in groups
    ]
    output.table(("issue", "severity", "count", f"{report.loaded.unit}s"), rows)
    if report.findings:
        output.heading(f"Worth a look ({len(report.findings)}; they stop nothing)")
    for group in group_by_issue(report.findings):
        output.say(f"  {group.issue}: {group.count:,}. {group.suggestion}".rstrip())
        for found in group.examples:
            place = "file" if found.line is None else f"{report.loaded.unit} {found.line}"
            output.say(f"    {place}: {found.detail} {'' if group.suggestion else found.suggestion}".rstrip())


def _some(lines: Sequence[int | None], count: int) -> str:
    shown = ", ".join("file" if line is None else str(line) for line in lines[:MAX_LINES_SHOWN])
    return shown + (", ..." if count > MAX_LINES_SHOWN else "")


def _say_sizes(output: Output, report: CheckReport) -> None:
    from tunesmith.data.page import bar_name

    summary, sizes = report.summary, report.summary["sizes"]
    unit = f"{sizes['unit']} of {sizes['base']}" if sizes["base"] else sizes["unit"]
    output.heading(f"Length of a row, in {unit}")
    most = max((bar["rows"] for bar in sizes["histogram"]), default=1)
    rows = [
        (bar_name(bar), "█" * -(-BAR_WIDTH * bar["rows"] // most), f"{bar['rows']:,}") for bar in sizes["histogram"]
    ]
    output.table(("", "", ""), rows)
    if sizes["epoch"]:
        share = f"{100 * sizes['trained_share']:.1f} % of them trained"
        output.say(f"An epoch reads {sizes['epoch']:,} {sizes['unit']}, {share}.")
    if not sizes["base"]:
        output.say("Characters are an estimate; --base M counts the tokens of a base, its template included.")
    elif sizes["rows_that_do_not_fit"]:
        output.say(f"{sizes['rows_that_do_not_fit']:,} rows cannot be used with {sizes['base']}; they are not counted.")
    if (share := summary["same_system_prompt"]) is not None:
        output.say(f"{share:.1%} of the rows have the same system prompt.")
    if labels := summary["labels"]:
        span = f"{labels['smallest']} to {labels['largest']} rows each"
        output.say(f"The answers look like labels: {labels['count']} different ones, {span}.")


# -- what is written ---------------------------------------------------------------------------------------------


def _write_reports(output: Output, found: CheckReport, *, report: Path | None, html: Path | None) -> None:
    from datetime import datetime

    from tunesmith import __version__
    from tunesmith.data.files import write_new_files
    from tunesmith.data.page import render_page

    if report:
        lines = [json.dumps(line.as_dict(), ensure_ascii=False) for line in found.lines()]
        write_new_files({report: lines}, force=True)
        output.say(f"wrote {report}: {len(lines):,} findings")
        if found.loaded.num_problems > len(found.loaded.problems):
            output.say(f"Of {found.loaded.num_problems:,} problems the first {len(found.loaded.problems):,} are in it.")
    if html:
        created = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M")
        write_new_files({html: [render_page(found, created=created, version=__version__)]}, force=True)
        output.say(f"wrote {html}")


def _fix(
    output: Output,
    found: CheckReport,
    out: Path,
    *,
    rules: frozenset[str],
    tests: Sequence[Loaded],
    force: bool,
) -> dict[str, Any]:
    from tunesmith.data.files import write_new_files
    from tunesmith.data.fix import FOR_A_PERSON, RULES
    from tunesmith.data.fix import fix as fix_rows

    fixed = fix_rows(found.loaded, rules, against=tests)
    ledger = out.with_suffix(".ledger.jsonl")
    entries = [json.dumps(fate.as_dict(), ensure_ascii=False) for fate in fixed.ledger]
    write_new_files({out: fixed.lines, ledger: entries}, force=force)
    counts = fixed.counts()
    output.heading("Mended")
    touched = [(rule, count, RULES[rule].text) for rule, count in fixed.by_rule().items()]
    if touched:
        output.table(("rule", "lines", ""), touched)
    output.say(
        f"{counts['kept']:,} lines kept ({counts['changed']:,} changed, {counts['masked']:,} masked), "
        f"{counts['removed']:,} removed, {counts['merged']:,} merged: {len(fixed.ledger):,} lines in all."
    )
    for issue in FOR_A_PERSON:
        if number := found.summary["findings_by_issue"].get(issue, 0):
            output.say(f"{issue}: {number:,} left as they are; a person decides (tunesmith review {out}).")
    if off := [rule for rule in RULES if rule not in rules]:
        output.say(f"Rules that were off: {', '.join(off)}.")
    output.say(f"wrote {out}: {len(fixed.lines):,} lines, every row in one form")
    output.say(f"wrote {ledger}: where each line went, and what was changed")
    return {
        "out": str(out),
        "ledger": str(ledger),
        "rules": sorted(rules),
        "counts": counts,
        "by_rule": fixed.by_rule(),
    }
