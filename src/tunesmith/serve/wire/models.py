"""Models that people made, as OpenAI's model objects, and the answer to a deletion.

Not here: what is served (serve.wire.chat.model_body). Called by serve.routes.models.
"""

from __future__ import annotations

from typing import Any

from tunesmith.serve.records.models import Made


def made_body(made: Made) -> dict[str, Any]:
    """A fine-tuned model or one of its checkpoints, with the job it came from and the pin of its weights."""
    body: dict[str, Any] = {"id": made.name, "object": "model", "created": made.created, "owned_by": made.owner}
    return body | {"base": made.base, "sha256": made.sha256, "job": made.job, "step": made.step}


def deleted_body(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "deleted": True}
