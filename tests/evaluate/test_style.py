"""The author's own texts score as calibrated, another's score near 0, and the explanation names the habit."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from tests.evaluate.contenders import Fixed, label_example
from tunesmith.contender import Reply
from tunesmith.errors import InputError
from tunesmith.evaluate.scorers import make_scorer
from tunesmith.evaluate.scorers.score import Asked
from tunesmith.evaluate.scorers.style import learn_style

NOUNS = ["parcel", "invoice", "router", "kettle", "ticket", "garden", "window", "engine", "letter", "bottle"]
VERBS = ["arrived", "broke", "moved", "failed", "changed", "opened"]


def plain(generator: random.Random) -> str:
    """Short, plain sentences."""
    parts = [f"The {generator.choice(NOUNS)} {generator.choice(VERBS)}." for _ in range(generator.randint(4, 8))]
    return " ".join([*parts, f"We will look at it on day {generator.randint(1, 9)}."])


def ornate(generator: random.Random) -> str:
    """One long sentence of clauses, exclaimed."""
    parts = [f"a {generator.choice(NOUNS)}, which so sadly {generator.choice(VERBS)}" for _ in range(5)]
    return "OH, " + " - and then - ".join(parts) + "!!!"


def texts(make: object, count: int, seed: int) -> list[str]:
    generator = random.Random(seed)
    return [make(generator) for _ in range(count)]  # type: ignore[operator]


def test_new_texts_of_the_author_score_evenly_and_those_of_another_near_0() -> None:
    style = learn_style(texts(plain, 60, 1))
    own = [style.score(text).value for text in texts(plain, 60, 2)]
    other = [style.score(text).value for text in texts(ornate, 60, 3)]
    assert 0.35 <= np.mean(own) <= 0.65
    assert np.mean(np.array(own) < 0.1) <= 0.25
    assert max(other) < 0.05


def test_the_explanation_names_the_habits_that_differ() -> None:
    style = learn_style(texts(plain, 40, 1))
    assert (
        "'!' in characters" in style.score("The parcel arrived! The engine broke! We will look at it! Soon! Yes!").why
    )


def test_the_joint_distance_of_all_replies_tells_authors_apart(tmp_path: Path) -> None:
    file = tmp_path / "author.txt"
    file.write_text("\n\n".join(texts(plain, 40, 1)))
    scorer = make_scorer(f"style:{file}")

    def distance(replies: list[str]) -> tuple[float, float, float]:
        made = [Reply(text, 1, 1, 0.1, "stop") for text in replies]
        asked = Asked([label_example("q", "a")] * len(made), made, Fixed("x", []), made)
        figure = scorer.score_rows(asked).aggregate.figures["distance"]
        return figure.low, figure.mean, figure.high

    own, other = distance(texts(plain, 30, 5)), distance(texts(ornate, 30, 6))
    assert own[2] < other[0]


def test_the_texts_may_be_the_answers_of_rows_and_must_be_enough(tmp_path: Path) -> None:
    file = tmp_path / "author.jsonl"
    lines = [json.dumps({"prompt": "q", "completion": text}) for text in texts(plain, 20, 1)]
    file.write_text("\n".join(lines))
    assert make_scorer(f"style:{file}")(label_example("q", "a"), Reply("", 1, 1, 0.1, "stop")).value == 0
    file.write_text("\n".join(lines[:5]))
    with pytest.raises(InputError, match="5 texts of the author are too few"):
        make_scorer(f"style:{file}")
    file.write_text('{"prompt": 1}')
    with pytest.raises(InputError, match=r"author.jsonl:1: "):
        make_scorer(f"style:{file}")
