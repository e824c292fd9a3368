"""`tunesmith server`: the whole OpenAI-compatible server: files, fine-tuning jobs, models, chat.

Not here: routes (serve.routes), jobs (jobs), HTTP and the process (serve), keys (cli.keys). `serve` answers with fixed
models and keeps nothing. Listed in cli.main.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Annotated

import typer

from tunesmith.cli.engine_choice import EngineOption, engine_opener
from tunesmith.cli.output import JsonFlag, Output

if TYPE_CHECKING:
    from tunesmith.jobs.dispatcher import Dispatcher
    from tunesmith.serve.engines.engine import OpenEngine
    from tunesmith.serve.models import ServedModels
    from tunesmith.serve.records.models import Made


def server(
    *,
    base: Annotated[
        list[str] | None,
        typer.Option("--base", help="A base that may be tuned and asked: its name, or a folder. Once per base."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; others than this machine need keys.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 8600,
    engine: EngineOption = "torch",
    workers: Annotated[int, typer.Option(min=1, help="How many jobs may train at a time.")] = 1,
    allow_python_graders: Annotated[
        bool,
        typer.Option(
            "--allow-python-graders",
            help="Run the Python of graders: users' code, in processes with limits, but as this user.",
        ),
    ] = False,
    webhook: Annotated[
        list[str] | None,
        typer.Option(help="https address that is told when jobs and eval runs end; TUNESMITH_WEBHOOK_SECRET signs."),
    ] = None,
    webhook_inside: Annotated[
        bool, typer.Option("--webhook-inside", help="Webhook addresses may lie in this machine's own networks.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Fine-tune, serve and swap adapters over OpenAI's API, on this machine. Ctrl-C stops; jobs go on at the next
    start."""
    from tunesmith.cli.server_verbs import describe_graders, job_setup, make_webhooks, server_parts
    from tunesmith.database import describe
    from tunesmith.jobs.dispatcher import Dispatcher
    from tunesmith.recipe import EMBEDDED_BASE
    from tunesmith.serve.app import SERVER, create_app, machine_access
    from tunesmith.serve.keyring import StoredKeys
    from tunesmith.serve.records.keys import list_keys
    from tunesmith.serve.records.uploads import tidy
    from tunesmith.serve.run import answer, check_host

    open_engine = engine_opener(engine)
    has_keys = bool(list_keys())
    check_host(host, has_keys=has_keys)  # before the models are loaded, which takes longer
    output = Output(as_json=as_json)
    webhooks = make_webhooks(webhook or [], inside=webhook_inside)
    output.say(f"Database: {describe()}")
    with _alone(), StoredKeys(machine_access()).following() as access:
        tidy()
        served = _load(base or [EMBEDDED_BASE], output, open_engine=open_engine)

        def ready(url: str) -> None:
            output.say(f"Answering on {url}/v1 (Ctrl-C stops)")
            output.result({"url": f"{url}/v1", "models": [model.name for model in served]})

        parts = server_parts(served, python_graders=allow_python_graders, webhooks=webhooks)
        if allow_python_graders:
            output.say(describe_graders(parts))
        app = create_app(served, routes=SERVER, access=access, **parts.state)
        parts.watch(app.state.metrics)
        with parts.at_work(), _working(Dispatcher(job_setup(served, parts, workers=workers))):
            answer(app, host=host, port=port, ready=ready, has_keys=has_keys)
    output.say("Stopped.")


def _load(bases: Sequence[str], output: Output, *, open_engine: OpenEngine) -> ServedModels:
    """The bases; models made of them, and aliases, are loaded when they are first asked."""
    from tunesmith.serve.models import ServedModels
    from tunesmith.serve.records.models import find_alias, find_model

    def find(name: str, owner: str) -> Made | None:
        return find_alias(name) or find_model(name, owner=owner)

    return ServedModels.load({name: name for name in bases}, say=output.say, find=find, open_engine=open_engine)


@contextlib.contextmanager
def _working(dispatcher: Dispatcher) -> Iterator[None]:
    """Jobs are worked on as long as the server answers; then their workers save and end."""
    dispatcher.start()
    try:
        yield
    finally:
        dispatcher.stop()


def _alone() -> AbstractContextManager[None]:
    """Only one server owns a home folder."""
    from tunesmith.errors import InputError
    from tunesmith.folders import alone, home

    todo = "Stop it, or set TUNESMITH_HOME to another folder."
    return alone(home() / "server.lock", otherwise=InputError(f"Another server works in {home()}.", todo))
