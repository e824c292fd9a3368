"""The form of a task, learned from its rows, and what breaks it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.chat import Example, Message
from tunesmith.data.drafts.form import Novelty, learn_form, single_turns
from tunesmith.errors import InputError


def row(question: str, answer: Any) -> Example:
    text = answer if isinstance(answer, str) else json.dumps(answer)
    return Example((Message("system", "Do it."), Message("user", question), Message("assistant", text, trained=True)))


def test_labels_are_learned_and_others_refused() -> None:
    form = learn_form([row(f"question number {n}", ("card", "refund")[n % 2]) for n in range(8)])
    assert (form.kind, form.labels, form.system) == ("label", ("card", "refund"), (Message("system", "Do it."),))
    assert form.fault("question number 9", "card") is None
    assert form.fault("question number 9", "Card") == "unknown label"
    assert form.fault("x" * 500, "card") == "input too long"
    assert form.fault(" ", "card") == "empty"


def test_fields_and_types_of_json_answers_are_learned() -> None:
    form = learn_form(
        [row(f"{n} eggs", {"what": "egg", "count": n} | ({"note": None} if n == 1 else {})) for n in range(30)]
    )
    assert form.kind == "json" and form.required == {"what", "count"}
    assert form.fault("3 eggs", '{"count": 3, "what": "egg"}') is None
    assert form.fault("3 eggs", '{"count": 3, "what": "egg", "note": null}') is None
    assert form.fault("3 eggs", '{"count": "3", "what": "egg"}') == "other types"
    assert form.fault("3 eggs", '{"count": 3}') == "other fields"
    assert form.fault("3 eggs", '{"count": 3, "what": "egg", "size": 1}') == "other fields"
    assert form.fault("3 eggs", "three") == "no JSON object"


def test_free_texts_are_held_to_their_length() -> None:
    form = learn_form(
        [row(f"tell me about thing {n}", f"thing {n} is " + "very " * (5 + n) + "fine") for n in range(20)]
    )
    assert form.kind == "text"
    assert form.fault("tell me about thing 99", "it is fine, really, and very good too") is None
    assert form.fault("tell me about thing 99", "ok") == "answer too short"
    assert form.fault("tell me about thing 99", "x" * 900) == "answer too long"


def test_rows_of_several_turns_are_not_imitated_and_none_is_an_error() -> None:
    talk = Example((*row("a", "b").messages, *row("c", "d").messages[1:]))
    assert single_turns([talk, row("a", "b")]) == [1]
    with pytest.raises(InputError, match="no row with one question"):
        learn_form([])


def test_near_copies_are_told_from_new_texts() -> None:
    seen = Novelty()
    seen.add("Where is my new card? It has not arrived.")
    seen.add("I want my money back for the broken lamp")
    assert seen.nearest("where is my NEW card, it has not arrived") == 0
    assert seen.nearest("i want my money back for that broken lamp") == 1
    assert seen.nearest("How do I change my address?") is None


@given(st.lists(st.text(max_size=40), max_size=8))
def test_every_text_is_a_near_copy_of_itself(texts: list[str]) -> None:
    seen = Novelty()
    for text in texts:
        seen.add(text)
    assert all(seen.nearest(text) is not None for text in texts)
