"""vLLM, Ollama and a plain server as the engine `url` sees them: their wire over our own models, and faults on demand.

The ids, texts and counts are real: the torch engine makes them.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from tunesmith.sampling import Sampling
from tunesmith.serve.models import ServedModels
from tunesmith.serve.reply import Ask, Choice


class OtherServer:
    """`fault` is what goes wrong with the next reply; `seen` are the bodies that were asked."""

    def __init__(self, models: ServedModels, *, base: str) -> None:
        self.models = models
        self.base = base
        self.fault = ""
        self.seen: list[dict[str, Any]] = []
        self.loaded: list[str] = []
        self.app = Starlette(routes=self.routes())

    def routes(self) -> list[Route]:
        raise NotImplementedError

    @property
    def renderer(self) -> Any:
        return self.models.get(self.base).base.renderer

    def encode(self, text: str) -> list[int]:
        return list(self.renderer.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids)

    def made(self, model: str, ids: list[int], *, tokens: int, sampling: Sampling) -> Choice:
        *_, last = self.models.stream_items(model, Ask(ids=tuple(ids), max_new_tokens=tokens, sampling=sampling))
        assert isinstance(last, Choice)
        return last

    async def asked(self, request: Request) -> Response:
        body = await request.json()
        self.seen.append(body)
        return await run_in_threadpool(self.answer, body)

    def answer(self, body: dict[str, Any]) -> Response:
        """A reply, in this server's form."""
        raise NotImplementedError

    def refusal(self) -> Response | None:
        fault, self.fault = self.fault, ""
        if fault == "404":
            return JSONResponse({"error": "no such model"}, 404)
        if fault == "429":
            return JSONResponse({"error": "busy"}, 429, {"retry-after": "7"})
        if fault == "slow":
            time.sleep(1.5)
        self.fault = fault if fault in ("break", "garbage", "miscount", "no ids") else ""
        return None

    def list_models(self, request: Request) -> Response:
        data = [{"id": self.base}, *({"id": name, "parent": self.base} for name in self.loaded)]
        return JSONResponse({"object": "list", "data": data})

    def streamed(self, lines: list[str]) -> Response:
        """Broken off, or with a line that is no event, where that is the fault."""
        fault, self.fault = self.fault, ""

        def chunks() -> Iterator[str]:
            for place, line in enumerate(lines):
                if place == len(lines) // 2 and fault == "break":
                    raise ConnectionError("the fault that was asked for")
                yield "data: no json\n\n" if place == 1 and fault == "garbage" else line

        return StreamingResponse(chunks(), media_type="text/event-stream")


def events(bodies: list[dict[str, Any]]) -> list[str]:
    return [*(f"data: {json.dumps(body)}\n\n" for body in bodies), "data: [DONE]\n\n"]


class VllmServer(OtherServer):
    def routes(self) -> list[Route]:
        return [
            Route("/v1/models", self.list_models),
            Route("/tokenize", self.tokenize, methods=["POST"]),
            Route("/v1/completions", self.asked, methods=["POST"]),
            Route("/v1/load_lora_adapter", self.load, methods=["POST"]),
            Route("/v1/unload_lora_adapter", self.unload, methods=["POST"]),
        ]

    async def tokenize(self, request: Request) -> Response:
        return JSONResponse({"tokens": self.encode((await request.json())["prompt"])})

    async def load(self, request: Request) -> Response:
        body = await request.json()
        if body["lora_name"] in self.loaded:
            return JSONResponse({"message": "The lora adapter has already been loaded."}, 400)
        await run_in_threadpool(self.models.add, body["lora_name"], body["lora_path"])
        self.loaded.append(body["lora_name"])
        return PlainTextResponse("Success")

    async def unload(self, request: Request) -> Response:
        name = (await request.json())["lora_name"]
        self.loaded.remove(name)
        await run_in_threadpool(self.models.remove, name)
        return PlainTextResponse("Success")

    def answer(self, body: dict[str, Any]) -> Response:
        if refused := self.refusal():
            return refused
        top = body.get("logprobs")
        biases = tuple((int(token), bias) for token, bias in body.get("logit_bias", {}).items())
        sampling = Sampling(body["temperature"], seed=body.get("seed"), logit_bias=biases, top_logprobs=top or 0)
        made = self.made(body["model"], body["prompt"], tokens=body["max_tokens"], sampling=sampling)
        chunks = []
        for token in made.tokens:
            told = None
            if top is not None:
                others = {f"token_id:{other}": value for other, value in token.top}
                others[f"token_id:{token.id}"] = token.logprob or 0.0
                names = [f"token_id:{token.id}"]
                told = {"tokens": names, "token_logprobs": [token.logprob], "top_logprobs": [others]}
            ids = None if self.fault == "no ids" else [token.id]
            chunks.append({"text": "?", "token_ids": ids, "logprobs": told, "finish_reason": None})
        chunks[-1]["finish_reason"] = made.reply.finish_reason
        if not body.get("stream"):
            ids = [token.id for token in made.tokens]
            choice = {"text": made.reply.text, "token_ids": ids, "finish_reason": "length"}
            return JSONResponse({"choices": [choice], "usage": {"prompt_tokens": len(body["prompt"])}})
        return self.streamed(events([{"choices": [chunk]} for chunk in chunks]))


