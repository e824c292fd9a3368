"""Keys: their form, scopes, expiry, revocation from another process, limits, floods, and the commands."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.datastructures import Headers
from typer.testing import CliRunner

from tests.serve.house import FORM_TYPE, at_once, begin_upload, bytes_on_disk, form, full_server
from tests.serve.test_run import run_command
from tunesmith.cli.keys import keys as keys_command
from tunesmith.cli.server import server as server_command
from tunesmith.errors import InputError
from tunesmith.folders import home
from tunesmith.serve.access import LOCAL, Identity, KeyLimits
from tunesmith.serve.app import machine_access
from tunesmith.serve.keyring import WRONG_PER_MINUTE, StoredKeys
from tunesmith.serve.limits import RateLimits, refuse_over_jobs
from tunesmith.serve.records.keys import create_key, list_keys, parse_key, revoke_key
from tunesmith.serve.run import check_host, listen
from tunesmith.serve.wire.errors import RequestError


class FakeClock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def bearer(key: str) -> Headers:
    return Headers({"authorization": f"Bearer {key}", "host": "127.0.0.1"})


def refused(found: Identity | RequestError) -> RequestError:
    assert isinstance(found, RequestError)
    return found


@contextmanager
def keyed_server(**options: Any) -> Iterator[str]:
    with StoredKeys(machine_access()).following() as access, full_server(access=access, **options) as url:
        yield url


def run(*arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(keys_command, [*arguments, "--json"])
    assert result.exit_code == 0, result.stderr
    document: dict[str, Any] = json.loads(result.stdout)
    return document


@given(st.text(max_size=120))
@settings(max_examples=30)
def test_no_text_but_a_key_of_ours_parses(text: str) -> None:
    assert parse_key(text) is None


def test_a_key_has_an_id_and_a_checksum_and_only_its_sha256_is_kept() -> None:
    key, kept = create_key(owner="ann", name="ci")
    assert parse_key(key) == kept.id and len(key) > 80
    for at in range(len(key)):
        other = key[:at] + ("0" if key[at] != "0" else "1") + key[at + 1 :]
        assert parse_key(other) is None
    secret = key.split("-")[2]
    stored = b"".join(path.read_bytes() for path in home().rglob("*") if path.is_file())
    assert kept.sha256.encode() in stored and secret.encode() not in stored
    assert secret not in repr(kept)


def test_scopes_are_permissions() -> None:
    everything = create_key(owner="ann", name="all")[1].permissions
    reading = create_key(owner="ann", name="read", scopes=["read"])[1].permissions
    assert everything == LOCAL.permissions
    assert reading == {name for name in everything if name.endswith(".read")}
    two = create_key(owner="ann", name="two", scopes=["inference", "files.write"])[1].permissions
    assert two == {"inference", "files.write"}
    with pytest.raises(InputError, match="Did you mean files.write"):
        create_key(owner="ann", name="x", scopes=["file.write"])


def test_without_keys_this_machine_is_answered_and_with_the_first_everyone_is_asked() -> None:
    access = StoredKeys(machine_access())
    access.refresh()
    assert access.identify(bearer("")) == LOCAL
    key, kept = create_key(owner="ann", name="ci", limits=KeyLimits(jobs=3))
    access.refresh()
    assert access.identify(bearer(key)) == Identity("ann", LOCAL.permissions, kept.id, KeyLimits(jobs=3))
    assert refused(access.identify(bearer(""))).status == 401
    revoke_key(kept.id)
    access.refresh()
    for given_key in (key, "", "tsk-wrong"):  # no way back to a server without keys
        assert refused(access.identify(bearer(given_key))).status == 401


def test_the_key_of_the_environment_stays_good_beside_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_API_KEY", "s3cret")
    access = StoredKeys(machine_access())
    assert access.identify(bearer("s3cret")) == LOCAL
    assert refused(access.identify(bearer(""))).status == 401
    key, _ = create_key(owner="ann", name="ci")
    access.refresh()
    assert access.identify(bearer("s3cret")) == LOCAL
    found = access.identify(bearer(key))
    assert isinstance(found, Identity) and found.owner == "ann"


def test_a_key_ends_when_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    key, kept = create_key(owner="ann", name="ci", life_s=60)
    access = StoredKeys(machine_access())
    access.refresh()
    assert isinstance(access.identify(bearer(key)), Identity) and kept.state == "valid"
    later = time.time() + 61
    monkeypatch.setattr(time, "time", lambda: later)
    assert refused(access.identify(bearer(key))).status == 401 and kept.state == "expired"


def test_a_key_revoked_by_another_process_is_refused_within_seconds() -> None:
    key, kept = create_key(owner="ann", name="ci")
    with keyed_server() as url:
        client = openai.OpenAI(base_url=url, api_key=key, max_retries=0)
        assert client.files.list().data == []
        subprocess.run([sys.executable, "-m", "tunesmith", "keys", "revoke", kept.id], check=True, capture_output=True)
        revoked = time.monotonic()
        with pytest.raises(openai.AuthenticationError):
            while time.monotonic() < revoked + 30:
                client.files.list()
                time.sleep(0.02)


def test_a_flood_of_wrong_keys_gets_429_and_the_right_ones_do_not_notice() -> None:
    clock = FakeClock()
    key, _ = create_key(owner="ann", name="ci")
    access = StoredKeys(machine_access(), clock=clock)
    access.refresh()
    answers = [refused(access.identify(bearer(f"tsk-{at}"))).status for at in range(10_000)]
    assert answers == [401] * WRONG_PER_MINUTE + [429] * (10_000 - WRONG_PER_MINUTE)
    assert refused(access.identify(bearer("x"))).headers["retry-after"] == "1"
    assert isinstance(access.identify(bearer(key)), Identity)
    clock.now += 60
    assert refused(access.identify(bearer("x"))).status == 401


def test_requests_are_counted_by_the_key_and_told_in_openais_headers() -> None:
    key, _ = create_key(owner="ann", name="ci", limits=KeyLimits(requests_per_minute=2, tokens_per_minute=1000))
    other, _ = create_key(owner="ann", name="other")
    with keyed_server() as url:
        got = [httpx.get(f"{url}/files", headers=bearer(key)) for _ in range(3)]
        assert [answer.status_code for answer in got] == [200, 200, 429]
        assert got[1].headers["x-ratelimit-limit-requests"] == "2"
        assert got[1].headers["x-ratelimit-remaining-requests"] == "0"
        assert got[1].headers["x-ratelimit-reset-requests"].endswith("s")
        assert got[1].headers["x-ratelimit-remaining-tokens"] == "1000"
        assert 1 <= int(got[2].headers["retry-after"]) <= 30 and got[2].headers["x-request-id"]
        assert got[2].json()["error"]["code"] == "rate_limit_exceeded"
        free = httpx.get(f"{url}/files", headers=bearer(other))
        assert free.status_code == 200 and "x-ratelimit-limit-requests" not in free.headers


def test_tokens_are_spent_afterwards_and_come_back_with_time() -> None:
    clock = FakeClock()
    limits = RateLimits(clock)
    ann = Identity("ann", LOCAL.permissions, "1", KeyLimits(tokens_per_minute=60))
    limits.admit(ann)
    limits.spend_tokens(ann, 100)  # 40 more than there were
    with pytest.raises(RequestError) as caught:
        limits.admit(ann)
    assert caught.value.status == 429 and caught.value.headers["retry-after"] == "41"
    clock.now += 41
    assert limits.admit(ann)["x-ratelimit-remaining-tokens"] == "1"
    limits.admit(LOCAL)
    limits.spend_tokens(LOCAL, 10**9)
    assert limits.admit(LOCAL) == {}


@given(
    per_minute=st.integers(1, 100),
    steps=st.lists(st.tuples(st.floats(0, 30), st.integers(1, 20)), max_size=30),
)
@settings(max_examples=40)
def test_no_window_of_a_minute_has_more_than_twice_the_limit(per_minute: int, steps: list[tuple[float, int]]) -> None:
    """A bucket that is full lets a minute's worth pass at once, and as much again while it refills."""
    clock = FakeClock()
    limits = RateLimits(clock)
    ann = Identity("ann", LOCAL.permissions, "1", KeyLimits(requests_per_minute=per_minute))
    passed: list[float] = []
    for wait_s, tries in steps:
        clock.now += wait_s
        for _ in range(tries):
            try:
                limits.admit(ann)
            except RequestError as error:
                assert error.status == 429
            else:
                passed.append(clock.now)
    for start in passed:
        assert sum(start <= moment < start + 60 for moment in passed) <= 2 * per_minute


