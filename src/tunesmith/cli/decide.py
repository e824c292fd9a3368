"""`tunesmith decide`: prompt, examples, retrieval, fine-tune, a big model: which is the cheapest that is good enough?

Not here: the rule (decide.verdict), the budget (decide.ladder), the rungs (cli.decide_rungs). Listed in cli.main.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tunesmith.cli.output import JsonFlag, Output

if TYPE_CHECKING:
    from tunesmith.chat import Example
    from tunesmith.contender import Contender, Progress, Reply
    from tunesmith.decide.costs import Answers, Prices
    from tunesmith.decide.ladder import Offer, Score, Scored
    from tunesmith.decide.rows import Rows
    from tunesmith.decide.state import State
    from tunesmith.evaluate.scorers import Scorer

VALIDATION_SHARE, VALIDATION_ROWS = 0.1, (20, 100)
UNITS_S = {"s": 1, "min": 60, "h": 3600}
HOME_HOSTS = re.compile(r"https?://(localhost|127\.[\d.]+|\[::1\]|10\.[\d.]+|192\.168\.[\d.]+)(:|/|$)")
QUESTIONS = {  # in the state of a decision: asked once
    "facts_change": "Do the facts behind the answers change weekly, or rarely?",
    "cite": "Must an answer name its sources?",
    "data_may_leave": "May the data leave the house, to a server of somebody else?",
}


@dataclass(frozen=True, slots=True)
class Inputs:
    """What the decision is on. `scorer` with the reason for it."""

    train: Path
    test: Path
    base: str
    docs: Path | None
    url: str | None
    scorer: str
    why_scorer: str
    seed: int


def decide(
    train: Annotated[Path, typer.Argument(help="The rows to learn from and to choose by.")],
    *,
    test: Annotated[Path, typer.Option(help="The rows to decide by; nothing is chosen on them.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the verdict, where the same command goes on; under TUNESMITH_HOME if unset."),
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="Base model: folder, Hugging Face name, or the embedded default.")
    ] = None,
    docs: Annotated[Path | None, typer.Option(help="Documents, or an index, for the rungs with retrieval.")] = None,
    url: Annotated[
        str | None, typer.Option(help="A big model: http://host/v1#model?prompt_price=1&completion_price=4")
    ] = None,
    budget: Annotated[str, typer.Option(help="The time for everything: 90s, 20min, 2h.")] = "20min",
    margin: Annotated[float, typer.Option(help="Points by which a cheaper rung may be worse.")] = 2.0,
    price_per_hour: Annotated[float, typer.Option(help="Of this machine, in any one currency.", min=0)] = 0.5,
    requests_a_month: Annotated[float, typer.Option(help="Requests that share the upkeep.", min=1)] = 10_000,
    facts_change: Annotated[Literal["weekly", "rarely"] | None, typer.Option(help=QUESTIONS["facts_change"])] = None,
    cite: Annotated[Literal["yes", "no"] | None, typer.Option(help=QUESTIONS["cite"])] = None,
    data_may_leave: Annotated[Literal["yes", "no"] | None, typer.Option(help=QUESTIONS["data_may_leave"])] = None,
    scorer: Annotated[str | None, typer.Option(help="What quality is; by the form of the answers if unset.")] = None,
    seed: Annotated[int, typer.Option(help="Of every drawing of rows.", min=0)] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Measure every way of answering on the same held-out rows, and name the cheapest that is good enough."""
    from tunesmith.decide.costs import Prices
    from tunesmith.decide.state import State
    from tunesmith.errors import InputError
    from tunesmith.folders import home
    from tunesmith.recipe import EMBEDDED_BASE

    output = Output(as_json=as_json)
    budget_s = read_duration(budget)
    if docs and not docs.exists():
        raise InputError(f"{docs} is neither documents nor an index.", "Give the folder or file of one of them.")
    rows, hashes = _rows(output, train, test=test, seed=seed)
    chosen, why = (scorer, "as asked") if scorer else pick_scorer(rows.train)
    inputs = Inputs(train, test, base or EMBEDDED_BASE, docs, url, chosen, why, seed)
    known = [*hashes, inputs.base, str(docs and docs.resolve()), url, chosen, seed]
    fingerprint = hashlib.sha256(json.dumps(known).encode()).hexdigest()
    state = State(out or home() / "decisions" / fingerprint[:16], fingerprint)
    answers = _answers(output, state, {"facts_change": facts_change, "cite": cite, "data_may_leave": data_may_leave})
    output.say(f"Quality is measured by {chosen}: {why}.")
    document = _decide(
        output, inputs, rows=rows, state=state, answers=answers, prices=Prices(price_per_hour, requests_a_month),
        limits=(margin / 100, budget_s),
    )  # fmt: skip
    _show(output, document, state.path.parent)
    output.result(document)


