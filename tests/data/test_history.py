"""Named data sets: rows keep their numbers, nothing is lost, and a diff is the whole difference."""

from __future__ import annotations

import json
import multiprocessing
import random
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.chat import Example, Message
from tunesmith.data.dataset import Dataset, read_dataset, split_dataset
from tunesmith.data.load import load
from tunesmith.data.versions.decisions import decide, state_of
from tunesmith.data.versions.diff import apply, diff
from tunesmith.data.versions.history import (
    Commit,
    add,
    decisions_of,
    head_of,
    lineage,
    names,
    numbers_of,
    resolve,
    tag,
    tags,
)
from tunesmith.data.versions.matching import match
from tunesmith.errors import InputError

WORDS = ("card", "refund", "login", "lost", "fee", "limit", "account")


def chat(question: str, answer: str, **metadata: Any) -> Example:
    return Example((Message("user", question), Message("assistant", answer, trained=True)), 1.0, metadata)


def write(path: Path, rows: Sequence[Example | None]) -> Path:
    path.write_text("".join((row.to_json() if row else "") + "\n" for row in rows), encoding="utf-8")
    return path


def add_rows(root: Path, rows: Sequence[Example | None], *, name: str = "support", **options: Any) -> Commit:
    return add(root, load(write(root.parent / "rows.jsonl", rows)), name=name, **options)


QUESTIONS = st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map(" ".join)
EXAMPLES = st.builds(chat, QUESTIONS, st.sampled_from(("a", "b")))  # few words, so that duplicates are common


