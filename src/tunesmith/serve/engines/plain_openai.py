"""Any other OpenAI-compatible server: /v1/completions with token ids where it takes them, else with our rendered text.

Not here: HTTP (remote_server), whose turn it is (lanes). It loads nothing for us: an adapter must be there under the
name it is served by. What such a server may ignore without a word is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunesmith.errors import InputError
from tunesmith.serve.engines.lanes import Items
from tunesmith.serve.engines.ollama import text_of
from tunesmith.serve.engines.remote_server import RemoteServer
from tunesmith.serve.engines.text_reply import TextReply
from tunesmith.serve.reply import Writer
from tunesmith.serve.scheduler import Job


class PlainOpenAI:
    kind = "an OpenAI-compatible server"
    cannot: tuple[str, ...] = (
        "response_format",
        "logprobs",
        "logit_bias",
        "presence_penalty",
        "frequency_penalty",
        "seed",
    )

    def __init__(self, server: RemoteServer, model: str, *, takes_ids: bool) -> None:
        self.server = server
        self.model = model
        self.takes_ids = takes_ids

    def load(self, folder: Path, *, served: str, name: str) -> str:
        """The name it is served by, if the server has it. Raises InputError otherwise."""
        there = [model["id"] for model in (self.server.find("/v1/models") or {}).get("data", ())]
        if served not in there:
            raise InputError(
                f"{self.server.root} has no model {served!r}, and no way to load {folder}.",
                f"Load it there under that name; it has: {', '.join(there) or 'none'}.",
            )
        return served

    def unload(self, name: str) -> None:
        """It was not loaded by us."""

    def answer(self, job: Job, writer: Writer, *, model: str) -> Items:
        reply, reason, usage = TextReply(writer), "", None
        for event in self.server.events("/v1/completions", self._body(job, writer, model=model)):
            usage = event.get("usage") or usage
            for choice in event.get("choices", ()):
                reason = choice.get("finish_reason") or reason
                yield from reply.items(choice.get("text") or "")
        if not reason:
            raise self.server.failed("its reply has no end")
        if usage and usage["prompt_tokens"] != len(job.ids):
            raise self.server.failed(f"it counts {usage['prompt_tokens']} tokens in a prompt of {len(job.ids)}")
        counted = usage["completion_tokens"] if usage else writer.renderer.count_tokens(reply.whole)
        yield from reply.end(reason, counted)

    def _body(self, job: Job, writer: Writer, *, model: str) -> dict[str, Any]:
        sampling = writer.drawing.sampling
        return {
            "model": model,
            "prompt": list(job.ids) if self.takes_ids else text_of(writer, job.ids),
            "max_tokens": writer.limit,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "stop": [writer.renderer.end_of_turn],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
