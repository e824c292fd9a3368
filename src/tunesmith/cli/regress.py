"""`tunesmith regress`: what a fine-tune made worse outside its task, on shipped suites and the user's own.

Not here: suites, measures, statistics (evaluate). Listed in cli.main.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunesmith.cli.output import JsonFlag, Output

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunesmith.contender import Contender
    from tunesmith.evaluate.regress import Regression
    from tunesmith.evaluate.suites.suite import Suite


def regress(
    tuned: Annotated[str, typer.Argument(help="The contender after: adapter:DIR, or any other line of `evaluate`.")],
    *,
    base: Annotated[
        str | None, typer.Option(help="Before: a base's name or a contender; the adapter's own base if unset.")
    ] = None,
    suite: Annotated[
        list[str] | None,
        typer.Option(
            help="Names with commas between, a file of your own, or lm-eval:TASK; repeatable. If unset: arc_easy, "
            "social_iqa, boolq, gsm8k, ifeval, xstest, general."
        ),
    ] = None,
    scorer: Annotated[str, typer.Option(help="Of files of your own with expected answers.")] = "exact",
    limit: Annotated[int | None, typer.Option(help="So many rows of each suite.", min=1)] = None,
    out: Annotated[Path | None, typer.Option(help="Directory for regress.json and rows.jsonl.")] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Ask again what was answered before.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Say whether a fine-tune made anything worse."""
    from tunesmith.contender import Parts
    from tunesmith.evaluate.cache import ReplyCache
    from tunesmith.evaluate.regress import regress as measure
    from tunesmith.evaluate.weights import weights_of
    from tunesmith.generate import build_contenders

    output = Output(as_json=as_json)
    parts = Parts() if no_cache else Parts(keep=ReplyCache.at_home().around)
    before, after = build_contenders([_base_line(tuned, base), tuned], parts=parts, say=output.say)
    suites = open_suites(suite or [], limit=limit, scorer=scorer, contenders=[before, after])
    with output.progress() as bar:
        tasks = {one.name: bar.add_task(one.name, total=2 * one.rows or None, start=False) for one in suites}

        def advance(contender: str, name: str, rows: int) -> None:
            bar.start_task(tasks[name])
            bar.advance(tasks[name], rows)

        found = measure(before, after, suites=suites, on_progress=advance)
    show_regression(output, found)
    if out:
        weights = {side: weights_of(contender) for side, contender in (("before", before), ("after", after))}
        _write(output, found, out, weights=weights)
    output.result(found.as_dict())


def open_suites(
    specs: Sequence[str], *, limit: int | None, scorer: str, contenders: Sequence[Contender]
) -> list[Suite]:
    """The suites of the command line; all shipped ones for none. Raises InputError for one that cannot be opened."""
    from tunesmith.errors import InputError
    from tunesmith.evaluate.suites.catalog import SHIPPED, open_suite
    from tunesmith.evaluate.suites.harness import HarnessSuite

    found: list[Suite] = []
    for spec in specs or list(SHIPPED):
        if spec.startswith("lm-eval:"):
            found.append(HarnessSuite(spec.removeprefix("lm-eval:"), limit=limit))
        elif Path(spec).is_file():
            found.append(_own_suite(Path(spec), limit=limit, scorer=scorer, contenders=contenders))
        else:
            found += [open_suite(name.strip(), limit=limit) for name in spec.split(",")]
    names = [one.name for one in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(
            f"Two suites have the name {twice[0]!r}.", "Name each suite once; a file is named by its stem."
        )
    return found


def show_regression(output: Output, found: Regression) -> None:
    """A table of all changes that are judged, then the answer."""
    rows = [
        (
            one.suite,
            one.measure.words,
            one.figure(one.before.mean),
            one.figure(one.after.mean),
            one.gap_words,
            one.outcome,
        )
        for one in found.changes
        if one.measure.judged
    ]
    output.table(("suite", "", "before", "after", "change, 95 % interval", ""), rows)
    output.say()
    output.say(found.sentence)
    seconds = ", ".join(f"{name} {spent:.0f}" for name, spent in found.seconds.items())
    output.say(f"Seconds for both together: {seconds}.")


def _base_line(tuned: str, base: str | None) -> str:
    from tunesmith.adapter import find_tuned
    from tunesmith.errors import InputError
    from tunesmith.specs import is_spec, parse_spec

    if base is not None:
        return base if is_spec(base) else f"base:{base}"
    spec = parse_spec(tuned)
    found = find_tuned(Path(spec.target)) if spec.kind == "adapter" else None
    if found is None or found.adapter is None:  # a whole model does not say what it was made of
        raise InputError(f"It is not clear what {tuned} is compared with.", "Name the contender before with --base.")
    return f"base:{found.base}"


def _own_suite(path: Path, *, limit: int | None, scorer: str, contenders: Sequence[Contender]) -> Suite:
    from tunesmith.evaluate.suites.own import choice_suite, example_suite, holds_choices

    if holds_choices(path):
        return choice_suite(path, limit=limit)
    from tunesmith.data.load import load_examples
    from tunesmith.evaluate.scorers import make_scorer
    from tunesmith.generate import reply_limit

    examples = [source.example for source in load_examples(path).examples][:limit]
    longest = reply_limit(examples, contenders)
    made = make_scorer(scorer)
    return example_suite(path.stem, examples, scorer=made, how=scorer, max_new_tokens=longest)


def _write(output: Output, found: Regression, out: Path, *, weights: dict[str, dict[str, str]]) -> None:
    from tunesmith import __version__, hardware
    from tunesmith.data.files import write_new_files
    from tunesmith.runs import now

    document = {
        "created": now(),
        "tunesmith_version": __version__,
        "machine": hardware.detect().as_dict(),
        "weights": weights,
        **found.as_dict(),
    }
    lines = [json.dumps(record, ensure_ascii=False) for record in found.records]
    whole = json.dumps(document, ensure_ascii=False, indent=2)
    write_new_files({out / "regress.json": [whole], out / "rows.jsonl": lines}, force=True)
    output.say(f"Written: {out / 'regress.json'}, and every row and reply in {out / 'rows.jsonl'}")
