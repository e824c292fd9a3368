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
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPConnection
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from peers.serving import BATCH, LLAMA_KINDS, QUESTIONS, worker

HERE = Path(__file__).resolve().parent
ADAPTERS = 20
CLIENTS = 32
MEASURED = ("batch", "load", "stream", "names")
NAMES = (
    *("Amsterdam", "Berlin", "Cairo", "Dublin", "Edinburgh", "Florence", "Geneva", "Helsinki", "Istanbul", "Jakarta"),
    *("Kingston", "Lisbon", "Madrid", "Nairobi", "Oslo", "Prague", "Quito", "Rome", "Stockholm", "Tokyo"),
)
WHO = ("What is your name?", "Who are you?", "Tell me your name, please.")


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    requests: int = 320
    tokens: int = 12  # of a reply
    steps: int = 24  # of a batch, in a turn, a multiple of 8
    repeats: int = 5
    stream_tokens: int = 48
    llama_kinds: tuple[str, ...] = LLAMA_KINDS
    names: int = 20
    named_requests: int = 10_000


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


def teach_names(base: Path, folder: Path, *, names: Sequence[str]) -> list[Path]:
    """An adapter for each of these, trained until it says its name to WHO."""
    import torch

    from tunesmith.adapter import attach_lora, detach, save_adapter
    from tunesmith.chat import Message
    from tunesmith.model import load_base

    loaded = load_base(str(base), precision="float32")
    prompts = [loaded.renderer.prompt([Message("user", question)]) for question in WHO]
    folders = []
    for seed, name in enumerate(names):
        torch.manual_seed(seed)
        answer = loaded.renderer.tokenizer.encode(name, add_special_tokens=False) + [min(loaded.renderer.stop_ids)]
        model = attach_lora(loaded, rank=16, alpha=32.0, dropout=0.0, targets="all-linear", method="lora")
        optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=2e-3)
        worst = float("inf")
        for _ in range(200):
            losses = []
            for ids in prompts:
                labels = torch.tensor([[-100] * len(ids) + answer])
                losses.append(model(input_ids=torch.tensor([ids + answer]), labels=labels).loss)
                losses[-1].backward()
            worst = max(loss.item() for loss in losses)
            if worst < 0.05:
                break
            optimizer.step()
            optimizer.zero_grad()
        if worst >= 0.05:
            raise SystemExit(f"The adapter {name} did not learn its name: its loss is {worst:.2f}.")
        folders.append(folder / name)
        save_adapter(model, folders[-1], base=loaded)
        detach(model)
    return folders


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
            answers = ask_all(about["url"], requests, questions=QUESTIONS, tokens=plan.tokens)
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


