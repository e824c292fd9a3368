"""Transactions: whole or not at all, one writer at a time, and tables that are there when they are needed."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest
from sqlalchemy import Column, Integer, String, Table, func, select

from tunesmith.database import METADATA, describe, transaction, warning
from tunesmith.errors import DatabaseError

NUMBERS = Table("test_number", METADATA, Column("number", Integer, primary_key=True))


def numbers() -> list[int]:
    with transaction() as connection:
        return list(connection.execute(select(NUMBERS.c.number).order_by(NUMBERS.c.number)).scalars())


def test_a_block_that_raises_leaves_nothing() -> None:
    with pytest.raises(ZeroDivisionError), transaction() as connection:
        connection.execute(NUMBERS.insert().values(number=1))
        raise ZeroDivisionError
    assert numbers() == []


def test_the_database_says_its_version_and_what_it_may_lose(tunesmith_home: Path) -> None:
    assert describe() == f"SQLite {sqlite3.sqlite_version}, journal: delete"
    assert warning((3, 51, 3), "wal") == warning((3, 6, 23), "wal") == warning((3, 46, 1), "delete") == ""
    assert "3.51.3" in warning((3, 51, 2), "wal") and "journal_mode=DELETE" in warning((3, 7, 0), "wal")
    connection = sqlite3.connect(tunesmith_home / "tunesmith.db")
    connection.execute("PRAGMA journal_mode = wal")
    connection.close()
    assert describe().startswith(f"SQLite {sqlite3.sqlite_version}, journal: wal")


def test_what_is_read_and_then_written_is_not_changed_in_between() -> None:
    def add(times: int) -> None:
        for _ in range(times):
            with transaction() as connection:
                last = connection.execute(select(func.max(NUMBERS.c.number))).scalar() or 0
                connection.execute(NUMBERS.insert().values(number=last + 1))

    threads = [threading.Thread(target=add, args=(10,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert numbers() == list(range(1, 41))


def test_each_home_has_its_own_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with transaction() as connection:
        connection.execute(NUMBERS.insert().values(number=1))
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "other"))
    assert numbers() == []


def test_a_database_that_cannot_be_opened_is_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_DATABASE", "sqlite:////nowhere/at/all.db")
    with pytest.raises(DatabaseError, match="Check TUNESMITH_DATABASE") as caught, transaction():
        raise AssertionError("not reached")
    assert "nowhere" in str(caught.value)


@pytest.fixture(scope="module")
def late() -> Table:
    """A table that is declared when the database is in use already."""
    return Table("late", METADATA, Column("number", Integer, primary_key=True), Column("text", String))


def test_a_transaction_that_fails_takes_no_table_along(late: Table) -> None:
    with pytest.raises(KeyError), transaction() as connection:
        connection.execute(late.insert().values(text="lost"))
        raise KeyError
    with transaction() as connection:
        assert connection.execute(select(late)).all() == []


def test_a_database_that_was_thrown_away_is_made_again(late: Table, tunesmith_home: Path) -> None:
    for text in ("one", "two"):
        with transaction() as connection:
            connection.execute(late.insert().values(text=text))
            assert connection.execute(select(late.c.text)).scalars().all() == [text]
        (tunesmith_home / "tunesmith.db").unlink()


def test_threads_that_come_first_all_find_the_tables(late: Table) -> None:
    faults: list[Exception] = []

    def work(number: int) -> None:
        try:
            with transaction() as connection:
                connection.execute(late.insert().values(text=str(number)))
        except Exception as error:
            faults.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    with transaction() as connection:
        assert len(connection.execute(select(late)).all()) == 8
