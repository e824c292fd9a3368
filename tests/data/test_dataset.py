"""A Dataset version is what its id says, accounts for every line, and shows when someone changed it."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.chat import Example, Message, parse_row
from tunesmith.data.dataset import Dataset, read_dataset, split_dataset, write_loaded
from tunesmith.data.ledger import LedgerRow, check_conservation, counts_of
from tunesmith.data.load import load
from tunesmith.errors import InputError, RunError

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(str.strip)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)


@st.composite
def any_example(draw: st.DrawFn) -> Example:
    system = [Message("system", draw(TEXTS))] if draw(st.booleans()) else []
    turns: list[Message] = []
    for last in [False] * draw(st.integers(0, 2)) + [True]:
        turns += [Message("user", draw(TEXTS)), Message("assistant", draw(TEXTS), trained=last or draw(st.booleans()))]
    metadata = draw(st.dictionaries(TEXTS.filter(lambda key: key not in ("messages", "weight")), JSON, max_size=2))
    return Example((*system, *turns), draw(st.floats(0.01, 100)), metadata)


@settings(max_examples=200, deadline=None)
@given(any_example())
def test_an_example_survives_its_own_normal_form(example: Example) -> None:
    assert parse_row(json.loads(example.to_json())) == (example, [])


def write_file(directory: Path, examples: list[Example | None]) -> Path:
    path = directory / "rows.jsonl"
    path.write_text("".join((row.to_json() if row else "") + "\n" for row in examples), encoding="utf-8", newline="\n")
    return path


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.none() | any_example(), min_size=1, max_size=8), count=st.integers(1, 3))
def test_every_line_is_in_the_ledger_once_through_writing_and_splitting(rows: list[Example | None], count: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        loaded = load(write_file(Path(name), rows))
        if loaded.problems:
            return
        dataset = write_loaded(Path(name) / "datasets", loaded)
        assert list(dataset.rows) == loaded.examples
        check_conservation(dataset.ledger, len(rows))
        try:
            train, held = split_dataset(Path(name) / "datasets", dataset, count=count)
        except InputError:
            return
        for child in (train, held):
            check_conservation(child.ledger, len(rows))
        lines = sorted(row.line for row in (*train.rows, *held.rows))
        assert lines == [row.line for row in dataset.rows]
        assert counts_of(train.ledger).get("held_out", 0) == len(held.rows)


def example(number: int) -> Example:
    return Example((Message("user", f"question {number}"), Message("assistant", f"answer {number}", trained=True)))


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    rows = [example(0), None, example(1), example(1), example(2)]
    return write_loaded(tmp_path / "datasets", load(write_file(tmp_path, rows)))


def test_a_version_read_again_is_equal_and_duplicates_keep_their_lines(dataset: Dataset) -> None:
    assert read_dataset(dataset.directory) == dataset
    assert [row.line for row in dataset.rows] == [1, 3, 4, 5]
    assert dataset.ledger[1] == LedgerRow(2, None, "dropped", "blank line")


def test_writing_the_same_version_twice_changes_nothing(dataset: Dataset, tmp_path: Path) -> None:
    before = (dataset.directory / "manifest.json").stat().st_mtime_ns
    assert write_loaded(tmp_path / "datasets", load(tmp_path / "rows.jsonl")) == dataset
    assert (dataset.directory / "manifest.json").stat().st_mtime_ns == before
    assert [entry.name for entry in (tmp_path / "datasets").iterdir()] == [dataset.id]


def test_the_same_rows_on_other_lines_have_the_ledger_of_their_own_file(tmp_path: Path) -> None:
    root = tmp_path / "datasets"
    for rows in ([example(0), None, example(1)], [example(0), example(1), None], [example(0), example(1)]):
        loaded = load(write_file(tmp_path, rows))
        made = write_loaded(root, loaded)
        blank = [line for line, row in enumerate(rows, 1) if row is None]
        for version in (made, *split_dataset(root, made, count=1)):
            assert version.source.sha256 == loaded.sha256
            assert [row.line for row in version.ledger if row.status == "dropped"] == blank
        assert list(made.rows) == loaded.examples


def test_children_name_their_parent_and_operation_and_where_each_line_went(dataset: Dataset, tmp_path: Path) -> None:
    train, held = split_dataset(tmp_path / "datasets", dataset, count=1)
    assert (train.parent, held.parent) == (dataset.id, dataset.id)
    assert held.operations == ({"operation": "split", "part": "held_out", "seed": 0, "count": 1},)
    assert train.ledger == held.ledger
    assert counts_of(held.ledger) == {"trained": 3, "dropped": 1, "held_out": 1}
    assert len({dataset.id, train.id, held.id}) == 3


@pytest.mark.parametrize("name", ["examples.jsonl", "ledger.jsonl"])
def test_a_changed_or_missing_file_is_named(dataset: Dataset, name: str) -> None:
    path = dataset.directory / name
    path.write_text(path.read_text(encoding="utf-8").replace("1", "2"), encoding="utf-8")
    with pytest.raises(InputError, match=f"{name} was changed"):
        read_dataset(dataset.directory)
    path.unlink()
    with pytest.raises(InputError, match=f"{name} cannot be read"):
        read_dataset(dataset.directory)


@pytest.mark.parametrize(
    "edit", [("parent", "abc"), ("id", "0" * 16), ("source", {}), ("files", None), ("operations", 3)]
)
def test_a_changed_manifest_is_found(dataset: Dataset, edit: tuple[str, object]) -> None:
    path = dataset.directory / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(manifest | {edit[0]: edit[1]}), encoding="utf-8")
    with pytest.raises(InputError, match=r"manifest\.json"):
        read_dataset(dataset.directory)


def test_a_directory_without_a_version_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no dataset"):
        read_dataset(tmp_path)


def test_a_ledger_that_loses_or_doubles_a_line_is_refused() -> None:
    rows = [
        LedgerRow(1, "a", "trained"),
        LedgerRow(2, None, "dropped"),
        LedgerRow(2, "b", "lost"),
        LedgerRow(9, None, "dropped"),
    ]
    with pytest.raises(RunError) as caught:
        check_conservation(rows, 3)
    for words in ("missing: 3", "named twice: 2", "outside the file: 9", "unknown status: lost"):
        assert words in str(caught.value)
