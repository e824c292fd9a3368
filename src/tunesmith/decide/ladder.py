"""The ladder: every rung is set up and asked the same test rows, cheap ones first, inside a budget of time.

Not here: how a rung is built (offers are given), what a reply scores (given), the verdict.
Called by the command `decide`. Started again in the same folder it goes on after the last reply that was written.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.chat import Example
from tunesmith.contender import Contender, Passage, Progress, Reply, layers
from tunesmith.decide.plan import NotMeasured, Plan, Sample, make_plan
from tunesmith.decide.rows import Choice, Rows
from tunesmith.decide.rung import Rung, Use, rung_from
from tunesmith.decide.state import State
from tunesmith.errors import TunesmithError

SAMPLE_ROWS = (3, 12)  # two batches, for the time a row takes
LEAST_GROWTH = 0.25  # of the time of the larger batch grows with its rows, at the least
MOST_SPARED = 0.5  # of a training's planned time, when little is left
ALONE_ROWS = 3  # asked one by one, for the latency
CHUNK_ROWS, PAID_ROWS = 128, 16  # replies are on disk after so many; those that are paid for, sooner


@dataclass(frozen=True, slots=True)
class Built:
    """A rung that can answer. `setup_s`: what its set-up took if that was not now (a training gone on with)."""

    contender: Contender
    memory_bytes: int | None = None
    setup_s: float | None = None
    notes: Sequence[str] = ()
    choices: Sequence[Choice] = ()
    cut: str = ""  # what the budget cut short


class Absent(TunesmithError):
    """Raised by a build: there is no such rung worth measuring, and what was chosen to find that out."""

    def __init__(self, reason: str, choices: Sequence[Choice] = ()) -> None:
        super().__init__(reason)
        self.choices = choices


@dataclass(frozen=True, slots=True)
class Offer:
    """A rung before it is set up. `build` gets the seconds it may take, and may raise Absent.

    With `setup_s`, which estimates the set-up's seconds from those a row takes the prompted base, it is not built for
    the estimate: `answers_like` names the rung whose answers take as long. `needs`: rungs it is put together of.
    `shrinks`: the set-up does with less time than the estimate (a training on fewer rows).
    """

    kind: str
    build: Callable[[float], Built]
    setup_s: Callable[[float], float] | None = None
    answers_like: str = "prompt"
    needs: Sequence[str] = ()
    shrinks: bool = False
    is_remote: bool = False
    leaves: bool = False


@dataclass(frozen=True, slots=True)
class Scored:
    """The score of each row, and the 95 % interval of their mean."""

    values: Sequence[float]
    low: float
    high: float


Score = Callable[[Contender, Sequence[Example], Sequence[Reply]], Scored]
Track = Callable[[str, int], AbstractContextManager[Progress]]  # (what, of how many) -> a bar


@dataclass(slots=True)
class Ladder:
    """One climb. `offers` by the name of their rung; `folder` holds the state and the replies."""

    offers: dict[str, Offer]
    rows: Rows
    score: Score
    budget_s: float
    max_new_tokens: Callable[[], int]  # asked when the first rung is: a climb that is done needs no tokenizer
    folder: Path
    state: State
    say: Callable[[str], None]
    track: Track
    seed: int = 0
    _built: dict[str, Built] = field(default_factory=dict)
    _setup_s: dict[str, float] = field(default_factory=dict)
    _warm: bool = False
    _mark: float = field(default_factory=time.perf_counter)

    def climb(self) -> tuple[list[Rung], list[Choice], list[NotMeasured], Rows]:
        """The rungs that were measured, what was chosen on the way, what was not measured, and the rows in use."""
        plan = Plan.from_dict(self.state.values["plan"]) if "plan" in self.state.values else self._plan()
        not_measured = {one.name: one for one in plan.not_measured}
        absent = self.state.values["absent"]
        test = [self.rows.test[place] for place in plan.test_places]
        rows = Rows(self.rows.train, self.rows.validation, test, self.rows.key, self.rows.asked_again)
        late = {one.name: one.seconds for one in plan.not_measured if one.seconds is not None}
        seconds = {**late, **plan.seconds}
        for name in [*plan.order, *self._in_turn(late)]:  # at last what was left out, where time is left after all
            if name in self.state.values["rungs"]:
                not_measured.pop(name, None)
                self.say(f"{name}: measured before.")
            elif name not in self.offers:  # an answer given since then keeps it from being asked
                not_measured.pop(name, None)
            elif name in absent:
                not_measured.pop(name, None)
                self.say(f"{name}: {absent[name]['reason']}, as found before.")
            elif why := self._why_not(name, seconds[name] - self._can_spare(name, plan)):
                not_measured[name] = NotMeasured(name, why, seconds[name])
                self.say(f"{name}: not measured, {why}.")
            else:
                try:
                    short_s = min(self._can_spare(name, plan), max(0.0, seconds[name] - self.left_s))
                    setup_s = plan.setup_s.get(name, seconds[name]) - short_s
                    self._measure(name, test, seconds=seconds[name] - short_s, setup_s=setup_s)
                    not_measured.pop(name, None)
                except Absent as error:
                    not_measured.pop(name, None)
                    absent[name] = {"reason": error.message, "choices": [asdict(choice) for choice in error.choices]}
                    self.say(f"{name}: not measured, {error.message}.")
                except TunesmithError as error:
                    not_measured[name] = NotMeasured(name, f"it failed: {error}", seconds[name])
                    self.say(f"{name}: not measured, it failed: {error}")
            self._save()
        rungs = [rung_from(one["rung"]) for one in self.state.values["rungs"].values()]
        kept = (*self.state.values["rungs"].values(), *absent.values())
        choices = [Choice(**choice) for one in kept for choice in one["choices"]]
        left_out = [NotMeasured(name, one["reason"], None) for name, one in absent.items()]
        return rungs, choices, [*not_measured.values(), *left_out], rows

    @property
    def spent_s(self) -> float:
        """In this start and those before."""
        return float(self.state.values["spent_s"]) + time.perf_counter() - self._mark

    @property
    def left_s(self) -> float:
        return self.budget_s - self.spent_s

    def _save(self) -> None:
        self.state.values["spent_s"], self._mark = self.spent_s, time.perf_counter()
        self.state.save()

    # -- before the test rows: how long will it take? ----------------------------------------------------------------

    def _plan(self) -> Plan:
        """Ask a few validation rows of every rung that is quickly there, and spread the budget."""
        samples, failed, setup_s = {}, [], {}
        for name, offer in self.offers.items():
            if offer.setup_s is None:
                self.say(f"{name}: asked a few validation rows, for the time it takes.")
                try:
                    samples[name] = self._sample(self._ready(name, self.budget_s).contender)
                except TunesmithError as error:
                    failed.append(NotMeasured(name, f"it failed: {error}", None))
                    self.say(f"{name}: not measured, it failed: {error}")
        typical = samples["prompt"].row_s if "prompt" in samples else 0.0
        for name, offer in self.offers.items():
            if offer.setup_s is not None:
                setup_s[name] = offer.setup_s(typical)
                samples[name] = samples.get(offer.answers_like) or Sample(typical)
        plan = make_plan(
            samples,
            setup_s=setup_s,
            shrinks={name for name, offer in self.offers.items() if offer.shrinks},
            needs={name: offer.needs for name, offer in self.offers.items()},
            left_s=self.left_s,
            num_test=len(self.rows.test),
        )
        places = sorted(random.Random(self.seed).sample(range(len(self.rows.test)), plan.num_rows))
        plan = plan.with_rows(places, failed)
        for note in plan.notes:
            self.say(note)
        self.state.values["plan"] = asdict(plan)
        self._save()
        return plan

    def _sample(self, contender: Contender) -> Sample:
        """The seconds a row takes among many, from two batches: a share of their time does not grow with the rows, such
        as reading the weights at each step and what all prompts share."""
        if not self._warm:  # what the first one waits for is not its own
            contender.answer([self.rows.validation[0].prompt], max_new_tokens=self.max_new_tokens())
            self._warm = True
        few, more = SAMPLE_ROWS
        times = []
        for rows in (self.rows.validation[:few], self.rows.validation[few : few + more]):
            start = time.perf_counter()
            contender.answer([example.prompt for example in rows], max_new_tokens=self.max_new_tokens())
            times.append((time.perf_counter() - start, len(rows)))
        (few_s, few), (more_s, more) = times
        each_s = max((more_s - few_s) / max(1, more - few), LEAST_GROWTH * more_s / more)
        return Sample(each_s + max(0.0, more_s - more * each_s) / CHUNK_ROWS)

    def _latency(self, contender: Contender) -> float:
        times = []
        for example in self.rows.validation[-ALONE_ROWS:]:
            start = time.perf_counter()
            contender.answer([example.prompt], max_new_tokens=self.max_new_tokens())
            times.append(time.perf_counter() - start)
        return sorted(times)[len(times) // 2]

    # -- the climb ---------------------------------------------------------------------------------------------------

    def _why_not(self, name: str, seconds: float) -> str:
        missing = [need for need in self.offers[name].needs if need not in self.state.values["rungs"]]
        if missing:
            return f"it needs {', '.join(missing)}"
        if seconds > self.left_s and self.state.values["rungs"]:
            return f"it takes about {seconds:.0f} s, and {max(0.0, self.left_s):.0f} s of the budget are left"
        return ""

    def _in_turn(self, late: dict[str, float]) -> list[str]:
        """Those the plan left out last come first, and what is put together of others after them."""
        composed = [name for name in reversed(late) if name in self.offers and self.offers[name].needs]
        return [*(name for name in reversed(late) if name not in composed), *composed]

    def _can_spare(self, name: str, plan: Plan) -> float:
        """Seconds that a set-up which shrinks can do without, where rungs before it took longer than was planned."""
        return MOST_SPARED * plan.setup_s.get(name, 0.0) if self.offers[name].shrinks else 0.0

    def _measure(self, name: str, test: Sequence[Example], *, seconds: float, setup_s: float) -> None:
        offer = self.offers[name]
        self.say(f"{name}: about {seconds:.0f} s for {len(test)} rows and its set-up.")
        built = self._ready(name, setup_s)
        latency_s = self._latency(built.contender)
        replies, took_s = self._replies(name, built.contender, test)
        scored = self.score(built.contender, test, replies)
        costs = [reply.cost for reply in replies]
        paid = sum(cost for cost in costs if cost is not None) / len(costs) if None not in costs else None
        use = Use(
            took_s / len(test),
            latency_s,
            sum(reply.prompt_tokens for reply in replies) / len(replies),
            sum(reply.completion_tokens for reply in replies) / len(replies),
            built.memory_bytes,
            built.setup_s if built.setup_s is not None else self._setup_s[name],
            paid if offer.is_remote else None,
        )
        notes = [*built.notes, *_notes(built.contender, replies)]
        values = list(scored.values)
        interval = (scored.low, scored.high)
        rung = Rung(name, offer.kind, values, *interval, use, offer.is_remote, offer.leaves, notes, built.cut)
        self.state.values["rungs"][name] = {
            "rung": rung.as_dict(),
            "choices": [asdict(choice) for choice in built.choices],
        }

    def _ready(self, name: str, seconds: float) -> Built:
        """The rung, set up once and timed."""
        if name not in self._built:
            start = time.perf_counter()
            self._built[name] = self.offers[name].build(seconds)
            self._setup_s[name] = time.perf_counter() - start
        return self._built[name]

    def _replies(self, name: str, contender: Contender, test: Sequence[Example]) -> tuple[list[Reply], float]:
        """A reply to every test row and the seconds they took; written as they come, and read again after a stop."""
        path = self.folder / "replies" / f"{name.replace(' ', '-')}.jsonl"
        path.parent.mkdir(exist_ok=True)
        done = _read_replies(path, test)
        size = PAID_ROWS if self.offers[name].is_remote else CHUNK_ROWS
        with self.track(name, len(test)) as progress, path.open("a", encoding="utf-8") as file:
            progress(len(done))
            for first in range(len(done), len(test), size):
                rows = test[first : first + size]
                start = time.perf_counter()
                replies = contender.answer(
                    [example.prompt for example in rows], max_new_tokens=self.max_new_tokens(), progress=progress
                )
                share = (time.perf_counter() - start) / len(rows)
                for example, reply in zip(rows, replies, strict=True):
                    line = {"example": example.id, "seconds": share, **asdict(reply)}
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
                    done.append((reply, share))
                file.flush()
        return [reply for reply, _ in done], sum(seconds for _, seconds in done)


def _notes(contender: Contender, replies: Sequence[Reply]) -> list[str]:
    found = [layer.notes(replies) for layer in layers(contender) if hasattr(layer, "notes")]
    cut = sum(not reply.stopped for reply in replies)
    ends = [f"{cut} of {len(replies)} replies did not end by themselves (length limit)."] if cut else []
    return [note for notes in found for note in notes] + ends


def _read_replies(path: Path, test: Sequence[Example]) -> list[tuple[Reply, float]]:
    """What was written before, as far as it belongs to these rows; a torn or foreign rest is cut off the file."""
    done: list[tuple[Reply, float]] = []
    good = 0
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True) if path.exists() else []):
        try:
            values: dict[str, Any] = json.loads(line)
        except ValueError:
            break
        if number >= len(test) or values.pop("example") != test[number].id or not line.endswith(b"\n"):
            break
        seconds = values.pop("seconds")
        values["passages"] = tuple(Passage(**passage) for passage in values["passages"])
        done.append((Reply(**values), seconds))
        good += len(line)
    if path.exists():
        with path.open("rb+") as file:
            file.truncate(good)
    return done
