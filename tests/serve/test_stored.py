"""Stored completions: kept only when asked, found by model and metadata, changed, deleted."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest
from sqlalchemy import func, select

from tunesmith.database import transaction
from tunesmith.serve.records.completions import COMPLETIONS

HELLO: list[Any] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "My card "}, {"type": "text", "text": "is lost."}]},
]


def ask(server: openai.OpenAI, **options: Any) -> Any:
    return server.chat.completions.create(**{"model": "red", "messages": HELLO, "max_tokens": 4, **options})


def kept() -> int:
    with transaction() as connection:
        return connection.execute(select(func.count()).select_from(COMPLETIONS)).scalar() or 0


def test_nothing_is_kept_unless_asked(server: openai.OpenAI) -> None:
    ask(server)
    ask(server, store=False, metadata={"a": "b"})
    list(ask(server, stream=True))
    assert kept() == 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_stored_completion_is_the_one_that_was_answered(server: openai.OpenAI, stream: bool) -> None:
    answer = ask(server, store=True, metadata={"use": "test"}, stream=stream)
    if stream:
        chunks = list(answer)
        id, text = chunks[0].id, "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    else:
        id, text = answer.id, answer.choices[0].message.content
    stored = server.chat.completions.retrieve(id)
    assert stored.choices[0].message.content == text and stored.metadata == {"use": "test"}
    assert stored.usage and stored.usage.completion_tokens == 4
    if not stream:
        assert stored.to_dict() == {**answer.to_dict(), "metadata": {"use": "test"}}
    messages = server.chat.completions.messages.list(id).data
    assert [(one.role, one.content) for one in messages] == [("system", "Be brief."), ("user", "My card is lost.")]  # type: ignore[comparison-overlap]
    assert messages[1].content_parts and len(messages[1].content_parts) == 2
    rest = server.chat.completions.messages.list(id, after=messages[0].id, order="asc").data
    assert [one.id for one in rest] == [messages[1].id]


def test_they_are_found_by_model_and_metadata_page_by_page(server: openai.OpenAI) -> None:
    ids = [ask(server, store=True, model=model, metadata={"n": str(n), "all": "x"}).id
           for n, model in enumerate(("red", "blue", "red", "red"))]  # fmt: skip
    chats = server.chat.completions
    assert [one.id for one in chats.list(limit=1)] == ids
    assert [one.id for one in chats.list(model="red", limit=1)] == [ids[0], ids[2], ids[3]]
    assert [one.id for one in chats.list(metadata={"n": "2", "all": "x"})] == [ids[2]]
    assert [one.id for one in chats.list(metadata={"n": "2", "all": "y"})] == []
    assert [one.id for one in chats.list(metadata={"all": "x"}, model="red", order="desc", limit=2)] == [
        ids[3], ids[2], ids[0],
    ]  # fmt: skip
    for one in chats.list(limit=1):  # a list goes on after what was deleted under it
        assert chats.delete(one.id).deleted
    assert [one.id for one in chats.list()] == []


def test_metadata_can_be_changed_and_a_stored_completion_deleted(server: openai.OpenAI) -> None:
    id = ask(server, store=True).id
    assert server.chat.completions.update(id, metadata={"good": "yes"}).metadata == {"good": "yes"}
    assert server.chat.completions.delete(id).deleted
    for call in (server.chat.completions.retrieve, server.chat.completions.delete):
        with pytest.raises(openai.NotFoundError):
            call(id)
    with transaction() as connection:
        row = connection.execute(select(COMPLETIONS).where(COMPLETIONS.c.id == id)).mappings().one()
    assert row["messages"] == [] and row["body"] == {} and row["labels"] == {}


def test_filters_and_metadata_have_one_form(server: openai.OpenAI, server_url: str) -> None:
    for query, status in (("metadata[a]=b", 200), ("metadata=null", 200), ("metadata.a=b", 400), ("limit=0", 400)):
        assert httpx.get(f"{server_url}/chat/completions?{query}").status_code == status
    with pytest.raises(openai.BadRequestError, match="at most 16"):
        ask(server, store=True, metadata={str(n): "x" for n in range(17)})
