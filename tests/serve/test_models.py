"""Loading: one base in memory, pins, the proof of an effect, runs; and generation for a caller that waits."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tunesmith.chat import Message
from tunesmith.contender import Reply
from tunesmith.errors import InputError, ModelError, ServeError
from tunesmith.model import load_base
from tunesmith.runs import create_run
from tunesmith.serve.models import ServedModels
from tunesmith.serve.reply import Ask, stream_reply

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
    assert models.get("a").loaded is models.get("b").loaded
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
def test_held_back_text_is_never_lost(tiny_base: Path, length: int) -> None:
    """Every substring of the reply as a stop string, with one that only begins alike."""
    base = load_base(str(tiny_base), precision="float32")
    never = threading.Event()
    *_, full = stream_reply(base, base.model, ask=ASK, cancelled=never)
    assert isinstance(full, Reply)
    for at in range(0, len(full.text) - length, 4):
        stop = full.text[at : at + length]
        if "\ufffd" in stop:
            continue
        ask = Ask(ASK.messages, max_new_tokens=24, stop=(stop, stop + "\0"))
        *pieces, reply = stream_reply(base, base.model, ask=ask, cancelled=never)
        assert isinstance(reply, Reply)
        assert reply.text == full.text[: full.text.index(stop)] == "".join(str(piece) for piece in pieces)
        assert reply.finish_reason == "stop"