class PlainServer(OtherServer):
    """`takes_ids` or only texts; `extra` is put before each text, as a server that adds a token does."""

    def __init__(self, models: ServedModels, *, base: str, takes_ids: bool = True, extra: str = "") -> None:
        super().__init__(models, base=base)
        self.takes_ids = takes_ids
        self.extra = extra

    def routes(self) -> list[Route]:
        return [
            Route("/v1/models", self.list_models),
            Route("/v1/completions", self.asked, methods=["POST"]),
        ]

    def answer(self, body: dict[str, Any]) -> Response:
        if refused := self.refusal():
            return refused
        if not isinstance(body["prompt"], str) and not self.takes_ids:
            return JSONResponse({"error": {"message": "prompt: a string is expected"}}, 422)
        text = isinstance(body["prompt"], str)
        ids = self.encode(self.extra + body["prompt"]) if text else body["prompt"]
        sampling = Sampling(body["temperature"])
        made = self.made(body["model"], ids, tokens=body["max_tokens"], sampling=sampling)
        usage = {"prompt_tokens": len(ids), "completion_tokens": made.reply.completion_tokens}
        if not body.get("stream"):
            return JSONResponse({"choices": [{"text": made.reply.text}], "usage": usage})
        half = len(made.reply.text) // 2
        texts = [(made.reply.text[:half], None), (made.reply.text[half:], made.reply.finish_reason)]
        chunks: list[dict[str, Any]] = [
            {"choices": [{"text": piece, "finish_reason": reason}]} for piece, reason in texts
        ]
        return self.streamed(events([*chunks, {"choices": [], "usage": usage}]))


class OllamaServer(OtherServer):
    def __init__(self, models: ServedModels, *, base: str, folder: Path) -> None:
        self.folder = folder
        super().__init__(models, base=base)

    def routes(self) -> list[Route]:
        return [
            Route("/api/version", lambda request: JSONResponse({"version": "0.12.0"})),
            Route("/api/tags", lambda request: JSONResponse({"models": [{"name": f"{self.base}:latest"}]})),
            Route("/api/blobs/{digest}", self.blob, methods=["HEAD", "POST"]),
            Route("/api/create", self.create, methods=["POST"]),
            Route("/api/delete", self.delete, methods=["DELETE"]),
            Route("/api/generate", self.asked, methods=["POST"]),
        ]

    async def blob(self, request: Request) -> Response:
        digest = request.path_params["digest"].removeprefix("sha256:")
        file = self.folder / digest
        if request.method == "HEAD":
            return Response(status_code=200 if file.is_file() else 404)
        content = await request.body()
        assert hashlib.sha256(content).hexdigest() == digest
        file.write_bytes(content)
        return Response(status_code=201)

    async def create(self, request: Request) -> Response:
        body = await request.json()
        adapter = self.folder / f"made-{body['model']}"
        adapter.mkdir(exist_ok=True)
        for name, digest in body["adapters"].items():
            (adapter / name).write_bytes((self.folder / digest.removeprefix("sha256:")).read_bytes())
        assert body["from"] == self.base
        await run_in_threadpool(self.models.add, body["model"], str(adapter))
        self.loaded.append(body["model"])
        return JSONResponse({"status": "success"})

    async def delete(self, request: Request) -> Response:
        name = (await request.json())["model"]
        self.loaded.remove(name)
        await run_in_threadpool(self.models.remove, name)
        return Response()

    def answer(self, body: dict[str, Any]) -> Response:
        if refused := self.refusal():
            return refused
        assert body["raw"] is True
        ids = self.encode(body["prompt"])
        options = body["options"]
        made = self.made(body["model"], ids, tokens=options["num_predict"], sampling=Sampling(options["temperature"]))
        counted = len(ids) + (self.fault == "miscount")
        end = {"response": "", "done": True, "done_reason": made.reply.finish_reason, "prompt_eval_count": counted}
        end |= {"eval_count": made.reply.completion_tokens}
        half = len(made.reply.text) // 2
        bodies = [{"response": made.reply.text[:half], "done": False}]
        bodies += [{"response": made.reply.text[half:], "done": False}, end]
        return self.streamed([json.dumps(each) + "\n" for each in bodies])
