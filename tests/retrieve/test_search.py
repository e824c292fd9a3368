"""Searching: both legs, their fusion, recall, and nearest examples."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.retrieve.hashed import HashedEncoder
from tunesmith.errors import DataError, InputError
from tunesmith.retrieve.index import build_index
from tunesmith.retrieve.nearest import nearest_texts
from tunesmith.retrieve.recall import Question, measures, ranks, read_questions
from tunesmith.retrieve.search import DENSE_WEIGHT, RRF_K, Index, Standing, fuse, open_index, order
from tunesmith.retrieve.terms import detect_language, make_terms

DOCS = {
    "cards": "The card is frozen after three wrong pins. A new card takes five days.",
    "refunds": "Refunds reach the account within ten days of the request.",
    "fees": "There is a fee of two euros for each withdrawal at a foreign machine.",
}


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> Index:
    folder = tmp_path_factory.mktemp("search")
    (folder / "docs.jsonl").write_text("\n".join(json.dumps({"id": id, "text": text}) for id, text in DOCS.items()))
    encoder = HashedEncoder()
    build_index(folder / "docs.jsonl", folder / "index", encoder=encoder)
    return open_index(folder / "index", encoder=encoder)


def test_the_passage_that_answers_comes_first_with_what_each_leg_says(indexed: Index) -> None:
    best = indexed.search(["How long do refunds take?"], 3)[0]
    assert best[0].document == "refunds"
    assert best[0].bm25
    assert best[0].bm25.rank == 1
    assert best[0].dense
    assert 0 < best[0].dense.score <= 1.0001
    assert [one.score for one in best] == sorted((one.score for one in best), reverse=True)


def test_a_batch_gives_what_single_questions_give(indexed: Index) -> None:
    questions = ["new card", "fee abroad", "???", "xyz"]
    assert indexed.retrieve_batch(questions, 2) == [indexed.retrieve(question, 2) for question in questions]
    assert indexed.retrieve_batch([], 2) == []


def test_words_alone_find_nothing_where_no_word_is_shared(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Some text about cards.")
    (tmp_path / "b.txt").write_text("???")
    build_index(tmp_path, tmp_path / "index", encoder=None)
    opened = open_index(tmp_path / "index")
    assert [passage.source for passage in opened.retrieve("Which card?")] == ["a.txt"]
    assert opened.retrieve("zebra") == opened.retrieve("") == []


def test_texts_of_signs_alone_can_be_indexed(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("???")
    build_index(tmp_path, tmp_path / "index", encoder=None)
    assert open_index(tmp_path / "index").retrieve("anything") == []


def test_training_examples_are_found_by_their_question_and_give_their_answer(tmp_path: Path) -> None:
    rows = [{"prompt": "Where is my card?", "completion": "On its way."}, {"prompt": "Fees?", "completion": "None."}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    build_index(tmp_path / "rows.jsonl", tmp_path / "index", encoder=None)
    (passage,) = open_index(tmp_path / "index").retrieve("the card", 1)
    assert (passage.text, passage.source) == ("On its way.", "rows.jsonl:1")


def test_the_fusion_is_the_sum_of_weighted_reciprocal_ranks() -> None:
    legs = {"bm25": {3: Standing(1, 9.0), 1: Standing(2, 8.0)}, "dense": {1: Standing(1, 0.9), 2: Standing(2, 0.5)}}
    assert fuse(legs) == pytest.approx(
        {
            3: 1 / (RRF_K + 1),
            1: 1 / (RRF_K + 2) + DENSE_WEIGHT / (RRF_K + 1),
            2: DENSE_WEIGHT / (RRF_K + 2),
        }
    )
    assert order({"bm25": {5: Standing(1, 1.0)}, "dense": {}}) == [5]


def test_recall_and_reciprocal_rank_are_what_they_are_defined_as(indexed: Index) -> None:
    questions = [
        Question(1, "ten days refunds account request", frozenset({"refunds"})),
        Question(2, "ten days refunds account request", frozenset({"none", "elsewhere"})),
    ]
    found = ranks(indexed, questions)
    assert found["fused"] == found["bm25"] == [1, None]
    measured = measures([1, 2, 7, None])
    assert measured["recall@1"] == [1, 0, 0, 0]
    assert measured["recall@5"] == [1, 1, 0, 0]
    assert measured["recall@10"] == [1, 1, 1, 0]
    assert measured["mrr"] == pytest.approx([1, 1 / 2, 1 / 7, 0])


def test_a_question_that_names_no_document_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text('{"question": "a", "doc_id": "x"}\n{"question": "b"}\n{"q": 1}\n')
    with pytest.raises(DataError) as caught:
        read_questions(path)
    assert [problem.line for problem in caught.value.problems] == [2, 3]
    path.write_text('{"question": "a", "doc_id": 3}\n{"question": "b", "documents": ["x", "y"]}\n')
    assert [question.documents for question in read_questions(path)] == [{"3"}, {"x", "y"}]


def test_a_folder_without_an_index_is_an_error_with_the_command_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="tunesmith index"):
        open_index(tmp_path)


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The card of the customer was sent to the address that is in the account.", "english"),
        ("Die Karte des Kunden wurde an die Adresse geschickt, die in dem Konto steht.", "german"),
        ("La tarjeta del cliente se envió a la dirección que está en la cuenta.", "spanish"),
        ("La carte du client a été envoyée à l'adresse qui est dans le compte.", "french"),
        ("顧客のカードは住所に送られました。", "none"),
        ("let count = price + tax; return count", "none"),
        ("", "none"),
    ],
)
def test_the_language_is_found_by_its_function_words(text: str, language: str) -> None:
    assert detect_language([text]) == language


def test_terms_are_stemmed_without_case_or_function_words_and_scripts_without_spaces_become_pairs() -> None:
    english = make_terms("english")
    assert english("The Refunds were REFUNDED") == ["refund", "refund"]
    assert english("What is it?") == ["what", "is", "it"]
    assert make_terms("none")("東京都 A1") == ["東京", "京都", "a1"]
    with pytest.raises(InputError, match="klingon"):
        make_terms("klingon")


@pytest.mark.parametrize("encoder", [None, HashedEncoder()])
def test_nearest_texts_are_positions_best_first(encoder: HashedEncoder | None) -> None:
    nearest = nearest_texts(list(DOCS.values()), encoder=encoder)
    assert nearest("When will the refund reach my account?", 2)[0] == 1
    assert nearest("a new card", 1) == [0]
