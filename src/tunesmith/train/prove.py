"""After training, in a fresh process: does the saved adapter, or model, do what the trainer says?

Not here: any state of the trainer; only the run directory is read. `prove` starts the process, `main` is the process.
Checks: the files are whole and finite, training changed the base's answers, the validation loss comes out again, and
preferred answers gained on the others. The reference of pairs is asked of the base anew.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import RunError
from tunesmith.runs import Run

if TYPE_CHECKING:
    from tunesmith.train.objective import Measured
    from tunesmith.train.rows import Row

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
    from tunesmith.train.objective import objective_of

    run = Run(Path(directory))
    claim = run.read_json("claim.json")
    torch.set_num_threads(claim["threads"])
    base = load_base(claim["base"], precision=claim["precision"], quantize=claim["quantized"])
    rows = _rows(run, base, claim)
    few = rows[:COMPARED_ROWS]
    loss_before = _measured(base.model, few, claim).loss
    sha256, dtype = base.sha256, str(base.model.dtype).removeprefix("torch.")
    tuned = _tuned(run, base, claim)
    loss_after, measured = _measured(tuned, few, claim).loss, _measured(tuned, rows, claim)
    finite = _all_finite(run.weights_dir)
    noun = "model" if claim["method"] == "full" else "adapter"
    tolerance = objective_of(claim["method"], beta=claim["beta"]).tolerance(dtype)
    changed = abs(loss_before - loss_after)
    again = abs(measured.loss - claim["validation_loss"])
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
            f"{measured.loss:.6f} in a fresh process, {claim['validation_loss']:.6f} in the trainer",
            again <= tolerance,
        ),
        *_pair_checks(measured, num_pairs=len(rows)),
    ]
    run.write_json(PROOF_FILE, {"checks": checks})


def _tuned(run: Run, base: Any, claim: dict[str, Any]) -> Any:
    """The base with the adapter, or the model that was trained."""
    from tunesmith.adapter import load_adapter
    from tunesmith.model import load_base

    if claim["method"] != "full":
        return load_adapter(base, run.adapter_dir)
    return load_base(str(run.model_dir), precision=claim["precision"]).model


def _measured(model: Any, rows: list[Row], claim: dict[str, Any]) -> Measured:
    from tunesmith.train.loop import mean_loss
    from tunesmith.train.objective import objective_of

    objective = objective_of(claim["method"], beta=claim["beta"])
    return mean_loss(model, rows, objective=objective, **_cut(claim))


def _cut(claim: dict[str, Any]) -> dict[str, Any]:
    return {name: claim[name] for name in ("micro_batch_tokens", "share")}


def _pair_checks(measured: Measured, *, num_pairs: int) -> list[dict[str, Any]]:
    """Of a preference training: a loss below log 2 implies a mean margin above 0."""
    if "margin" not in measured.figures:
        return []
    margin, accuracy = measured.figures["margin"], measured.figures["pair_accuracy"]
    result = f"mean margin {margin:.4f}, above 0 in {accuracy:.0%} of {num_pairs} validation pairs"
    return [_check("preferred answers gained on the rejected", result, margin > 0)]


def _all_finite(folder: Path) -> bool:
    from safetensors.torch import load_file

    return all(bool(x.isfinite().all()) for file in folder.glob("*.safetensors") for x in load_file(file).values())


def _rows(run: Run, base: Any, claim: dict[str, Any]) -> list[Row]:
    """The validation rows, rendered with the base's own tokenizer and template; pairs with the base's view of them."""
    from tunesmith.chat import parse_row
    from tunesmith.train.pairs import render_pairs
    from tunesmith.train.reference import with_reference
    from tunesmith.train.rows import render_rows

    lines = (run.directory / "validation.jsonl").read_text(encoding="utf-8").split("\n")
    examples = [example for line in lines if line and (example := parse_row(json.loads(line))[0])]
    render = render_pairs if claim["method"] == "dpo" else render_rows
    rows, _drops = render(examples, base.renderer, max_length=claim["max_length"])
    return with_reference(base.model, rows, **_cut(claim)) if claim["method"] == "dpo" else rows


def _check(name: str, result: str, passed: bool) -> dict[str, Any]:
    return {"check": name, "result": result, "passed": passed}


if __name__ == "__main__":
    main(sys.argv[1])
