"""The data that the demo ships is good, balanced, and holds no question on both sides."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import tunesmith
from tunesmith.data.check import check
from tunesmith.data.load import load
from tunesmith.data.split import group_key

FOLDER = Path(tunesmith.__file__).parent / "demo_data" / "banking77"


def test_the_demo_files_have_thirteen_and_four_rows_for_each_of_77_intents() -> None:
    keys = []
    for name, per_label in (("train", 13), ("test", 4)):
        report = check(load(FOLDER / f"{name}.jsonl"), quick=True)
        assert report.ok
        assert report.findings == []
        answers = Counter(row.example.answer for row in report.loaded.examples)
        assert (len(answers), set(answers.values())) == (77, {per_label})
        keys.append({group_key(row.example) for row in report.loaded.examples})
    assert not keys[0] & keys[1]


def test_the_demo_data_says_where_it_comes_from() -> None:
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert "57ec275d8078af65b7731c2a98be812d844a6d6b" in readme
    assert "/work" not in readme
    assert "creativecommons.org/licenses/by/4.0/legalcode" in (FOLDER / "LICENSE").read_text(encoding="utf-8")
