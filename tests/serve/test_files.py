"""Files over OpenAI's client: the whole life, lists, names, refusals, and what is left on the disk."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.serve.house import BOUNDARY, FORM_TYPE, begin_upload, bytes_on_disk, form, full_server
from tunesmith.database import transaction
from tunesmith.serve import intake
from tunesmith.serve.multipart import FormReader
from tunesmith.serve.records import files, uploads
from tunesmith.serve.records.paging import Cursor

ROWS = b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n' * 3
OWN_HOME = HealthCheck.function_scoped_fixture  # one home for all examples of a test


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with full_server() as url:
        yield url


@pytest.fixture(scope="module")
def api(server: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=server, api_key="none", max_retries=0, timeout=30)


@pytest.fixture(scope="module")
def http(server: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server, timeout=60) as client:
        yield client


def upload(http: httpx.Client, content: bytes, **options: Any) -> httpx.Response:
    return http.post("/files", content=form(content, **options), headers=FORM_TYPE)


def message_of(response: httpx.Response) -> str:
    assert response.status_code == 400, response.text
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    return str(response.json()["error"]["message"])


def test_the_whole_life_of_a_file(api: openai.OpenAI, tmp_path: Path) -> None:
    path = tmp_path / "training_data.jsonl"
    path.write_bytes(ROWS)
    with path.open("rb") as stream:
        made = api.files.create(file=stream, purpose="fine-tune")
    assert made.id.startswith("file-") and made.object == "file" and made.status == "processed"
    assert (made.filename, made.bytes, made.purpose) == ("training_data.jsonl", len(ROWS), "fine-tune")
    assert abs(made.created_at - time.time()) < 60 and made.expires_at is None
    assert api.files.retrieve(made.id) == made == api.files.wait_for_processing(made.id)
    assert api.files.content(made.id).read() == ROWS
    assert [file.id for file in api.files.list()] == [made.id]
    found = files.find_file(made.id, owner="local")
    assert found and found.path.read_bytes() == ROWS and found.path.parent.name == "files"
    assert api.files.delete(made.id).deleted
    assert not bytes_on_disk()
    for call in (api.files.retrieve, api.files.content, api.files.delete):
        with pytest.raises(openai.NotFoundError, match="There is no file"):
            call(made.id)


def test_lists_are_paged_ordered_and_filtered(api: openai.OpenAI) -> None:
    purposes = ["user_data", "fine-tune", "user_data", "vision", "user_data"]
    made = [
        api.files.create(file=(f"{at}.jsonl", ROWS), purpose=purpose).id  # type: ignore[arg-type]
        for at, purpose in enumerate(purposes)
    ]
    assert [file.id for file in api.files.list(limit=2)] == made[::-1]
    assert [file.id for file in api.files.list(limit=2, order="asc")] == made
    assert [file.id for file in api.files.list(limit=2, purpose="user_data")] == [made[4], made[2], made[0]]
    page = api.files.list(limit=2, after=made[3])
    assert [file.id for file in page.data] == [made[2], made[1]] and page.has_more
    assert not api.files.list(limit=2, after=made[2]).has_more
    for file in api.files.list(limit=1):
        api.files.delete(file.id)  # the cursor of the next page is then a deleted file
    assert not api.files.list().data
    with pytest.raises(openai.NotFoundError):
        api.files.list(after="file-0")
    for limit in (0, 10_001):
        with pytest.raises(openai.BadRequestError) as caught:
            api.files.list(limit=limit)
        assert caught.value.param == "limit"


def test_a_file_is_gone_when_its_time_is_over(api: openai.OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    expiry: Any = {"anchor": "created_at", "seconds": 3600}
    made = api.files.create(file=("a.jsonl", ROWS), purpose="fine-tune", expires_after=expiry)
    assert made.expires_at == made.created_at + 3600
    later = time.time() + 3601
    monkeypatch.setattr(time, "time", lambda: later)
    assert not api.files.list().data
    with pytest.raises(openai.NotFoundError):
        api.files.retrieve(made.id)
    api.files.create(file=("b.txt", b""), purpose="user_data")
    assert len(bytes_on_disk()) == 1  # the new one
    for wrong in ({"anchor": "created_at", "seconds": 3599}, {"anchor": "now", "seconds": 4000}, {"seconds": 4000}):
        with pytest.raises(openai.BadRequestError) as caught:
            api.files.create(file=("a.jsonl", ROWS), purpose="fine-tune", expires_after=wrong)  # type: ignore[arg-type]
        assert str(caught.value.param).startswith("expires_after")


def test_what_a_form_must_say(http: httpx.Client) -> None:
    assert "purpose" in message_of(upload(http, ROWS, fields={}))
    assert "purpose" in message_of(upload(http, ROWS, fields={"purpose": "fun"}))
    assert message_of(upload(http, ROWS, field=b"data")) == "The form has no 'file'."
    assert message_of(upload(http, ROWS, filename=b"a.csv")) == (
        "Invalid file format for Fine-Tuning API. Must be .jsonl"
    )
    assert upload(http, b"\x00\xff", filename=b"a.png", fields={"purpose": "vision"}).status_code == 200
    assert len(bytes_on_disk()) == 1


def broken(what: bytes) -> tuple[bytes, int]:
    """A file of which the second line is `what`, and that line."""
    return ROWS[: ROWS.index(b"\n") + 1] + what + b"\n" + ROWS, 2


MALFORMED: dict[str, tuple[bytes, int | None, str]] = {  # content, line, words
    "empty": (b"", None, "empty"),
    "only newlines": (b"\n\n\r\n", None, "no row"),
    "utf-16": (ROWS.decode().encode("utf-16"), None, "utf-16"),
    "latin-1": (*broken('{"a": "é"}'.encode("latin-1")), "0xe9"),
    "invalid utf-8 later": (ROWS * 300 + b'{"a": "\xc3"}\n', 901, "0xc3"),
    "nul bytes": (*broken(b'{"a": "\0"}'), "U+0000"),
    "cr only": (b'{"a": 1}\r{"a": 2}\r', 1, "bare CR"),
    "gzip": (b"\x1f\x8b\x08" + b"\0" * 90, None, "packed"),
    "zip": (b"PK\x03\x04" + b"\0" * 90, None, "zip"),
    "tar": (b"a" * 257 + b"ustar" + b"\0" * 90, None, "tar"),
    "parquet": (b"PAR1" + b"\0" * 90, None, "parquet"),
    "html": (b"<!DOCTYPE html><html>404</html>", None, "HTML"),
    "git-lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", None, "git lfs pull"),
    "csv": (b"prompt,completion\na,b\n", 1, "CSV"),
    "json array": (b'[{"a": 1},\n {"a": 2}]\n', None, "array"),
    "pretty-printed": (b'{\n  "a": 1\n}\n', 1, "several lines"),
    "two objects on a line": (*broken(b'{"a": 1}{"a": 2}'), "several JSON objects"),
    "long line": (*broken(b'{"a": "' + b"x" * (5 << 20) + b'"}'), "4 MiB"),
    "truncated last line": (ROWS + b'{"messages": [{"ro', 4, "ends in the middle"),
    "second header": (ROWS + b"prompt,completion\n" + ROWS, 4, "no JSON object"),
    "trailing comma": (*broken(b'{"a": 1,}'), "comma"),
    "single quotes": (*broken(b"{'a': 1}"), "single quotes"),
    "comment": (*broken(b'{"a": 1} // no'), "comment"),
    "nan": (*broken(b'{"a": NaN}'), "NaN is not JSON"),
    "infinity": (*broken(b'{"a": -Infinity}'), "Infinity is not JSON"),
    "1e400": (*broken(b'{"a": 1e400}'), "too large"),
    "10,000 digits": (*broken(b'{"a": ' + b"7" * 10_000 + b"}"), "too large"),
    "duplicate keys": (*broken(b'{"hush": 1, "hush": 2}'), "a key stands twice"),
    "depth 1,000": (*broken(b'{"a": ' + b"[" * 1000 + b"]" * 1000 + b"}"), "levels deep"),
    "depth 100,000": (*broken(b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "deep"),
    "lone surrogate": (*broken(b'{"a": "\\ud800"}'), "half of a character"),
    "raw control": (*broken(b'{"a": "x\x01y"}'), "U+0001"),
    "a text": (*broken(b'"text"'), "a text"),
    "a number": (*broken(b"7"), "a number"),
    "null": (*broken(b"null"), "null"),
    "a list": (*broken(b"[1]"), "a list"),
}
VALID = {  # and why
    "bom": b"\xef\xbb\xbf" + ROWS,  # skipped by every reader of the house
    "crlf": ROWS.replace(b"\n", b"\r\n"),  # white space to JSON
    "no final newline": ROWS[:-1],
    "blank lines": b"\n" + ROWS + b"\n \n" + ROWS,  # hold no row
    "escaped nul": b'{"a": "\\u0000"}\n',  # JSON, as these; the row's meaning is for the job
    "escaped pair": b'{"a": "\\ud83d\\ude00"}\n',
    "python's names": b'{"__proto__": {}, "__class__": 1}\n',
    "100k keys": json.dumps({str(key): 0 for key in range(100_000)}).encode(),
    "1 MB text": json.dumps({"a": "x" * (1 << 20)}).encode(),
    "big integer": b'{"a": 123456789012345678901234567890}',
    "no messages": b"{}\n",
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_a_malformed_file_is_refused_with_its_line_and_leaves_nothing(http: httpx.Client, kind: str) -> None:
    content, line, words = MALFORMED[kind]
    message = message_of(upload(http, content))
    assert words.lower() in message.lower() and "hush" not in message and len(message) < 1000
    if line:
        assert f"Line {line} is not a dictionary" in message
    assert not bytes_on_disk()


@pytest.mark.parametrize("kind", VALID)
def test_what_is_valid_is_accepted_and_reads_back_equal(http: httpx.Client, kind: str) -> None:
    response = upload(http, VALID[kind])
    assert response.status_code == 200, response.text
    assert http.get(f"/files/{response.json()['id']}/content").content == VALID[kind]


def test_the_first_twenty_problems_and_their_number_are_told(
    http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = message_of(upload(http, b"".join(b"%d\n" % at for at in range(50)) + ROWS))
    assert message.startswith(
        "Expected file to have JSONL format, where every line is a JSON dictionary. Line 1 is not a dictionary (HINT: "
    )
    assert message.count("is not a dictionary") == 20 and "50 lines are wrong" in message
    assert "10,000 lines" in message_of(upload(http, b"1\n" * 20_000))  # no more are counted
    monkeypatch.setattr("tunesmith.data.jsonl.MAX_LINES", 1000)
    for line in (b"{}\n", b"\n"):
        assert "more than 1,000 lines" in message_of(upload(http, line * 1001))


@given(st.binary(max_size=200) | st.lists(st.sampled_from(VALID_PIECES := [
    b"{", b"}", b"[", b"]", b'"', b":", b",", b"\n", b"\r", b"1", b'"a"', b'{"a": 1}', b"\xff", b"\0", b"\\", b"ud800",
    b"\xef\xbb\xbf", b" ", b"e9", b"-", b"null", b"\x1f\x8b", b"PAR1", b"\n--a-boundary", b"\r\n--a-bound",
])).map(b"".join))  # fmt: skip
@settings(deadline=None, max_examples=60, suppress_health_check=[OWN_HOME])
def test_any_bytes_are_kept_as_they_are_or_refused_without_a_trace(http: httpx.Client, content: bytes) -> None:
    if b"\r\n--" + BOUNDARY in content or (b"\n--" + BOUNDARY).startswith(content[:2]):
        content = content.replace(b"--", b"==")  # the form's own boundary cannot stand in it
    before = bytes_on_disk()
    response = upload(http, content)
    assert response.status_code in (200, 400), response.text
    if response.status_code == 200:
        assert http.get(f"/files/{response.json()['id']}/content").content == content
        for line in content.removeprefix(b"\xef\xbb\xbf").splitlines():
            assert not line.strip() or isinstance(json.loads(line), dict)
    else:
        assert bytes_on_disk() == before


NAMES = [
    b"../../../etc/passwd.jsonl", b"/etc/passwd.jsonl", b"..\\..\\x.jsonl", b"CON.jsonl", b"~/.ssh/x.jsonl", b".jsonl",
    "\u202elnosj.exe.jsonl".encode(), b"%00%2e%2e.jsonl", b"a b;c'd.jsonl", b"\xff\xfe.jsonl", b"file-0.jsonl",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_file_name_is_a_label_and_never_a_path(http: httpx.Client, tunesmith_home: Path, name: bytes) -> None:
    response = upload(http, ROWS, filename=name)
    assert response.status_code == 200, response.text
    body = response.json()
    assert body["filename"] in (name.decode(errors="replace"), "x.jsonl")  # of a path of Windows the last part
    content = http.get(f"/files/{body['id']}/content")
    assert content.content == ROWS and content.headers["x-content-type-options"] == "nosniff"
    (path,) = bytes_on_disk()
    assert path.parent == tunesmith_home / "files" and re.fullmatch("[0-9a-f]{8}-[0-9a-f]{24}", path.name)
    assert {entry.name for entry in tunesmith_home.iterdir()} == {"files", "tunesmith.db"}


@pytest.mark.parametrize("name", [b"a\0.jsonl", b"a\x1b[2J.jsonl", b"x" * 300 + b".jsonl", b"x" * 4096 + b".jsonl"])
def test_names_that_nobody_can_show_are_refused(http: httpx.Client, name: bytes) -> None:
    assert message_of(upload(http, ROWS, filename=name))
    assert not bytes_on_disk()


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (form(), {"content-type": "application/json"}, 415),
        (form(), {"content-type": "multipart/form-data"}, 400),
        (form(), {"content-type": f"multipart/form-data; boundary={'x' * 300}"}, 400),
        (form(), {"content-type": "multipart/form-data; boundary=another"}, 400),
        (form()[:-20], FORM_TYPE, 400),
        (b"", FORM_TYPE, 400),
        (form(fields={f"f{at}": "x" for at in range(40)}), FORM_TYPE, 400),
        (form(fields={"purpose": "x" * 5000}), FORM_TYPE, 400),
        (form(filename=b"a.jsonl\r\nx-more: " + b"x" * 10_000), FORM_TYPE, 400),
        (form(filename=b'a"\r\ncontent-transfer-encoding: base64\r\nx: "'), FORM_TYPE, 400),
        (form()[: -len(BOUNDARY) - 6] + form(fields={}), FORM_TYPE, 400),
        (form(fields={"purpose": "fine-tune", "file": "x"}), FORM_TYPE, 400),
    ],
)
def test_broken_forms_are_refused_in_openais_words(
    http: httpx.Client, body: bytes, headers: dict[str, str], status: int
) -> None:
    response = http.post("/files", content=body, headers=headers)
    assert response.status_code == status, response.text
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert not bytes_on_disk()


def test_a_body_beyond_the_limit_is_refused_before_and_while_it_comes(
    server: str, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    with begin_upload(server, b"", length=1 << 50) as huge:
        assert huge.recv(100).startswith(b"HTTP/1.1 413 ")
    monkeypatch.setattr("tunesmith.serve.routes.files.MAX_FILE_BYTES", 1000)
    assert upload(http, b"{}\n" * 334).status_code == 413
    assert upload(http, b"{}\n" * 333).status_code == 200
    assert len(bytes_on_disk()) == 1


def test_a_body_that_stops_coming_ends_with_408(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "PIECE_WAIT_S", 0.1)
    with begin_upload(server, form()[:100], length=1000) as slow:
        assert slow.recv(100).startswith(b"HTTP/1.1 408 ")
    assert not bytes_on_disk()


def test_a_client_that_goes_away_leaves_nothing(server: str) -> None:
    with begin_upload(server, form()[:-30], length=100_000):
        until = time.monotonic() + 10
        while not bytes_on_disk() and time.monotonic() < until:
            time.sleep(0.01)
        assert bytes_on_disk()  # staged
    while bytes_on_disk() and time.monotonic() < until:
        time.sleep(0.01)
    assert not bytes_on_disk()


def test_a_full_disk_is_told_and_leaves_nothing(http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: object, data: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tunesmith.serve.blobs.Staged.write", full)
    response = upload(http, ROWS)
    assert response.status_code == 503 and "disk is full" in response.json()["error"]["message"]
    assert not bytes_on_disk()


def test_a_result_is_kept_with_its_transaction(http: httpx.Client) -> None:
    with transaction() as connection:
        kept = files.store_result(
            connection, owner="local", filename="step_metrics.csv", purpose="fine-tune-results", data=b"step\n1\n"
        )
    assert http.get(f"/files/{kept}/content").content == b"step\n1\n"
    with pytest.raises(RuntimeError), transaction() as connection:
        lost = files.store_result(connection, owner="local", filename="b", purpose="fine-tune-results", data=b"")
        raise RuntimeError
    assert files.find_file(lost, owner="local") is None
    assert len(bytes_on_disk()) == 2 and uploads.tidy() == 0  # another process may be about to commit
    os.utime(max(bytes_on_disk(), key=lambda path: path.stat().st_size == 0), (1, 1))
    assert uploads.tidy() == 1 and len(bytes_on_disk()) == 1


def test_a_start_with_another_database_removes_nothing(
    http: httpx.Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    upload(http, ROWS)
    before = bytes_on_disk()
    monkeypatch.setenv("TUNESMITH_DATABASE", f"sqlite:///{tmp_path / 'other.db'}")
    assert uploads.tidy() == 0 and bytes_on_disk() == before


KILLED = """
import os, signal, sys
from tunesmith.serve import blobs, intake
from tunesmith.serve.access import LOCAL
from tunesmith.serve.records import uploads
from tunesmith.serve.wire.files import Label
point = sys.argv[1]
uploads.tidy()
def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
if point == "settle":
    blobs.sync = die
