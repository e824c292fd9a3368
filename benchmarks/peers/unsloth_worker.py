"""Unsloth as its documentation starts it: FastLanguageModel, get_peft_model, TRL's SFTTrainer on top.

Not here: turns and clocks (meter). Run by benchmarks/train_speed.py in Unsloth's own environment.
"""

from __future__ import annotations

from typing import Any

from meter import Meter, follow, read_job, trainer_arguments, versions


def main(job: dict[str, Any]) -> None:
    meter = Meter()  # before unsloth, which prints when it is imported
    from unsloth import FastLanguageModel  # isort: skip  (before the libraries that it patches)
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    # Both places decide on gradient checkpointing; "unsloth" is its default.
    checkpointing = "unsloth" if job["options"].get("gradient_checkpointing", True) else False
    model, tokenizer = FastLanguageModel.from_pretrained(
        job["model"],
        max_seq_length=2048,
        load_in_4bit=job["quantize"],
        use_gradient_checkpointing=checkpointing,
    )
    model = FastLanguageModel.get_peft_model(
        model,
        r=job["rank"],
        lora_alpha=job["alpha"],
        lora_dropout=0.0,
        use_gradient_checkpointing=checkpointing,
        random_state=job["seed"],
    )
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(**trainer_arguments(job)),
        train_dataset=Dataset.from_list(job["rows"]),
        processing_class=tokenizer,
    )
    settings = follow(trainer, meter, rates=job["rates"])
    meter.ready(settings=settings, versions=versions("unsloth", "unsloth_zoo", "trl", "transformers", "peft", "torch"))
    trainer.train()


if __name__ == "__main__":
    main(read_job())
