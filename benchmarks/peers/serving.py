"""The processes that serve_load.py measures: ours and its peers, each told what to do by lines of JSON.

Not here: what is asked of them, and what is made of their answers (serve_load). Run as `python serving.py NAME
BASE ADAPTER...`.
"""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx

BATCH = 16
LLAMA_KINDS = ("f32", "f16", "bf16", "q8_0")
QUESTIONS = (
    "Where is my card?",
    "I cannot sign in.",
    "Why was I charged twice?",
)


def peft_worker(base: Path, adapters: Sequence[Path]) -> None:
    """Stock transformers and PEFT: one request at a time, switching to its adapter."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    for number, folder in enumerate(adapters):
        if number:
            model.load_adapter(str(folder), adapter_name=str(number))
        else:
            model = PeftModel.from_pretrained(model, str(folder), adapter_name="0")
    model.eval()

    def answer(job: Mapping[str, Any]) -> dict[str, Any]:
        model.set_adapter(str(job["adapter"]))
        turns = [{"role": "user", "content": QUESTIONS[job["question"]]}]
        rows = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        with torch.inference_mode():
            made = model.generate(**rows, max_new_tokens=job["tokens"], do_sample=False)
        ids = made[0, rows["input_ids"].shape[1] :]
        return {"text": tokenizer.decode(ids, skip_special_tokens=True), "tokens": len(ids)}

    def mixed(job: Mapping[str, Any]) -> dict[str, Any]:
        return {"parts": [batch(different, steps=job["steps"]) for different in job["order"]]}

    def batch(different: bool, *, steps: int) -> dict[str, Any]:
        """A batch with `adapter_names`, one row each."""
        turns = [[{"role": "user", "content": QUESTIONS[0]}]] * BATCH
        rows = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        names = [str(row if different else 0) for row in range(BATCH)]
        with torch.inference_mode():
            output = model(**rows, use_cache=True, adapter_names=names)
            start, cpu = time.perf_counter(), time.process_time()
            for _ in range(steps):
                token = output.logits[:, -1].argmax(-1)[:, None]
                output = model(token, past_key_values=output.past_key_values, use_cache=True, adapter_names=names)
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu
        return {"tokens": BATCH * steps, "wall_s": wall, "cpu_s": cpu}

    follow(lambda job: mixed(job) if "order" in job else answer(job))


def batch_worker(base: Path, adapters: Sequence[Path]) -> None:
    """Our running batch, without a server."""
    from tunesmith.chat import Message
    from tunesmith.model import load_base
    from tunesmith.running import Running
    from tunesmith.sampling import Drawing

    loaded = load_base(str(base), precision="float32")
    running = Running(loaded)
    start = time.perf_counter()
    worn = [running.put_on(folder) for folder in adapters]
    load_s = (time.perf_counter() - start) / len(worn)
    ids = loaded.renderer.prompt([Message("user", QUESTIONS[0])])

    def steps(job: Mapping[str, Any]) -> dict[str, Any]:
        """What each part of the order took, on the same rows."""
        running.clear()
        for row in range(BATCH):
            prompt = running.begin(ids, adapter=worn[row], owner=str(row))
            running.step([(prompt, prompt.left)])
            running.join(prompt, [Drawing()])
        running.step()
        found = []
        for different in job["order"]:
            for row, adapter in zip(running.rows, worn[:BATCH], strict=True):
                row.adapter = adapter if different else worn[0]
            start, cpu = time.perf_counter(), time.process_time()
            for _ in range(job["steps"]):
                running.step()
            wall, cpu = time.perf_counter() - start, time.process_time() - cpu
            found.append({"tokens": BATCH * job["steps"], "wall_s": wall, "cpu_s": cpu})
        return {"parts": found, "load_s": load_s}

    follow(steps)


def server_worker(base: Path, adapters: Sequence[Path]) -> None:
    """Our server over HTTP, on a free port."""
    from tunesmith.serve.app import create_app
    from tunesmith.serve.models import ServedModels
    from tunesmith.serve.run import running

    start = time.perf_counter()
    targets = {"base": str(base)} | {str(number): str(folder) for number, folder in enumerate(adapters)}
    models = ServedModels.load(targets, precision="float32")
    steps_s = time_steps(models.get("base").engine.running)
    with running(create_app(models)) as url:
        httpx.get(url.removesuffix("/v1") + "/readyz", timeout=60).raise_for_status()
        ready_s = time.perf_counter() - start

        def answer(job: Mapping[str, Any]) -> dict[str, Any]:
            peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            about = {"url": url, "ready_s": ready_s, "cpu_s": time.process_time(), "peak_mib": peak_mib}
            return about | {"steps_s": steps_s()}

        follow(answer)


def time_steps(running: Any) -> Callable[[], float]:
    """Gives the seconds that the steps of a running batch take from here on, added up."""
    total_s, step = 0.0, running.step

    def timed(*arguments: Any) -> None:
        nonlocal total_s
        start = time.perf_counter()
        step(*arguments)
        total_s += time.perf_counter() - start

    running.step = timed
    return lambda: total_s


def generate_worker(base: Path, adapters: Sequence[Path]) -> None:
    """transformers' own generation, streamed."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, TextIteratorStreamer

    tokenizer = AutoTokenizer.from_pretrained(base)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)

    def stream(job: Mapping[str, Any]) -> dict[str, Any]:
        turns = [{"role": "user", "content": job["question"]}]
        start = time.perf_counter()
        rows = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
        options = {"max_new_tokens": job["tokens"], "do_sample": False, "streamer": streamer}
        thread = threading.Thread(target=lambda: model.generate(**rows, **options))
        thread.start()
        text = "".join(streamer)
        thread.join()
        return {"text": text, "wall_s": time.perf_counter() - start}

    follow(stream)


