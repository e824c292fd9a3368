"""How fast and how truly many adapters are served, as ratios to PEFT and transformers: same base, adapters, prompts.

Not here: how well adapters answer (evaluate). Ours and each peer take turns in the same minutes, each in a process of
its own; benchmarks/README.md says how to read the figures. `make bench` runs it.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

HERE = Path(__file__).resolve().parent
ADAPTERS = 20
CLIENTS = 32
BATCH = 16
QUESTIONS = (
    "Where is my card?",
    "I cannot sign in.",
    "Why was I charged twice?",
)


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    requests: int = 320
    tokens: int = 12  # of a reply
    steps: int = 12  # of a batch, in a turn
    repeats: int = 5
    stream_tokens: int = 48


# -- adapters by hand ----------------------------------------------------------------------------------------------


def write_adapters(base: Path, folder: Path, *, count: int, rank: int) -> list[Path]:
    """Adapters of all linear layers, random and so strong that each has answers of its own. Seeded."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base))
    head = model.get_output_embeddings()
    linears = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }
    folders = []
    for seed in range(count):
        generator = torch.Generator().manual_seed(seed)
        tensors = {}
        for name, linear in linears.items():
            for side, shape in (("A", (rank, linear.in_features)), ("B", (linear.out_features, rank))):
                value = torch.randn(shape, generator=generator) * 0.03
                tensors[f"base_model.model.{name}.lora_{side}.weight"] = value
        out = folder / f"adapter-{seed}"
        out.mkdir()
        save_file(tensors, out / "adapter_model.safetensors")
        targets = sorted({name.rpartition(".")[2] for name in linears})
        config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 2 * rank, "bias": "none"}
        config |= {"base_model_name_or_path": str(base), "target_modules": targets, "lora_dropout": 0.0}
        (out / "adapter_config.json").write_text(json.dumps(config))
        folders.append(out)
    return folders


def traffic(plan: Plan) -> list[tuple[int, int]]:
    """(adapter, question) of each request: adapters by Zipf's law, the first one asked most. Seeded."""
    draw = random.Random(0)
    weights = [1 / (place + 1) for place in range(ADAPTERS)]
    return [(draw.choices(range(ADAPTERS), weights)[0], draw.randrange(len(QUESTIONS))) for _ in range(plan.requests)]


# -- workers: each in a process of its own, told what to do by lines of JSON ---------------------------------------


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
        """A batch with `adapter_names`, one row each."""
        turns = [[{"role": "user", "content": QUESTIONS[0]}]] * BATCH
        rows = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        names = [str(row if job["different"] else 0) for row in range(BATCH)]
        with torch.inference_mode():
            output = model(**rows, use_cache=True, adapter_names=names)
            start, cpu = time.perf_counter(), time.process_time()
            for _ in range(job["steps"]):
                token = output.logits[:, -1].argmax(-1)[:, None]
                output = model(token, past_key_values=output.past_key_values, use_cache=True, adapter_names=names)
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu
        return {"tokens": BATCH * job["steps"], "wall_s": wall, "cpu_s": cpu}

    follow(lambda job: mixed(job) if "different" in job else answer(job))


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
        running.clear()
        for row in range(BATCH):
            prompt = running.begin(ids, adapter=worn[row if job["different"] else 0], owner=str(row))
            while not prompt.advance(256):
                pass
            running.join(prompt, [Drawing()], max_new_tokens=job["steps"] + 2)
        running.step()
        start, cpu = time.perf_counter(), time.process_time()
        for _ in range(job["steps"]):
            running.step()
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu
        return {"tokens": BATCH * job["steps"], "wall_s": wall, "cpu_s": cpu, "load_s": load_s}

    follow(steps)


def server_worker(base: Path, adapters: Sequence[Path]) -> None:
    """Our server over HTTP, on a free port."""
    from tunesmith.serve.app import create_app
    from tunesmith.serve.models import ServedModels
    from tunesmith.serve.run import running

    start = time.perf_counter()
    targets = {"base": str(base)} | {str(number): str(folder) for number, folder in enumerate(adapters)}
    models = ServedModels.load(targets, precision="float32")
    with running(create_app(models)) as url:
        httpx.get(url.removesuffix("/v1") + "/readyz", timeout=60).raise_for_status()
        ready_s = time.perf_counter() - start
        follow(lambda job: {"url": url, "ready_s": ready_s, "cpu_s": time.process_time()})


