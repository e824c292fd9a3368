"""TRL's SFTTrainer as its documentation starts it: a model's name, a data set, a LoRA configuration.

Not here: turns and clocks (meter). Run by benchmarks/train_speed.py in TRL's own environment.
"""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset
from meter import Meter, follow, read_job, trainer_arguments, versions
from peft import LoraConfig
from transformers import BitsAndBytesConfig
from trl import SFTConfig, SFTTrainer


def main(job: dict[str, Any]) -> None:
    meter = Meter()
    lora = LoraConfig(r=job["rank"], lora_alpha=job["alpha"], lora_dropout=0.0, target_modules="all-linear")
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    trainer = SFTTrainer(
        model=job["model"],
        args=SFTConfig(**trainer_arguments(job)),
        train_dataset=Dataset.from_list(job["rows"]),
        peft_config=lora,
        quantization_config=nf4 if job["quantize"] else None,
    )
    settings = follow(trainer, meter, rates=job["rates"])
    meter.ready(settings=settings, versions=versions("trl", "transformers", "peft", "torch", "liger-kernel"))
    trainer.train()


if __name__ == "__main__":
    main(read_job())