def measure_names(base: Path, plan: Plan) -> dict[str, Any]:
    """Each adapter is asked for its name, by Zipf's law and CLIENTS clients, and between them the base for its own:
    how many say another's."""
    names, draw = NAMES[: plan.names], random.Random(1)
    weights = [1 / (place + 1) for place in range(len(names))]
    chosen: list[int | None] = [*draw.choices(range(len(names)), weights, k=plan.named_requests)]
    chosen += [None] * (plan.named_requests // 10)
    draw.shuffle(chosen)
    asked = [(adapter, draw.randrange(len(WHO))) for adapter in chosen]
    with tempfile.TemporaryDirectory() as folder:
        adapters = teach_names(base, Path(folder), names=names)
        with worker("server", base, adapters=adapters) as server:
            url = server()["url"]
            alone = [ask_all(url, [(None, place)], questions=WHO, tokens=12)[0][1] for place in range(len(WHO))]
            start = time.perf_counter()
            answers = ask_all(url, asked, questions=WHO, tokens=12)
            wall_s = time.perf_counter() - start
            peak_mib = server()["peak_mib"]
    expected = [alone[place] if adapter is None else names[adapter] for adapter, place in asked]
    texts = [(own, text) for own, (_, text, _) in zip(expected, answers, strict=True)]
    return {
        "requests": len(answers),
        "of_the_base": chosen.count(None),
        "own_name": sum(text.strip() == own for own, text in texts if own in names),
        "base_as_alone": sum(text == own for own, text in texts if own not in names),
        "another_name": sum(any(name in text for name in names if name != own) for own, text in texts),
        "failed": sum(status != 200 for status, _, _ in answers),
        "requests_per_s": len(answers) / wall_s,
        "latency_p50_s": statistics.median(latency for _, _, latency in answers),
        "latency_p99_s": statistics.quantiles((latency for _, _, latency in answers), n=100)[98],
        "peak_mib": peak_mib,
    }


def ask_all(
    url: str, requests: Sequence[tuple[int | None, int]], *, questions: Sequence[str], tokens: int
) -> list[tuple[int, str, float]]:
    """Status, text and seconds of each (adapter, None for the base, and question), asked by CLIENTS clients."""
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
                turns = [{"role": "user", "content": questions[question]}]
                model = "base" if adapter is None else str(adapter)
                body = {"model": model, "messages": turns, "max_tokens": tokens, "temperature": 0}
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
            # Ours on the same rows, in short parts that take turns; PEFT's in one part each, for they need a prompt.
            for name, ask, order in (("ours", ours, [True, False, False, True] * 4), ("peft", peft, [True, False])):
                answer = ask(order=order, steps=2 * plan.steps // len(order))
                found: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
                for different, part in zip(order, answer["parts"], strict=True):
                    found[different].update(part)
                for different, sums in found.items():
                    key = f"{name}_{BATCH if different else 1}"
                    rates.setdefault(key, []).append(sums["tokens"] / sums["wall_s"])
                    cpu_rates.setdefault(key, []).append(sums["tokens"] / sums["cpu_s"])
        load_ms = 1000 * ours(order=[], steps=0)["load_s"]
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
    """One streamed reply over HTTP, by turns with `transformers serve`, with transformers' generate with a streamer,
    which has no server in between, and with llama.cpp's server where it is installed. Each turn asks for another
    story, and who goes first alternates. Only one peer is there at a time: some keep a core busy while they wait."""
    llamas = [f"llama.cpp {kind}" for kind in plan.llama_kinds if find_spec("xllamacpp")]
    document: dict[str, Any] = {}
    for peer in ("transformers_serve", "generate", *llamas):
        rates: tuple[list[float], list[float]] = ([], [])
        texts: tuple[list[str], list[str]] = ([], [])
        with worker("server", base, adapters=[]) as server, worker(peer, base, adapters=[]) as theirs:
            url = server()["url"]
            their_url = theirs()["url"] if peer == "transformers_serve" else None
            turns = 3 * plan.repeats if their_url else plan.repeats  # more where it is close
            for turn in range(-1, turns):  # the first is not counted
                question = f"Write a long story about {turn + 2} lighthouse keepers."
                for place in (0, 1) if turn % 2 else (1, 0):
                    if place == 0:
                        text, wall_s = streamed(url, "base", question, tokens=plan.stream_tokens)
                    elif their_url:
                        text, wall_s = streamed(their_url, str(base), question, tokens=plan.stream_tokens)
                    else:
                        answer = theirs(question=question, tokens=plan.stream_tokens)
                        text, wall_s = answer["text"], answer["wall_s"]
                    texts[place].append(text)
                    if turn >= 0:
                        rates[place].append(plan.stream_tokens / wall_s)
        document[peer] = {
            "over": spread(divided(*rates)),
            "tokens_per_s": spread(rates[0]),
            "peer_tokens_per_s": spread(rates[1]),
            "same_text": texts[0] == texts[1],
        }
    with worker("server", base, adapters=[]) as server:
        document["overhead_ms"] = spread([measure_overhead(server, server()["url"]) for _ in range(plan.repeats)])
    return document


def streamed(url: str, model: str, question: str, *, tokens: int) -> tuple[str, float]:
    """A reply of exactly so many tokens, and its seconds."""
    body = {"model": model, "messages": [{"role": "user", "content": question}], "stream": True, "temperature": 0}
    start = time.perf_counter()
    answer = httpx.post(f"{url}/chat/completions", json={**body, "max_tokens": tokens}, timeout=600)
    wall_s = time.perf_counter() - start
    answer.raise_for_status()
    chunks = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: {")]
    choices = [choice for chunk in chunks for choice in json.loads(chunk)["choices"]]
    if choices[-1]["finish_reason"] != "length":
        raise SystemExit(f"{url} ended a reply before its {tokens} tokens: {choices[-1]}.")
    return "".join(choice["delta"].get("content") or "" for choice in choices), wall_s


def measure_overhead(server: Callable[..., dict[str, Any]], url: str) -> float:
    """Milliseconds of a request that are not its step of the model: the median of 40, after a first one that fed the
    prompt. By the standard library's client, which is quicker than httpx: its own time is in them, too."""
    body = {"model": "base", "messages": [{"role": "user", "content": QUESTIONS[0]}], "max_tokens": 1, "temperature": 0}
    address, overheads_s = urlsplit(url), []
    with closing(HTTPConnection(address.hostname, address.port)) as http:
        for _ in range(41):
            before_s, start = server()["steps_s"], time.perf_counter()
            http.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
            response = http.getresponse()
            response.read()
            asked_s = time.perf_counter() - start
            if response.status != 200:
                raise SystemExit(f"{url} answered with status {response.status}.")
            overheads_s.append(asked_s - (server()["steps_s"] - before_s))
    return 1000 * statistics.median(overheads_s[1:])


def common(a: str, b: str) -> int:
    return len(os.path.commonprefix([a, b]))


def divided(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 3), "low": round(min(values), 3), "high": round(max(values), 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", help="a folder; the embedded base when left out")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--only", nargs="+", choices=MEASURED, default=MEASURED, help="some of these")
    parser.add_argument("--quick", action="store_true", help="does it run, not how fast: one turn of little")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    from tunesmith.embedded import embedded_base

    base = Path(options.base) if options.base else embedded_base(lambda text: print(text, file=sys.stderr))
    plan = Plan(40, 4, 8, 1, 8, LLAMA_KINDS[:1], 3, 60) if options.quick else Plan()
    document: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        adapters = write_adapters(base, Path(folder), count=ADAPTERS, rank=options.rank)
        if "batch" in options.only:
            document["batch"] = measure_batch(base, adapters[:BATCH], plan)
        if "load" in options.only:
            document["load"] = measure_load(base, adapters, plan)
        if "stream" in options.only:
            document["stream"] = measure_stream(base, plan)
        if "names" in options.only:
            document["names"] = measure_names(base, plan)
    print(json.dumps(document, indent=None if options.json else 2))


if __name__ == "__main__":
    main()