@settings(max_examples=25, deadline=None)
@given(versions=st.lists(st.lists(EXAMPLES, min_size=1, max_size=8), min_size=2, max_size=4))
def test_numbers_never_collide_and_a_diff_applied_to_the_old_rows_gives_the_new_ones(
    versions: list[list[Example]],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "datasets"
        heads = [add_rows(root, rows).dataset for rows in versions]
        for rows, version in zip(versions, heads, strict=True):
            assert version.examples == rows
            assert list(version.texts) == [row.to_json() for row in rows]  # what `data export` writes
            assert len(set(numbers_of(version))) == len(rows)
        for old, new in zip(heads, heads[1:], strict=False):
            assert apply(old.examples, diff(old, new)) == new.examples
            kept = _contents(old) & _contents(new)  # every content that stays keeps its numbers
            both = Counter(row.id for row in old.examples) & Counter(row.id for row in new.examples)
            assert Counter(content for _, content in kept) == both
            last = new.operations[-1]
            if old.id != new.id:
                assert len(old.rows) + last["added"] - last["removed"] == len(new.rows)
                staying = numbers_of(new)
                assert [row.row for row in new.left] == [row for row in numbers_of(old) if row not in staying]
        other = add_rows(root, versions[-1], name="other").dataset
        assert apply(heads[0].examples, diff(heads[0], other)) == other.examples


def _contents(version: Dataset) -> set[tuple[int, str]]:
    return {(number, row.example.id) for number, row in zip(numbers_of(version), version.rows, strict=True)}


@settings(max_examples=60, deadline=None)
@given(data=st.data(), count=st.integers(3, 12))
def test_a_row_keeps_its_number_when_it_moves_or_is_edited_with_question_or_answer_unchanged(
    data: st.DataObject, count: int
) -> None:
    """Different questions; each row keeps at least one of question and answer, others are removed and added."""
    before = [chat(f"question {number} about {WORDS[number % 7]}", f"answer {number % 3}") for number in range(count)]
    after: list[tuple[int, Example]] = []
    for number, row in enumerate(before):
        fate = data.draw(st.sampled_from(("keep", "keep", "question", "answer", "metadata", "gone")))
        if fate != "gone":
            asked = row.prompt[0].content
            question = f"please, {asked}, now?" if fate == "question" else asked
            answer = "new" if fate == "answer" else row.answer
            after.append((number, chat(question, answer, **({"note": 1} if fate == "metadata" else {}))))
    for extra in range(data.draw(st.integers(0, 3))):
        after.append((-1, chat(f"something else entirely, no. {extra}", f"fresh {extra}")))
    after = data.draw(st.permutations(after))
    rows = [row for _, row in after]
    found = match(before, rows, ids=([row.id for row in before], [row.id for row in rows]))
    assert found == [number for number, _ in after]


def test_an_edit_in_place_keeps_its_number_even_when_every_word_of_the_question_is_new(tmp_path: Path) -> None:
    rows = [chat(f"question {number}", "card" if number % 2 else "refund") for number in range(6)]
    add_rows(tmp_path / "d", rows)
    rows[3] = chat("somebody took my purse", "card")
    rows[4] = chat("money back please", "refund")
    assert numbers_of(add_rows(tmp_path / "d", rows).dataset) == [1, 2, 3, 4, 5, 6]


def test_a_system_prompt_changed_everywhere_is_an_edit_of_every_row(tmp_path: Path) -> None:
    def with_system(text: str) -> list[Example]:
        rows = [chat(f"question {number}", "card") for number in range(5)]
        return [Example((Message("system", text), *row.messages)) for row in rows]

    add_rows(tmp_path / "d", with_system("Be kind."))
    made = add_rows(tmp_path / "d", with_system("Answer with one label."))
    assert numbers_of(made.dataset) == [1, 2, 3, 4, 5]
    assert made.counts == {"added": 0, "removed": 0, "edited": 5}


def test_a_row_that_left_and_comes_back_has_its_old_number_and_numbers_are_never_reused(tmp_path: Path) -> None:
    one, two, three = chat("lost card", "a"), chat("refund fee", "b"), chat("account limit", "c")
    add_rows(tmp_path / "d", [one, two])
    gone = add_rows(tmp_path / "d", [one]).dataset
    assert [(row.row, row.line, row.reason) for row in gone.left] == [(2, 2, "not in rows.jsonl")]
    assert numbers_of(add_rows(tmp_path / "d", [one, three]).dataset) == [1, 3]
    assert numbers_of(add_rows(tmp_path / "d", [three, two, one]).dataset) == [3, 2, 1]


def test_the_same_rows_again_make_no_version_and_an_old_state_again_makes_a_new_one(tmp_path: Path) -> None:
    root = tmp_path / "d"
    first = add_rows(root, [chat("lost", "a"), None])
    assert not add_rows(root, [chat("lost", "a"), None]).is_new
    second = add_rows(root, [chat("fee", "b")], message="only fees")
    third = add_rows(root, [chat("lost", "a"), None])
    assert [entry["id"] for entry in lineage(root, third.dataset.id)] == [
        third.dataset.id, second.dataset.id, first.dataset.id,
    ]  # fmt: skip
    assert second.dataset.operations[-1]["message"] == "only fees"
    assert third.dataset.id != first.dataset.id
    assert third.dataset.examples == first.dataset.examples
    assert read_dataset(third.dataset.directory) == third.dataset


def test_decisions_hold_when_the_file_is_added_again_and_the_ledger_says_so(tmp_path: Path) -> None:
    root = tmp_path / "d"
    rows = [chat("lost", "a"), chat("fee", "b"), chat("limit", "c")]
    add_rows(root, rows)
    log = decisions_of(root, "support")
    log.append(decide("2", state_of(rows[1], []), action="reject", note="nonsense"))
    log.append(decide("3", state_of(rows[2], []), action="edit", edited=chat("limit", "C")))
    again = add_rows(root, [*rows, chat("new", "d")])
    assert again.dataset.examples == [rows[0], chat("limit", "C"), chat("new", "d")]
    statuses = [(row.line, row.status, row.row) for row in again.dataset.ledger]
    assert statuses == [(1, "trained", 1), (2, "rejected", 2), (3, "trained", 3), (4, "trained", 4)]
    assert "nonsense" in again.dataset.ledger[1].reason
    assert (again.counts["rejected"], again.counts["reviewed"], again.counts["added"]) == (1, 1, 1)
    as_is = add_rows(root, [*rows, chat("new", "d")], as_is=True)
    assert as_is.dataset.examples == [*rows, chat("new", "d")]
    assert numbers_of(as_is.dataset) == [1, 2, 3, 4]


def test_a_child_of_a_named_version_keeps_the_numbers(tmp_path: Path) -> None:
    version = add_rows(tmp_path / "d", [chat(f"question {number}", "a") for number in range(4)]).dataset
    train, held = split_dataset(tmp_path / "d", version, count=1)
    assert sorted([*numbers_of(train), *numbers_of(held)]) == [1, 2, 3, 4]
    assert read_dataset(held.directory) == held


def _add_one(root: str, number: int) -> None:
    folder = Path(root).parent / f"process{number}"
    folder.mkdir()
    add(Path(root), load(write(folder / "rows.jsonl", [chat(f"question {number}", "a")])), name="support")


def test_adds_at_the_same_time_are_all_in_the_history(tmp_path: Path) -> None:
    root = tmp_path / "d"
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_add_one, args=(str(root), number)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    head = head_of(root, "support")
    assert head
    history = [read_dataset(root / entry["id"]) for entry in lineage(root, head.id)]
    assert {version.examples[0].prompt[0].content for version in history} == {f"question {n}" for n in range(4)}


def test_a_crash_before_the_name_moves_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "d"
    first = add_rows(root, [chat("lost", "a")])
    with monkeypatch.context() as patch:
        patch.setattr("tunesmith.data.versions.history._point", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            add_rows(root, [chat("fee", "b")])
    assert names(root) == {"support": first.dataset.id}
    assert add_rows(root, [chat("fee", "b")]).is_new
    assert not [path for path in (root / "names").iterdir() if path.name.endswith(".part")]


def test_a_name_a_tag_and_the_start_of_an_id_mean_a_version(tmp_path: Path) -> None:
    root = tmp_path / "d"
    first = add_rows(root, [chat("lost", "a")]).dataset
    second = add_rows(root, [chat("fee", "b")]).dataset
    tag(root, first.id, name="v1")
    assert [resolve(root, text) for text in ("support", "v1", first.id[:6], second.id)] == [
        second.id, first.id, first.id, second.id,
    ]  # fmt: skip
    for call, words in (
        (lambda: resolve(root, "suport"), "no data set, tag or version 'suport'"),
        (lambda: tag(root, second.id, name="v1"), "stands on"),
        (lambda: tag(root, second.id, name="support"), "name of a data set"),
        (lambda: add_rows(root, [chat("x", "y")], name="v1"), "is a tag"),
        (lambda: add_rows(root, [chat("x", "y")], name="../x"), "cannot be a name"),
        (lambda: add_rows(root, [chat("x", "y")], name="abcdef"), "cannot be a name"),
    ):
        with pytest.raises(InputError, match=words):
            call()
    tag(root, second.id, name="v1", move=True)
    assert tags(root) == {"v1": second.id}


def test_rows_that_were_all_edited_and_shuffled_are_found_by_their_rare_words() -> None:
    before = [chat(f"a question about my card, number {number}", f"label{number % 3}") for number in range(300)]
    rows = [(n, chat(f"well, {row.prompt[0].content} please", row.answer)) for n, row in enumerate(before)]
    random.Random(0).shuffle(rows)
    after = [row for _, row in rows]
    assert match(before, after, ids=([row.id for row in before], [row.id for row in after])) == [
        index for index, _ in rows
    ]


def test_a_hundred_edits_among_rows_with_few_labels_find_their_rows() -> None:
    draw = random.Random(0)
    words = [f"word{number}" for number in range(400)]
    before = [chat(" ".join(draw.choices(words, k=12)), f"label{draw.randrange(5)}") for _ in range(1000)]
    rows = list(enumerate(before))
    for index in range(0, 1000, 10):
        question = before[index].prompt[0].content.split()
        question[draw.randrange(12)] = "changed"
        rows[index] = (index, chat(" ".join(question), before[index].answer))
    draw.shuffle(rows)
    after = [row for _, row in rows]
    assert match(before, after, ids=([row.id for row in before], [row.id for row in after])) == [
        index for index, _ in rows
    ]


def test_a_damaged_name_is_said(tmp_path: Path) -> None:
    add_rows(tmp_path / "d", [chat("lost", "a")])
    (tmp_path / "d" / "names" / "support.head").write_text(json.dumps([1]))
    with pytest.raises(InputError, match=r"support\.head cannot be read"):
        names(tmp_path / "d")
