"""The floor learns labels from words, the same way each time."""

from __future__ import annotations

import pytest

from tests.evaluate.contenders import label_example
from tunesmith.errors import InputError
from tunesmith.evaluate.floor import FloorContender

TRAINING = [
    label_example(text, label)
    for text, label in [
        ("my card has not arrived", "card_arrival"),
        ("when does the new card arrive", "card_arrival"),
        ("where is my card, it did not arrive", "card_arrival"),
        ("I forgot my pin", "change_pin"),
        ("how do I change the pin", "change_pin"),
        ("a new pin please", "change_pin"),
    ]
]


def test_the_floor_answers_with_labels_it_has_seen() -> None:
    asked = [label_example("has the card arrived?", "?").prompt, label_example("change my PIN", "?").prompt]
    heard: list[int] = []
    replies = FloorContender(TRAINING).answer(asked, max_new_tokens=1, progress=heard.append)
    assert [reply.text for reply in replies] == ["card_arrival", "change_pin"]
    assert all(reply.stopped and reply.prompt_tokens == reply.completion_tokens == 0 for reply in replies)
    assert all(reply.latency_s > 0 for reply in replies)
    assert heard == [2]


def test_the_floor_is_deterministic() -> None:
    asked = [label_example(text, "?").prompt for text in ("pin card", "new", "zzz", "")]
    first, second = (FloorContender(TRAINING).answer(asked, max_new_tokens=1) for _ in range(2))
    assert [reply.text for reply in first] == [reply.text for reply in second]


def test_the_floor_answers_no_prompts_with_no_replies() -> None:
    assert FloorContender(TRAINING).answer([], max_new_tokens=1) == []


def test_rows_that_cannot_train_a_floor_are_refused() -> None:
    with pytest.raises(InputError, match="two different answers"):
        FloorContender(TRAINING[:3])
    with pytest.raises(InputError, match="cannot be trained"):
        FloorContender([label_example("", "a"), label_example("", "b")])