if point == "row":
    intake.add_file = die
with blobs.Staged('local') as staged:
    staged.write(b"{}\\n" * 1000)
    if point == "write":
        die()
    file = intake.keep(staged, LOCAL, label=Label("a.jsonl", "fine-tune"))
print(file.id, flush=True)
die()
"""


@pytest.mark.parametrize(
    "point", ["row", "after", *(pytest.param(at, marks=pytest.mark.slow) for at in ("write", "settle"))]
)
def test_a_kill_leaves_nothing_or_a_whole_file(point: str) -> None:
    child = subprocess.run([sys.executable, "-c", KILLED, point], capture_output=True, text=True, check=False)
    assert child.returncode == -9, child.stderr
    assert len(bytes_on_disk()) == 1
    uploads.tidy()
    if point == "after":
        found = files.find_file(child.stdout.strip(), owner="local")
        assert found and found.path.read_bytes() == b"{}\n" * 1000
    else:
        assert not bytes_on_disk()


@given(content=st.binary(max_size=300), cuts=st.lists(st.integers(0, 600), max_size=20))
@settings(deadline=None, max_examples=50)
def test_a_form_reads_the_same_however_it_is_cut(content: bytes, cuts: list[int]) -> None:
    content = content.replace(b"\r\n--" + BOUNDARY, b"")
    body = form(content, fields={"purpose": "evals", "more": "ü"})
    reader = FormReader(FORM_TYPE["content-type"], file_field="file")
    got = b""
    edges = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    for start, end in zip(edges, edges[1:], strict=False):
        got += b"".join(reader.feed(body[start:end]))
    reader.end()
    assert got == content and reader.filename == "rows.jsonl"
    assert reader.fields == {"purpose": "evals", "more": "ü"}


SERVING = """
import sys
from tests.serve.house import full_server
from tunesmith.serve.records import uploads
uploads.tidy()
with full_server() as url:
    print(url, flush=True)
    sys.stdin.readline()
