"""How fast we train, as a ratio to TRL and Unsloth: same model, rows, order, adapter shape, steps, rates and seed.

Not here: how each one is driven (benchmarks/peers). Ours and one peer run by turns in the same minutes, each in a
process and an environment of its own; benchmarks/README.md says how to read the figures. `make bench` runs it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tunesmith import hardware
from tunesmith.embedded import embedded_base

HERE = Path(__file__).resolve().parent
PEERS_DIR = HERE.parent / ".peers"
# SmolLM2's own template opens a conversation without a system turn with one of its own, which every row would share.
PLAIN_CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Peer:
    """A trainer to measure: its worker in benchmarks/peers, and what TRL's SFTConfig is told beyond its defaults."""

    worker: str
    options: Mapping[str, Any] = field(default_factory=dict)
    default: bool = True


OURS = Peer("tunesmith")
PEERS = {
    "trl": Peer("trl"),
    "trl-f32": Peer("trl", {"bf16": False}),
    "unsloth": Peer("unsloth"),
    "unsloth-nockpt": Peer("unsloth", {"gradient_checkpointing": False}),
    "self": Peer("tunesmith", default=False),  # ours against ours: how far from 1 noise alone takes a ratio
}
GPU_PEERS = {
    **{name: PEERS[name] for name in ("trl", "unsloth", "unsloth-nockpt")},
    "trl-liger": Peer("trl", {"use_liger_kernel": True}),
}


@dataclass(frozen=True)
class Case:
    """Rows to train on, and how many make an optimiser step."""

    data: Path
    rows_per_step: int
    system: bool = True
    quantize: bool = False


BANKING = HERE.parent / "src" / "tunesmith" / "demo_data" / "banking77" / "train.jsonl"
REPLIES = HERE / "data" / "bitext_support_replies" / "train.jsonl"
CASES = {
    "shared": Case(BANKING, 16),
    "none_shared": Case(BANKING, 16, system=False),
    "long_answers": Case(REPLIES, 8),
}
GPU_CASES = {"lora": Case(REPLIES, 16), "qlora": Case(REPLIES, 16, quantize=True)}


@dataclass(frozen=True)
class Plan:
    """How long to measure, and on what. A step is an optimiser step; every repeat is one turn of ours and of a peer."""

    model: Path
    repeats: int
    steps: int
    warmup: int
    minutes: float = 5.0  # of the turns of one pair and figure; it ends after the turn in which they are over
    figures: Sequence[str] = ("wall", "cpu")  # wall seconds with all cores, processor seconds with one thread
    gpu: bool = False

    @property
    def num_steps(self) -> int:
        return self.warmup + self.repeats * self.steps


class WorkerError(Exception):
    """A worker died or measured something else than was asked; the text ends with what it said last."""


