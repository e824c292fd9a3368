"""Where a command's words go: text for people on stdout, or one JSON document on stdout and text on stderr.

Not here: what the words say. Every command makes one `Output` and ends with `result`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

LOG_WIDTH = 120  # of tables in a file or pipe
JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout; text goes to stderr.")]


class Output:
    """A rich console bound to stdout, or to stderr when stdout carries JSON."""

    def __init__(self, *, as_json: bool = False) -> None:
        from rich.console import Console

        self.as_json = as_json
        self.console: Console = Console(stderr=as_json, highlight=False, soft_wrap=True)
        if not self.console.is_terminal:
            self.console.width = LOG_WIDTH

    def say(self, text: str = "", style: str | None = None) -> None:
        """Print one line or block. `text` is plain: brackets in it are never read as markup."""
        self.console.print(text, style=style, markup=False)

    def heading(self, text: str) -> None:
        self.console.print()
        self.console.print(text, style="bold", markup=False)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str | None = None) -> None:
        from rich.table import Table
        from rich.text import Text

        table = Table(*columns, title=title, box=None, pad_edge=False, header_style="bold", title_justify="left")
        for row in rows:
            table.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in row))
        self.console.print(table)

    @contextmanager
    def progress(self, *extra_columns: str) -> Iterator[Progress]:
        """A rich progress display; `extra_columns` are rich format strings such as '{task.fields[loss]:.3f}'."""
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = [
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            *(TextColumn(column) for column in extra_columns),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        ]
        with Progress(*columns, console=self.console, transient=False, refresh_per_second=4) as progress:
            yield progress

    def result(self, document: dict[str, Any]) -> None:
        """With --json print the document on stdout; otherwise nothing (the text has been said)."""
        if self.as_json:
            typer.echo(json.dumps(document, ensure_ascii=False, indent=2))
