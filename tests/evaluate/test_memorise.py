"""What comes back verbatim is counted against rows never seen, and a planted secret shows by its rank."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.evaluate.contenders import Fixed, label_example
from tunesmith.chat import Example
from tunesmith.errors import InputError
from tunesmith.evaluate.canaries import Canary, canary_lines, measure_exposure, plant, read_canaries
from tunesmith.evaluate.memorise import longest_run, measure_memory, recall, why_meaningless

WORDS = ["alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel", "india", "juliet", "kilo", "lima"]


def rows(count: int, start: int) -> list[Example]:
    generator = random.Random(start)
    return [label_example(f"question {start + n}", " ".join(generator.choices(WORDS, k=30))) for n in range(count)]


@settings(max_examples=100)
@given(st.text("ab", max_size=12), st.text("ab", max_size=12))
def test_the_longest_run_is_that_of_trying_all(a: str, b: str) -> None:
    tried = [end - start for start in range(len(a)) for end in range(start + 1, len(a) + 1) if a[start:end] in b]
    assert longest_run(a, b) == longest_run(list(a), list(b)) == max(tried, default=0)


def test_a_model_that_repeats_its_training_answers_is_found_out() -> None:
    train, held_out = rows(12, 0), rows(12, 100)
    parrot = Fixed("parrot", [row.answer for row in train] + ["I do not know that."] * 12)
    found = measure_memory(parrot, train, held_out=held_out, max_new_tokens=9)
    assert found["exact"]["train"]["mean"] == 1 and found["exact"]["held_out"]["mean"] == 0
    assert found["exact"]["low"] > 0.5 and found["exact"]["p"] < 1e-5
    assert found["run_20_words"]["train"]["rows"] == 12
    assert found["sentences"][0].endswith("memorised.") and "no memorisation" not in found["sentences"][0]


def test_a_part_of_an_answer_counts_as_a_run_and_not_as_exact() -> None:
    answer = " ".join(WORDS * 3)
    found = recall(answer, "Well: " + " ".join(answer.split()[3:25]) + ", or so.")
    assert (found.exact, found.run_words) == (False, 22)


def test_what_both_sides_give_back_alike_is_no_memorisation() -> None:
    train, held_out = rows(12, 0), rows(12, 100)
    able = Fixed("able", [row.answer for row in (*train, *held_out)])
    found = measure_memory(able, train, held_out=held_out, max_new_tokens=9)
    assert found["exact"]["difference"] == 0
    assert all("no memorisation can be seen" in sentence for sentence in found["sentences"])


def test_rows_on_both_sides_and_short_answers_are_said() -> None:
    with pytest.raises(InputError, match="1 questions are in the training rows and in the held-out ones"):
        measure_memory(Fixed("x", []), rows(2, 0), held_out=rows(1, 0), max_new_tokens=9)
    labels = [label_example(f"q{number}", "ab"[number % 2]) for number in range(8)]
    assert str(why_meaningless(labels)).startswith("The answers are 2 labels")
    assert "shorter than 40" in str(why_meaningless([label_example(f"q{n}", f"answer {n}") for n in range(8)]))
    assert why_meaningless(rows(5, 0)) is None
    short = [label_example(f"s{n}", f"answer {n}") for n in range(2)]
    found = measure_memory(Fixed("x", ["?"] * 4), rows(2, 0), held_out=short, max_new_tokens=9)
    assert found["run_20_words"] is None


@settings(max_examples=20)
@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 99))
def test_planting_keeps_every_row_and_adds_each_canary_as_often_as_asked(count: int, repeats: int, seed: int) -> None:
    before = rows(5, 0)
    after, canaries = plant(before, count, repeats=repeats, seed=seed)
    assert [row for row in after if row in before] == before
    assert len(after) == 5 + count * repeats
    assert all(after.count(canary.example) == repeats for canary in canaries)
    assert len({canary.secret for canary in canaries}) == count
    assert plant(before, count, repeats=repeats, seed=seed) == (after, canaries)


def test_a_file_of_canaries_comes_back_as_written_and_a_broken_one_is_refused(tmp_path: Path) -> None:
    _, canaries = plant([], 3, repeats=2, seed=1)
    file = tmp_path / "x.canaries.jsonl"
    file.write_text("\n".join(canary_lines(canaries)))
    assert read_canaries(file) == canaries
    file.write_text(json.dumps({"number": 1}))
    with pytest.raises(InputError, match="cannot be read"):
        read_canaries(file)


def test_exposure_is_full_for_a_known_secret_and_as_expected_for_one_never_seen(
    tiny_base: Path,
) -> None:
    """The tiny model's output layer is bent towards the digit 7: the secret of sevens is the likeliest of all."""
    import torch

    from tunesmith.generate import LocalContender
    from tunesmith.model import load_base

    contender = LocalContender("base:tiny", load_base(str(tiny_base), precision="float32"))
    unseen = measure_exposure(contender, plant([], 4, repeats=1, seed=5)[1])
    assert unseen["p"] > 0.05 and "no memorisation" in unseen["sentences"][0]
    assert unseen["unseen"] == pytest.approx(1.39, abs=0.02)

    head = contender.model.get_output_embeddings()
    seven = contender.base.renderer.tokenizer.encode("7", add_special_tokens=False)[0]
    bias = torch.zeros(head.out_features)
    bias[seven] = 5.0
    head.bias = torch.nn.Parameter(bias, requires_grad=False)
    known = measure_exposure(contender, [Canary(number, "777-777-777", 1) for number in (1234, 4321)])
    assert [row["rank"] for row in known["canaries"]] == [1, 1]
    assert known["exposure"]["mean"] == known["most"] == 6
    assert known["p"] < 0.05 and known["first"] == 2