def transformers_serve_worker(base: Path, adapters: Sequence[Path]) -> None:
    """`transformers serve` on a free port. It needs `pip install openai`."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [Path(sys.executable).with_name("transformers"), "serve", str(base), "--port", str(port)]
    command += ["--host", "127.0.0.1", "--device", "cpu", "--dtype", "float32"]
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen(command, stdout=sys.stderr) as process:
        for _ in range(600):
            time.sleep(0.2)
            with suppress(httpx.HTTPError):
                httpx.get(f"{url}/health", timeout=2).raise_for_status()
                break
            if process.poll() is not None:
                raise SystemExit("transformers serve ended; its message stands above. Does it lack `openai`?")
        follow(lambda job: {"url": f"{url}/v1"})
        process.terminate()


def llama_worker(kind: str, base: Path, adapters: Sequence[Path]) -> None:
    """llama.cpp's server with its own settings, streamed over HTTP: the same ids, in weights of this type."""
    from tunesmith.chat import Message
    from tunesmith.cli.engine_choice import GgufFiles
    from tunesmith.serve.engines.engine import without_weights
    from tunesmith.serve.engines.llama_process import LlamaProcess

    held = without_weights(str(base), say=lambda text: None)
    file = GgufFiles().base(base, kind, sha256=held.sha256, stop_id=min(held.renderer.stop_ids), say=lambda text: None)
    llama = LlamaProcess(file, [], room=held.facts.max_positions, slots=1, exact=False)
    headers = {"authorization": f"Bearer {llama.key}"}

    def stream(job: Mapping[str, Any]) -> dict[str, Any]:
        body = {"prompt": held.renderer.prompt([Message("user", job["question"])]), "stream": True, "temperature": 0}
        body |= {"n_predict": job["tokens"], "cache_prompt": False}
        start = time.perf_counter()
        answer = httpx.post(f"{llama.url}/completion", json=body, headers=headers, timeout=600)
        wall_s = time.perf_counter() - start
        lines = [line for line in answer.text.splitlines() if line.startswith("data:")]
        chunks = [json.loads(line.removeprefix("data:")) for line in lines]
        if chunks[-1]["tokens_predicted"] != job["tokens"]:
            raise SystemExit(f"llama.cpp ended a reply before its {job['tokens']} tokens.")
        ids = [token for chunk in chunks for token in chunk.get("tokens", ())]
        return {"text": held.renderer.decode(ids), "wall_s": wall_s}

    with llama.used():
        llama.retire()
        follow(stream)


WORKERS: Mapping[str, Callable[[Path, Sequence[Path]], None]] = {
    "peft": peft_worker,
    "batch": batch_worker,
    "server": server_worker,
    "generate": generate_worker,
    "transformers_serve": transformers_serve_worker,
    **{f"llama.cpp {kind}": partial(llama_worker, kind) for kind in LLAMA_KINDS},
}


def follow(work: Callable[[Mapping[str, Any]], dict[str, Any]]) -> None:
    """Do each job that comes on a line of the standard input, and answer on a line."""
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps(work(json.loads(line))), flush=True)


@contextmanager
def worker(name: str, base: Path, *, adapters: Sequence[Path]) -> Iterator[Callable[..., dict[str, Any]]]:
    """A process of that kind; what it gives takes a job and gives its answer."""
    command = [sys.executable, __file__, name, str(base), *map(str, adapters)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdin and process.stdout

    def read() -> dict[str, Any]:
        assert process.stdout
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"The {name} worker ended; its message stands above.")
        return dict(json.loads(line))

    def ask(**job: Any) -> dict[str, Any]:
        assert process.stdin
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()
        return read()

    try:
        read()
        yield ask
    finally:
        process.stdin.close()
        process.wait(30)


if __name__ == "__main__":
    name, base, *adapters = sys.argv[1:]
    WORKERS[name](Path(base), [Path(folder) for folder in adapters])
