"""The blind comparison over HTTP and in a browser: who may ask, what a mouse and a keyboard do, and the command."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.evaluate.contenders import label_example
from tunesmith.evaluate.blind import Comparison, create
from tunesmith.facts import file_sha256

Tunesmith = Callable[..., Any]
CHROMIUM = Path("/usr/bin/chromium")
FACTS = {"a": "base:plain", "b": "adapter:tuned", "weights": {}, "seed": 0, "raters": []}


@pytest.fixture
def comparison(tmp_path: Path) -> Comparison:
    examples = [label_example(f"Where is card {row}?", "x") for row in range(4)]
    replies = [f"It is <b>late</b>, {row}." for row in range(4)], [f"We sent it, {row}." for row in range(4)]
    return create(tmp_path / "kept", examples, replies=replies, facts=FACTS)


@pytest.fixture
def url(comparison: Comparison) -> Iterator[str]:
    """The link of the comparison, served as the command serves it."""
    from tunesmith.cli.blind_app import create_app
    from tunesmith.serve.run import running

    with running(create_app(comparison, end=comparison.end)) as base:
        yield f"{base.removesuffix('/v1')}/{comparison.facts['token']}"


def test_only_this_machine_with_the_whole_link_is_answered(url: str, comparison: Comparison) -> None:
    host = httpx.URL(url).netloc.decode()
    assert httpx.get(f"{url}/").status_code == 200
    assert httpx.get(f"{url[:-1]}/").status_code == 403
    assert httpx.get(f"http://{host}/").status_code == 403
    assert httpx.get(f"{url}/", headers={"host": "evil.example"}).status_code == 403
    shown = comparison.next_row("anna")
    assert shown
    vote = {"row": str(shown[0].number), "choice": "left"}
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1"):
        assert httpx.post(f"{url}/rate/anna", data=vote, headers={"origin": origin}).status_code == 403
    assert comparison.votes().cast == ()
    assert httpx.post(f"{url}/rate/anna", data=vote, headers={"origin": f"http://{host}"}).status_code == 303
    assert len(comparison.votes().cast) == 1


def test_pages_load_nothing_keep_nothing_and_run_only_their_own_script(url: str) -> None:
    first, second = (httpx.get(f"{url}/rate/anna") for _ in range(2))
    policy = first.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert policy != second.headers["content-security-policy"]
    assert first.headers["cache-control"] == "no-store"
    assert not re.search(r"(src|href)=.(https?:)?//", first.text)
    assert "plain" not in first.text + first.headers["content-security-policy"]
    assert "&lt;b&gt;late&lt;/b&gt;" in first.text


def test_nonsense_is_no_vote_and_no_failure(url: str, comparison: Comparison) -> None:
    for form in (
        {},
        {"row": "x", "choice": "left"},
        {"row": "1", "choice": "best"},
        {"row": "9" * 30, "choice": "tie"},
    ):
        assert httpx.post(f"{url}/rate/anna", data=form).status_code == 303
    assert httpx.post(f"{url}/rate/anna", content=b"\xff=1&" * 40000).status_code == 303
    assert httpx.post(f"{url}/", data={"name": "../x"}).status_code == 400
    assert httpx.get(f"{url}/rate/%2e%2e").status_code in (400, 403, 404)
    assert comparison.votes().cast == ()
    assert httpx.get(f"{url}/result").headers["location"].endswith("/")  # not before the end


def test_without_script_a_form_is_enough_from_the_name_to_the_result(url: str, comparison: Comparison) -> None:
    base = url.removesuffix(f"/{comparison.facts['token']}")
    with httpx.Client(follow_redirects=True) as client:
        page = client.post(f"{url}/", data={"name": "Ünal B."})
        for _ in range(4):
            row = re.search(r'name="row" value="(\d+)"', page.text)
            action = re.search(r'action="(/[^"]+)"', page.text)
            assert row and action
            page = client.post(base + action[1], data={"row": row[1], "choice": "left", "comment": "hm"})
        assert "You have judged all 4" in page.text
        assert "base:plain" not in client.get(f"{url}/").text
        result = client.post(f"{url}/end")
        assert "base:plain" in result.text
        assert "Ünal B." in result.text
        assert client.get(f"{url}/rate/anna").url.path.endswith("/result")


def test_the_command_takes_saved_replies_exports_and_shows_the_result(
    tunesmith: Tunesmith, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunesmith.serve import run

    rows = [{"messages": [{"role": "user", "content": f"Q{n}"}, {"role": "assistant", "content": "x"}]} for n in (1, 2)]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))

    from tunesmith.data.load import load_examples

    examples = [source.example for source in load_examples(prompts).examples]
    lines = [
        {"example": one.id, "contender": name, "reply": f"{name} to {one.id}"}
        for one in examples
        for name in ("p", "q")
    ]
    replies = tmp_path / "replies.jsonl"
    replies.write_text("".join(json.dumps(line) + "\n" for line in lines))
    arguments = ("blind", f"replies:{replies}#p", f"replies:{replies}#q", "--prompts", prompts)

    def judged(app: Any, *, host: str, port: int, ready: Callable[[str], None]) -> None:
        """In place of people: the address is given, and a rater has judged one row."""
        ready("http://127.0.0.1:1")

    monkeypatch.setattr(run, "answer", judged)
    assert tunesmith(*arguments, "--export", tmp_path / "prefs.jsonl").code == 2
    begun = tunesmith(*arguments, "--rater", "anna", "--json")
    assert begun.code == 0, begun.err
    comparison = Comparison(Path(begun.document["directory"]))
    assert begun.document["raters"]["anna"].startswith(begun.document["url"])
    shown = comparison.next_row("anna")
    assert shown
    comparison.vote("anna", shown[0].number, choice="left")

    assert tunesmith(*arguments, "--json").document["url"] == begun.document["url"]  # the same comparison goes on
    exported = tunesmith(*arguments, "--export", tmp_path / "prefs.jsonl", "--json").document
    assert (exported["rows"], exported["left_out"]) == (1, 1)
    comparison.end()
    result = tunesmith(*arguments, "--json").document
    assert result["rows"]["judged"] == 1
    assert json.loads((comparison.directory / "blind.json").read_text())["contenders"]["a"] == arguments[1]
    assert "<script" not in (comparison.directory / "blind.html").read_text()
    assert tunesmith("blind", "base:x", "base:x", "--prompts", prompts).code == 2


def test_an_adapter_that_was_trained_again_is_compared_anew(tunesmith: Tunesmith, tmp_path: Path) -> None:
    prompts, adapter, kept = tmp_path / "prompts.jsonl", tmp_path / "adapter", tmp_path / "kept"
    prompts.write_text(json.dumps({"messages": [{"role": "user", "content": "Hi"}]}) + "\n")
    adapter.mkdir()
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(b"one")
    asked = {"a": "base:x", "b": f"adapter:{adapter}", "prompts_sha256": file_sha256(prompts), "limit": None, "seed": 0}
    asked |= {"max_tokens": 512, "adapters": ["", file_sha256(weights)]}
    create(kept, [label_example("Hi", "x")], replies=(["yes"], ["no"]), facts={**FACTS, **asked})
    export = (
        "blind",
        asked["a"],
        asked["b"],
        "--prompts",
        prompts,
        "--out",
        kept,
        "--export",
        tmp_path / "prefs.jsonl",
    )
    assert "No row has a preferred reply yet" in tunesmith(*export).err
    weights.write_bytes(b"two")
    assert "another comparison: its adapters" in tunesmith(*export).err


def test_prompts_without_answers_will_do(tunesmith: Tunesmith, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"messages": [{"role": "user", "content": "Hi"}]}) + "\n")
    said = tunesmith("blind", "replies:none#x", "replies:none#y", "--prompts", prompts)
    assert (said.code, "no readable replies.jsonl" in said.err) == (2, True)


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM.exists(), reason="there is no chromium here")
def test_in_a_browser_keys_judge_comment_and_undo_and_the_result_shows_the_names(
    url: str, comparison: Comparison
) -> None:
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(20_000)
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(f"{url}/")
        page.fill("#name", "anna")
        page.keyboard.press("Enter")
        page.wait_for_selector("text=0 of 4")
        page.keyboard.press("c")
        page.keyboard.type("t1 b2 u")  # in the comment, these are letters
        page.keyboard.press("Escape")
        page.keyboard.press("1")
        page.wait_for_selector("text=1 of 4")
        page.keyboard.press("u")
        page.wait_for_selector("text=0 of 4")
        for number, key in enumerate("12tb", start=1):
            page.keyboard.press(key)
            page.wait_for_selector(f"text={number} of 4")
        assert [vote.choice for vote in comparison.votes().cast] == ["left", "right", "tie", "both_bad"]
        page.click("text=Change the last one")
        page.wait_for_selector("text=3 of 4")
        page.click("text=Both bad")
        page.wait_for_selector("text=You have judged all 4")
        assert "plain" not in page.content()
        page.click("text=first page")
        page.click("text=End, and show who is who")
        page.wait_for_selector("text=base:plain")
        assert not complaints
        browser.close()
    events = [json.loads(line) for line in (comparison.directory / "votes.jsonl").read_text().splitlines()]
    assert events[0]["comment"] == "t1 b2 u"
