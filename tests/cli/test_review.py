"""`tunesmith review`: the keyboard does what the footer says, and the command writes what was decided."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunesmith.cli.review_screen import ReviewScreen
from tunesmith.data.versions.review import Review, open_review

Tunesmith = Callable[..., Any]
ROWS = (
    ("where is my card", "card", {}),
    ("give <|im_end|> back", "refund", {}),
    ("I cannot sign in", "login", {"generated": {"teacher": "big-model"}}),
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    lines = []
    for ask, answer, metadata in ROWS:
        turns = [{"role": "user", "content": ask}, {"role": "assistant", "content": answer}]
        lines.append(json.dumps({"messages": turns, **metadata}) + "\n")
    path.write_text("".join(lines))
    return path


def press(review: Review, *keys: str) -> tuple[bool | None, list[str]]:
    """Open the screen, press keys (of which '=text' is typed), and return its result and what it showed."""

    async def run() -> tuple[bool | None, list[str]]:
        app = ReviewScreen(review)
        async with app.run_test(size=(100, 40)) as pilot:
            while app.findings is None:
                await pilot.pause(0.01)
            shown = []
            for key in keys:
                await pilot.press(*(list(key[1:]) if key.startswith("=") else [key]))
                await pilot.pause()
                shown.append(
                    "\n".join(str(app.query_one(f"#{part}").render()) for part in ("progress", "text", "findings"))
                )
            return app.return_value, shown

    return asyncio.run(run())


def statuses(review: Review) -> list[str]:
    return [state.status for state in review.states]


def test_accept_reject_with_a_note_edit_and_write(file: Path, tmp_path: Path) -> None:
    review = open_review(str(file), tmp_path)
    result, shown = press(review, "a", "r", "=Typo", "enter", "e", "=Our ", "ctrl+s", "w")
    assert result is True
    assert statuses(review) == ["accepted", "rejected", "accepted"]
    assert review.states[1].reason.endswith(": Typo")
    assert review.states[2].example.answer == "Our login"
    assert "row 2 of 3 (line 2)" in shown[0]
    assert "special_token_text" in shown[0]
    assert "generated: not trained on until approved" in shown[3]


def test_keys_go_back_and_forth_undo_and_jump_and_closing_keeps_what_was_decided(file: Path, tmp_path: Path) -> None:
    review = open_review(str(file), tmp_path)
    result, shown = press(
        review, "right", "left", "g", "=3", "enter", "a", "u", "k", "f", "tab", "n", "=ask", "enter", "q"
    )
    places = [text.partition(" of 3")[0].rpartition("row ")[2] for text in shown]
    assert places[:2] == ["2", "1"]
    assert places[4:10] == ["3", "1", "3", "2", "2", "3"]
    assert result is False
    again = open_review(str(file), tmp_path)
    assert statuses(again) == ["open", "open", "pending"]
    assert again.states[2].notes[0].note == "ask"


def test_escape_leaves_a_row_as_it_was_and_an_empty_answer_is_refused(file: Path, tmp_path: Path) -> None:
    review = open_review(str(file), tmp_path)
    press(review, "r", "=no", "escape", "e", "tab", "=no", "escape", "e", "ctrl+k", "ctrl+s", "escape")
    assert statuses(review) == ["open", "open", "pending"]
    assert not review.log.path.exists()


def test_the_screen_opens_on_the_first_row_without_a_decision(file: Path, tmp_path: Path) -> None:
    press(open_review(str(file), tmp_path), "a", "q")
    _, shown = press(open_review(str(file), tmp_path), "l")
    assert "row 2 of 3" in shown[0]
    assert "1 accepted, 0 rejected, 2 left" in shown[0]


def test_without_a_terminal_the_command_says_where_the_review_stands_and_writes_on_request(
    tunesmith: Tunesmith, file: Path, tmp_path: Path
) -> None:
    press(open_review(str(file), tmp_path), "a", "r", "=Typo", "enter", "q")
    answer = tunesmith("review", file, "--json")
    assert answer.document["states"] == {"accepted": 1, "rejected": 1, "pending": 1}
    made = tunesmith("review", file, "--write", "--json").document
    assert made["counts"] == {"trained": 1, "dropped": 1, "rejected": 1}
    assert len(Path(made["path"]).read_text().splitlines()) == 1
    assert "1 generated rows still wait" in tunesmith("review", file, "--write").out
    (tmp_path / "rows.reviewed.jsonl").write_text("{}\n")
    assert tunesmith("review", file, "--write").code == 2


def test_a_data_set_is_reviewed_under_its_name(tunesmith: Tunesmith, file: Path, tmp_path: Path) -> None:
    tunesmith("data", "add", file, "--name", "support")
    review = open_review("support", tmp_path / "tunesmith_home" / "datasets")
    press(review, "r", "enter", "w")
    made = tunesmith("review", "support", "--write", "-m", "cleaned", "--json").document
    assert (made["new"], made["counts"]["removed"]) == (True, 1)
    assert "cleaned" in tunesmith("data", "log", "support").out
    assert "not in the newest version" in tunesmith("data", "why", "support#1").out
    assert "stays at" in tunesmith("review", "support", "--write").out
    assert tunesmith("review", "supprt").code == 2
