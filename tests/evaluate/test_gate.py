"""gate.yaml and what it lets through: only what was measured with these weights, after they were written."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tunesmith.errors import InputError
from tunesmith.evaluate.evidence import Check, Subject, find_evidence, weigh
from tunesmith.evaluate.gate import read_gate

OURS, BASE = "adapter:runs/x", "base:m"
SUBJECT = Subject(OURS, "ada", "2026-03-01T12:00:00+00:00", trained_on="train")
LATER = "2026-03-01T13:00:00+00:00"
WEIGHTS = {BASE: {"base": "bas"}, OURS: {"base": "bas", "adapter": "ada"}}


def change(suite: str, measure: str, *, after: float, better: int = 1) -> dict[str, Any]:
    words = f"{suite}, {measure}: {100 * after:+.1f} points."
    interval = {"difference": after, "low": after - 0.03, "high": after + 0.03}
    return {"suite": suite, "measure": measure, "better": better, "judged": True, "sentence": words, **interval}


REPORT = {
    "created": LATER,
    "weights": WEIGHTS,
    "main_scorer": "exact",
    "test": {"file": "test.jsonl", "sha256": "test"},
    "evaluation": {
        "rows": 200,
        "contenders": [
            {"name": BASE, "scores": {}},
            {"name": OURS, "scores": {"json_valid": {"mean": 0.99, "low": 0.96, "high": 1.0}}},
        ],
        "differences": [
            {"a": BASE, "b": OURS, "scorer": "exact", "difference": 0.12, "low": 0.06, "high": 0.18, "p": 0.001}
        ],
    },
}
REGRESS = {
    "created": LATER,
    "weights": {"before": WEIGHTS[BASE], "after": WEIGHTS[OURS]},
    "changes": [
        change("arc_easy", "acc", after=-0.02),
        change("xstest", "over_refusal", after=0.01, better=-1),
        change("xstest", "harmful_compliance", after=-0.01, better=-1),
    ],
}
CHECK = {
    "sha256": "train",
    "against": [{"file": "test.jsonl", "sha256": "test"}],
    "not_run": {},
    "summary": {"findings_by_issue": {"leaked_test_near": 1}},
}
BLIND = {
    "created": LATER,
    "contenders": {"a": OURS, "b": BASE},
    "weights": {"a": WEIGHTS[OURS], "b": WEIGHTS[BASE]},
    "win_rate": {"mean": 0.2, "low": 0.1, "high": 0.35},
    "sentence": "adapter:runs/x is preferred.",
}
FILES: dict[str, dict[str, Any]] = {
    "report.json": REPORT,
    "regress.json": REGRESS,
    "check.json": CHECK,
    "blind.json": BLIND,
}


def ask(folder: Path, gate: str, *, subject: Subject = SUBJECT, **changed: Any) -> list[Check]:
    """The checks of `gate` over FILES, in which `report__created=...` changes a key; None removes a file."""
    folder.mkdir(exist_ok=True)
    files: dict[str, Any] = copy.deepcopy(FILES)
    for path, value in changed.items():
        name, *keys = path.split("__")
        if not keys:
            del files[f"{name}.json"]
            continue
        at = files[f"{name}.json"]
        for key in keys[:-1]:
            at = at[key]
        at[keys[-1]] = value
    for name in FILES:
        (folder / name).unlink(missing_ok=True)
    for name, document in files.items():
        (folder / name).write_text(json.dumps(document))
    (folder / "gate.yaml").write_text(gate)
    return weigh(read_gate(folder / "gate.yaml"), subject, evidence=find_evidence([folder]))


@pytest.mark.parametrize(
    ("gate", "passed", "words"),
    [
        ("win: {against: 'base:m', by_points: 6}", True, r"\+12.0 points over base:m by exact on 200 rows"),
        ("win: {against: 'base:m', by_points: 7}", False, "asked for: 7 with certainty"),
        ("win: {against: 'base:other'}", False, "does not compare it with base:other by exact"),
        ("win: {against: 'base:m', scorer: label}", False, "with base:m by label"),
        ("suites: {down_at_most_points: 2}", True, r"arc_easy, acc: -2.0 points; asked for: at most 2"),
        ("suites: {down_at_most_points: 1.9}", False, "at most 1.9 points worse"),
        ("suites: {down_at_most_points: 4.9, with_certainty: true}", False, "with certainty"),
        ("suites: {down_at_most_points: 5, with_certainty: true}", True, "with certainty"),
        ("suites: {down_at_most_points: 5, need: [gsm8k]}", False, "no gsm8k"),
        ("format: {scorer: json_valid, at_least_percent: 99}", True, "json_valid 99.0 %"),
        ("format: {scorer: json_valid, at_least_percent: 99.5}", False, "at least 99.5 %"),
        ("format: {scorer: label, at_least_percent: 1}", False, "no scores by label"),
        ("contamination: {near_at_most: 1}", True, "0 training rows ask what a test row asks word for word, 1 nearly"),
        ("contamination: {}", False, "at most 0 and 0"),
        ("blind: {against: 'base:m'}", True, "above 50 % with certainty"),
        ("blind: {against: 'base:m', above_percent: 66}", False, "above 66 %"),
        ("blind: {against: 'base:x'}", False, "compares it with base:m, not with base:x"),
    ],
)
def test_each_demand_is_met_or_not_by_the_figures(tmp_path: Path, gate: str, passed: bool, words: str) -> None:
    (check,) = ask(tmp_path, gate)
    assert check.passed is passed
    assert re.search(words, check.sentence)


def test_refusals_are_judged_one_by_one_and_a_rise_of_either_refuses(tmp_path: Path) -> None:
    timid, harmful = ask(tmp_path, "refusals: {}")
    assert (timid.passed, harmful.passed) == (False, True)
    assert all(check.passed for check in ask(tmp_path, "refusals: {up_at_most_points: 1}"))


WIN = "win: {against: 'base:m'}"


@pytest.mark.parametrize(
    ("gate", "changed", "words"),
    [
        (WIN, {"report": None}, "There is no report.json"),
        (WIN, {"report__weights": None}, "not measured with the weights ada"),
        (WIN, {"report__weights": {OURS: {"base": "bas", "adapter": "other"}}}, "not measured with the weights"),
        (WIN, {"report__created": "2026-03-01T11:59:59+00:00"}, "is older than the weights"),
        ("suites: {down_at_most_points: 9}", {"regress": None}, "There is no regress.json"),
        ("refusals: {}", {"regress__changes": []}, "does not measure over refusal"),
        ("contamination: {}", {"check": None}, "There is no check.json"),
        ("contamination: {}", {"check__sha256": "x"}, "is of another file than it was trained on"),
        ("contamination: {}", {"check__against": []}, "did not look for the rows"),
        ("contamination: {}", {"check__not_run": {"leaks": "no test file"}}, "did not look for the rows"),
        ("blind: {against: 'base:m'}", {"blind__created": None}, "is not finished"),
    ],
)
def test_missing_foreign_or_old_evidence_is_a_no_that_names_the_command(
    tmp_path: Path, gate: str, changed: dict[str, Any], words: str
) -> None:
    (check,) = ask(tmp_path, gate, **changed)
    assert not check.passed
    assert words in check.sentence
    assert check.todo.startswith("tunesmith ")


def test_the_order_of_the_contenders_does_not_matter(tmp_path: Path) -> None:
    turned = {"a": OURS, "b": BASE, "scorer": "exact", "difference": -0.12, "low": -0.18, "high": -0.06, "p": 0.001}
    (check,) = ask(tmp_path, "win: {against: 'base:m', by_points: 6}", report__evaluation__differences=[turned])
    assert check.passed
    assert "+6.0 to +18.0" in check.sentence


def test_a_win_that_is_only_one_of_many_comparisons_is_not_certain(tmp_path: Path) -> None:
    row = {**REPORT["evaluation"]["differences"][0], "p_holm": 0.2}  # type: ignore[index]
    (check,) = ask(tmp_path, WIN, report__evaluation__differences=[row])
    assert not check.passed


def test_an_adapter_with_documents_beside_it_is_another_contender(tmp_path: Path) -> None:
    weights = {BASE: WEIGHTS[BASE], "adapter:a+rag:docs": WEIGHTS[OURS], "adapter:a+prompt:f": WEIGHTS[OURS]}
    (check,) = ask(tmp_path, WIN, report__weights=weights)
    assert "not clear which contender it is" in check.sentence


def test_what_an_adapter_learned_must_be_known_to_say_it_never_saw_the_test(tmp_path: Path) -> None:
    (check,) = ask(tmp_path, "contamination: {}", subject=Subject(OURS, "ada", SUBJECT.written))
    assert not check.passed
    assert "trained on is not known" in check.sentence


def test_evidence_of_another_shape_is_an_error_not_a_pass(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'win' is not as this version writes it"):
        ask(tmp_path, WIN, report__evaluation={})


# -- files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "asks nothing"),
        ("- a", "asks nothing"),
        ("wni: {}", "unknown key 'wni'. Did you mean win?"),
        ("win: {against: b, by_point: 3}", "unknown key 'win.by_point'. Did you mean by_points?"),
        ("win: {by_points: 3}", "'win.against' is missing: the contender to beat"),
        ("suites: {down_at_most_points: -1}", "'suites.down_at_most_points' is -1"),
        ("win: 3", "'win' is 3"),
        ("win: [", "not readable YAML"),
    ],
)
def test_a_gate_that_cannot_be_read_is_refused_with_what_to_mend(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "gate.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_gate(path)
    assert words in str(caught.value)


def test_two_reports_are_refused_since_the_user_says_which_counts(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text("{}")
    assert list(find_evidence([tmp_path / "one", tmp_path / "one" / "report.json"])) == ["report.json"]
    with pytest.raises(InputError, match="Name the one that counts"):
        find_evidence([tmp_path / "one", tmp_path / "two"])
    with pytest.raises(InputError, match="is not there"):
        find_evidence([tmp_path / "three"])
    (tmp_path / "report.json").write_text("[")
    with pytest.raises(InputError, match="cannot be read"):
        find_evidence([tmp_path])
