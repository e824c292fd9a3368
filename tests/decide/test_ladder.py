"""The climb over scripted contenders: budget, order, going on after a stop, and what each choice was allowed to see."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.chat import Example, Message
from tunesmith.contender import Contender, Progress, Reply
from tunesmith.decide.drafts import Task, choose, draft
from tunesmith.decide.ladder import Absent, Built, Ladder, Offer, Scored
from tunesmith.decide.plan import FEWEST_ROWS, Plan, Sample, make_plan
from tunesmith.decide.rows import Choice, Rows, digest, ids_of, prove_apart, without
from tunesmith.decide.state import State
from tunesmith.errors import InputError, ModelError, RunError
from tunesmith.evaluate.stats import mean_interval

Answer = Callable[[Sequence[Message]], str]


class Scripted:
    """Answers by a function, and keeps every question it was asked."""

    def __init__(self, name: str, answer: Answer, *, fails_after: int = 10**9) -> None:
        self.name, self._answer, self.left = name, answer, fails_after
        self.asked: list[str] = []

    def answer(
        self, prompts: Sequence[Sequence[Message]], *, max_new_tokens: int, progress: Progress | None = None
    ) -> list[Reply]:
        self.asked += [messages[-1].content for messages in prompts]
        self.left -= len(prompts)
        if self.left < 0:
            raise ModelError("The server went away.", "Start it again.")
        return [Reply(self._answer(messages), 10, 2, 0.001, "stop") for messages in prompts]


def example(number: int, kind: str) -> Example:
    user = Message("user", f"{kind} question {number}")
    return Example((Message("system", "Answer."), user, Message("assistant", f"{kind} {number}", trained=True)))


def right(messages: Sequence[Message]) -> str:
    kind, _, number = messages[-1].content.split()
    return f"{kind} {number}"


def rows(test: int = 200) -> Rows:
    sets = [[example(number, kind) for number in range(count)]
            for kind, count in (("train", 40), ("validation", 20), ("test", test))]  # fmt: skip
    return Rows(sets[0], sets[1], sets[2], key=lambda one: one.prompt[-1].content)


def score(contender: Contender, examples: Sequence[Example], replies: Sequence[Reply]) -> Scored:
    values = [float(one.answer == reply.text) for one, reply in zip(examples, replies, strict=True)]
    interval = mean_interval(values)
    return Scored(values, interval.low, interval.high)


@contextlib.contextmanager
def no_bar(name: str, total: int) -> Iterator[Progress]:
    yield lambda done: None


def ladder(
    folder: Path, offers: dict[str, Offer], *, budget_s: float = 60.0, given: Rows | None = None, said: list[str]
) -> Ladder:
    state = State(folder, "inputs")
    return Ladder(offers, given or rows(), score, budget_s, lambda: 8, folder, state, said.append, no_bar)


def offer(contender: Contender, kind: str = "prompt") -> Offer:
    return Offer(kind, lambda seconds: Built(contender, 1000))


# -- the climb -------------------------------------------------------------------------------------------------------


def test_every_rung_answers_the_same_test_rows_once_and_is_measured(tmp_path: Path) -> None:
    wise, dull = Scripted("prompt", right), Scripted("few-shot", lambda messages: "?")
    offers = {"prompt": offer(wise), "few-shot": offer(dull, "few-shot")}
    rungs, choices, not_measured, used = ladder(tmp_path, offers, said=[]).climb()
    assert {rung.name: rung.mean for rung in rungs} == {"prompt": 1.0, "few-shot": 0.0}
    assert (choices, not_measured) == ([], [])
    for contender in (wise, dull):
        asked = [question for question in contender.asked if question.startswith("test")]
        assert asked == [one.prompt[-1].content for one in used.test]
    assert [rung.use.memory_bytes for rung in rungs] == [1000, 1000]
    assert len((tmp_path / "replies" / "few-shot.jsonl").read_text().splitlines()) == 200


def test_no_test_row_is_asked_before_everything_is_chosen_and_the_proof_says_so(tmp_path: Path) -> None:
    given = rows()
    contender = Scripted("drafted prompt", right)

    def build(seconds: float) -> Built:
        def mean_of(text: str, examples: Sequence[Example]) -> float:
            replies = contender.answer([one.prompt for one in examples], max_new_tokens=8)
            return sum(score(contender, examples, replies).values) / len(examples)

        assert not [question for question in contender.asked if question.startswith("test")]
        choice, _ = choose({"your own": "a", "form": "b"}, given.validation, mean_of=mean_of)
        return Built(contender, choices=[choice])

    offers = {"prompt": offer(Scripted("prompt", right)), "drafted prompt": Offer("drafted prompt", build)}
    _, choices, _, used = ladder(tmp_path, offers, given=given, said=[]).climb()
    proof = prove_apart(used, choices)
    assert proof["sets"]["test"]["sha256"] == digest(ids_of(used.test))
    (choice,) = proof["choices"]
    assert (choice["chosen"], choice["rows"], choice["test_rows_seen"]) == ("your own", 20, 0)
    assert choice["sha256"] == proof["sets"]["validation"]["sha256"]


def test_a_choice_that_saw_a_test_row_or_a_training_row_that_is_one_is_refused() -> None:
    given = rows()
    with pytest.raises(RunError, match="chosen on 1 test rows"):
        prove_apart(given, [Choice("prompt", "form", {}, ids_of(given.test[:1]))])
    with pytest.raises(RunError, match="1 train rows are test rows"):
        prove_apart(replace(given, train=[*given.train, given.test[3]]), [])
    other_answer = Example((*given.test[3].prompt, Message("assistant", "other", trained=True)))
    assert without([*given.train, other_answer], given.test, key=given.key) == given.train


def test_a_stopped_climb_goes_on_after_the_last_reply_that_was_written(tmp_path: Path) -> None:
    first = Scripted("prompt", right, fails_after=1 + 3 + 12 + 3 + 128)  # the sample, and one chunk of the test rows
    *_, not_measured, _ = ladder(tmp_path, {"prompt": offer(first)}, said=[]).climb()
    assert "The server went away" in not_measured[0].reason
    path = tmp_path / "replies" / "prompt.jsonl"
    assert len(path.read_text().splitlines()) == 128
    with path.open("a") as file:
        file.write('{"torn')
    second, said = Scripted("prompt", right), list[str]()
    (rung,), _, not_measured, _ = ladder(tmp_path, {"prompt": offer(second)}, said=said).climb()
    assert (rung.mean, len(rung.scores), not_measured) == (1.0, 200, [])
    assert len(second.asked) == 72 + 3  # and three alone, for the latency
    (again,), *_ = ladder(tmp_path, {"prompt": offer(second)}, said=said).climb()
    assert again.scores == rung.scores
    assert len(second.asked) == 72 + 3
    assert said[-1] == "prompt: measured before."


def plan_of(row_s: dict[str, float], setup_s: dict[str, float], *, left_s: float, num_test: int = 300) -> Plan:
    samples = {name: Sample(seconds) for name, seconds in row_s.items()}
    needs = {"fine-tune + retrieval": ("fine-tune", "retrieval")}
    return make_plan(samples, setup_s=setup_s, shrinks={"fine-tune"}, needs=needs, left_s=left_s, num_test=num_test)


def test_what_the_budget_holds_is_planned_in_full_from_cheap_to_dear() -> None:
    plan = plan_of({"prompt": 0.1, "fine-tune": 0.1, "floor": 0.0}, {"fine-tune": 100.0}, left_s=400.0)
    assert (plan.num_rows, list(plan.order)) == (300, ["floor", "prompt", "fine-tune"])
    assert plan.setup_s["fine-tune"] == 100.0
    assert plan.not_measured == []


def test_a_training_takes_less_time_before_another_rung_is_left_out() -> None:
    plan = plan_of({"prompt": 0.2, "few-shot": 0.3, "fine-tune": 0.2}, {"fine-tune": 1e4}, left_s=200.0)
    assert plan.not_measured == []
    assert plan.num_rows >= 100
    assert 0.4 * 180 <= plan.setup_s["fine-tune"] <= 180 - 100 * 0.7 + 1
    assert sum(plan.seconds.values()) <= 180 + 1


def test_what_the_budget_does_not_hold_is_named_with_its_time_and_what_is_put_together_of_it() -> None:
    seconds = {"prompt": 0.1, "retrieval": 0.2, "fine-tune": 0.1, "fine-tune + retrieval": 0.2}
    plan = plan_of(seconds, {"retrieval": 500.0, "fine-tune": 50.0}, left_s=300.0)
    assert {one.name: one.seconds for one in plan.not_measured} == {"retrieval": 506.0, "fine-tune + retrieval": 20.0}
    assert list(plan.order) == ["prompt", "fine-tune"]


def test_rather_than_leave_the_prompt_alone_fewer_rows_are_asked() -> None:
    row_s = {"prompt": 0.8, "few-shot": 1.1, "few-shot nearest": 2.9, "fine-tune": 0.8}
    plan = plan_of(row_s, {"fine-tune": 2500.0}, left_s=250.0, num_test=200)
    assert set(plan.order) == {"prompt", "few-shot", "fine-tune"}
    assert 30 <= plan.num_rows < 100
    assert sum(plan.seconds.values()) <= 250


@pytest.mark.parametrize(("left_s", "allowed_s"), [(200.0, 100.0), (70.0, 60.0), (40.0, None)])
def test_a_training_takes_what_slow_rungs_before_it_left_unless_that_is_less_than_half(
    tmp_path: Path, left_s: float, allowed_s: float | None
) -> None:
    given, allowed = rows(30), list[float]()

    def build(seconds: float) -> Built:
        allowed.append(seconds)
        return Built(Scripted("fine-tune", right), 1000)

    offers = {"prompt": offer(Scripted("prompt", right)), "fine-tune": Offer("fine-tune", build, shrinks=True)}
    seconds = {"prompt": 1.0, "fine-tune": 110.0}
    plan = Plan(30, ["prompt", "fine-tune"], seconds, {"fine-tune": 100.0}, [], [], list(range(30)))
    climb = ladder(tmp_path, offers, budget_s=left_s, given=given, said=[])
    climb.state.values["plan"] = asdict(plan)
    rungs, _, not_measured, _ = climb.climb()
    assert allowed == ([] if allowed_s is None else [pytest.approx(allowed_s, abs=5)])
    assert [rung.name for rung in rungs] + [one.name for one in not_measured] == ["prompt", "fine-tune"]


def test_a_larger_budget_measures_what_was_left_out_on_the_same_rows(tmp_path: Path) -> None:
    dear = Offer("retrieval", lambda seconds: Built(Scripted("retrieval", right)), setup_s=lambda row_s: 100.0)
    both = Offer("both", dear.build, setup_s=lambda row_s: 0.0, needs=("retrieval",))
    offers = {"prompt": offer(Scripted("prompt", right)), "retrieval": dear, "both": both}
    rungs, _, not_measured, used = ladder(tmp_path, offers, budget_s=50.0, said=[]).climb()
    assert ([rung.name for rung in rungs], {one.name for one in not_measured}) == (["prompt"], {"retrieval", "both"})
    rungs, _, not_measured, again = ladder(tmp_path, offers, budget_s=200.0, said=[]).climb()
    assert ([rung.name for rung in rungs], not_measured) == (["prompt", "retrieval", "both"], [])
    assert again.test == used.test


def test_what_the_user_brought_is_left_out_after_dearer_and_cheaper_rungs() -> None:
    seconds = {"prompt": 0.1, "few-shot nearest": 0.5, "retrieval": 0.6, "fine-tune": 0.1}
    plan = plan_of(seconds, {"fine-tune": 20.0}, left_s=130.0)
    assert [one.name for one in plan.not_measured] == ["few-shot nearest"]


def test_what_is_not_offered_any_more_is_not_asked_when_the_climb_goes_on(tmp_path: Path) -> None:
    away = Scripted("big model", right, fails_after=3 + 12)
    offers = {"prompt": offer(Scripted("prompt", right)), "big model": offer(away, "big model")}
    ladder(tmp_path, offers, said=[]).climb()
    del offers["big model"]
    rungs, _, not_measured, _ = ladder(tmp_path, offers, said=[]).climb()
    assert ([rung.name for rung in rungs], not_measured) == (["prompt"], [])


def test_a_rung_that_fails_leaves_the_others_and_what_needs_it_says_why(tmp_path: Path) -> None:
    def fail(seconds: float) -> Built:
        raise ModelError("The disk is full.", "Free some.")

    offers = {
        "prompt": offer(Scripted("prompt", right)),
        "fine-tune": Offer("fine-tune", fail, setup_s=lambda row_s: 0.0),
        "fine-tune + retrieval": Offer("fine-tune + retrieval", fail, setup_s=lambda row_s: 0.0, needs=("fine-tune",)),
    }
    rungs, _, not_measured, _ = ladder(tmp_path, offers, said=[]).climb()
    assert [rung.name for rung in rungs] == ["prompt"]
    assert {one.name: one.reason for one in not_measured} == {
        "fine-tune": "it failed: The disk is full. Free some.",
        "fine-tune + retrieval": "it needs fine-tune",
    }


def test_a_rung_that_turns_out_not_to_be_needed_is_not_set_up_again_and_its_choice_is_kept(tmp_path: Path) -> None:
    built = []

    def build(seconds: float) -> Built:
        built.append(seconds)
        raise Absent("no draft was better", [Choice("prompt", "your own", {}, ids_of(rows().validation))])

    offers = {
        "prompt": offer(Scripted("prompt", right)),
        "drafted prompt": Offer("drafted prompt", build, setup_s=lambda row_s: 0.0),
    }
    for _ in range(2):
        _, choices, not_measured, _ = ladder(tmp_path, offers, said=[]).climb()
        assert [(one.name, one.reason) for one in not_measured] == [("drafted prompt", "no draft was better")]
        assert [choice.chosen for choice in choices] == ["your own"]
    assert len(built) == 1


def test_a_folder_of_another_decision_is_refused_and_a_damaged_state_named(tmp_path: Path) -> None:
    State(tmp_path, "one").save()
    with pytest.raises(InputError, match="other files"):
        State(tmp_path, "another")
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(RunError, match="damaged"):
        State(tmp_path, "one")


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.sampled_from(["floor", "few-shot", "retrieval", "fine-tune", "big model"]),
                    st.tuples(st.floats(0.0001, 2.0), st.floats(0.0, 500.0)), max_size=5),
    st.floats(0.001, 2.0), st.floats(1.0, 2000.0), st.integers(1, 2000),
)  # fmt: skip
def test_a_plan_names_every_rung_once_and_keeps_the_budget_unless_fewer_than_30_rows_would_be_left(
    others: dict[str, tuple[float, float]], row_s: float, left_s: float, num_test: int
) -> None:
    samples = {"prompt": Sample(row_s)} | {name: Sample(one[0]) for name, one in others.items()}
    setup_s = {name: one[1] for name, one in others.items()}
    plan = make_plan(samples, setup_s=setup_s, shrinks={"fine-tune"}, needs={}, left_s=left_s, num_test=num_test)
    assert sorted([*plan.order, *(one.name for one in plan.not_measured)]) == sorted(samples)
    assert 1 <= plan.num_rows <= num_test
    assert "prompt" in plan.order
    if sum(plan.seconds.values()) > left_s:
        assert plan.num_rows <= FEWEST_ROWS
        assert any("more than the budget" in note for note in plan.notes)
    assert list(plan.order) == sorted(plan.order, key=lambda name: plan.seconds[name])


# -- drafts ----------------------------------------------------------------------------------------------------------


def test_drafts_list_the_labels_the_keys_the_length_and_two_examples() -> None:
    examples = rows().train
    labelled = draft(Task("Sort it.", labels=["a", "b"], words=(1, 1)), examples)
    assert labelled["form"].splitlines()[1:] == ["The possible answers are: a, b.",
                                                 "Reply with exactly one of them, and nothing else."]  # fmt: skip
    assert "Reply with a single word." in labelled["length"]
    assert labelled["examples"].count("Request: ") == 2
    fields = Task("", fields={"name": ["string"], "size": ["null", "number"]}, required=frozenset({"name"}))
    form = draft(fields, examples)["form"]
    assert 'Its keys: "name" (string), "size" (null or number, only if it applies).' in form
    assert form.startswith("Answer the request.\n")
    assert "form" not in draft(Task("Write it.", words=(20, 60)), examples)


def test_of_equally_good_prompts_the_users_own_stays() -> None:
    choice, text = choose({"your own": "mine", "form": "theirs"}, rows().validation, mean_of=lambda text, rows: 0.5)
    assert (choice.chosen, text) == ("your own", "mine")
    assert json.loads(json.dumps(choice.tried)) == {"your own": 0.5, "form": 0.5}
