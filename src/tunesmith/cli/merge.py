"""`tunesmith merge`: a run's or adapter's weights and its base as one model folder that any tool loads.

Not here: merging and the comparison that guards it (adapter). Listed in cli.main.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tunesmith.cli.output import JsonFlag, Output


def merge(
    source: Annotated[Path, typer.Argument(metavar="RUN|ADAPTER", help="The folder of a finished run or an adapter.")],
    *,
    out: Annotated[Path, typer.Option(help="The model folder to write; it must not exist.")],
    as_json: JsonFlag = False,
) -> None:
    """Write base and adapter as one model, and compare its logits with theirs."""
    from tunesmith.adapter import difference_in_words
    from tunesmith.adapter import merge as merge_into

    output = Output(as_json=as_json)
    document = merge_into(source, out, say=output.say)
    report = document["merge"]
    output.say(f"Loaded again, it answers as its parts did: {difference_in_words(report)}.")
    if "to_the_4_bit_model" in report:
        distance = difference_in_words(report["to_the_4_bit_model"])
        output.say(
            f"It was trained on 4-bit weights and merged into whole ones. Against the former: {distance}.", "yellow"
        )
        output.say("Evaluate the merged model before you use it.", "yellow")
    output.say(f"wrote {out} in {report['stored']}. Try it: tunesmith chat {out}", "green")
    output.result({"out": str(out), **document})
