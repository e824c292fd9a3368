"""Whether measurements let an adapter through a gate. One that is missing is a reason to say no.

Not here: what a gate may ask (gate), measuring (run, regress, tally; data.check), moving the alias (store).
Called by cli.ship. A measurement counts only for the weights it was made with, by their sha256.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tunesmith.errors import InputError
from tunesmith.evaluate.gate import Blind, Contamination, Format, Gate, Refusals, Suites, Win
from tunesmith.evaluate.verdict import p_words
from tunesmith.evaluate.visible import SIGNIFICANT
from tunesmith.evaluate.weights import is_of
from tunesmith.facts import file_sha256

KINDS = ("report.json", "regress.json", "check.json", "blind.json")
REFUSALS = ("over_refusal", "harmful_compliance")


@dataclass(frozen=True, slots=True)
class Subject:
    """What is to be shipped: its line, its weights, when they were written, and the sha256 of the file it learned."""

    spec: str
    sha256: str
    written: str  # ISO 8601, UTC
    trained_on: str | None = None  # not known for an adapter outside its run


@dataclass(frozen=True, slots=True)
class Evidence:
    path: Path
    sha256: str
    document: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Check:
    """One demand: whether it is met, by what figures, and else the command that would help."""

    name: str
    passed: bool
    sentence: str
    todo: str = ""


class _Unproved(Exception):
    """There is no evidence to judge by. Caught in `weigh`."""

    def __init__(self, sentence: str, todo: str) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.todo = todo


def find_evidence(places: Sequence[Path]) -> dict[str, Evidence]:
    """The measurements in these files and folders, by KINDS. Raises InputError for what cannot be read, for a file of
    another name, and for two of one kind: which of them counts is for the user to say."""
    found: dict[str, Evidence] = {}
    for place in places:
        if not place.exists():
            raise InputError(f"{place} is not there.", "Name files or folders that exist.")
        if place.is_file() and place.name not in KINDS:
            raise InputError(f"{place} is no evidence.", f"Its name must be one of {', '.join(KINDS)}.")
        for path in [place] if place.is_file() else [place / kind for kind in KINDS if (place / kind).is_file()]:
            if path.name in found and found[path.name].path.resolve() != path.resolve():
                both = f"{found[path.name].path} and {path}"
                raise InputError(f"There are two: {both}.", "Name the one that counts.")
            found[path.name] = _read(path)
    return found


def weigh(gate: Gate, subject: Subject, *, evidence: Mapping[str, Evidence]) -> list[Check]:
    """A check for each demand of the gate; what is shipped has passed all.

    Raises InputError for evidence that is not written as this version writes it.
    """
    checks = []
    for name, ask in ASKED.items():
        if (demand := getattr(gate, name)) is None:
            continue
        try:
            checks += [Check(name, *answer) for answer in ask(demand, subject, evidence)]
        except _Unproved as gap:
            checks.append(Check(name, False, gap.sentence, gap.todo))
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            what = f"The evidence for '{name}' is not as this version writes it: {error!r}."
            raise InputError(what, "Measure again.") from error
    return checks


Answer = tuple[bool, str]


def _win(demand: Win, subject: Subject, evidence: Mapping[str, Evidence]) -> Iterator[Answer]:
    todo = f"tunesmith evaluate TEST --contender {demand.against} --contender {subject.spec} --out DIR"
    report = _made_of(subject, evidence, kind="report.json", todo=todo)
    ours = _our_name(report, subject, todo)
    scorer = demand.scorer or report["main_scorer"]
    for row in report["evaluation"]["differences"]:
        if row["scorer"] == scorer and {row["a"], row["b"]} == {ours, demand.against}:
            sign = 1 if row["b"] == ours else -1
            low, high = sorted((sign * row["low"], sign * row["high"]))
            wanted = demand.by_points / 100
            clear = row.get("p_holm", row["p"]) < SIGNIFICANT
            met = clear and (low >= wanted if wanted else low > 0)
            yield (
                met,
                (
                    f"{100 * sign * row['difference']:+.1f} points over {demand.against} by {scorer} on "
                    f"{report['evaluation']['rows']} rows (95 % interval {100 * low:+.1f} to {100 * high:+.1f}, "
                    f"{p_words(row.get('p_holm', row['p']))}); asked for: {demand.by_points:g} with certainty"
                ),
            )
            return
    raise _Unproved(f"report.json does not compare it with {demand.against} by {scorer}.", todo)


def _suites(demand: Suites, subject: Subject, evidence: Mapping[str, Evidence]) -> Iterator[Answer]:
    changes = [one for one in _changes(subject, evidence) if one["measure"] not in REFUSALS]
    if missing := sorted(set(demand.need) - {one["suite"] for one in changes}):
        raise _Unproved(f"regress.json has no {', '.join(missing)}.", _regress_todo(subject))
    for one in changes:
        yield _not_down(one, demand.down_at_most_points, with_certainty=demand.with_certainty)


def _refusals(demand: Refusals, subject: Subject, evidence: Mapping[str, Evidence]) -> Iterator[Answer]:
    changes = {one["measure"]: one for one in _changes(subject, evidence)}
    for name in REFUSALS:
        if name not in changes:
            todo = f"{_regress_todo(subject)} --suite xstest"
            raise _Unproved(f"regress.json does not measure {name.replace('_', ' ')}.", todo)
        yield _not_down(changes[name], demand.up_at_most_points, with_certainty=False)


def _not_down(change: Mapping[str, Any], points: float, *, with_certainty: bool) -> Answer:
    """Whether a figure got worse by no more than so many points."""
    gaps = [100 * change["better"] * change[key] for key in ("difference", "low", "high")]
    worst = min(gaps) if with_certainty else gaps[0]
    asked = f"at most {points:g} points worse" + (" with certainty" if with_certainty else "")
    return worst >= -points, f"{change['sentence'].rstrip('.')}; asked for: {asked}"


def _format(demand: Format, subject: Subject, evidence: Mapping[str, Evidence]) -> Iterator[Answer]:
    todo = f"tunesmith evaluate TEST --contender {subject.spec} --scorer ... --scorer {demand.scorer} --out DIR"
    report = _made_of(subject, evidence, kind="report.json", todo=todo)
    ours = _our_name(report, subject, todo)
    (contender,) = (one for one in report["evaluation"]["contenders"] if one["name"] == ours)
    if (score := contender["scores"].get(demand.scorer)) is None:
        raise _Unproved(f"report.json has no scores by {demand.scorer}.", todo)
    said = f"{demand.scorer} {100 * score['mean']:.1f} % (95 % interval {100 * score['low']:.1f} to "
    yield (
        100 * score["mean"] >= demand.at_least_percent,
        f"{said}{100 * score['high']:.1f}); asked for: at least {demand.at_least_percent:g} %",
    )


def _contamination(demand: Contamination, subject: Subject, evidence: Mapping[str, Evidence]) -> Iterator[Answer]:
    """That this very test file was looked for in this very training file, both by sha256."""
    todo = "tunesmith check TRAIN --against TEST --json > check.json"
    if subject.trained_on is None:
        raise _Unproved(f"What {subject.spec} was trained on is not known: it is no run directory.", "Ship the run.")
    report = _made_of(subject, evidence, kind="report.json", todo="tunesmith evaluate TEST ... --out DIR")
    if (found := evidence.get("check.json")) is None:
        raise _Unproved("There is no check.json.", todo)
    check = found.document
    if check.get("sha256") != subject.trained_on:
        raise _Unproved(f"{found.path} is of another file than it was trained on.", todo)
    tests = [one["sha256"] for one in check.get("against") or []]
    if "leaks" in check["not_run"] or (report.get("test") or {}).get("sha256") not in tests:
        raise _Unproved(f"{found.path} did not look for the rows that report.json was measured on.", todo)
    counts = check["summary"]["findings_by_issue"]
    verbatim, near = counts.get("leaked_test", 0), counts.get("leaked_test_near", 0)
    yield (
        verbatim <= demand.verbatim_at_most and near <= demand.near_at_most,
        f"{verbatim} training rows ask what a test row asks word for word, {near} nearly so; asked for: at most "
        f"{demand.verbatim_at_most} and {demand.near_at_most}",
    )


def _blind(demand: Blind, subject: Subject, evidence: Mapping[str, Evidence]) -> Iterator[Answer]:
    todo = f"tunesmith blind {demand.against} {subject.spec} --prompts FILE --out DIR"
    result = _made_of(subject, evidence, kind="blind.json", todo=todo)
    side = next(side for side, weights in result["weights"].items() if is_of(weights, subject.sha256))
    other = result["contenders"]["a" if side == "b" else "b"]
    if other != demand.against:
        raise _Unproved(f"blind.json compares it with {other}, not with {demand.against}.", todo)
    if (rate := result["win_rate"]) is None:
        raise _Unproved("In blind.json every row is even.", todo)
    low = rate["low"] if side == "b" else 1 - rate["high"]
    met = 100 * low > demand.above_percent
    yield met, f"{result['sentence'].rstrip('.')}; asked for: above {demand.above_percent:g} % with certainty"


def _changes(subject: Subject, evidence: Mapping[str, Evidence]) -> list[Mapping[str, Any]]:
    """What `regress` judged as better or worse."""
    document = _made_of(subject, evidence, kind="regress.json", todo=_regress_todo(subject))
    if not is_of(document["weights"].get("after"), subject.sha256):
        raise _Unproved("In regress.json it is what others are compared with.", _regress_todo(subject))
    return [one for one in document["changes"] if one["judged"] and one["better"]]


def _regress_todo(subject: Subject) -> str:
    return f"tunesmith regress {subject.spec} --out DIR"


def _made_of(subject: Subject, evidence: Mapping[str, Evidence], *, kind: str, todo: str) -> Mapping[str, Any]:
    """The document of that kind, once it is known to be of these weights, and not older than they are."""
    if (found := evidence.get(kind)) is None:
        raise _Unproved(f"There is no {kind}.", todo)
    weights = found.document.get("weights") or {}
    if not any(is_of(one, subject.sha256) for one in weights.values()):
        raise _Unproved(
            f"{found.path} was not measured with the weights {subject.sha256[:12]} of {subject.spec}.", todo
        )
    created = found.document.get("created")
    if not created:
        raise _Unproved(f"{found.path} is not finished.", todo)
    if datetime.fromisoformat(created) < datetime.fromisoformat(subject.written):
        raise _Unproved(f"{found.path} of {created} is older than the weights, which are of {subject.written}.", todo)
    return found.document


def _our_name(report: Mapping[str, Any], subject: Subject, todo: str) -> str:
    """The contender of a report that is the adapter and nothing else: not with a prompt or documents beside it."""
    names = [name for name, weights in report["weights"].items() if is_of(weights, subject.sha256)]
    plain = [name for name in names if name == subject.spec] or [name for name in names if "+" not in name]
    if len(plain) != 1:
        raise _Unproved(f"In report.json it is not clear which contender it is: {', '.join(names)}.", todo)
    return plain[0]


def _read(path: Path) -> Evidence:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}.", "Make it again.") from error
    if not isinstance(document, dict):
        raise InputError(f"{path} holds no object.", "Make it again.")
    return Evidence(path, file_sha256(path), document)


ASKED: dict[str, Callable[..., Iterator[Answer]]] = {
    "win": _win,
    "suites": _suites,
    "refusals": _refusals,
    "format": _format,
    "contamination": _contamination,
    "blind": _blind,
}
