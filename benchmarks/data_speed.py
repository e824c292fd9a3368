"""How fast a data file is read, as a ratio to Hugging Face `datasets`: same file, by turns, each in its own process.

Not here: the checks that look at rows together (duplicates, labels, leaks). benchmarks/README.md says how to read the
figures. `make bench` runs it.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PEERS_DIR = HERE.parent / ".peers"
WORDS = (
    "my",
    "card",
    "has",
    "not",
    "arrived",
    "yet;",
    "I",
    "would",
    "like",
    "to",
    "know",
    "when",
    "“it”",
    "will",
    "é",
    "\n",
)

# Each is measured inside its process, after its imports: seconds of wall and processor, then the peak of its memory.
MEASURE = """
import json, resource, sys, tempfile, time
{imports}
wall, cpu = time.perf_counter(), time.process_time()
num_rows = {call}
wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({{"rows": num_rows, "wall_s": wall, "cpu_s": cpu, "peak_mib": peak_mib}}))
"""
WORKERS = {
    "scan": ("from tunesmith.data.read.scan import scan", "scan(sys.argv[1]).num_rows"),
    "load": ("from tunesmith.data.load import load_examples", "len(load_examples(sys.argv[1]).examples)"),
    "datasets": (
        "import datasets; datasets.disable_progress_bars(); cache = tempfile.TemporaryDirectory()",
        "len(datasets.load_dataset('json', data_files=sys.argv[1], split='train', cache_dir=cache.name))",
    ),
}


def write_rows(path: Path, *, size_bytes: int, row_bytes: int) -> None:
    """Chat rows of a system turn, a question and an answer, with accents, quotes and line breaks; seeded."""
    draw = random.Random(0)
    with path.open("wb") as file:
        written = 0
        while written < size_bytes:
            text = " ".join(draw.choices(WORDS, k=(row_bytes - 150) * 2 // 9))
            half = len(text) // 2
            turns = [
                ("system", "You answer the customers of a bank."),
                ("user", text[:half]),
                ("assistant", text[half:]),
            ]
            row = {"messages": [{"role": role, "content": content + "."} for role, content in turns]}
            written += file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")


def measure(worker: str, path: Path) -> dict[str, Any]:
    imports, call = WORKERS[worker]
    python = PEERS_DIR / "datasets" / "bin" / "python" if worker == "datasets" else Path(sys.executable)
    code = MEASURE.format(imports=imports, call=call)
    done = subprocess.run([python, "-c", code, path], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{worker} stopped with status {done.returncode}:\n{done.stderr[-2000:]}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    size_mb = path.stat().st_size / 1e6
    return figures | {"mb_per_s": size_mb / figures["wall_s"], "mb_per_cpu_s": size_mb / figures["cpu_s"]}


def compare(path: Path, repeats: int) -> dict[str, Any]:
    """Turns of all workers; who begins alternates. Ratios are ours over the peer's in the same turn."""
    turns: list[Mapping[str, dict[str, Any]]] = []
    for turn in range(repeats):
        names = list(WORKERS) if turn % 2 == 0 else list(reversed(WORKERS))
        turns.append({name: measure(name, path) for name in names})
    rows = {name: turns[0][name]["rows"] for name in WORKERS}
    if len(set(rows.values())) > 1:
        raise SystemExit(f"They did not read the same rows: {rows}.")
    figures = ("mb_per_s", "mb_per_cpu_s", "peak_mib")
    medians = {name: {key: statistics.median(turn[name][key] for turn in turns) for key in figures} for name in WORKERS}
    ratios = {
        name: {key: spread([turn[name][key] / turn["datasets"][key] for turn in turns]) for key in figures}
        for name in ("scan", "load")
    }
    size_mb, num_rows = path.stat().st_size / 1e6, rows["scan"]
    return {"size_mb": size_mb, "rows": num_rows, "turns": repeats, "medians": medians, "ratios": ratios}


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def show(found: Mapping[str, Any]) -> None:
    print(f"{found['size_mb']:.0f} MB, {found['rows']} rows, {found['turns']} turns")
    for name, figures in found["medians"].items():
        speed = f"{figures['mb_per_s']:.0f} MB/s, {figures['mb_per_cpu_s']:.0f} MB/CPU s"
        print(f"  {name:9} {speed}, peak {figures['peak_mib']:.0f} MiB")
    for name, ratios in found["ratios"].items():
        texts = (
            f"{key} {ratio['median']:.2f} ({ratio['low']:.2f}-{ratio['high']:.2f})" for key, ratio in ratios.items()
        )
        print(f"  {name} over datasets: {', '.join(texts)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size-mb", type=int, default=200)
    parser.add_argument("--row-bytes", type=int, nargs="+", default=[300, 1000], help="about how long a row is")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="does it run, not how fast: 5 MB, one turn")
    parser.add_argument("--large", action="store_true", help="also the memory of a scan over 2 GB")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    subprocess.run([sys.executable, HERE / "peers" / "install.py", PEERS_DIR, "datasets"], check=True)
    size_mb, repeats = (5, 1) if options.quick else (options.size_mb, options.repeats)
    document: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for row_bytes in options.row_bytes:
            path = Path(folder) / "rows.jsonl"
            write_rows(path, size_bytes=size_mb * 1_000_000, row_bytes=row_bytes)
            document[f"rows_of_{row_bytes}"] = found = compare(path, repeats)
            if not options.json:
                show(found)
        if options.large:
            write_rows(path, size_bytes=2_000_000_000, row_bytes=1000)
            document["large"] = found = measure("scan", path)
            if not options.json:
                speed = f"{found['mb_per_s']:.0f} MB/s, {found['mb_per_cpu_s']:.0f} MB/CPU s"
                print(f"2 GB, {found['rows']} rows: scan at {speed}, peak {found['peak_mib']:.0f} MiB")
    if options.json:
        print(json.dumps(document))


if __name__ == "__main__":
    main()
