"""`tunesmith serve`: answer OpenAI clients with adapters and bases of this machine.

Not here: loading, HTTP and the process (serve). Listed in cli.main.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated

import typer

from tunesmith.cli.engine_choice import EngineOption, engine_opener
from tunesmith.cli.output import JsonFlag, Output

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@-]*")


def serve(
    *,
    model: Annotated[
        list[str],
        typer.Option(
            "--model",
            help="NAME=TARGET: a run or adapter folder, a base, or an alias, which may stand alone. Once per model.",
        ),
    ],
    host: Annotated[
        str, typer.Option(help="Address to listen on; others than this machine need TUNESMITH_API_KEY.")
    ] = ("127.0.0.1"),
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 8600,
    engine: EngineOption = "torch",
    as_json: JsonFlag = False,
) -> None:
    """Serve models over OpenAI's chat API; adapters of one base share it in memory. Ctrl-C stops."""
    targets = parse_models(model)

    from tunesmith.serve.models import ServedModels
    from tunesmith.serve.run import check_host
    from tunesmith.serve.run import serve as listen_and_answer

    check_host(host)  # before the models are loaded, which takes longer
    output = Output(as_json=as_json)
    models = ServedModels.load(targets, say=output.say, open_engine=engine_opener(engine))
    for served in models:
        kind = f"adapter {served.target} on {served.base.name}" if served.adapter else f"base {served.base.name}"
        output.say(f"{served.name}: {kind}")

    def ready(url: str) -> None:
        output.say(f"Serving on {url} (Ctrl-C stops)")
        output.result({"url": url, "models": list(targets)})

    listen_and_answer(models, host=host, port=port, ready=ready)
    output.say("Stopped.")


def parse_models(options: Sequence[str]) -> dict[str, str]:
    """NAME=TARGET, ... -> {name: target}; an alias alone is both. InputError names every option that is neither."""
    from tunesmith.errors import InputError
    from tunesmith.store import ALIAS

    targets: dict[str, str] = {}
    problems = []
    for option in options:
        name, _, target = option.partition("=")
        if ALIAS.fullmatch(option):
            target = name
        if not target or not NAME.fullmatch(name):
            problems.append(f"--model {option} is not NAME=TARGET with a name of letters, digits and . _ : @ -")
        elif name in targets:
            problems.append(f"--model {name} is given twice")
        targets[name] = target
    if problems:
        raise InputError("\n".join(problems) + ".", "For example: --model support=runs/support")
    return targets
