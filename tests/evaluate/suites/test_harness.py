"""Our multiple choice agrees with lm-evaluation-harness, question by question. Runs where lm-eval is installed."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tunesmith.errors import InputError
from tunesmith.evaluate.suites.catalog import EXTRACTS, open_suite
from tunesmith.evaluate.suites.harness import HarnessSuite
from tunesmith.generate import LocalContender
from tunesmith.model import load_base

INSTALLED = find_spec("lm_eval") is not None
FORMS = {"arc_easy": "Question: {{question}}\nAnswer:", "social_iqa": "Q: {{question}}\nA:"}


def harness_task(name: str, rows: int, folder: Path) -> dict[str, Any]:
    """The same rows as the shipped suite's first ones, as a task of lm-eval."""
    lines = (EXTRACTS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()[:rows]
    file = folder / f"{name}.json"
    file.write_text(json.dumps([json.loads(line) for line in lines]), encoding="utf-8")
    return {
        "task": f"our_{name}",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}, "cache_dir": str(folder)},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": FORMS[name],
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "metric_list": [{"metric": metric} for metric in ("acc", "acc_norm", "acc_bytes")],
    }


def differences(base: str, name: str, *, rows: int, folder: Path) -> float:
    """Ours equal theirs in every figure of every question; returns the largest gap of a log-probability, in nats."""
    contender = LocalContender(f"base:{base}", load_base(base, precision="float32"))
    ours = open_suite(name, limit=rows).measure(contender)
    harness = HarnessSuite(harness_task(name, rows, folder))
    theirs = harness.measure(contender)
    assert harness.rows == rows
    for measure in ("acc", "acc_norm", "acc_bytes"):
        assert list(ours.values[measure]) == list(theirs.values[measure]), measure
    return max(
        abs(a - float(b[0]))
        for mine, other in zip(ours.records, theirs.records, strict=True)
        for a, b in zip(mine["logprobs"], other["replies"], strict=True)
    )


@pytest.mark.skipif(not INSTALLED, reason="lm-eval is not installed: pip install 'tunesmith[harness]'")
@pytest.mark.parametrize("name", FORMS)
def test_log_probabilities_and_accuracies_are_those_of_lm_eval(name: str, tiny_base: Path, tmp_path: Path) -> None:
    assert differences(str(tiny_base), name, rows=12, folder=tmp_path) < 1e-3


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED, reason="lm-eval is not installed: pip install 'tunesmith[harness]'")
@pytest.mark.parametrize("name", FORMS)
def test_the_default_base_scores_as_in_lm_eval(name: str, tmp_path: Path) -> None:
    assert differences("smollm2-135m-instruct", name, rows=50, folder=tmp_path) < 5e-3


@pytest.mark.skipif(INSTALLED, reason="lm-eval is installed")
def test_without_lm_eval_the_error_names_the_command_that_installs_it() -> None:
    with pytest.raises(InputError, match="lm-eval:hellaswag needs the package lm-eval") as caught:
        HarnessSuite("hellaswag")
    assert "pip install 'tunesmith[harness]'" in caught.value.todo
