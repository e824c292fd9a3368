"""After training, in a fresh process: does the saved adapter, or model, do what the trainer says?

Not here: any state of the trainer; only the run directory is read. `prove` starts the process, `main` is the process.
Checks: the files are whole and finite, training changed the base's answers, the validation loss comes out again.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tunesmith.errors import RunError
from tunesmith.runs import Run

TOLERANCE_NATS = {"torch.float32": 1e-4}  # else the next
TOLERANCE_LOW_PRECISION_NATS = 5e-2
COMPARED_ROWS = 16  # that are asked without the adapter, too
PROOF_FILE = "proof.json"


def prove(run: Run) -> list[dict[str, Any]]:
    """Run the checks in a fresh process and return them. Raises RunError naming the first that failed."""
    command = [sys.executable, "-m", "tunesmith.train.prove", str(run.directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, start_new_session=True)  # not Ctrl-C's
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise RunError(f"What was saved could not be checked in a fresh process: {last[0]}", f"See {run.directory}.")
    checks: list[dict[str, Any]] = run.read_json(PROOF_FILE)["checks"]
    for check in checks:
        if not check["passed"]:
            raise RunError(
                f"What was saved failed a check: {check['check']}: {check['result']}.", "It must not be used."
            )
    return checks


def main(directory: str) -> None:
    """The fresh process: load base and adapter (or model) from disk, check, write proof.json."""
    import torch

    from tunesmith.model import load_base

    run = Run(Path(directory))
    claim = run.read_json("claim.json")
    torch.set_num_threads(claim["threads"])
    base = load_base(claim["base"], precision=claim["precision"], quantize=claim["quantized"])
    rows = _rows(run, base, claim["max_length"])
    few = rows[:COMPARED_ROWS]
    loss_before = _loss(base.model, few, claim)
    sha256, dtype = base.sha256, str(base.model.dtype)
    tuned = _tuned(run, base, claim)
    loss_after, loss = (_loss(tuned, part, claim) for part in (few, rows))
    finite = _all_finite(run.weights_dir)
    noun = "model" if claim["method"] == "full" else "adapter"
    tolerance = TOLERANCE_NATS.get(dtype, TOLERANCE_LOW_PRECISION_NATS)
    changed = abs(loss_before - loss_after)
    again = abs(loss - claim["validation_loss"])
    checks = [
        _check("base is the one it was trained on", f"sha256 {sha256[:16]}", sha256 == claim["base_sha256"]),
        _check(f"every {noun} weight is finite", "yes" if finite else "no", finite),
        _check(
            "adapter changes the model" if noun == "adapter" else "training changed the model",
            f"loss of {len(few)} validation rows {loss_before:.4f} without it, {loss_after:.4f} with it",
            changed > tolerance,
        ),
        _check(
            "validation loss comes out again",
            f"{loss:.6f} in a fresh process, {claim['validation_loss']:.6f} in the trainer",
            again <= tolerance,
        ),
    ]
    run.write_json(PROOF_FILE, {"checks": checks})


def _tuned(run: Run, base: Any, claim: dict[str, Any]) -> Any:
    """The base with the adapter, or the model that was trained."""
    from tunesmith.adapter import load_adapter
    from tunesmith.model import load_base

    if claim["method"] != "full":
        return load_adapter(base, run.adapter_dir)
    return load_base(str(run.model_dir), precision=claim["precision"]).model


def _loss(model: Any, rows: list[Any], claim: dict[str, Any]) -> float:
    from tunesmith.train.loop import mean_nll

    return mean_nll(model, rows, micro_batch_tokens=claim["micro_batch_tokens"], share=claim["share"])


def _all_finite(folder: Path) -> bool:
    from safetensors.torch import load_file

    return all(bool(x.isfinite().all()) for file in folder.glob("*.safetensors") for x in load_file(file).values())


def _rows(run: Run, base: Any, max_length: int) -> list[Any]:
    """The validation rows, rendered with the base's own tokenizer and template."""
    from tunesmith.chat import parse_row
    from tunesmith.train.rows import render_rows

    lines = (run.directory / "validation.jsonl").read_text(encoding="utf-8").split("\n")
    examples = [parse_row(json.loads(line))[0] for line in lines if line]
    rows, _drops = render_rows([example for example in examples if example], base.renderer, max_length=max_length)
    return rows


def _check(name: str, result: str, passed: bool) -> dict[str, Any]:
    return {"check": name, "result": result, "passed": passed}


if __name__ == "__main__":
    main(sys.argv[1])
