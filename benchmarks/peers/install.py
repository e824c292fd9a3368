"""Make the peers' environments, each once, or anew when its pins have changed: minutes and gigabytes.

    python install.py FOLDER PEER...

Not here: ours, which runs in the project's environment. Called by the benchmarks.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

# Installed first and pinned: anything that pulls a newer torch brings gigabytes of CUDA packages.
TORCH = ["torch==2.13.0"]
# What stands after --no-deps asks for bitsandbytes, diffusers, torchvision and xformers, which a CPU does not use.
PINS = {
    "trl": [TORCH, ["trl==1.16.0", "transformers==5.23.0", "peft==0.21.2", "accelerate==1.15.0"]],
    "datasets": [["datasets==5.2.0"]],
    "unsloth": [
        TORCH,
        [
            *("transformers==5.17.0", "trl==1.15.0", "peft==0.21.2", "accelerate==1.15.0", "datasets==4.8.5"),
            *("cut-cross-entropy==25.1.1", "tyro==1.0.17", "msgspec==0.22.0", "einops", "hf_transfer", "json5"),
            *("nest-asyncio", "pillow", "protobuf", "pydantic", "sentencepiece", "structlog", "typer", "wheel"),
        ],
        ["--no-deps", "unsloth==2026.10.9", "unsloth_zoo==2026.10.9"],
    ],
}


def install(name: str, folder: Path) -> None:
    stamp = folder / "pins.json"
    if stamp.is_file() and json.loads(stamp.read_text(encoding="utf-8")) == PINS[name]:
        return
    print(f"Installing {name} and what it needs into {folder} (minutes, once).", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    for packages in PINS[name]:
        pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        subprocess.run([*pip, *packages], check=True)
    stamp.write_text(json.dumps(PINS[name]), encoding="utf-8")


if __name__ == "__main__":
    for peer in sys.argv[2:]:
        install(peer, Path(sys.argv[1]) / peer)
