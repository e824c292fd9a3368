"""Stored completions as bodies.

Not here: records (records.completions), what chat answers (wire.chat).
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from tunesmith.serve.records.completions import Stored
from tunesmith.serve.wire.body import Wire
from tunesmith.serve.wire.metadata import Metadata


class Relabel(Wire):
    metadata: Metadata | None


class StoredBody(BaseModel):
    """The completion as it was answered, and its metadata."""

    model_config = ConfigDict(extra="allow")

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[dict[str, Any]]
    metadata: dict[str, str]


class StoredPage(BaseModel):
    object: Literal["list"] = "list"
    data: list[StoredBody]
    first_id: str | None
    last_id: str | None
    has_more: bool


class StoredMessage(BaseModel):
    model_config = ConfigDict(extra="allow")

    id: str
    role: str
    content: Any = None
    content_parts: list[Any] | None = None


class StoredMessages(BaseModel):
    object: Literal["list"] = "list"
    data: list[StoredMessage]
    first_id: str | None
    last_id: str | None
    has_more: bool


class StoredDeleted(BaseModel):
    object: Literal["chat.completion.deleted"] = "chat.completion.deleted"
    id: str
    deleted: bool


def stored_body(stored: Stored) -> dict[str, Any]:
    return {**stored.body, "metadata": stored.labels}


def message_bodies(stored: Stored) -> list[dict[str, Any]]:
    """What was asked, a message each: text as `content`, a list of parts as `content_parts`."""
    bodies = []
    for index, message in enumerate(stored.messages):
        content = message.get("content")
        parts = content if isinstance(content, list) else None
        text = "".join(part.get("text", "") for part in parts) if parts is not None else content
        bodies.append({"name": None, **message, "id": f"{stored.id}-{index}", "content": text, "content_parts": parts})
    return bodies