def test_storage_holds_also_against_uploads_side_by_side() -> None:
    key, _ = create_key(owner="ann", name="ci", limits=KeyLimits(storage_bytes=5 * 3000))
    row = b"{}\n" * 1000
    with keyed_server() as url:
        client = openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=60)
        codes: list[int] = []

        def send() -> None:
            try:
                client.files.create(file=("a.jsonl", row), purpose="fine-tune")
                codes.append(200)
            except openai.PermissionDeniedError as error:
                assert error.code == "storage_limit_exceeded"
                codes.append(403)

        at_once(send, times=16)
        assert sorted(codes) == [200] * 5 + [403] * 11
        assert len(bytes_on_disk()) == 5
        upload: Callable[..., Any] = client.uploads.create
        with pytest.raises(openai.PermissionDeniedError):
            upload(filename="a.jsonl", purpose="fine-tune", mime_type="text/jsonl", bytes=1)
        client.files.delete(client.files.list().data[0].id)
        assert upload(filename="a.jsonl", purpose="fine-tune", mime_type="text/jsonl", bytes=1).id


def test_room_is_held_for_what_is_on_its_way_in() -> None:
    key, _ = create_key(owner="ann", name="ci", limits=KeyLimits(storage_bytes=3 << 20))
    asks = f"authorization: Bearer {key}\r\n"
    with keyed_server() as url:
        with begin_upload(url, form()[:100], length=3 << 20, headers=asks):
            until = time.monotonic() + 30
            while not bytes_on_disk() and time.monotonic() < until:
                time.sleep(0.01)
            with begin_upload(url, b"", length=3 << 20, headers=asks) as second:
                assert second.recv(100).startswith(b"HTTP/1.1 403 ")
        while bytes_on_disk() and time.monotonic() < until:
            time.sleep(0.01)
        answer = httpx.post(f"{url}/files", content=form(), headers=FORM_TYPE | {"authorization": f"Bearer {key}"})
        assert answer.status_code == 200  # the room is free again


