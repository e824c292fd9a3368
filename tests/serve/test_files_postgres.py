"""Files, uploads and keys on PostgreSQL: texts it does not take, order, quotas under parallel uploads."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

import httpx
import openai
import pytest

from tests.serve.house import FORM_TYPE, at_once, bytes_on_disk, form, full_server
from tunesmith.database import transaction
from tunesmith.serve.access import KeyLimits
from tunesmith.serve.app import machine_access
from tunesmith.serve.keyring import StoredKeys
from tunesmith.serve.records import uploads
from tunesmith.serve.records.files import FILES
from tunesmith.serve.records.keys import KEYS, create_key, revoke_key

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def postgres_url() -> Iterator[str]:
    pgserver = pytest.importorskip("pgserver", reason="PostgreSQL is tested where the package pgserver is installed")
    pytest.importorskip("psycopg", reason="PostgreSQL is tested where the package psycopg is installed")
    with tempfile.TemporaryDirectory(prefix="pg", ignore_cleanup_errors=True) as folder:
        server = pgserver.get_server(folder)
        yield server.get_uri().replace("postgresql://", "postgresql+psycopg://", 1)
        server.cleanup()


@pytest.fixture(autouse=True)
def database(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_DATABASE", postgres_url)
    with transaction() as connection:
        for table in (FILES, KEYS, uploads.UPLOADS, uploads.PARTS):
            connection.execute(table.delete())


def test_the_life_of_files_and_uploads() -> None:
    rows = b'{"a": 1}\n'
    with full_server() as url:
        api = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
        made = [api.files.create(file=(f"{at}.jsonl", rows), purpose="fine-tune").id for at in range(3)]
        assert [file.id for file in api.files.list(limit=1)] == made[::-1]
        assert api.files.content(made[0]).read() == rows
        for path in ("files/file-%00", "models/%00", "files?after=%00", "files?purpose=%00"):
            assert httpx.get(f"{url}/{path}").status_code == 400
        for wrong in ("..%2Fx", "%ED%A0%80", "x" * 500):
            assert httpx.get(f"{url}/files/{wrong}").status_code == 404
            assert httpx.get(f"{url}/models/{wrong}").status_code == 404
            assert httpx.post(f"{url}/uploads/{wrong}/cancel").status_code == 404
        name = httpx.post(f"{url}/files", content=form(filename=b"a\0.jsonl"), headers=FORM_TYPE)
        assert name.status_code == 400
        upload = api.uploads.create(filename="a.jsonl", bytes=9, purpose="fine-tune", mime_type="text/jsonl").id
        part = api.uploads.parts.create(upload, data=rows).id
        done = api.uploads.complete(upload, part_ids=[part])
        assert done.file and api.files.content(done.file.id).read() == rows
        for id in [*made, done.file.id]:
            api.files.delete(id)
    assert not bytes_on_disk() and uploads.tidy() == 0


def test_storage_holds_against_uploads_side_by_side() -> None:
    key, kept = create_key(owner="ann", name="ci", limits=KeyLimits(storage_bytes=5 * 3000))
    with StoredKeys(machine_access()).following() as access, full_server(access=access) as url:
        codes: list[int] = []

        def send() -> None:
            headers = FORM_TYPE | {"authorization": f"Bearer {key}"}
            body = form(b"{}\n" * 1000)
            codes.append(httpx.post(f"{url}/files", content=body, headers=headers, timeout=120).status_code)

        at_once(send, times=64)
        assert sorted(codes) == [200] * 5 + [403] * 59
        assert len(bytes_on_disk()) == 5
    assert revoke_key(kept.id).state == "revoked"
