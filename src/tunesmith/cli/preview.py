"""`tunesmith preview`: rows as the model sees them, trained tokens marked.

Not here: rendering (render). Listed in cli.main; `show_rendered` is also the demo's display.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunesmith.cli.output import JsonFlag, Output

if TYPE_CHECKING:
    from tunesmith.render import Rendered, Renderer

DEFAULT_BASE = "smollm2-135m-instruct"


def preview(
    file: Annotated[Path, typer.Argument(help="The JSONL data file.")],
    *,
    base: Annotated[str, typer.Option(help="The base whose tokenizer and chat template are used.")] = DEFAULT_BASE,
    rows: Annotated[int, typer.Option(help="How many rows to show.", min=1)] = 1,
    line: Annotated[int | None, typer.Option(help="Show the row on this line of the file.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show rows as token ids with the chat template applied; the tokens that are trained are in colour."""
    from tunesmith.data.load import load_examples
    from tunesmith.errors import InputError
    from tunesmith.model import load_renderer

    output = Output(as_json=as_json)
    sources = load_examples(file).examples
    if line is not None:
        sources = [source for source in sources if source.line == line]
        if not sources:
            raise InputError(f"{file} has no row on line {line}.", "`tunesmith check` lists the lines that hold rows.")
    renderer = load_renderer(base, say=output.say)
    shown = []
    for source in sources[:rows]:
        rendered = renderer.render(source.example)
        output.heading(f"{file}:{source.line}")
        show_rendered(output, rendered, renderer=renderer)
        shown.append(
            {
                "line": source.line,
                "ids": rendered.ids,
                "trained": rendered.trained,
                "tokens": renderer.token_texts(rendered.ids),
            }
        )
    output.result({"file": str(file), "base": base, "rows": shown})


def show_rendered(output: Output, rendered: Rendered, *, renderer: Renderer) -> None:
    """Trained tokens bold on green, between marks that also show without colour; then the counts."""
    from rich.text import Text

    text = Text()
    before = False
    for token, trained in zip(renderer.token_texts(rendered.ids), rendered.trained, strict=True):
        if trained != before:
            text.append("⟦" if trained else "⟧", style="bold green")
        text.append(token, style="bold black on green" if trained else "dim")
        before = trained
    if before:
        text.append("⟧", style="bold green")
    output.console.print(text)
    output.say(
        f"{len(rendered.ids)} tokens, {rendered.num_trained} trained: those in ⟦ ⟧, the end-of-turn token among them."
    )