def read_duration(text: str) -> float:
    """Seconds. Raises InputError."""
    from tunesmith.errors import InputError

    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|min|h)\s*", text)
    if not found or not float(found[1]):
        raise InputError(f"The budget {text!r} cannot be read.", "Write it as 90s, 20min or 2h.")
    return float(found[1]) * UNITS_S[found[2]]


def pick_scorer(examples: Sequence[Example]) -> tuple[str, str]:
    """The scorer that fits the form of the answers, and why."""
    from tunesmith.data.drafts.form import learn_form

    kind = learn_form(examples).kind
    if kind == "label":
        return "exact", "the answers are labels"
    if kind == "json":
        return "json_fields", "the answers are JSON objects"
    words = sorted(len(example.answer.split()) for example in examples)
    if words[len(words) // 2] <= 5:
        return "normalised", "most answers are a few words"
    return (
        "rouge_l",
        "the answers are free texts; words shared with one right answer are a rough measure, a judge is finer",
    )


def _rows(output: Output, train: Path, *, test: Path, seed: int) -> tuple[Rows, list[str]]:
    """Rows to train on, to choose by and to test on, with nothing in common; and the sha256 of both files."""
    from tunesmith.data.load import load_examples
    from tunesmith.data.split import group_key, split
    from tunesmith.decide.rows import Rows, without
    from tunesmith.errors import InputError

    loaded = [load_examples(path) for path in (train, test)]
    for one in loaded:
        if wrong := next((row for row in one.examples if row.example.kind != "chat" or row.example.tools), None):
            what = f"{one.path}:{wrong.line} is not a question and its answer, or offers tools."
            raise InputError(what, "Take such rows out of the file.")
    given, tested = ([row.example for row in one.examples] for one in loaded)
    kept = without(given, tested, key=group_key)
    if not tested or len(kept) < 2 * VALIDATION_ROWS[0]:
        what = f"{len(kept)} rows to train and choose by, and {len(tested)} to test, are too few."
        raise InputError(
            what, f"Give at least {2 * VALIDATION_ROWS[0]} and 1; 30 test rows before anything can be said."
        )
    if len(kept) < len(given):
        output.say(f"{len(given) - len(kept)} training rows ask what a test row asks, and are taken out.", "yellow")
    low, high = VALIDATION_ROWS
    count = min(max(low, round(VALIDATION_SHARE * len(kept))), high)
    learn, watch = split(kept, count=count, seed=seed)
    parts = [[kept[place] for place in places] for places in (learn, watch)]
    rows = Rows(parts[0], parts[1], tested, key=group_key, asked_again=len(given) - len(kept))
    return rows, [one.sha256 for one in loaded]


def _answers(output: Output, state: State, flags: dict[str, str | None]) -> Answers:
    """Flags, else what was answered before, else asked where somebody can answer."""
    from tunesmith.decide.costs import Answers

    known: dict[str, Any] = dict(state.values.get("answers", {}))
    for name, text in flags.items():
        if text is None and known.get(name) is None and sys.stdin.isatty() and not output.as_json:
            choices = ("weekly", "rarely") if name == "facts_change" else ("yes", "no")
            text = typer.prompt(f"{QUESTIONS[name]} ({'/'.join(choices)}, or unknown)", default="unknown")
            text = text if text in choices else None
        if text is not None:
            known[name] = {"yes": True, "no": False}.get(text, text)
    state.values["answers"] = known
    return Answers(**known)


def _decide(
    output: Output, inputs: Inputs, *, rows: Rows, state: State, answers: Answers, prices: Prices,
    limits: tuple[float, float],
) -> dict[str, Any]:  # fmt: skip
    """Climb, decide, write; the document. `limits`: the margin as a share, and the budget in seconds."""
    from tunesmith.cli.decide_rungs import Fields, Workshop
    from tunesmith.decide.ladder import Ladder
    from tunesmith.decide.page import document, write_verdict
    from tunesmith.decide.plan import NotMeasured
    from tunesmith.decide.rows import ids_of, prove_apart
    from tunesmith.decide.verdict import decide as decide_rungs
    from tunesmith.evaluate.stats import paired_difference

    folder = state.path.parent
    score = make_score(output, inputs.scorer, rows=rows)
    offers, out = _remote(inputs.url, answers)
    workshop = Workshop(Fields(output, inputs.base, rows, folder, state, inputs.docs, score, inputs.seed))
    own, missing = workshop.offers()
    offers, out = {**own, **offers}, {**out, **missing}
    ladder = Ladder(
        offers, rows, score, limits[1], lambda: workshop.max_new_tokens, folder, state, output.say,
        lambda name, total: _bar(output, name, total), inputs.seed,
    )  # fmt: skip
    rungs, choices, not_measured, used = ladder.climb()
    verdict = decide_rungs(
        rungs,
        answers,
        margin=limits[0],
        compare=lambda a, b, confidence: paired_difference(a, b, confidence=confidence),
        prices=prices,
    )
    sets = {name: ids_of(examples) for name, examples in used.sets().items()}
    (folder / "rows.json").write_text(json.dumps(sets, indent=1) + "\n", encoding="utf-8")
    measured = {rung.name for rung in rungs}
    not_measured += [NotMeasured(name, why, None) for name, why in out.items() if name not in measured]
    about = _about(inputs, rows=rows, answers=answers, prices=prices, budget_s=limits[1], spent_s=ladder.spent_s)
    found = document(verdict, rungs, not_measured=not_measured, rows=prove_apart(used, choices), about=about)
    write_verdict(found, folder)
    return found


def make_score(output: Output, scorer: str, *, rows: Rows) -> Score:
    """The main score of each reply. Raises InputError before anything is asked when a row cannot be scored."""
    from tunesmith.chat import label_set
    from tunesmith.cli.contenders import make_builder
    from tunesmith.decide.ladder import Scored as RungScored
    from tunesmith.evaluate.scorers import make_scorer
    from tunesmith.evaluate.scorers.score import Asked
    from tunesmith.evaluate.stats import mean_interval

    judges = make_builder(output)
    made: Scorer = make_scorer(scorer, labels=label_set(rows.train) or [], build=judges.build)
    for example in (*rows.validation, *rows.test):
        made.check(example)

    def score(contender: Contender, examples: Sequence[Example], replies: Sequence[Reply]) -> Scored:
        made.check_contender(contender)
        scored = made.score_rows(Asked(examples, replies, contender, replies))
        values = [one.value for one in scored.scores]
        interval = mean_interval(values)
        return RungScored(values, interval.low, interval.high)

    return score


def _remote(url: str | None, answers: Answers) -> tuple[dict[str, Offer], dict[str, str]]:
    """The big model as an offer, or why it is none. Raises InputError when nobody said that the data may leave."""
    from tunesmith.cli.decide_rungs import remote_offer
    from tunesmith.errors import InputError

    if not url:
        return {}, {"big model": "no server was given (--url)"}
    leaves = not HOME_HOSTS.match(url.removeprefix("url:"))
    offer = remote_offer(url, leaves=leaves)
    if leaves and answers.data_may_leave is None:
        todo = "Say --data-may-leave yes or no."
        raise InputError(f"{url} is not in this house, and whether the data may leave it was not said.", todo)
    if leaves and not answers.data_may_leave:
        return {}, {"big model": "the data may not leave the house: it was not asked"}
    return {"big model": offer}, {}


def _about(
    inputs: Inputs, *, rows: Rows, answers: Answers, prices: Prices, budget_s: float, spent_s: float
) -> dict[str, Any]:
    from tunesmith import __version__, hardware
    from tunesmith.runs import now

    setups = "52 times a year" if answers.facts_change == "weekly" else "once a year"
    shown = {
        "training file": str(inputs.train), "test file": str(inputs.test), "base": inputs.base,
        "documents": str(inputs.docs or "none"), "big model": inputs.url or "none",
        "quality": f"{inputs.scorer} ({inputs.why_scorer})",
        "budget": f"{budget_s:.0f} s, of which {spent_s:.0f} s were used",
    }  # fmt: skip
    return {
        "title": f"Decision: {inputs.train.name}, tested on {inputs.test.name}",
        "created": now(),
        "tunesmith_version": __version__,
        "machine": hardware.detect().as_dict(),
        "answers": asdict(answers),
        "prices": asdict(prices),
        "inputs": {
            "scorer": inputs.scorer,
            "scorer_words": f"quality by {inputs.scorer}",
            "seed": inputs.seed,
            "shown": shown,
            "cost_words": f"This machine at {prices.per_hour:g} an hour for the seconds the answers took in batches; "
            f"upkeep: each set-up {setups}, shared by {prices.requests_a_month:,.0f} requests a month.",
            "left_out": ["What people cost, who write rows and prompts and look after it, is in no figure here."],
        },
    }


@contextmanager
def _bar(output: Output, name: str, total: int) -> Iterator[Progress]:
    with output.progress() as bar:
        task = bar.add_task(name, total=total)
        yield lambda rows: bar.advance(task, rows)


def _show(output: Output, document: dict[str, Any], out: Path) -> None:
    from tunesmith.decide.page import COLUMNS, table_rows

    output.table(COLUMNS, table_rows(document), title=f"{document['verdict']['rows']} test rows, 95 % intervals")
    output.heading(document["verdict"]["headline"])
    for sentence in document["reasons"]:
        output.say(sentence)
    output.heading("What would change it")
    for sentence in document["changes"]:
        output.say(sentence)
    output.heading("Not measured")
    for one in document["not_measured"]:
        seconds = f" (about {one['seconds']:.0f} s)" if one["seconds"] else ""
        output.say(f"{one['name']}: {one['reason']}{seconds}.")
    sets = ", ".join(f"{one['rows']:,} {name}" for name, one in document["rows"]["sets"].items())
    output.say(f"No test row chose anything: {sets} rows, disjoint; hashes in verdict.json.")
    output.say(f"Verdict: {out / 'verdict.html'}", "green")
