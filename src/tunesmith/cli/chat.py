"""`tunesmith chat`: ask a model once, or talk with it, on this machine.

Not here: loading and generation, which are those of `tunesmith serve` (serve.models). Listed in cli.main.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import typer

from tunesmith.cli.output import JsonFlag, Output

if TYPE_CHECKING:
    from tunesmith.chat import Message
    from tunesmith.contender import Reply
    from tunesmith.sampling import Sampling
    from tunesmith.serve.models import ServedModels

HELP = "/reset starts over, /quit or Ctrl-D ends, Ctrl-C stops a reply."


def chat(
    model: Annotated[str, typer.Argument(help="A run or adapter folder, or a base.")],
    *,
    message: Annotated[str | None, typer.Option(help="Ask this once, print the reply and end.")] = None,
    system: Annotated[str | None, typer.Option(help="The system message; use the one of the training data.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="The longest reply, in tokens.")] = 256,
    temperature: Annotated[float, typer.Option(min=0, max=2, help="0 always gives the likeliest reply.")] = 0.0,
    as_json: JsonFlag = False,
) -> None:
    """Chat with a model, or ask it one question with --message."""
    from tunesmith.chat import Message
    from tunesmith.errors import InputError

    if as_json and message is None:
        raise InputError("--json needs --message.", "A conversation is not one JSON document.")

    from tunesmith.sampling import Sampling
    from tunesmith.serve.models import ServedModels

    output = Output(as_json=as_json)
    models = ServedModels.load({model: model}, say=lambda text: typer.echo(text, err=True))
    opening = [Message("system", system)] if system else []
    talk = _Talk(models, model, opening, max_tokens, Sampling(temperature))
    if message is None:
        output.say(f"{model}. {HELP}")
        talk.go_on()
        return
    reply = talk.ask(message)
    if not as_json:
        typer.echo(reply.text)
    output.result(
        {
            "reply": reply.text,
            "prompt_tokens": reply.prompt_tokens,
            "tokens": reply.completion_tokens,
            "latency_s": round(reply.latency_s, 4),
            "finish_reason": reply.finish_reason,
        }
    )


class _Talk:
    """A conversation: what was said, and with whom."""

    def __init__(
        self, models: ServedModels, name: str, opening: list[Message], max_tokens: int, sampling: Sampling
    ) -> None:
        self.models = models
        self.name = name
        self.opening = opening
        self.max_tokens = max_tokens
        self.sampling = sampling
        self.messages = list(opening)

    def ask(self, text: str, *, aloud: bool = False) -> Reply:
        """The reply to `text`, both remembered; `aloud` prints its pieces as they are made."""
        from tunesmith.chat import Message
        from tunesmith.contender import Reply
        from tunesmith.serve.reply import Ask

        messages = (*self.messages, Message("user", text))
        items = self.models.stream(self.name, Ask(messages, self.max_tokens, self.sampling))
        with closing(items):  # type: ignore[type-var]
            for item in items:
                if isinstance(item, Reply):
                    break
                if aloud:
                    typer.echo(item, nl=False)
        assert isinstance(item, Reply)
        self.messages = [*messages, Message("assistant", item.text)]
        return item

    def go_on(self) -> None:
        """Read and answer until /quit or the end of the input. A question that fails or is stopped is forgotten."""
        from tunesmith.errors import TunesmithError

        for line in _lines():
            if line == "/reset":
                self.messages = list(self.opening)
                continue
            try:
                reply = self.ask(line, aloud=True)
                typer.echo("" if reply.stopped else f" [stopped at {self.max_tokens} tokens]")
            except TunesmithError as error:
                typer.echo(f"{error} (/reset starts over)", err=True)
            except KeyboardInterrupt:
                typer.echo(" [stopped]")


def _lines() -> Iterator[str]:
    """What is typed, until /quit, Ctrl-D or Ctrl-C at the prompt."""
    while True:
        try:
            line = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            typer.echo()
            return
        if line == "/quit":
            return
        if line:
            yield line
