"""Ollama's dialect: our rendered text, raw, over /api/generate; adapters as models made of the base and blobs.

Not here: HTTP (remote_server), whose turn it is (lanes). Ollama takes no ids, so a prompt must be one that its text
says whole, and Ollama must count as many tokens in it as we do; else the request fails. Source: Ollama's docs/api.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunesmith.bank import why_not
from tunesmith.errors import InputError
from tunesmith.facts import file_sha256
from tunesmith.serve.engines.lanes import Items
from tunesmith.serve.engines.remote_server import RemoteServer
from tunesmith.serve.engines.text_reply import TextReply
from tunesmith.serve.reply import Writer
from tunesmith.serve.scheduler import Job
from tunesmith.serve.wire.errors import RequestError

FILES = ("adapter_config.json", "adapter_model.safetensors")


class Ollama:
    kind = "Ollama"
    cannot: tuple[str, ...] = ("response_format", "logprobs", "logit_bias", "presence_penalty", "frequency_penalty")

    def __init__(self, server: RemoteServer, model: str, *, context: int) -> None:
        self.server = server
        self.model = model
        self.context = context  # tokens

    def load(self, folder: Path, *, served: str, name: str) -> str:
        if reason := why_not(folder):
            raise InputError(f"Ollama cannot hold {folder}: {reason}.", "Use --engine torch.")
        adapters = {}
        for file in (folder / part for part in FILES):
            digest = f"sha256:{file_sha256(file)}"
            if not self.server.has(f"/api/blobs/{digest}"):
                self.server.send(f"/api/blobs/{digest}", file)
            adapters[file.name] = digest
        made = self.server.ask(
            "/api/create", {"model": name, "from": self.model, "adapters": adapters, "stream": False}
        )
        if made.get("status") != "success":
            raise InputError(f"Ollama does not take {folder}: {made}.", "Use --engine torch.")
        return name

    def unload(self, name: str) -> None:
        self.server.ask("/api/delete", {"model": name}, method="DELETE")

    def answer(self, job: Job, writer: Writer, *, model: str) -> Items:
        reply = TextReply(writer)
        body = {
            "model": model,
            "prompt": text_of(writer, job.ids),
            "raw": True,
            "stream": True,
            "options": self._options(writer),
        }
        for line in self.server.lines("/api/generate", body):
            if not line:
                continue
            event = self.server.event(line)
            if not event.get("done"):
                yield from reply.items(event["response"])
                continue
            yield from reply.push(event.get("response", ""))
            if event.get("prompt_eval_count") != len(job.ids):
                counted = event.get("prompt_eval_count")
                raise self.server.failed(f"it counts {counted} tokens in a prompt of {len(job.ids)}: another tokenizer")
            yield from reply.end(event.get("done_reason") or "stop", event["eval_count"])
            return
        raise self.server.failed("its stream broke off")

    def _options(self, writer: Writer) -> dict[str, Any]:
        """Those of the Modelfile are overruled."""
        sampling = writer.drawing.sampling
        options = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": 0,
            "min_p": 0.0,
            "repeat_penalty": 1.0,
            "num_predict": writer.limit,
            "num_ctx": self.context,
            "stop": [writer.renderer.end_of_turn],
        }
        return options if sampling.seed is None else options | {"seed": sampling.seed % 2**31}


def text_of(writer: Writer, ids: Any) -> str:
    """The text of a prompt. Raises RequestError (400) where its ids are not those of its text: someone wrote the text
    of a control token, which would become one."""
    tokenizer = writer.renderer.tokenizer
    text = str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
    if list(tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids) != list(ids):
        message = "This prompt cannot be given to the engine as text: its text stands for other tokens."
        raise RequestError(message, param="messages", code="unsupported_parameter")
    return text
