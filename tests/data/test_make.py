"""Drafts from a teacher over real HTTP: the task's form, no copies, balance, marks, counts, going on after a stop."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.teacher import Teacher, completion, teacher
from tunesmith.chat import Example, Message
from tunesmith.data.drafts.asks import VERSION
from tunesmith.data.drafts.make import Made, Order, make
from tunesmith.data.load import SourceRow
from tunesmith.errors import InputError, ModelError
from tunesmith.specs import parse_spec, remote_contender

PLACES = [
    "Rome", "Oslo", "Lima", "Cairo", "Kyoto", "Quito", "Perth", "Delhi", "Accra",
    "Minsk", "Sofia", "Turin", "Leeds", "Basel", "Porto", "Malmo", "Tunis", "Dakar",
]  # fmt: skip
THINGS = [
    "lamp", "sofa", "kettle", "bicycle", "mirror", "drill", "curtain", "blender", "carpet",
    "ladder", "printer", "toaster", "violin", "helmet",
]  # fmt: skip


def row(line: int, question: str, answer: str) -> SourceRow:
    turns = (Message("system", "Sort it."), Message("user", question), Message("assistant", answer, trained=True))
    return SourceRow(line, Example(turns))


def label_rows() -> list[SourceRow]:
    questions = {"card": "my card has gone missing in {}", "refund": "please send back what I paid for the {}"}
    return [
        row(10 + n, questions[label].format((PLACES, THINGS)[label == "refund"][n]), label)
        for n, label in enumerate(["card"] * 8 + ["refund"] * 4)
    ]


def text_of(body: dict[str, Any]) -> str:
    return str(body["messages"][-1]["content"])


def inventor(number: int, body: dict[str, Any]) -> str:
    """New sentences each time, all different."""
    label = re.search(r'output is "(\w+)"', text_of(body))
    word = label[1] if label else "thing"
    ideas = [
        f"{PLACES[(number * 5 + i) % 18]} {THINGS[(number * 3 + i * 5) % 14]} {word} {number * 5 + i}" for i in range(5)
    ]
    return (
        "Here they are:\n```json\n"
        + json.dumps([f"what about {idea} then, number {idea[::-1]}" for idea in ideas])
        + "\n```"
    )


def run(server: Teacher, rows: list[SourceRow], order: Order, journal: Path) -> Made:
    contender = remote_contender(parse_spec(f"url:{server.spec}?retries=0"))
    contender.name = "the teacher"  # its port is another each time
    return make(rows, contender, order=order, journal=journal)


def mark(example: Example) -> dict[str, Any]:
    found = example.metadata["generated"]
    assert isinstance(found, dict)
    return found


def test_drafts_have_the_form_fill_up_the_small_labels_and_carry_their_mark(tmp_path: Path) -> None:
    with teacher(inventor) as server:
        made = run(server, label_rows(), Order("generate", 14), tmp_path / "j")
    assert Counter(one.answer for one in made.drafts) == {"refund": 9, "card": 5}  # 8 and 4 seeds before
    assert all(one.messages[0].content == "Sort it." for one in made.drafts)
    first = mark(made.drafts[0])
    assert (
        first["teacher"] == "the teacher" and first["prompt_version"] == VERSION and len(first["prompt_sha256"]) == 64
    )
    assert set(first["seed_lines"]) <= {18, 19, 20, 21}  # the lines of "refund"
    assert (made.requests, made.prompt_tokens, made.completion_tokens) == (3, 300, 30)
    assert made.reasons == {"more than asked for": 1}


def test_copies_and_rows_of_another_form_are_counted_by_reason(tmp_path: Path) -> None:
    def script(number: int, body: dict[str, Any]) -> str:
        seed = re.search(r'"input": "([^"]+)"', text_of(body))
        assert seed
        fresh = f"{PLACES[number]} {THINGS[number]} is a new matter"
        return json.dumps([seed[1].upper(), fresh, fresh + "!", 7, "", "x" * 999])

    with teacher(script) as server:
        made = run(server, label_rows(), Order("generate", 3), tmp_path / "j")
    assert len(made.drafts) == 3
    assert made.reasons["near copy of a seed"] == 3 and made.reasons["near copy of another draft"] == 3
    assert made.reasons["empty"] == 6 and made.reasons["input too long"] == 3
    assert sum(made.reasons.values()) + len(made.drafts) == 6 * made.requests


def test_a_teacher_that_brings_nothing_is_left_after_a_few_requests(tmp_path: Path) -> None:
    with teacher(lambda number, body: ("no idea", "[1, 2", (200, completion('["cut', "length")))[number % 3]) as server:
        made = run(server, label_rows(), Order("generate", 50), tmp_path / "j")
    assert made.stopped == "the teacher brings nothing new" and made.requests == 6 and not made.drafts
    assert made.reasons == {"reply is no JSON array": 4, "reply cut off": 2}


def test_rows_in_another_language_are_taken_back_and_made_up_for(tmp_path: Path) -> None:
    def script(number: int, body: dict[str, Any]) -> str:
        if number:
            return inventor(number, body)
        return json.dumps(["Ich habe meine Karte gestern im Zug verloren und brauche bitte schnell eine neue."])

    rows = [
        row(n, f"I have lost my card in the city of {place} yesterday", "ab"[n % 2]) for n, place in enumerate(PLACES)
    ]
    with teacher(script) as server:
        made = run(server, rows, Order("generate", 1), tmp_path / "j")
    assert made.reasons["other language"] == 1 and made.requests == 2
    assert len(made.drafts) == 1 and "Ich" not in made.drafts[0].messages[1].content


def test_the_limit_of_requests_is_kept_and_said(tmp_path: Path) -> None:
    with teacher(inventor) as server:
        made = run(server, label_rows(), Order("generate", 50, max_requests=2), tmp_path / "j")
    assert len(made.drafts) == 10 and made.stopped == "the limit of 2 requests" and len(server.asked) == 2


@pytest.mark.parametrize("failing_at", [0, 1, 3])
def test_a_stop_loses_no_reply_and_the_rows_are_those_of_one_go(tmp_path: Path, failing_at: int) -> None:
    def fails(number: int, body: dict[str, Any]) -> Any:
        return (500, "down") if number == failing_at else inventor(number, body)

    order = Order("generate", 20, seed=3)
    with teacher(inventor) as server:
        whole = run(server, label_rows(), order, tmp_path / "whole")
    with teacher(fails) as server, pytest.raises(ModelError):
        run(server, label_rows(), order, tmp_path / "part")
    (tmp_path / "part").write_bytes(
        (tmp_path / "part").read_bytes() + b'{"request": 9, "reply"'
    )  # killed while writing
    with teacher(lambda number, body: inventor(number + failing_at, body)) as server:
        rest = run(server, label_rows(), order, tmp_path / "part")
        assert len(server.asked) == whole.requests - failing_at
    assert [one.to_json() for one in rest.drafts] == [one.to_json() for one in whole.drafts]
    assert rest.requests_before == failing_at and rest.reasons == whole.reasons


def test_ctrl_c_in_the_middle_is_gone_on_from(tmp_path: Path) -> None:
    with teacher(inventor) as server:
        contender = remote_contender(parse_spec(f"url:{server.spec}?retries=0"))

        def stop(taken: int) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            make(label_rows(), contender, order=Order("generate", 20), journal=tmp_path / "j", on_progress=stop)
        made = make(label_rows(), contender, order=Order("generate", 20), journal=tmp_path / "j")
        assert made.requests_before == 1 and len(made.drafts) == 20
        assert len(server.asked) == made.requests


def test_the_journal_of_another_command_is_refused(tmp_path: Path) -> None:
    with teacher(inventor) as server:
        run(server, label_rows(), Order("generate", 5), tmp_path / "j")
        with pytest.raises(InputError, match="n, seed differ"):
            run(server, label_rows(), Order("generate", 6, seed=1), tmp_path / "j")
        (tmp_path / "j").write_text("{}\n")
        with pytest.raises(InputError, match="no journal"):
            run(server, label_rows(), Order("generate", 5), tmp_path / "j")


def json_rows() -> list[SourceRow]:
    return [
        row(n + 1, f"ship {n + 2} {thing}s to {place}", json.dumps({"count": n + 2, "to": place}))
        for n, (thing, place) in enumerate(zip(THINGS, PLACES, strict=False))
    ]


def test_json_tasks_get_whole_rows_from_the_teacher(tmp_path: Path) -> None:
    def script(number: int, body: dict[str, Any]) -> str:
        good = {
            "input": f"send {number + 40} violins over to Hamburg {THINGS[number]}",
            "output": {"count": 40, "to": "Hamburg"},
        }
        return json.dumps([good, {"input": "send some toys to Bonn now", "output": {"count": "some", "to": "Bonn"}}])

    with teacher(script) as server:
        made = run(server, json_rows(), Order("generate", 2), tmp_path / "j")
    assert [json.loads(one.answer)["to"] for one in made.drafts] == ["Hamburg", "Hamburg"]
    assert made.reasons["other types"] == 2


def test_a_rewording_keeps_the_answer_and_the_values_it_copies(tmp_path: Path) -> None:
    def script(number: int, body: dict[str, Any]) -> str:
        place = re.search(r'"to": "(\w+)"', text_of(body))
        assert place and f'Keep these as they are: ["{place[1]}"]' in text_of(body)
        return json.dumps(
            [f"could {place[1]} get some {THINGS[::-1][number]} of ours, thanks", "somewhere it must go, this order"]
        )

    with teacher(script) as server:
        made = run(server, json_rows(), Order("paraphrase", 5), tmp_path / "j")
    answers = {one.answer for one in made.drafts}
    assert len(answers) == 5 and all(json.loads(one.answer)["to"] in one.messages[1].content for one in made.drafts)
    assert made.reasons == {"a value of the answer is gone from the input": 5}
    assert all(len(mark(one)["seed_lines"]) == 1 for one in made.drafts)


def test_hard_negatives_ask_for_rows_near_the_likest_label(tmp_path: Path) -> None:
    with teacher(inventor) as server:
        made = run(server, label_rows(), Order("hard-negatives", 10), tmp_path / "j")
        assert 'easily taken for "card" but whose right output is "refund"' in text_of(server.asked[0])
    assert len(made.drafts) == 10
    texts = [row(n, f"tell me of {place}", f"a long story about {place} " * 5) for n, place in enumerate(PLACES)]
    with teacher(inventor) as server, pytest.raises(InputError, match="right or wrong"):
        run(server, texts, Order("hard-negatives", 10), tmp_path / "k")


def test_inputs_are_answered_as_the_seeds_are_and_wrong_answers_left_out(tmp_path: Path) -> None:
    asked = [(3, (Message("user", "where is my card?"),)), (7, (Message("user", "money back!"),))]
    with teacher(lambda number, body: ("card\n", "I am sorry to hear that.")[number]) as server:
        made = run(server, label_rows(), Order("answer", 2, inputs=asked), tmp_path / "j")
        assert [turn["role"] for turn in server.asked[0]["messages"]][:3] == ["system", "user", "assistant"]
        assert text_of(server.asked[0]) == "where is my card?"
    assert [(one.messages[1].content, one.answer) for one in made.drafts] == [("where is my card?", "card")]
    assert mark(made.drafts[0])["input_line"] == 3 and made.reasons == {"unknown label": 1} and made.stopped == ""


def test_a_local_model_can_be_the_teacher(tmp_path: Path, tiny_base: Path) -> None:
    from tunesmith.generate import build_contenders

    local = build_contenders([f"base:{tiny_base}"])[0]
    rows = [row(n, f"q{n} {THINGS[n]}", "ab"[n % 2]) for n in range(6)]
    asked = [(n, (Message("user", f"{n}?"),)) for n in range(3)]
    order = Order("answer", 3, inputs=asked, round_size=2)
    first = make(rows, local, order=order, journal=tmp_path / "a")
    again = make(rows, local, order=order, journal=tmp_path / "b")
    assert first.requests == 3 and first == again  # random weights: the answers are no labels, and are counted