"""


def serve_elsewhere() -> tuple[subprocess.Popen[str], str]:
    """The server in a process of its own, and its URL; a line on its stdin ends it."""
    child = subprocess.Popen([sys.executable, "-c", SERVING], stdin=-1, stdout=-1, text=True)
    assert child.stdout
    return child, child.stdout.readline().strip()


def peak_mib(process: subprocess.Popen[str]) -> int:
    """The most memory a process has held."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) >> 10


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_server_killed_under_four_uploaders_keeps_whole_files_only() -> None:
    row = b'{"a": "' + b"x" * 1000 + b'"}\n'
    kills = random.Random(7)
    for _ in range(8):
        child, url = serve_elsewhere()
        ended = threading.Event()

        def send(seed: int, url: str = url, ended: threading.Event = ended) -> None:
            sizes = random.Random(seed)
            while not ended.is_set():
                with contextlib.suppress(httpx.HTTPError):
                    httpx.post(f"{url}/files", content=form(row * sizes.randrange(1, 5000)), headers=FORM_TYPE)

        threads = [threading.Thread(target=send, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(kills.uniform(0.2, 3))
        child.kill()
        child.wait()
        ended.set()
        for thread in threads:
            thread.join()
        left = uploads.tidy()  # as the next server does
        kept, _ = files.list_files("local", cursor=Cursor(10_000))
        print(f"{len(kept)} files kept, {left} left behind")
        assert sorted(file.path for file in kept) == bytes_on_disk()
        for file in kept:
            content = file.path.read_bytes()
            assert len(content) == file.bytes and content == row * (len(content) // len(row))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_gigabytes_and_two_million_rows_pass_through_little_memory() -> None:
    line = (
        '{"messages": [{"role": "user", "content": "%s"}, {"role": "assistant", "content": "b"}]}\n' % ("x" * 990)
    ).encode()
    head, tail = form(b"|").split(b"|")
    lines = 2_000_000
    child, url = serve_elsewhere()
    try:
        assert child.stdin
        httpx.post(f"{url}/files", content=form(line * 1000), headers=FORM_TYPE).raise_for_status()
        before = peak_mib(child)
        pieces = (piece for part in ([head], (line * 1000 for _ in range(lines // 1000)), [tail]) for piece in part)
        length = {"content-length": str(len(head) + len(tail) + lines * len(line))}
        began = time.monotonic()
        answer = httpx.post(f"{url}/files", content=pieces, headers=FORM_TYPE | length, timeout=600)
        assert answer.json()["bytes"] == lines * len(line) > 2 * 10**9
        print(f"{peak_mib(child) - before} MiB more, {time.monotonic() - began:.0f} s")
        assert peak_mib(child) - before < 100  # beside what Python, torch and the server take
        child.stdin.write("\n")
        child.stdin.close()
        assert child.wait(30) == 0
    finally:
        child.kill()


@pytest.mark.slow
@given(st.binary(max_size=5000) | st.text(max_size=2000).map(lambda text: json.dumps({"a": text}).encode()))
@settings(deadline=None, max_examples=1000, suppress_health_check=[OWN_HOME])
def test_many_more_bytes_are_kept_or_refused(http: httpx.Client, content: bytes) -> None:
    response = upload(http, content.replace(b"--", b"=="))
    assert response.status_code in (200, 400), response.text
