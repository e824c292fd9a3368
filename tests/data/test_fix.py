"""Mending by rules: each rule does its one thing, every line is in the ledger, and mending twice changes nothing."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from tunesmith.data.fix import RULES, Fixed, choose_rules, fix
from tunesmith.data.load import load
from tunesmith.errors import DataError, InputError

LABELS = ("card_arrival", "refund_request", "change_pin", "top_up_failed")
WORDS = (
    "please", "where", "is", "my", "card", "money", "app", "account", "transfer", "top", "up", "fee", "cash", "pin",
    "phone", "limit", "rate", "today", "again",
)  # fmt: skip


def row(question: str, answer: str) -> str:
    turns = (("system", "Name the intent."), ("user", question), ("assistant", answer))
    messages = [{"role": role, "content": content} for role, content in turns]
    return json.dumps({"messages": messages}, ensure_ascii=False)


def fixed(tmp_path: Path, content: str | bytes, rules: str | None = None, **more: Any) -> Fixed:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return fix(load(path), choose_rules(rules, **more))


def answers(result: Fixed) -> list[str]:
    return [json.loads(line)["messages"][-1]["content"] for line in result.lines]


def test_a_clean_file_stays_as_it_is(tmp_path: Path) -> None:
    content = "".join(row(f"Question {number} about {WORDS[number]}?", "An answer.") + "\n" for number in range(5))
    result = fixed(tmp_path, content)
    assert result.counts() == {"kept": 5, "removed": 0, "merged": 0, "changed": 0, "masked": 0}
    assert [json.loads(line) for line in result.lines] == [json.loads(line) for line in content.splitlines()]
    assert result.by_rule() == {}


def test_every_line_that_leaves_is_in_the_ledger_with_its_rule(tmp_path: Path) -> None:
    lines = [row("Where is it?", "Here."), "", "{", row("Where  is it?", "Here."), row("Who?", "Me.")]
    ledger = [fate.as_dict() for fate in fixed(tmp_path, "\n".join(lines)).ledger]
    assert [(fate["fate"], fate["rules"]) for fate in ledger] == [
        ("kept", []),
        ("removed", ["drop_blank"]),
        ("removed", ["drop_broken"]),
        ("merged", ["drop_exact_duplicate"]),
        ("kept", []),
    ]
    assert ledger[3]["into"] == 1
    assert "broken_json" in ledger[2]["reason"]
    assert [fate.get("out") for fate in ledger] == [1, None, None, None, 2]


def test_line_ends_and_marks_are_mended_and_said(tmp_path: Path) -> None:
    content = "\ufeff" + row("a?", "b") + "\r\n" + row("c?", "d") + "\n"
    result = fixed(tmp_path, content)
    assert result.by_rule() == {"strip_bom": 1, "lf": 1}
    assert not any(mark in "".join(result.lines) for mark in "\ufeff\r")


def test_a_rule_that_is_off_leaves_its_fault(tmp_path: Path) -> None:
    content = "\ufeff" + row("a?", "b") + "\r\n\n" + row("a?", "b") + "\n"
    result = fixed(tmp_path, content, "no-strip_bom,no-lf,no-drop_blank,no-drop_exact_duplicate")
    assert result.by_rule() == {}
    assert result.lines[0].startswith("\ufeff")
    assert result.lines[0].endswith("\r")
    assert result.lines[1] == ""
    assert len(result.lines) == 3


def test_wrong_decoding_is_undone_and_the_ledger_shows_before_and_after(tmp_path: Path) -> None:
    result = fixed(tmp_path, row("Is there a cafÃ© near?", "Yes.") + "\n" + row("And?", "No.") + "\n")
    (change,) = result.ledger[0].changes
    assert change == ("message 2", "repair_mojibake", "Is there a cafÃ© near?", "Is there a café near?")
    assert json.loads(result.lines[0])["messages"][1]["content"] == "Is there a café near?"


def test_invisible_characters_are_taken_out_and_html_only_when_asked(tmp_path: Path) -> None:
    content = row("Where\u200b is <b>it</b>?\u0007", "Here.") + "\n"
    assert "Where is <b>it</b>?" in fixed(tmp_path, content).lines[0]
    assert "Where is it?" in fixed(tmp_path, content, "strip_html").lines[0]


def test_a_row_of_which_nothing_is_left_is_removed_by_the_rule_that_emptied_it(tmp_path: Path) -> None:
    result = fixed(tmp_path, row("\u200b\u200b", "Here.") + "\n" + row("And?", "No.") + "\n")
    fate = result.ledger[0]
    assert (fate.fate, fate.rules) == ("removed", ["strip_control"])
    assert "empty" in fate.reason


def test_variants_of_a_label_become_the_label(tmp_path: Path) -> None:
    lines = [row(f"{WORDS[n]} {WORDS[n + 1]} {n}?", LABELS[n % 2]) for n in range(16)]
    lines.append(row("Where has my card gone to?", "Card Arrival"))
    result = fixed(tmp_path, "\n".join(lines))
    assert set(answers(result)) == set(LABELS[:2])
    assert result.by_rule() == {"normalise_label": 1}
    assert result.ledger[16].changes[0].after == "card_arrival"


def test_personal_data_is_masked_on_request_only_and_never_stands_in_the_ledger(tmp_path: Path) -> None:
    content = row("I am jo@example.com, not al@example.com", "Thank you jo@example.com") + "\n"
    assert "jo@example.com" in fixed(tmp_path, content).lines[0]
    result = fixed(tmp_path, content, mask_pii=True)
    turns = json.loads(result.lines[0])["messages"]
    assert turns[1]["content"] == "I am [EMAIL_1], not [EMAIL_2]"
    assert turns[2]["content"] == "Thank you [EMAIL_1]"
    assert "example.com" not in json.dumps([fate.as_dict() for fate in result.ledger])
    assert result.counts()["masked"] == 1


def test_rows_of_the_test_file_are_removed(tmp_path: Path) -> None:
    test = tmp_path / "test.jsonl"
    test.write_text(row("How do I change my PIN in the app?", "change_pin") + "\n")
    path = tmp_path / "rows.jsonl"
    path.write_text(row("How do I change my PIN in the app", "change_pin") + "\n" + row("And my card?", "x") + "\n")
    result = fix(load(path), choose_rules(None), against=[load(test)])
    assert [(fate.fate, fate.rules) for fate in result.ledger] == [("removed", ["drop_leaked"]), ("kept", [])]


def test_broken_lines_stop_the_work_when_their_rule_is_off(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing was written"):
        fixed(tmp_path, row("a?", "b") + "\n{\n", "no-drop_broken")


def test_a_file_that_would_be_empty_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no row"):
        fixed(tmp_path, "{\n{\n")


def test_an_unknown_rule_names_the_nearest() -> None:
    with pytest.raises(InputError, match="Did you mean drop_blank"):
        choose_rules("no-drop-blanks")


def test_rules_can_be_turned_off_and_on() -> None:
    assert choose_rules("no-lf,strip-html") ^ choose_rules(None) == {"lf", "strip_html"}
    assert choose_rules(None, mask_pii=True) - choose_rules(None) == {"mask_pii"}


# -- any damaged file --------------------------------------------------------------------------------------------


def damaged(draw: random.Random) -> bytes:
    """A file of up to 30 lines, each of which may be damaged in one or two ways."""
    lines: list[bytes] = []
    for _ in range(draw.randint(2, 30)):
        question = " ".join(draw.choices(WORDS, k=draw.randint(1, 9)))
        answer = draw.choice(LABELS)
        for _ in range(draw.choice((0, 0, 1, 2))):
            question, answer = _damage_text(draw, question, answer)
        line = (row(question, answer) + draw.choice(("\n", "\n", "\n", "\r\n"))).encode()
        lines.append(_damage_line(draw, line))
        if draw.random() < 0.15:
            lines.append(draw.choice(lines))
    return b"".join(lines)


def _damage_text(draw: random.Random, question: str, answer: str) -> tuple[str, str]:
    inserts = ("cafÃ©", "itâ€™s", "\u200b", "\u0007", "<p>", "&amp;", "jo@example.com", "+49 30 901820", "\u00ad")
    place = draw.randint(0, len(question))
    return draw.choice(
        (
            (question[:place] + draw.choice(inserts) + question[place:], answer),
            (question, answer.replace("_", draw.choice((" ", "-"))).title()),
            (question, answer + draw.choice((" ", ".", "\u200b", "s"))),
            (draw.choice(("", " ", "\u200b")), answer),
            (question.upper(), answer),
        )
    )


def _damage_line(draw: random.Random, line: bytes) -> bytes:
    if draw.random() < 0.7:
        return line
    place = draw.randrange(len(line))
    return draw.choice(
        (
            line[:place] + b"\n",
            line[:place] + bytes([draw.randrange(256)]) + line[place:],
            b"\xef\xbb\xbf" + line,
            b"\n",
            b"  \r\n",
            line.rstrip() + line,
            line.replace(b'"assistant"', b'"bot"'),
            b'{"prompt": "why?", "completion": "change_pin"}\n',
            b"[]\n",
        )
    )


def holds(seed: int, tmp_path: Path) -> bool:
    """Whether a row was left; if so, the ledger adds up and mending once more changes no byte."""
    draw = random.Random(seed)
    path, out = tmp_path / f"{seed}.jsonl", tmp_path / f"{seed}.out.jsonl"
    path.write_bytes(damaged(draw))
    rules = frozenset(name for name in RULES if name == "drop_broken" or draw.random() < 0.8)
    loaded = load(path)
    try:
        once = fix(loaded, rules)
    except (InputError, DataError):
        return False
    counts = once.counts()
    assert counts["kept"] + counts["removed"] + counts["merged"] == loaded.num_lines == len(once.ledger)
    assert [fate.line for fate in once.ledger] == list(range(1, loaded.num_lines + 1))
    assert [fate.out for fate in once.ledger if fate.out] == list(range(1, len(once.lines) + 1))
    out.write_bytes("".join(line + "\n" for line in once.lines).encode())
    twice = fix(load(out), rules)
    assert twice.lines == once.lines, f"seed {seed}"
    assert twice.counts() == {"kept": len(once.lines), "removed": 0, "merged": 0, "changed": 0, "masked": 0}
    return True


def test_the_ledger_adds_up_and_mending_twice_changes_nothing_on_60_damaged_files(tmp_path: Path) -> None:
    assert sum(holds(seed, tmp_path) for seed in range(60)) > 50


@pytest.mark.slow
def test_the_ledger_adds_up_and_mending_twice_changes_nothing_on_1000_damaged_files(tmp_path: Path) -> None:
    assert sum(holds(seed, tmp_path) for seed in range(1000)) > 900
