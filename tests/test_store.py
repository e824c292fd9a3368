"""The home folder and the list of runs: an index that can be thrown away."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from tunesmith.errors import InputError, RunError
from tunesmith.folders import home
from tunesmith.store import (
    find_folder,
    list_aliases,
    list_decisions,
    list_runs,
    record_decision,
    record_run,
)


def test_the_home_is_made_when_it_is_missing(tunesmith_home: Path) -> None:
    assert not tunesmith_home.exists()
    assert home() == tunesmith_home
    assert tunesmith_home.is_dir()


def test_a_home_that_cannot_be_used_is_an_error_with_what_to_do(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(InputError, match="Set TUNESMITH_HOME"):
        home()


def test_runs_are_listed_newest_first_once_each_and_only_where_they_still_lie(tmp_path: Path) -> None:
    assert list_runs() == []
    for number in (1, 2, 3):
        (tmp_path / f"r{number}").mkdir()
        record_run(f"id{number}", tmp_path / f"r{number}", created=f"2026-01-0{number}", base="b")
    record_run("id1", tmp_path / "r1", created="2026-01-09", base="c")
    (tmp_path / "r2").rmdir()
    assert [(row["id"], row["base"]) for row in list_runs()] == [("id1", "c"), ("id3", "b")]
    assert list_runs()[0]["directory"] == str(tmp_path / "r1")


def test_a_relative_directory_is_found_from_anywhere(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    Path("here").mkdir()
    record_run("id", Path("here"), created="2026", base="b")
    monkeypatch.chdir("/")
    assert list_runs()[0]["directory"] == str(tmp_path / "here")


def test_the_database_may_be_thrown_away(tmp_path: Path, tunesmith_home: Path) -> None:
    record_run("id", tmp_path, created="2026", base="b")
    (tunesmith_home / "tunesmith.db").unlink()
    assert list_runs() == []


def test_several_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    record_run("first", tmp_path, created="0", base="b")
    threads = [
        threading.Thread(target=record_run, args=(f"id{n}", tmp_path), kwargs={"created": str(n), "base": "b"})
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list_runs()) == 9


def test_a_database_that_cannot_be_used_is_an_error_without_its_password(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("TUNESMITH_DATABASE", f"sqlite:///{tmp_path / 'no' / 'x.db'}")
    with pytest.raises(InputError, match="Check TUNESMITH_DATABASE"):
        list_runs()
    path = tmp_path / "broken.db"
    path.write_bytes(b"no database at all, but long enough to be read as one" * 20)
    monkeypatch.setenv("TUNESMITH_DATABASE", f"sqlite:///{path}")
    with pytest.raises(InputError, match="cannot be used"):
        list_runs()


# -- aliases -----------------------------------------------------------------------------------------------------


def ship(alias: str, folder: Path, *, after: int | None = None) -> int | None:
    return record_decision(alias, "shipped", folder=folder, sha256="s", evidence=folder, after=after)


def test_versions_count_up_for_each_alias_and_a_refusal_is_kept_without_one(tmp_path: Path) -> None:
    assert [ship("a@x", tmp_path), ship("b@x", tmp_path), ship("a@x", tmp_path)] == [1, 1, 2]
    assert record_decision("a@x", "refused", folder=tmp_path, sha256="t", evidence=tmp_path) is None
    assert [(row["action"], row["version"]) for row in list_decisions("a@x")] == [
        ("refused", None),
        ("shipped", 2),
        ("shipped", 1),
    ]
    assert [(row["alias"], row["version"]) for row in list_aliases()] == [("a@x", 2), ("b@x", 1)]


def test_several_movers_at_once_get_a_version_each_and_a_late_one_is_refused(tmp_path: Path) -> None:
    versions: list[int | None] = []
    threads = [threading.Thread(target=lambda: versions.append(ship("a@x", tmp_path))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(filter(None, versions)) == list(range(1, 9))
    assert ship("a@x", tmp_path, after=8) == 9
    with pytest.raises(RunError, match="moved by another process"):
        ship("a@x", tmp_path, after=8)
    assert len(list_decisions("a@x")) == 9


def test_what_is_no_alias_is_a_path_and_one_that_is_both_is_refused(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_folder("runs/x") == Path("runs/x")
    assert find_folder("./a@x") == Path("./a@x")
    with pytest.raises(InputError, match="There is no alias a@x"):
        find_folder("a@x")
    Path("a@x").mkdir()
    assert find_folder("a@x") == Path("a@x")
    ship("a@x", tmp_path)
    with pytest.raises(InputError, match=r"Write \./a@x"):
        find_folder("a@x")
    for name in ("a", "a@", "@x", "a@x@y", "a/b@x", "../a@x"):
        with pytest.raises(InputError, match="is no alias"):
            ship(name, tmp_path)
