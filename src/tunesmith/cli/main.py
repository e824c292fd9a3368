"""The list of commands, and the one place where an error becomes text and an exit code.

`main` is the console script. Errors of the tree print without a traceback; `--debug` shows it.
"""

from __future__ import annotations

import errno
import json
import sys

import typer

from tunesmith import __version__
from tunesmith.cli.advise import advise
from tunesmith.cli.augment import augment
from tunesmith.cli.blind import blind
from tunesmith.cli.chat import chat
from tunesmith.cli.check import check
from tunesmith.cli.data import data
from tunesmith.cli.decide import decide
from tunesmith.cli.demo import demo
from tunesmith.cli.evaluate import evaluate
from tunesmith.cli.generate import generate
from tunesmith.cli.import_ import import_
from tunesmith.cli.index import index
from tunesmith.cli.init import init
from tunesmith.cli.keys import keys
from tunesmith.cli.memorise import memorise
from tunesmith.cli.merge import merge
from tunesmith.cli.models import models
from tunesmith.cli.preview import preview
from tunesmith.cli.regress import regress
from tunesmith.cli.review import review
from tunesmith.cli.rollback import rollback
from tunesmith.cli.runs import runs
from tunesmith.cli.search import search
from tunesmith.cli.serve import serve
from tunesmith.cli.server import server
from tunesmith.cli.ship import ship
from tunesmith.cli.split import split
from tunesmith.cli.train import train
from tunesmith.errors import DataError, TunesmithError

COMMANDS = (
    check, advise, review, split, generate, augment, preview, init, import_, train, evaluate, decide, memorise, regress,
    blind, ship, rollback, serve, server, chat, merge, models, index, search, runs, demo,
)  # fmt: skip
GROUPS = (data, keys)
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)

app = typer.Typer(
    name="tunesmith",
    help="Fine-tune on your own examples, measure whether it helped, and serve the result.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in COMMANDS:
    app.command(command.__name__.rstrip("_"))(command)  # import_ is `import`
for group in GROUPS:
    app.add_typer(group)


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version and exit."),
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error."),
) -> None:
    if version:
        typer.echo(f"tunesmith {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line; exit 0 done, 1 failed, 2 bad usage or input, 3 a gate said no, 130 interrupted."""
    try:
        app()
    except TunesmithError as error:
        if "--debug" in sys.argv:
            raise
        _print_error(error)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno not in FULL_DISK or "--debug" in sys.argv:
            raise
        place = error.filename or "the disk"
        todo = "Free some space and give the same command again: what was whole before is kept."
        _print_error(TunesmithError(f"{place} cannot be written: {error.strerror}.", todo))
        sys.exit(1)
    except KeyboardInterrupt:
        typer.echo("Stopped.", err=True)
        sys.exit(130)


def _print_error(error: TunesmithError) -> None:
    typer.echo(typer.style("error: ", fg="red", bold=True) + error.message, err=True)
    if error.todo:
        typer.echo(error.todo, err=True)
    if "--json" in sys.argv:
        document: dict[str, object] = {
            "error": {"message": error.message, "todo": error.todo, "exit_code": error.exit_code}
        }
        if isinstance(error, DataError):
            document["problems"] = [problem.as_dict() for problem in error.problems]
            document["total"] = error.total
        typer.echo(json.dumps(document, ensure_ascii=False, indent=2))