def test_jobs_are_limited_by_the_key() -> None:
    ann = Identity("ann", LOCAL.permissions, "1", KeyLimits(jobs=2))
    refuse_over_jobs(ann, active=1)
    refuse_over_jobs(LOCAL, active=1000)
    with pytest.raises(RequestError, match="2 at a time") as caught:
        refuse_over_jobs(ann, active=2)
    assert caught.value.status == 429 and caught.value.headers["retry-after"]


def test_a_host_of_others_needs_a_key_of_either_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="tunesmith keys create"):
        check_host("0.0.0.0", has_keys=False)
    check_host("0.0.0.0", has_keys=True)
    check_host("127.0.0.1", has_keys=False)
    monkeypatch.setenv("TUNESMITH_API_KEY", "k")
    check_host("0.0.0.0", has_keys=False)


def test_the_commands_make_list_and_revoke() -> None:
    assert run("list") == {"keys": []}
    made = run(
        "create", "ci", "--owner", "ann", "--scope", "read", "--scope", "inference", "--expires", "30d", "--storage",
        "10GB", "--jobs", "2", "--requests-per-minute", "60",
    )  # fmt: skip
    assert parse_key(made.pop("key")) == made["id"] and made["scopes"] == ["read", "inference"]
    assert made["expires"] == made["created"] + 30 * 86_400
    assert made["limits"] == {
        "requests_per_minute": 60, "tokens_per_minute": None, "storage_bytes": 10**10, "jobs": 2
    }  # fmt: skip
    assert run("list") == {"keys": [made]}
    shown = CliRunner().invoke(keys_command, ["list"]).stdout
    assert made["id"] in shown and "60 requests/min" in shown and "valid" in shown
    assert run("revoke", made["id"])["state"] == "revoked" == list_keys()[0].state
    for wrong in (["revoke", "0"], ["create", "x", "--expires", "soon"], ["create", "x", "--storage", "10 cats"]):
        assert isinstance(CliRunner().invoke(keys_command, wrong).exception, InputError)


def test_the_server_command_asks_for_keys_and_tidies_up(tiny_base: Path, tmp_path: Path) -> None:
    left_behind = home() / "files" / "0123.part"
    left_behind.parent.mkdir(parents=True)
    left_behind.write_bytes(b"half")
    result = run_command(server_command, "--host", "0.0.0.0")
    assert result[0] == 1 and left_behind.exists()  # refused before anything else
    key, _ = create_key(owner="ann", name="ci")
    with listen("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    answers: list[httpx.Response] = []

    def ask() -> None:
        try:
            with httpx.Client(transport=httpx.HTTPTransport(retries=9), timeout=30) as client:
                for headers in ({}, {"authorization": f"Bearer {key}"}):
                    answers.append(client.get(f"http://127.0.0.1:{port}/v1/models", headers=headers))
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=ask)
    thread.start()
    code, document, _ = run_command(server_command, "--base", str(tiny_base), "--port", str(port), "--json")
    thread.join()
    assert code == 0 and json.loads(document)["models"] == [str(tiny_base)]
    assert [answer.status_code for answer in answers] == [401, 200]
    assert not bytes_on_disk()
