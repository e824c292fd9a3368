"""OpenAI's wire format for fine-tuning: the body of a new job, and jobs, events and checkpoints as bodies.

Not here: routes (serve.routes.jobs), single hyperparameters (serve.wire.hyperparameters). What the server would not
honour is refused by name; null and absent are the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema, model_validator

from tunesmith.errors import did_you_mean
from tunesmith.serve.records.events import Checkpoint, StoredEvent
from tunesmith.serve.records.jobs import Job, JobOrder
from tunesmith.serve.wire.errors import RequestError
from tunesmith.serve.wire.hyperparameters import check_hyperparameters, hyperparameters_schema

MAX_SEED = 2**31 - 1
UNTRAINED = {
    "reinforcement": "Reinforcement training is not built into this server's trainer yet.",
}


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        """A key that nothing would read is refused, and the nearest one named."""
        if isinstance(value, dict):
            for key in value:
                if key not in cls.model_fields:
                    nearest = did_you_mean(str(key), cls.model_fields, what="fields here")
                    raise ValueError(f"there is no field {key!r}. {nearest}")
        return value


Hyperparameters = Annotated[
    dict[str, Any], AfterValidator(check_hyperparameters), WithJsonSchema(hyperparameters_schema())
]
DpoHyperparameters = Annotated[
    dict[str, Any],
    AfterValidator(partial(check_hyperparameters, dpo=True)),
    WithJsonSchema(hyperparameters_schema(dpo=True)),
]


def _storable(text: str) -> str:
    """Not every database keeps this character."""
    if "\0" in text:
        raise ValueError("holds a NUL character")
    return text


Text = Annotated[str, AfterValidator(_storable)]


class Supervised(_Body):
    hyperparameters: Hyperparameters | None = None


class Dpo(_Body):
    hyperparameters: DpoHyperparameters | None = None


class Method(_Body):
    type: Literal["supervised", "dpo", "reinforcement"]
    supervised: Supervised | None = None
    dpo: Dpo | None = None
    reinforcement: dict[str, Any] | None = None


class Wandb(_Body):
    project: Text = Field(min_length=1, max_length=128)
    name: Text | None = Field(None, min_length=1, max_length=128)
    entity: Text | None = Field(None, min_length=1, max_length=128)
    tags: list[Annotated[Text, Field(min_length=1, max_length=64, pattern="^[^,]*$")]] | None = None


class Integration(_Body):
    type: Literal["wandb"]
    wandb: Wandb


class JobRequest(_Body):
    """POST /v1/fine_tuning/jobs. `priority` is ours: among the jobs of one owner a higher one is trained first."""

    model: Text = Field(min_length=1)
    training_file: Text = Field(min_length=1)
    validation_file: Text | None = None
    method: Method | None = None
    hyperparameters: Hyperparameters | None = None
    seed: int | None = Field(None, ge=0, le=MAX_SEED, strict=True)
    suffix: Text | None = Field(None, min_length=1, max_length=64)
    priority: int = Field(0, ge=-100, le=100, strict=True)
    metadata: dict[Annotated[Text, Field(max_length=64)], Annotated[Text, Field(max_length=512)]] | None = Field(
        None, max_length=16
    )
    integrations: list[Integration] | None = Field(None, max_length=5)

    def order(self, *, request_key: str | None, is_retry: bool) -> JobOrder:
        """Raises RequestError for a method that the trainer does not know."""
        method = self.method.type if self.method else "supervised"
        if method in UNTRAINED:
            text = f"{UNTRAINED[method]} Use the method supervised or dpo, or leave method out."
            raise RequestError(text, param="method.type", code="unsupported_method")
        for unused in ("supervised", "dpo", "reinforcement"):
            if unused != method and getattr(self.method, unused, None):
                raise RequestError(f"method.{unused} is not used by the method {method}.", param=f"method.{unused}")
        if len(self.integrations or ()) > 1:
            raise RequestError("A run has one wandb integration.", param="integrations")
        own: Supervised | Dpo | None = getattr(self.method, method, None)
        inner = own.hyperparameters if own else None
        if inner and self.hyperparameters and inner != self.hyperparameters:
            text = f"hyperparameters and method.{method}.hyperparameters differ. Keep the latter."
            raise RequestError(text, param="hyperparameters")
        return JobOrder(
            model=self.model,
            training_file=self.training_file,
            validation_file=self.validation_file or None,
            method=method,
            asked=dict(inner or self.hyperparameters or {}),
            seed=self.seed,
            suffix=self.suffix,
            labels=self.metadata or None,
            integrations=[one.model_dump(exclude_none=True) for one in self.integrations or ()] or None,
            request_sha256=hashlib.sha256(self.model_dump_json().encode()).hexdigest(),
            request_key=request_key,
            is_retry=is_retry,
            priority=self.priority,
        )


def job_body(job: Job) -> dict[str, Any]:
    """A fine_tuning.job; hyperparameters are the resolved ones once the files were looked at."""
    shown = {"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto"}
    shown |= ({"beta": "auto"} if job.method == "dpo" else {}) | dict(job.asked)
    shown |= job.resolved or {}
    return {
        "object": "fine_tuning.job",
        "id": job.id,
        "created_at": job.created,
        "error": job.error,
        "estimated_finish": job.estimated_finish if job.state == "running" else None,
        "fine_tuned_model": job.fine_tuned_model,
        "finished_at": job.finished,
        "hyperparameters": shown,
        "integrations": list(job.integrations or ()),
        "metadata": job.labels,
        "method": {"type": job.method, job.method: {"hyperparameters": shown}},
        "model": job.model,
        "organization_id": job.owner,
        "priority": job.priority,
        "result_files": list(job.result_files or ()),
        "seed": job.seed,
        "status": job.state,
        "trained_tokens": job.trained_tokens,
        "training_file": job.training_file,
        "user_provided_suffix": job.suffix,
        "validation_file": job.validation_file,
    }


def event_body(event: StoredEvent) -> dict[str, Any]:
    return {
        "object": "fine_tuning.job.event",
        "id": event.id,
        "created_at": event.created,
        "level": event.level,
        "message": event.message,
        "type": event.type,
        "data": event.data or {},
    }


def checkpoint_body(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "object": "fine_tuning.job.checkpoint",
        "id": checkpoint.id,
        "created_at": checkpoint.created,
        "fine_tuned_model_checkpoint": checkpoint.model,
        "fine_tuning_job_id": checkpoint.job,
        "metrics": {name: value for name, value in checkpoint.metrics.items() if value is not None},
        "step_number": checkpoint.step,
    }


def page(bodies: Sequence[Mapping[str, Any]], limit: int, *, named: bool = False) -> dict[str, Any]:
    """A list body of at most `limit`; `bodies` holds one more where there are more. `named`: with first and last id."""
    shown = list(bodies[:limit])
    ends = {"first_id": shown[0]["id"] if shown else None, "last_id": shown[-1]["id"] if shown else None}
    return {"object": "list", "data": shown, "has_more": len(bodies) > limit, **(ends if named else {})}
