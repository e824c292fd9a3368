"""An index on disk: step by step equals at once, only what changed is encoded, and a kill leaves the one before."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.retrieve.hashed import HashedEncoder
from tunesmith.errors import DataError, InputError
from tunesmith.retrieve import index, shelf
from tunesmith.retrieve.index import Indexed, build_index
from tunesmith.retrieve.search import Found, open_index
from tunesmith.retrieve.shelf import Settings

WORDS = "the refund of a card goes to bank account within days after payment login fee limit"
QUESTIONS = ["When does the refund reach my bank?", "login limit", "fee"]
SMALL = Settings(words=12, overlap=4)


def prose(seed: int) -> str:
    dice = random.Random(seed)
    return ". ".join(" ".join(dice.choices(WORDS.split(), k=6)) for _ in range(dice.randint(1, 6))) + "."


def write(folder: Path, texts: dict[str, int]) -> None:
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        if path.name not in texts:
            path.unlink()
    for name, seed in texts.items():
        (folder / name).write_text(f"# Title {seed % 3}\n\n{prose(seed)}\n\n## More\n\n{prose(seed + 100)}")


def build(folder: Path, out: Path, encoder: HashedEncoder | None = None, settings: Settings = SMALL) -> Indexed:
    return build_index(folder, out, encoder=encoder, settings=settings)


def answers(out: Path, encoder: HashedEncoder) -> list[list[tuple[object, ...]]]:
    def row(found: Found) -> tuple[object, ...]:
        assert found.dense
        legs = (found.bm25 and (found.bm25.rank, round(found.bm25.score, 4)), round(found.dense.score, 4))
        return (found.number, found.document, found.titles, found.text, legs)

    return [[row(one) for one in best] for best in open_index(out, encoder=encoder).search(QUESTIONS, 4)]


FOLDERS = st.dictionaries(st.sampled_from(["a.md", "b.md", "c.txt", "d.md"]), st.integers(0, 5), min_size=1)


@pytest.mark.slow
@given(st.lists(FOLDERS, min_size=2, max_size=3))
@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_index_made_step_by_step_equals_one_made_at_once(
    tmp_path_factory: pytest.TempPathFactory, states: list[dict[str, int]]
) -> None:
    tmp_path = tmp_path_factory.mktemp("steps")
    encoder = HashedEncoder()
    for state in states:
        write(tmp_path / "docs", state)
        last = build(tmp_path / "docs", tmp_path / "grown", encoder).manifest
    once = build(tmp_path / "docs", tmp_path / "once", encoder).manifest
    assert (last.files, last.passages, last.documents) == (once.files, once.passages, once.documents)
    assert answers(tmp_path / "grown", encoder) == answers(tmp_path / "once", encoder)


def test_only_what_changed_is_read_and_encoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docs, out, encoder = tmp_path / "docs", tmp_path / "out", HashedEncoder()
    write(docs, {"a.md": 1, "b.md": 2, "c.md": 3})
    first = build(docs, out, encoder)
    assert first.encoded == len(set(encoder.encoded)) == first.manifest.passages
    write(docs, {"a.md": 1, "b.md": 9, "d.md": 3})
    read: list[str] = []
    really = index.read_documents
    monkeypatch.setattr(index, "read_documents", lambda path, name: read.append(name) or really(path, name))
    second = build(docs, out, encoder)
    assert read == ["b.md", "d.md"]
    assert (second.added, second.changed, second.removed, second.unchanged) == (["d.md"], ["b.md"], ["c.md"], 1)
    assert second.encoded < first.encoded  # d.md is c.md under another name
    assert {found.file for best in open_index(out, encoder=encoder).search(QUESTIONS, 50) for found in best} == {
        "a.md", "b.md", "d.md",
    }  # fmt: skip
    third = build(docs, out, encoder)
    assert (third.encoded, third.unchanged, third.manifest) == (0, 3, second.manifest)


def test_other_settings_or_another_model_make_the_index_anew(tmp_path: Path) -> None:
    docs, out = tmp_path / "docs", tmp_path / "out"
    write(docs, {"a.md": 1, "b.md": 2})
    one = build(docs, out, HashedEncoder("one"))
    longer = build(docs, out, HashedEncoder("one"), Settings(words=30, overlap=0))
    assert longer.manifest.passages < one.manifest.passages
    other = build(docs, out, HashedEncoder("two"), Settings(words=30, overlap=0))
    assert other.encoded == other.manifest.passages
    assert build(docs, out, None).manifest.dense is None
    with pytest.raises(InputError, match="made with the dense model"):
        build(docs, out, HashedEncoder("one"))
        open_index(out, encoder=HashedEncoder("two")).retrieve("fee")


def test_unreadable_files_stop_it_all_at_once_or_are_skipped_when_asked(tmp_path: Path) -> None:
    docs, out = tmp_path / "docs", tmp_path / "out"
    write(docs, {"a.md": 1})
    before = build(docs, out).manifest
    (docs / "b.txt").write_bytes(b"\xff")
    (docs / "c.jsonl").write_text("{")
    with pytest.raises(DataError) as caught:
        build(docs, out)
    assert [problem.file for problem in caught.value.problems] == ["b.txt", "c.jsonl"]
    assert shelf.read_manifest(out) == before
    after = build_index(docs, out, encoder=None, settings=SMALL, skip_unreadable=True).manifest
    assert sorted(after.skipped) == ["b.txt", "c.jsonl"]
    assert after.passages == before.passages


def test_one_id_in_two_files_is_refused(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text(json.dumps({"id": "x", "text": name}))
    with pytest.raises(DataError, match=r"'x' stands in a\.jsonl, too"):
        build(tmp_path, tmp_path / "out")


def test_a_folder_with_other_things_is_never_taken_for_an_index(tmp_path: Path) -> None:
    write(tmp_path / "docs", {"a.md": 1})
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match=r"holds other things than an index \(thesis\.txt\)"):
        build(tmp_path / "docs", tmp_path / "out")


def test_two_indexings_into_one_folder_do_not_meet(tmp_path: Path) -> None:
    write(tmp_path / "docs", {"a.md": 1})
    with shelf.locked(tmp_path / "out"), pytest.raises(InputError, match="Another process"):
        build(tmp_path / "docs", tmp_path / "out")


def test_an_open_index_goes_on_while_another_is_made(tmp_path: Path) -> None:
    docs, out = tmp_path / "docs", tmp_path / "out"
    write(docs, {"a.md": 1})
    build(docs, out)
    opened = open_index(out)
    write(docs, {"b.md": 2})
    build(docs, out)
    assert {found.source.split(" > ")[0] for found in opened.retrieve("refund card fee login limit")} == {"a.md"}
    assert {path.source.split(" > ")[0] for path in open_index(out).retrieve("refund card fee login limit")} == {"b.md"}


class Killed(BaseException):
    """No code of ours runs after it, as after SIGKILL; the slow test below sends that."""


def die(*args: object, **kwargs: object) -> None:
    raise Killed


@pytest.mark.parametrize("place", ["encoding", "counting", "committing"])
def test_an_indexing_that_dies_leaves_the_index_before_and_its_vectors_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    docs, out, encoder = tmp_path / "docs", tmp_path / "out", HashedEncoder()
    write(docs, {"a.md": 1})
    before = build(docs, out, encoder).manifest
    write(docs, {"a.md": 1, "b.md": 11, "c.md": 12})
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(index, "ENCODED_AT_ONCE", 4)
        if place == "counting":
            patch.setattr(index, "count_terms", die)
        if place == "committing":
            patch.setattr(Path, "replace", die)
        build_index(docs, out, encoder=encoder, settings=SMALL, on_progress=die if place == "encoding" else None)
    assert shelf.read_manifest(out) == before
    assert all(found.file == "a.md" for found in open_index(out, encoder=encoder).search(["refund"], 9)[0])
    encoder.encoded.clear()
    resumed = build(docs, out, encoder)
    assert resumed.encoded == len(encoder.encoded)
    assert resumed.encoded > 0 if place == "encoding" else resumed.encoded == 0
    assert resumed.encoded <= resumed.manifest.passages - before.passages - 4
    build(docs, tmp_path / "once", encoder)
    assert answers(out, encoder) == answers(tmp_path / "once", encoder)
    assert not shelf.unfinished(out, resumed.manifest)


KILLED = """
import sys
from pathlib import Path
from tests.retrieve.hashed import HashedEncoder
from tunesmith.retrieve import index

index.ENCODED_AT_ONCE = 1
index.build_index(
    Path(sys.argv[1]), Path(sys.argv[2]), encoder=HashedEncoder(), on_progress=lambda *_: print(flush=True)
)
"""


@pytest.mark.slow
def test_a_killed_process_leaves_the_index_before(tmp_path: Path) -> None:
    docs, out, encoder = tmp_path / "docs", tmp_path / "out", HashedEncoder()
    write(docs, {"a.md": 1})
    before = build(docs, out, encoder).manifest
    write(docs, {f"{number}.md": number for number in range(40)})
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(root), str(root / "src")))}
    command = [sys.executable, "-c", KILLED, str(docs), str(out)]
    for _ in range(3):
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as child:
            assert child.stdout
            child.stdout.readline()
            child.kill()
        assert shelf.read_manifest(out) == before
    after = build(docs, out, encoder).manifest
    assert len(after.files) == 40
    assert not shelf.unfinished(out, after)
