"""`tunesmith server`: the whole OpenAI-compatible server: files, fine-tuning jobs, models, chat.

Not here: routes (serve.routes), jobs (jobs), HTTP and the process (serve). `serve` answers with fixed models and keeps
nothing. Listed in cli.main.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Annotated

import typer

from tunesmith.cli.output import JsonFlag, Output


def server(
    *,
    base: Annotated[
        list[str] | None,
        typer.Option("--base", help="A base that may be tuned and asked: its name, or a folder. Once per base."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; others than this machine need keys.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 8600,
    as_json: JsonFlag = False,
) -> None:
    """Fine-tune, serve and swap adapters over OpenAI's API, on this machine. Ctrl-C stops; jobs go on at the next
    start."""
    from tunesmith.recipe import EMBEDDED_BASE
    from tunesmith.serve.app import SERVER, create_app
    from tunesmith.serve.models import ServedModels
    from tunesmith.serve.run import answer, check_host

    check_host(host)  # before the models are loaded, which takes longer
    output = Output(as_json=as_json)
    with _alone():
        served = ServedModels.load({name: name for name in base or [EMBEDDED_BASE]}, say=output.say)

        def ready(url: str) -> None:
            output.say(f"Answering on {url}/v1 (Ctrl-C stops)")
            output.result({"url": f"{url}/v1", "models": [model.name for model in served]})

        answer(create_app(served, routes=SERVER), host=host, port=port, ready=ready)
    output.say("Stopped.")


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Only one server owns a home folder. The lock goes with the process, however it ends."""
    import fcntl

    from tunesmith.errors import InputError
    from tunesmith.folders import home

    with (home() / "server.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(
                f"Another server works in {home()}.", "Stop it, or set TUNESMITH_HOME to another folder."
            ) from error
        yield