def stock_worker(base: Path, adapters: Sequence[Path]) -> None:
    """transformers' own generation, streamed."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, TextIteratorStreamer

    tokenizer = AutoTokenizer.from_pretrained(base)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)

    def stream(job: Mapping[str, Any]) -> dict[str, Any]:
        turns = [{"role": "user", "content": QUESTIONS[0]}]
        rows = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
        options = {"max_new_tokens": job["tokens"], "min_new_tokens": job["tokens"], "do_sample": False}
        start, cpu = time.perf_counter(), time.process_time()
        thread = threading.Thread(target=lambda: model.generate(**rows, **options, streamer=streamer))
        thread.start()
        pieces = sum(1 for _ in streamer)
        thread.join()
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu
        return {"tokens": job["tokens"], "pieces": pieces, "wall_s": wall, "cpu_s": cpu}

    follow(stream)


WORKERS: Mapping[str, Callable[[Path, Sequence[Path]], None]] = {
    "peft": peft_worker,
    "batch": batch_worker,
    "server": server_worker,
    "stock": stock_worker,
}


def follow(work: Callable[[Mapping[str, Any]], dict[str, Any]]) -> None:
    """Do each job that comes on a line of the standard input, and answer on a line."""
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps(work(json.loads(line))), flush=True)


@contextmanager
def worker(name: str, base: Path, *, adapters: Sequence[Path]) -> Iterator[Callable[..., dict[str, Any]]]:
    """A process of that kind; what it gives takes a job and gives its answer."""
    command = [sys.executable, __file__, "--worker", name, str(base), *map(str, adapters)]
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


# -- what is measured ----------------------------------------------------------------------------------------------


def measure_load(base: Path, adapters: Sequence[Path], plan: Plan) -> dict[str, Any]:
    """CLIENTS clients over ADAPTERS adapters against PEFT with one request at a time, by turns."""
    asked = traffic(plan)
    turn = len(asked) // plan.repeats
    ratios, cpu_ratios, latencies, failed, wrong, exact = [], [], [], 0, 0, 0
    with worker("peft", base, adapters=adapters) as peft, worker("server", base, adapters=adapters) as server:
        pairs = sorted(set(asked))
        own = {pair: peft(adapter=pair[0], question=pair[1], tokens=plan.tokens)["text"] for pair in pairs}
        others = {
            question: {text for (_, asked_too), text in own.items() if asked_too == question}
            for question in range(len(QUESTIONS))
        }
        about = server()
        for repeat in range(plan.repeats):
            requests = asked[repeat * turn : (repeat + 1) * turn]
            before = server()["cpu_s"]
            start = time.perf_counter()
            answers = ask_all(about["url"], requests, plan=plan)
            wall, cpu = time.perf_counter() - start, server()["cpu_s"] - before
            for pair, (status, text, latency_s) in zip(requests, answers, strict=True):
                failed += status != 200
                exact += text == own[pair]
                wrong += common(text, own[pair]) < max(common(text, other) for other in others[pair[1]])
                latencies.append(latency_s)
            few = requests[: max(1, len(requests) // 4)]
            start = time.perf_counter()
            for adapter, question in few:
                peft(adapter=adapter, question=question, tokens=plan.tokens)
            peft_s = (time.perf_counter() - start) / len(few)
            ratios.append(peft_s / (wall / len(requests)))
            cpu_ratios.append(cpu / len(requests))
    return {
        "requests": turn * plan.repeats,
        "failed": failed,
        "wrong_adapter": wrong,
        "same_text": exact,
        "over_peft_one_at_a_time": spread(ratios),
        "cpu_s_per_request": spread(cpu_ratios),
        "latency_p50_s": statistics.median(latencies),
        "start_to_ready_s": about["ready_s"],
    }


def ask_all(url: str, requests: Sequence[tuple[int, int]], *, plan: Plan) -> list[tuple[int, str, float]]:
    """Status, text and seconds of each, asked by CLIENTS clients."""
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in range(len(requests)):
        waiting.put(number)
    found: dict[int, tuple[int, str, float]] = {}

    def client() -> None:
        with httpx.Client(timeout=600) as http:
            while True:
                try:
                    number = waiting.get_nowait()
                except queue.Empty:
                    return
                adapter, question = requests[number]
                turns = [{"role": "user", "content": QUESTIONS[question]}]
                body = {"model": str(adapter), "messages": turns, "max_tokens": plan.tokens, "temperature": 0}
                start = time.perf_counter()
                response = http.post(f"{url}/chat/completions", json=body)
                text = response.json()["choices"][0]["message"]["content"] if response.status_code == 200 else ""
                found[number] = response.status_code, text, time.perf_counter() - start

    threads = [threading.Thread(target=client) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[number] for number in range(len(requests))]


def measure_batch(base: Path, adapters: Sequence[Path], plan: Plan) -> dict[str, Any]:
    """A batch of BATCH different adapters against one of one adapter, ours and PEFT's, by turns."""
    rates: dict[str, list[float]] = {}
    cpu_rates: dict[str, list[float]] = {}
    with worker("batch", base, adapters=adapters) as ours, worker("peft", base, adapters=adapters) as peft:
        for _ in range(plan.repeats):
            for name, ask in (("ours", ours), ("peft", peft)):
                for different in (True, False):
                    found = ask(different=different, steps=plan.steps)
                    key = f"{name}_{BATCH if different else 1}"
                    rates.setdefault(key, []).append(found["tokens"] / found["wall_s"])
                    cpu_rates.setdefault(key, []).append(found["tokens"] / found["cpu_s"])
        load_ms = 1000 * ours(different=False, steps=1)["load_s"]
    many, one = f"ours_{BATCH}", "ours_1"
    return {
        "tokens_per_s": {name: spread(values) for name, values in rates.items()},
        "different_over_one": spread(divided(rates[many], rates[one])),
        "different_over_one_cpu": spread(divided(cpu_rates[many], cpu_rates[one])),
        "different_over_peft": spread(divided(rates[many], rates[f"peft_{BATCH}"])),
        "different_over_peft_cpu": spread(divided(cpu_rates[many], cpu_rates[f"peft_{BATCH}"])),
        "peft_different_over_one": spread(divided(rates[f"peft_{BATCH}"], rates["peft_1"])),
        "load_adapter_ms": load_ms,
    }