class Worker:
    """A training in a process of its own that takes a turn when it is told to, and waits otherwise."""

    def __init__(self, peer: Peer, job: Mapping[str, Any], *, folder: Path, threads: int) -> None:
        folder.mkdir()
        (folder / "job.json").write_text(json.dumps({**job, "scratch": str(folder)}), encoding="utf-8")
        own = peer.worker == OURS.worker or job["device"] != "cpu"
        python = sys.executable if own else PEERS_DIR / peer.worker / "bin" / "python"
        self._log = folder / "log.txt"
        variables = {
            "OMP_NUM_THREADS": str(threads),
            "TUNESMITH_HOME": str(folder / "home"),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            **({"UNSLOTH_FORCE_CPU": "1", "CUDA_VISIBLE_DEVICES": ""} if job["device"] == "cpu" else {}),
        }
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [python, HERE / "peers" / f"{peer.worker}_worker.py", folder / "job.json"],
                cwd=folder,
                env={**os.environ, **variables},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.facts = self._read()

    def turn(self, steps: int) -> dict[str, Any]:
        """Train so many steps; returns what the worker measured of each."""
        assert self._process.stdin
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        return self._read()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            said = "\n".join(self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
            raise WorkerError(f"A worker stopped with status {self._process.returncode}:\n{said}")
        report: dict[str, Any] = json.loads(line)
        return report


def compare(case: Case, peer: Peer, *, plan: Plan, folder: Path, threads: int) -> dict[str, Any]:
    """Train ours and the peer by turns; who goes first alternates."""
    job = our_job(case, plan=plan, folder=folder, threads=threads)
    with Worker(OURS, job, folder=folder / "ours", threads=threads) as ours:
        facts = ours.facts
        rows = [row for batch in facts["batches"] for row in batch]
        theirs = {**job, "rates": facts["rates"], "rows": rows, "options": dict(peer.options)}
        with Worker(peer, theirs, folder=folder / "peer", threads=threads) as other:
            turns = [(ours.turn(plan.warmup), other.turn(plan.warmup))]
            end = time.monotonic() + 60 * plan.minutes
            for repeat in range(plan.repeats):
                if repeat % 2:
                    report = other.turn(plan.steps)
                    turns.append((ours.turn(plan.steps), report))
                else:
                    turns.append((ours.turn(plan.steps), other.turn(plan.steps)))
                if time.monotonic() > end:
                    break
            return {
                "turns": turns,
                "batches": facts["batches"],
                "settings": {"ours": facts["settings"], "peer": other.facts["settings"]},
                "versions": {"ours": facts["versions"], "peer": other.facts["versions"]},
            }


def our_job(case: Case, *, plan: Plan, folder: Path, threads: int) -> dict[str, Any]:
    """Write the case's rows and our job; the validation is one row, so that the step alone is measured."""
    rows = case_rows(case)
    for name, part in (("train", rows[:-1]), ("validation", rows[-1:])):
        text = "".join(json.dumps({"messages": messages}) + "\n" for messages in part)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    job = {"rank": 16, "alpha": 32, "seed": 0, "rows_per_step": case.rows_per_step, "quantize": case.quantize}
    recipe = {
        "data": str(folder / "train.jsonl"),
        "validation": str(folder / "validation.jsonl"),
        "base": str(plan.model),
        "batch_size": case.rows_per_step,
        "threads": threads,
        "rank": job["rank"],
        "alpha": job["alpha"],
        "seed": job["seed"],
        "validations_per_epoch": 1,
        "patience": None,
        **({"method": "qlora"} if case.quantize else {}),
    }
    device = "cuda" if plan.gpu else "cpu"
    return {**job, "recipe": recipe, "model": str(plan.model), "steps": plan.num_steps, "device": device}


def case_rows(case: Case) -> list[list[dict[str, str]]]:
    """The conversations of the case, in the order of its file."""
    lines = case.data.read_text(encoding="utf-8").split("\n")
    rows = [json.loads(line)["messages"] for line in lines if line]
    return [[turn for turn in row if case.system or turn["role"] != "system"] for row in rows]


def summarise(measured: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The row of a case and a peer. `measured` has `wall` (all cores), `cpu` (one thread) or both."""
    row: dict[str, Any] = {}
    for figure, prefix, unit in (("wall", "", "tokens_per_s"), ("cpu", "cpu_", "tokens_per_cpu_s")):
        if figure not in measured:
            continue
        timed = measured[figure]["turns"][1:]  # the first is the warm-up
        speeds = [[_speed(report, f"{figure}_s") for report in pair] for pair in timed]
        ratios = [ours / peer for ours, peer in speeds]
        row[f"{prefix}ratio"] = statistics.median(ratios)
        row[f"{prefix}low"], row[f"{prefix}high"] = min(ratios), max(ratios)
        row[unit], row[f"peer_{unit}"] = (statistics.median(column) for column in zip(*speeds, strict=True))
    any_one = measured.get("wall") or measured["cpu"]
    row["peak_gib"], row["peer_peak_gib"] = (report["peak_gib"] for report in any_one["turns"][-1])
    row["loss_difference"] = max(_loss_difference(item["turns"]) for item in measured.values())
    row["repeated_tokens"] = repeated_tokens(any_one["batches"])
    row["settings"] = any_one["settings"]
    row["versions"], row["turns"] = any_one["versions"], min(len(item["turns"]) - 1 for item in measured.values())
    return row


def _speed(report: Mapping[str, Any], clock: str) -> float:
    """Tokens of training data, without padding and before sharing, per second of the clock."""
    steps = report["steps"]
    return float(sum(step["tokens"] for step in steps) / sum(step[clock] for step in steps))


def _loss_difference(turns: Sequence[Sequence[Mapping[str, Any]]]) -> float:
    """The largest relative difference of the two loss curves. WorkerError when the steps trained different tokens."""
    ours, peer = ([step for pair in turns for step in pair[side]["steps"]] for side in (0, 1))
    for number, (a, b) in enumerate(zip(ours, peer, strict=True), start=1):
        if (a["tokens"], a["labels"]) != (b["tokens"], b["labels"]):
            raise WorkerError(
                f"Step {number} is not the same work: ours has {a['tokens']} tokens and {a['labels']} labels, "
                f"the peer {b['tokens']} and {b['labels']}."
            )
    return max(abs(a["loss"] - b["loss"]) / abs(b["loss"]) for a, b in zip(ours, peer, strict=True))


def repeated_tokens(batches: Sequence[Sequence[Mapping[str, Any]]]) -> float:
    """The share of tokens whose whole path from the start of their row stands in another row of the batch already."""
    total = distinct = 0
    for batch in batches:
        rows = [row["input_ids"] for row in batch]
        total += sum(map(len, rows))
        distinct += len({tuple(ids[: end + 1]) for ids in rows for end in range(len(ids))})
    return 1 - distinct / total


def lay_model(model: Path, folder: Path) -> Path:
    """The model's files under `folder`, with a template that adds no turn of its own."""
    folder.mkdir()
    for file in model.iterdir():
        (folder / file.name).symlink_to(file.resolve())
    template = folder / "chat_template.jinja"
    if template.is_file() and "<|im_start|>" in template.read_text(encoding="utf-8"):
        template.unlink()
        template.write_text(PLAIN_CHATML, encoding="utf-8")
    return folder


def measure(plan: Plan, *, cases: Mapping[str, Case], peers: Mapping[str, Peer]) -> Iterator[dict[str, Any]]:
    """A row for each case and peer, as it is ready; one that could not be measured has `error`."""
    for case_name, case in cases.items():
        for peer_name, peer in peers.items():
            row = {"case": case_name, "peer": peer_name}
            measured = {}
            try:
                for figure in plan.figures:
                    threads = 1 if figure == "cpu" else hardware.detect().cores
                    with tempfile.TemporaryDirectory(prefix="train_speed-") as scratch:
                        folder = Path(scratch)
                        laid = replace(plan, model=lay_model(plan.model, folder / "model"))
                        measured[figure] = compare(case, peer, plan=laid, folder=folder, threads=threads)
                yield row | summarise(measured)
            except WorkerError as error:
                yield row | {"error": str(error)}


def markdown(result: Mapping[str, Any]) -> str:
    """The rows of the table in benchmarks/README.md, and the line below it."""
    lines = [f"| {' | '.join(_cells(row))} |" for row in result["cases"]]
    about = "; ".join(f"{name}: {value}" for name, value in result["machine"].items())
    versions = [f"{peer}: {_words(found)}" for peer, found in result["versions"].items()]
    return "\n".join([*lines, "", f"{about}. {result['plan']}.", *versions])


COLUMNS = ("case", "peer", "turns", "wall ratio", "CPU ratio", "tokens/s", "tokens/CPU s", "GiB", "loss")  # ours : peer


def _cells(row: Mapping[str, Any]) -> list[str]:
    if "error" in row:
        return [row["case"], row["peer"], "failed"]
    cells = [row["case"], row["peer"], str(row["turns"])]
    for prefix in ("", "cpu_"):
        low, middle, high = (row.get(f"{prefix}{name}") for name in ("low", "ratio", "high"))
        cells.append(f"{middle:.2f} ({low:.2f}-{high:.2f})" if middle else "-")
    for unit in ("tokens_per_s", "tokens_per_cpu_s"):
        cells.append(f"{row[unit]:,.0f} : {row[f'peer_{unit}']:,.0f}" if unit in row else "-")
    return [*cells, f"{row['peak_gib']:.1f} : {row['peer_peak_gib']:.1f}", f"{row['loss_difference']:.1e}"]


def _words(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def main() -> int:
    arguments = parse()
    last = PEERS_DIR / "train_speed.json"
    result = json.loads(last.read_text(encoding="utf-8")) if arguments.last else run(arguments, last)
    if arguments.json:
        print(json.dumps(result))
    elif arguments.markdown or arguments.last:
        print(markdown(result))
    return 1 if any("error" in row for row in result["cases"]) else 0


def run(arguments: argparse.Namespace, last: Path) -> dict[str, Any]:
    """Measure what was asked, say each row as it is ready, keep the result so far in `last`."""

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    cases, peers = (GPU_CASES, GPU_PEERS) if arguments.gpu else (CASES, PEERS)
    chosen = arguments.peer or [name for name, peer in peers.items() if peer.default]
    peers = {name: peers[name] for name in peers if name in chosen}
    cases = {name: cases[name] for name in cases if name in (arguments.case or cases)}
    PEERS_DIR.mkdir(exist_ok=True)
    if arguments.gpu:
        peers = {name: peer for name, peer in peers.items() if importlib.util.find_spec(peer.worker)}
    else:
        needed = sorted({peer.worker for peer in peers.values()} - {OURS.worker})
        subprocess.run(
            [sys.executable, HERE / "peers" / "install.py", PEERS_DIR, *needed], check=True, stdout=sys.stderr
        )
    if not (cases and peers):
        raise SystemExit("There is nothing to measure: no such case, or no peer is installed.")
    model = arguments.model or embedded_base(say)
    if arguments.gpu and not arguments.model:
        tokenizer, model = model, PEERS_DIR / "llama-8b-random"
        if not (model / "tokenizer.json").is_file():
            subprocess.run([sys.executable, HERE / "peers" / "random_llama.py", tokenizer, model], check=True)
    counts = {"repeats": 1, "steps": 1, "warmup": 1} if arguments.quick else {}
    counts = {name: getattr(arguments, name) for name in ("repeats", "steps", "warmup", "minutes")} | counts
    figures = [arguments.figure] if arguments.figure else ["wall"] if arguments.gpu else ["wall", "cpu"]
    plan = Plan(model=model, figures=figures, gpu=arguments.gpu, **counts)
    words = (
        f"{plan.repeats} turns of {plan.steps} steps after {plan.warmup} to warm up, at most {plan.minutes:g} minutes"
    )
    say(f"{len(cases)} cases, {len(peers)} peers: {words}.\n{'  '.join(COLUMNS)}")
    machine = hardware.detect().as_dict() | {"load before": f"{os.getloadavg()[0]:.2f}"}
    result: dict[str, Any] = {"cases": [], "machine": machine, "versions": {}, "plan": words}
    for row in measure(plan, cases=cases, peers=peers):
        if found := row.pop("versions", None):
            result["versions"] |= {"ours": found["ours"], row["peer"]: found["peer"]}
        result["cases"].append(row)
        last.write_text(json.dumps(result), encoding="utf-8")
        say("  ".join(_cells(row)) + (f"\n{row['error']}" if "error" in row else ""))
    return result


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", default=[], choices=[*CASES, *GPU_CASES], help="only this one")
    parser.add_argument("--peer", action="append", default=[], choices=[*PEERS, *GPU_PEERS], help="only this one")
    parser.add_argument("--model", type=Path, help="folder of the base; the embedded one by default")
    parser.add_argument("--repeats", type=int, default=5, help="turns of ours and of the peer")
    parser.add_argument("--steps", type=int, default=1, help="optimiser steps measured in a turn")
    parser.add_argument("--warmup", type=int, default=1, help="optimiser steps before the first turn")
    parser.add_argument("--minutes", type=float, default=5, help="a pair has fewer turns when they take longer")
    parser.add_argument("--quick", action="store_true", help="one turn of one step: does it run, not how fast")
    parser.add_argument("--figure", choices=["wall", "cpu"], help="only this one; both by default")
    parser.add_argument("--gpu", action="store_true", help="an 8B model of random weights on an accelerator")
    parser.add_argument("--json", action="store_true", help="print the result for machines")
    parser.add_argument("--markdown", action="store_true", help="print the rows of the table in README.md")
    parser.add_argument("--last", action="store_true", help="measure nothing: print the last result again")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
