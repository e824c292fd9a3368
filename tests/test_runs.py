"""A run directory survives crashes: files are replaced whole, torn lines left out, a cut-off start begun again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunesmith import store
from tunesmith.errors import InputError, RunError
from tunesmith.runs import Run, create_run, is_run

RECIPE = {"base": "b", "data": "d"}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return create_run(tmp_path / "run", recipe=RECIPE, facts={"fingerprint": "f"})


def test_a_new_run_has_its_recipe_status_and_facts_and_is_on_the_list(run: Run) -> None:
    assert is_run(run.directory)
    assert run.recipe == RECIPE
    assert run.status["state"] == "new"
    assert run.read_json("run.json")["fingerprint"] == "f"
    (row,) = store.list_runs()
    assert (row["id"], row["directory"]) == (run.id, str(run.directory))


def test_without_a_directory_a_run_is_made_under_the_home(tunesmith_home: Path) -> None:
    first, second = create_run(None, recipe=RECIPE), create_run(None, recipe=RECIPE)
    assert first.directory.parent == tunesmith_home / "runs"
    assert first.id != second.id


def test_a_directory_with_something_else_in_it_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(InputError, match="is not empty"):
        create_run(tmp_path, recipe=RECIPE)
    with pytest.raises(InputError):
        create_run(tmp_path / "mine.txt", recipe=RECIPE)
    with pytest.raises(InputError, match="cannot be made"):
        create_run(tmp_path / "mine.txt" / "run", recipe=RECIPE)
    assert [path.name for path in tmp_path.iterdir() if path.name != "tunesmith_home"] == ["mine.txt"]


@pytest.mark.parametrize("name", ["recipe.json", "status.json", "events.jsonl", ".run.json.staged"])
def test_a_start_cut_off_by_a_kill_is_begun_again(run: Run, name: str) -> None:
    for path in run.directory.iterdir():
        if path.name != name:
            path.unlink()
    (run.directory / name).write_text("{")
    assert not is_run(run.directory)
    if name == "status.json":
        (run.directory / name).write_text('{"state": "new"}')  # a status is never torn: it is replaced whole
    again = create_run(run.directory, recipe=RECIPE)
    assert is_run(run.directory)
    assert again.status["state"] == "new"


def test_a_status_keeps_the_facts_of_earlier_states_and_is_logged(run: Run) -> None:
    run.set_status("running", layout="shared")
    run.set_status("failed", reason="why")
    status = run.status
    assert (status["state"], status["layout"], status["reason"]) == ("failed", "shared", "why")
    events = [json.loads(line)["event"] for line in (run.directory / "events.jsonl").read_text().splitlines()]
    assert events == ["new", "running", "failed"]
    with pytest.raises(ValueError, match="unknown run state"):
        run.set_status("done")


def test_a_file_that_cannot_be_written_leaves_the_old_one_whole(run: Run) -> None:
    run.write_json("claim.json", {"a": 1})
    with pytest.raises(TypeError):
        run.write_json("claim.json", {"a": object()})
    assert run.read_json("claim.json") == {"a": 1}


def test_a_line_torn_by_a_crash_is_left_out_and_does_not_swallow_the_next(run: Run) -> None:
    run.metric(kind="train", step=1, loss=3.0)
    with (run.directory / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    assert [row["step"] for row in run.metrics()] == [1]
    run.metric(kind="train", step=2, loss=2.0)
    assert [row["step"] for row in run.metrics()] == [1, 2]


def test_any_text_stays_on_its_line(run: Run) -> None:
    text = "a\u2028b\x85c\nd"
    run.metric(kind="train", step=1, note=text)
    assert run.metrics()[0]["note"] == text


def test_after_a_resume_the_newest_line_of_a_step_counts(run: Run) -> None:
    for step, loss in ((1, 3.0), (2, 2.5), (2, 2.0)):
        run.metric(kind="train", step=step, loss=loss)
    run.metric(kind="validation", step=2, loss=1.0)
    assert [(row["kind"], row["step"], row["loss"]) for row in run.metrics()] == [
        ("train", 1, 3.0),
        ("train", 2, 2.0),
        ("validation", 2, 1.0),
    ]


def test_a_missing_or_damaged_file_says_which(run: Run, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no run directory: status.json is missing"):
        _ = Run(tmp_path / "none").status
    (run.directory / "status.json").write_text("{")
    with pytest.raises(RunError, match=r"status\.json is damaged"):
        _ = run.status