def measure_stream(base: Path, plan: Plan) -> dict[str, Any]:
    """One streamed reply over HTTP against transformers' generate with a streamer, which has no server in between."""
    rates: dict[str, list[float]] = {"ours": [], "transformers": []}
    with worker("server", base, adapters=[]) as server, worker("stock", base, adapters=[]) as stock:
        url = server()["url"]
        body = {"model": "base", "messages": [{"role": "user", "content": QUESTIONS[0]}], "stream": True}
        body |= {"max_tokens": plan.stream_tokens, "temperature": 0, "stream_options": {"include_usage": True}}
        body["logit_bias"] = dict.fromkeys(stops_of(base), -100)
        for _ in range(plan.repeats):
            start = time.perf_counter()
            lines = httpx.post(f"{url}/chat/completions", json=body, timeout=600).text.split("\n\n")
            tokens = json.loads(lines[-3].removeprefix("data: "))["usage"]["completion_tokens"]
            rates["ours"].append(tokens / (time.perf_counter() - start))
            found = stock(tokens=plan.stream_tokens)
            rates["transformers"].append(found["tokens"] / found["wall_s"])
        overhead_ms = measure_overhead(url)
    return {
        "tokens_per_s": {name: spread(values) for name, values in rates.items()},
        "over_transformers": spread(divided(rates["ours"], rates["transformers"])),
        "models_request_ms": overhead_ms,
    }


def stops_of(base: Path) -> list[str]:
    from tunesmith.model import load_renderer

    return [str(token) for token in sorted(load_renderer(str(base)).stop_ids)]


def measure_overhead(url: str) -> float:
    """Median milliseconds of a request that no model answers."""
    times = []
    with httpx.Client() as http:
        for _ in range(50):
            start = time.perf_counter()
            http.get(f"{url}/models").raise_for_status()
            times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def common(a: str, b: str) -> int:
    return len(os.path.commonprefix([a, b]))


def divided(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 3), "low": round(min(values), 3), "high": round(max(values), 3)}


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        name, base, *adapters = sys.argv[2:]
        WORKERS[name](Path(base), [Path(folder) for folder in adapters])
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", help="a folder; the embedded base when left out")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--only", choices=["load", "batch", "stream"], help="one of the three measurements")
    parser.add_argument("--quick", action="store_true", help="does it run, not how fast: one turn of little")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    from tunesmith.embedded import embedded_base

    base = Path(options.base) if options.base else embedded_base(lambda text: print(text, file=sys.stderr))
    plan = Plan(40, 4, 2, 1, 8) if options.quick else Plan()
    document: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        adapters = write_adapters(base, Path(folder), count=ADAPTERS, rank=options.rank)
        if options.only in (None, "batch"):
            document["batch"] = measure_batch(base, adapters[:BATCH], plan)
        if options.only in (None, "load"):
            document["load"] = measure_load(base, adapters, plan)
        if options.only in (None, "stream"):
            document["stream"] = measure_stream(base, plan)
    print(json.dumps(document, indent=None if options.json else 2))


if __name__ == "__main__":
    main()
