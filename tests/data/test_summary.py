"""Sizes: every row is measured, in characters or in the tokens of a base, and the histogram counts each once."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.load import Loaded, load
from tunesmith.data.summary import MAX_BARS, Base, histogram, measure, spread, summarise


def loaded(tmp_path: Path, pairs: list[tuple[str, str]]) -> Loaded:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": prompt, "completion": answer}) for prompt, answer in pairs))
    return load(path)


@pytest.fixture
def base(tiny_base: Path) -> Base:
    from tunesmith.model import load_renderer

    return Base("tiny", load_renderer(str(tiny_base)), context=120)


def test_without_a_base_lengths_are_characters_and_say_so(tmp_path: Path) -> None:
    data = loaded(tmp_path, [("abc", "de"), ("a", "bcd")])
    sizes = summarise(data, measure(data.examples), balance=Counter())["sizes"]
    assert sizes["unit"] == "characters"
    assert (sizes["epoch"], sizes["trained"], sizes["trained_share"]) == (9, 5, 0.5556)
    assert sizes["base"] is None


def test_with_a_base_lengths_are_those_of_the_rendered_rows(tmp_path: Path, base: Base) -> None:
    data = loaded(tmp_path, [("abc", "de"), ("a" * 500, "b")])
    measured = measure(data.examples, base)
    rendered = [base.renderer.render(row.example) for row in data.examples]
    assert measured.length_N == [len(row.ids) for row in rendered]
    sizes = summarise(data, measured, balance=Counter())["sizes"]
    assert sizes["rows_that_do_not_fit"] == 1
    assert (sizes["epoch"], sizes["trained"]) == (len(rendered[0].ids), rendered[0].num_trained)


def test_nothing_has_no_sizes() -> None:
    assert spread([]) is None
    assert histogram([]) == []


@given(st.lists(st.integers(0, 10**7), min_size=1, max_size=200))
@settings(max_examples=60, deadline=None)
def test_a_histogram_counts_every_value_once_in_few_bars_that_touch(values: list[int]) -> None:
    bars = histogram(values)
    assert sum(bar["rows"] or 0 for bar in bars) == len(values)
    assert len(bars) <= MAX_BARS + 1
    for bar, following in zip(bars, bars[1:], strict=False):
        assert bar["to"] is not None
        assert following["from"] == bar["to"] + 1
    assert (bars[0]["from"] or 0) <= min(values)
    assert bars[-1]["to"] is None or bars[-1]["to"] >= max(values)
