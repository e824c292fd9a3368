"""/v1/chat/completions as a list: completions that were asked with `store: true`.

Not here: asking (routes.chat), keeping (records.completions).
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Request

from tunesmith.serve.records.completions import (
    Stored,
    delete_completion,
    find_completion,
    list_completions,
    relabel_completion,
)
from tunesmith.serve.route import Route, Who
from tunesmith.serve.wire.body import json_body
from tunesmith.serve.wire.errors import not_found
from tunesmith.serve.wire.metadata import FILTER_DOCS, metadata_filter
from tunesmith.serve.wire.paging import Page, list_body
from tunesmith.serve.wire.stored import (
    Relabel,
    StoredBody,
    StoredDeleted,
    StoredMessages,
    StoredPage,
    message_bodies,
    stored_body,
)


def list_stored(
    *,
    request: Request, who: Who, cursor: Page,
    model: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    found, more = list_completions(who.owner, model=model, labels=metadata_filter(request), cursor=cursor)
    return list_body([stored_body(stored) for stored in found], has_more=more)


def get_stored(*, who: Who, completion_id: str) -> dict[str, Any]:
    return stored_body(_stored(who.owner, completion_id))


def relabel_stored(*, who: Who, completion_id: str, wanted: Annotated[Relabel, json_body(Relabel)]) -> dict[str, Any]:
    changed = relabel_completion(completion_id, owner=who.owner, labels=wanted.metadata or {})
    if changed is None:
        raise not_found("stored completion", completion_id)
    return stored_body(changed)


def delete_stored(*, who: Who, completion_id: str) -> dict[str, Any]:
    if not delete_completion(completion_id, owner=who.owner):
        raise not_found("stored completion", completion_id)
    return StoredDeleted(id=completion_id, deleted=True).model_dump()


def list_messages(*, who: Who, completion_id: str, cursor: Page) -> dict[str, Any]:
    bodies = message_bodies(_stored(who.owner, completion_id))
    if cursor.newest_first:
        bodies.reverse()
    if cursor.after is not None:
        places = [place for place, body in enumerate(bodies) if body["id"] == cursor.after]
        if not places:
            raise not_found("message", cursor.after, param="after")
        bodies = bodies[places[0] + 1 :]
    return list_body(bodies[: cursor.limit], has_more=len(bodies) > cursor.limit)


def _stored(owner: str, completion_id: str) -> Stored:
    stored = find_completion(completion_id, owner=owner)
    if stored is None:
        raise not_found("stored completion", completion_id)
    return stored


ONE = "/v1/chat/completions/{completion_id}"
ROUTES = (
    Route(
        "GET", "/v1/chat/completions", list_stored, "completions.read",
        docs={"parameters": [FILTER_DOCS]}, answer=StoredPage,
    ),
    Route("GET", ONE, get_stored, "completions.read", answer=StoredBody),
    Route("POST", ONE, relabel_stored, "completions.write", body=Relabel, answer=StoredBody),
    Route("DELETE", ONE, delete_stored, "completions.write", answer=StoredDeleted),
    Route("GET", f"{ONE}/messages", list_messages, "completions.read", answer=StoredMessages),
)  # fmt: skip
