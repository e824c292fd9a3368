"""Loading: one base in memory, pins, the proof of an effect, runs; and generation for a caller that waits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tunesmith.adapter import attach_lora, save_adapter
from tunesmith.chat import Message
from tunesmith.contender import Reply
from tunesmith.errors import InputError, ModelError, ServeError
from tunesmith.facts import weights_sha256
from tunesmith.generate import LocalContender
from tunesmith.model import load_base
from tunesmith.runs import create_run
from tunesmith.serve.models import ServedModels
from tunesmith.serve.records.models import Made
from tunesmith.serve.reply import Ask

ASK = Ask((Message("user", "My card is lost, case 7."),), max_new_tokens=24)


def whole(models: ServedModels, name: str, ask: Ask = ASK) -> Reply:
    *pieces, reply = models.stream(name, ask)
    assert isinstance(reply, Reply)
    assert "".join(str(piece) for piece in pieces) == reply.text
    return reply


def test_adapters_and_base_share_one_base_in_memory(served: ServedModels) -> None:
    assert len({id(model.base.model) for model in served}) == 1
    assert len({model.fingerprint for model in served}) == 3


def test_another_way_to_write_the_folder_is_the_same_base(tiny_base: Path) -> None:
    models = ServedModels.load({"a": str(tiny_base), "b": f"{tiny_base}/../{tiny_base.name}"}, precision="float32")
    assert models.get("a").engine is models.get("b").engine
    assert whole(models, "a").text == whole(models, "b").text


def test_an_adapter_without_effect_is_refused(make_adapter: Callable[..., Path]) -> None:
    with pytest.raises(ModelError, match="does not change"):
        ServedModels.load({"a": str(make_adapter(3, scale=0))}, precision="float32")


def test_an_adapter_of_another_base_is_refused(make_adapter: Callable[..., Path], tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(make_adapter(4), folder)
    pin = json.loads((folder / "tunesmith.json").read_text())
    (folder / "tunesmith.json").write_text(json.dumps({**pin, "base_sha256": "0" * 64}))
    with pytest.raises(ModelError, match="trained on another base"):
        ServedModels.load({"a": str(folder)}, precision="float32")


def test_a_run_is_served_once_it_is_finished(
    targets: dict[str, str], served: ServedModels, tiny_base: Path, tmp_path: Path
) -> None:
    run = create_run(tmp_path / "run", recipe={"base": str(tiny_base)})
    shutil.copytree(targets["red"], run.adapter_dir)
    run.set_status("failed")
    with pytest.raises(InputError, match="failed, not finished"):
        ServedModels.load({"a": str(run.directory)}, precision="float32")
    run.set_status("finished")
    models = ServedModels.load({"a": str(run.directory)}, precision="float32")
    assert whole(models, "a").text == whole(served, "red").text


def test_targets_that_are_nothing(tmp_path: Path) -> None:
    for target in (str(tmp_path / "missing"), "no such/name at all"):
        with pytest.raises(InputError):
            ServedModels.load({"a": target})
    with pytest.raises(ModelError, match="config.json"):
        ServedModels.load({"a": str(tmp_path)})
    with pytest.raises(InputError, match="no model"):
        ServedModels.load({})


def test_closing_a_stream_ends_it_and_errors_reach_the_caller(served: ServedModels) -> None:
    stream = served.stream("plain", Ask(ASK.messages, max_new_tokens=400))
    assert isinstance(next(stream), str)
    stream.close()  # type: ignore[attr-defined]
    with pytest.raises(ServeError, match="512 tokens"):
        whole(served, "plain", Ask(ASK.messages, max_new_tokens=600))
    assert whole(served, "plain").completion_tokens


@pytest.mark.parametrize("length", [1, 2, 3, 5])
def test_held_back_text_is_never_lost(served: ServedModels, length: int) -> None:
    """Every substring of the reply as a stop string, with one that only begins alike."""
    full = whole(served, "plain")
    for at in range(0, len(full.text) - length, 4):
        stop = full.text[at : at + length]
        if "\ufffd" in stop:
            continue
        reply = whole(served, "plain", Ask(ASK.messages, max_new_tokens=24, stop=(stop, stop + "\0")))
        assert reply.text == full.text[: full.text.index(stop)]
        assert reply.finish_reason == "stop"


def made(name: str, folder: Path, *, owner: str = "local") -> Made:
    return Made(name, owner, 1, "tiny", folder, weights_sha256(folder))


def test_a_made_model_is_loaded_when_its_owner_asks_and_makes_room(
    tiny_base: Path, make_adapter: Callable[..., Path]
) -> None:
    folders = [make_adapter(seed) for seed in (11, 12, 13)]
    mine = {f"ft:{number}": made(f"ft:{number}", folder) for number, folder in enumerate(folders)}
    models = ServedModels.load(
        {"plain": str(tiny_base)},
        precision="float32",
        find=lambda name, owner: mine.get(name) if owner == "local" else None,
    )
    models.max_adapters = 2
    replies = [whole(models, name).text for name in mine]
    assert len({whole(models, "plain").text, *replies}) == 4
    assert list(models._made) == ["ft:1", "ft:2"]
    assert whole(models, "ft:0").text == replies[0], "it comes back"
    assert list(models._made) == ["ft:2", "ft:0"]
    absent, foreign = (pytest.raises(ServeError), pytest.raises(ServeError))
    with absent as no_such:
        models.get("ft:9")
    with foreign as not_yours:
        models.get("ft:0", owner="someone else")
    assert str(no_such.value).replace("ft:9", "ft:0") == str(not_yours.value)
    mine["ft:0"] = made("ft:0", folders[1])
    assert whole(models, "ft:0").text == replies[1], "made anew under its name"
    mine["ft:2"] = Made("ft:2", "local", 1, "tiny", folders[0], "0" * 64)
    with pytest.raises(ModelError, match="not those that were made"):
        models.get("ft:2")


def test_a_model_taken_off_answers_those_who_asked_before(make_adapter: Callable[..., Path], tiny_base: Path) -> None:
    models = ServedModels.load({"plain": str(tiny_base)}, precision="float32")
    models.add("a", str(make_adapter(1)))
    before = whole(models, "a")
    stream = models.stream("a", ASK)
    pieces = [next(stream)]
    models.add("a", str(make_adapter(2)))
    pieces += stream
    assert pieces[-1] == replace(before, latency_s=pieces[-1].latency_s)  # type: ignore[union-attr]
    assert whole(models, "a").text != before.text
    models.remove("a")
    with pytest.raises(ServeError, match="not served"):
        models.get("a")


def test_an_adapter_that_the_bank_cannot_hold_is_switched_to_and_that_is_said(
    tiny_base: Path, tmp_path: Path, targets: dict[str, str]
) -> None:
    base = load_base(str(tiny_base), precision="float32")
    torch.manual_seed(5)
    model = attach_lora(base, rank=4, alpha=8, dropout=0, targets="all-linear", method="dora")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3)
    save_adapter(model, tmp_path / "dora", base=base)
    (expected,) = LocalContender("dora", base, model.eval()).answer([ASK.messages], max_new_tokens=24)
    said: list[str] = []
    models = ServedModels.load(targets, precision="float32", say=said.append)
    alone = {name: whole(models, name).text for name in targets}
    models.add("dora", str(tmp_path / "dora"))
    assert any("use_dora is true" in text for text in said)
    streams = {name: models.stream(name, ASK) for name in (*targets, "dora")}
    texts = {name: "".join(item for item in stream if isinstance(item, str)) for name, stream in streams.items()}
    assert texts == {**alone, "dora": expected.text}
    models.remove("dora")
    assert whole(models, "red").text == alone["red"]


def test_every_base_proves_that_it_answers(served: ServedModels, monkeypatch: pytest.MonkeyPatch) -> None:
    served.check_ready()
    scheduler = served.get("plain").engine.scheduler
    assert scheduler.is_alive

    def fail(*args: object, **keywords: object) -> None:
        raise RuntimeError("out of memory")

    scheduler.token_made_s = None
    monkeypatch.setattr(scheduler.running, "begin", fail)
    with pytest.raises(ServeError, match="fails to answer") as caught:
        served.check_ready()
    assert caught.value.status == 503
