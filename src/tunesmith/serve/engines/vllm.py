"""vLLM's dialect: token ids in and out over /v1/completions, adapters loaded and unloaded by name while it runs.

Not here: HTTP (remote_server), whose turn it is (lanes). Source: vLLM's OpenAI-compatible server and its page on LoRA
adapters; `return_token_ids` came with 0.10.2. vLLM reads an adapter from its own disk, by the path it has here.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Generator
from pathlib import Path
from typing import Any

from tunesmith.errors import InputError
from tunesmith.sampling import Token
from tunesmith.serve.engines.lanes import Items, written
from tunesmith.serve.engines.remote_server import Answered, RemoteServer
from tunesmith.serve.reply import Writer
from tunesmith.serve.scheduler import Job

SWITCHES = "Start it with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"


class Vllm:
    kind = "vLLM"
    cannot: tuple[str, ...] = ("response_format",)  # grammars are those of the torch engine

    def __init__(self, server: RemoteServer, model: str) -> None:
        self.server = server
        self.model = model
        self._salt = secrets.token_bytes(16)

    def load(self, folder: Path, *, served: str, name: str) -> str:
        """Raises InputError where vLLM was not started for it, or does not see the folder."""
        try:
            self.server.ask("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder.resolve())})
        except Answered as error:
            if "already" in error.text:  # from before this server's last start; the name is that of the weights
                return name
            todo = f"{SWITCHES}, on a machine that has this folder, and with --max-lora-rank not below the adapter's."
            raise InputError(f"vLLM does not load {folder}: {error.message}", todo) from error
        return name

    def unload(self, name: str) -> None:
        self.server.ask("/v1/unload_lora_adapter", {"lora_name": name})

    def answer(self, job: Job, writer: Writer, *, model: str) -> Items:
        return written(self._tokens(job, writer, model=model), writer)

    def _tokens(self, job: Job, writer: Writer, *, model: str) -> Generator[Token, None, None]:
        stops = writer.renderer.stop_ids
        top = writer.drawing.sampling.top_logprobs
        for event in self.server.events("/v1/completions", self._body(job, writer, model=model)):
            for choice in event.get("choices", ()):
                ids = choice.get("token_ids")
                if ids is None:
                    raise self.server.failed("it sends no token ids; vLLM does from 0.10.2 on")
                told = choice.get("logprobs")
                if top is not None and len((told or {}).get("token_logprobs", ())) != len(ids):
                    raise self.server.failed("it leaves out log-probabilities")
                for place, token in enumerate(ids):
                    yield Token(token) if top is None else self._told(token, told, place=place, top=top)
                if choice.get("finish_reason") == "stop" and not (ids and ids[-1] in stops):
                    yield Token(min(stops))  # what ended it was left out

    def _body(self, job: Job, writer: Writer, *, model: str) -> dict[str, Any]:
        """The defaults of the model's generation_config.json are overruled: ours are the request's."""
        sampling = writer.drawing.sampling
        body = {
            "model": model,
            "prompt": list(job.ids),
            "max_tokens": writer.limit,
            "stream": True,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": sampling.presence_penalty,
            "frequency_penalty": sampling.frequency_penalty,
            "logit_bias": {str(token): bias for token, bias in sampling.logit_bias} or None,
            "seed": sampling.seed,
            "stop_token_ids": sorted(writer.renderer.stop_ids),
            "ignore_eos": True,  # those above end it, no others
            "return_token_ids": True,
            "cache_salt": hashlib.sha256(self._salt + job.owner.encode()).hexdigest(),  # no owner's cache is another's
        }
        if sampling.top_logprobs is not None:
            body |= {"logprobs": sampling.top_logprobs, "return_tokens_as_token_ids": True}
        return {name: value for name, value in body.items() if value is not None}

    def _told(self, token: int, told: dict[str, Any], *, place: int, top: int) -> Token:
        if told["tokens"][place] != f"token_id:{token}":
            raise self.server.failed("it tells the log-probability of another token")
        others = ((int(name.removeprefix("token_id:")), value) for name, value in told["top_logprobs"][place].items())
        best = sorted(others, key=lambda one: -one[1])[:top]
        return Token(token, told["token_logprobs"][place], tuple(best))


def takes_ids(server: RemoteServer, model: str, *, ids: list[int]) -> dict[str, Any] | None:
    """The answer to a prompt of token ids, of one token; None where the server does not take them."""
    body = {"model": model, "prompt": ids, "max_tokens": 1, "temperature": 0, "return_token_ids": True}
    try:
        answer: dict[str, Any] = server.ask("/v1/completions", body)
    except Answered as error:
        if error.answered in (400, 404, 405, 422, 501):
            return None
        raise
    counted = (answer.get("usage") or {}).get("prompt_tokens")
    return answer if answer.get("choices") and counted == len(ids) else None
