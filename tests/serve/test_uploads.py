"""Uploads in parts: their whole life, order and md5, what is refused, and what is left."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.serve.house import FORM_TYPE, bytes_on_disk, form, full_server
from tunesmith.serve.records import uploads

ROWS = [b'{"a": %d}\n' % at for at in range(3)]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with full_server() as url:
        yield url


@pytest.fixture(scope="module")
def api(server: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=server, api_key="none", max_retries=0, timeout=30)


def announce(api: openai.OpenAI, size: int = sum(map(len, ROWS)), **options: Any) -> str:
    values: dict[str, Any] = {"filename": "big.jsonl", "purpose": "fine-tune", "mime_type": "text/jsonl"}
    return api.uploads.create(bytes=size, **{**values, **options}).id


def send(api: openai.OpenAI, upload: str, content: bytes) -> str:
    part = api.uploads.parts.create(upload, data=content)
    assert part.upload_id == upload and part.object == "upload.part"
    return part.id


def test_parts_become_a_file_in_the_order_named(api: openai.OpenAI) -> None:
    upload = announce(api)
    parts = [send(api, upload, row) for row in reversed(ROWS)]
    whole = b"".join(ROWS)
    done = api.uploads.complete(upload, part_ids=parts[::-1], md5=hashlib.md5(whole).hexdigest())
    assert done.status == "completed" and done.file and done.file.filename == "big.jsonl"
    assert api.files.content(done.file.id).read() == whole
    assert len(bytes_on_disk()) == 1  # the parts are gone
    again = api.uploads.complete(upload, part_ids=parts[::-1])  # a client that did not hear the first answer
    assert again.file == done.file


def test_the_clients_own_chunks(api: openai.OpenAI) -> None:
    content = b'{"a": "' + b"x" * 300_000 + b'"}\n'
    done = api.uploads.upload_file_chunked(
        file=content, filename="a.jsonl", bytes=len(content), mime_type="text/jsonl", purpose="fine-tune",
        part_size=100_000,
    )  # fmt: skip
    assert done.status == "completed" and done.file and done.file.bytes == len(content)


def test_a_cancelled_upload_is_gone(api: openai.OpenAI) -> None:
    upload = announce(api)
    send(api, upload, ROWS[0])
    assert len(bytes_on_disk()) == 1
    assert api.uploads.cancel(upload).status == "cancelled"
    assert not bytes_on_disk()
    for call in (
        lambda: api.uploads.cancel(upload),
        lambda: api.uploads.complete(upload, part_ids=[]),
        lambda: send(api, upload, ROWS[0]),
    ):
        with pytest.raises(openai.BadRequestError, match="cancelled"):
            call()


def test_what_a_completion_must_name(api: openai.OpenAI) -> None:
    upload, other = announce(api), announce(api)
    one, two, three = (send(api, upload, row) for row in ROWS)
    foreign = send(api, other, ROWS[0])
    for parts, words in (([one, two], "announced"), ([one, two, two], "twice"), ([one, one, one, two], "twice")):
        with pytest.raises(openai.BadRequestError, match=words):
            api.uploads.complete(upload, part_ids=parts)
    for stranger in (foreign, "part_0", "../x"):
        with pytest.raises(openai.NotFoundError, match="There is no part"):
            api.uploads.complete(upload, part_ids=[one, two, stranger])
    with pytest.raises(openai.BadRequestError, match="md5"):
        api.uploads.complete(upload, part_ids=[one, two, three], md5="0" * 32)
    assert api.uploads.complete(upload, part_ids=[one, two, three]).status == "completed"


def test_a_malformed_upload_is_refused_and_can_be_sent_again(api: openai.OpenAI) -> None:
    upload = announce(api, size=4)
    bad = send(api, upload, b"[1]\n")
    with pytest.raises(openai.BadRequestError, match="Line 1 is not a dictionary"):
        api.uploads.complete(upload, part_ids=[bad])
    assert len(bytes_on_disk()) == 1  # the part
    api.uploads.cancel(upload)
    assert not bytes_on_disk()


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"filename": "a.csv"}, None),
        ({"filename": ""}, "filename"),
        ({"filename": "a\0.jsonl"}, "filename"),
        ({"purpose": "fun"}, "purpose"),
        ({"size": -1}, "bytes"),
        ({"size": 9 << 30}, "bytes"),
        ({"size": 2**70}, "bytes"),
        ({"mime_type": "x" * 300}, "mime_type"),
    ],
)
def test_what_an_announcement_must_say(api: openai.OpenAI, options: dict[str, Any], param: str | None) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        announce(api, **options)
    assert caught.value.param == param


def test_no_more_comes_in_than_was_announced(api: openai.OpenAI, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    upload = announce(api, size=10)
    send(api, upload, b"x" * 6)
    with pytest.raises(openai.BadRequestError, match="announced"):
        send(api, upload, b"x" * 5)
    monkeypatch.setattr("tunesmith.serve.routes.uploads.MAX_PART_BYTES", 3)
    body = form(b"xxxx", field=b"data", fields={})
    assert httpx.post(f"{server}/uploads/{upload}/parts", content=body, headers=FORM_TYPE).status_code == 413
    assert len(bytes_on_disk()) == 1


def test_an_upload_expires_with_its_parts(api: openai.OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    upload = announce(api)
    part = send(api, upload, ROWS[0])
    later = time.time() + uploads.LIFE_S + 1
    monkeypatch.setattr(time, "time", lambda: later)
    with pytest.raises(openai.BadRequestError, match="expired"):
        api.uploads.complete(upload, part_ids=[part])
    uploads.tidy()
    assert not bytes_on_disk()


def test_two_completions_at_once_make_one_file(api: openai.OpenAI) -> None:
    upload = announce(api)
    parts = [send(api, upload, row) for row in ROWS]
    got: list[str] = []

    def complete() -> None:
        try:
            file = api.uploads.complete(upload, part_ids=parts).file
            got.append(file.id if file else "none")
        except openai.BadRequestError as error:
            got.append(str(error.code))

    threads = [threading.Thread(target=complete) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (file,) = api.files.list().data
    assert set(got) <= {file.id, "upload_not_pending"} and file.id in got
    assert len(bytes_on_disk()) == 1
