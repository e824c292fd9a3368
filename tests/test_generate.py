"""Decoding: a batch gives what single rows give and what transformers' own greedy decoding gives, adapters included."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import FAMILIES
from tunesmith.adapter import attach_lora, detach, save_adapter
from tunesmith.chat import Example, Message
from tunesmith.errors import InputError
from tunesmith.generate import (
    AdapterContender,
    LocalContender,
    build_contenders,
    decode,
    reply_limit,
    shared_prefix,
)
from tunesmith.model import Base, load_base
from tunesmith.prefix import _fused, _plain, can_share, shared_prefix_of

STOPS = frozenset({2})
NEW = 12


def stock(model: Any, prompt: list[int], stops: frozenset[int] = STOPS) -> list[int]:
    """transformers' own greedy decoding, without the stop token."""
    ids_BT = torch.tensor([prompt])
    made = model.generate(
        input_ids=ids_BT,
        attention_mask=torch.ones_like(ids_BT),
        max_new_tokens=NEW,
        do_sample=False,
        eos_token_id=sorted(stops),
        pad_token_id=2,
    )
    ids = made[0, len(prompt) :].tolist()
    return ids[:-1] if ids and ids[-1] in stops else ids


def answering(*answers: str) -> list[Example]:
    return [Example((Message("user", "?"), Message("assistant", answer, trained=True))) for answer in answers]


def prompts_of(lengths: tuple[int, ...], *, shared: int = 0, seed: int = 0) -> list[list[int]]:
    draw = random.Random(seed)
    start = [draw.randrange(3, 259) for _ in range(shared)]
    return [[*start, *(draw.randrange(3, 259) for _ in range(length))] for length in lengths]


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> Base:
    torch.set_num_threads(1)
    return load_base(str(tiny_base), precision="float32")


@pytest.fixture
def adapted(base: Base) -> Iterator[Any]:
    model = randomised(base)
    yield model
    detach(model)


def randomised(base: Base, seed: int = 0) -> Any:
    """A LoRA adapter whose B is not 0, so that it changes the answers."""
    torch.manual_seed(seed)
    model = attach_lora(base, rank=4, alpha=8.0, dropout=0.0, targets="all-linear")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    model.eval()
    return model


@pytest.mark.parametrize("name", FAMILIES)
def test_a_batch_of_unequal_prompts_gives_what_each_gives_alone_and_in_transformers(
    name: str, tiny_family: Callable[[str], Path]
) -> None:
    torch.set_num_threads(1)
    model = load_base(str(tiny_family(name)), precision="float32").model
    prompts = prompts_of((3, 90, 40, 61, 12))  # longer and shorter than the sliding window of 64
    together = [output.ids for output in decode(model, prompts, stop_ids=STOPS, max_new_tokens=NEW)]
    alone = [decode(model, [prompt], stop_ids=STOPS, max_new_tokens=NEW)[0].ids for prompt in prompts]
    assert together == alone == [stock(model, prompt) for prompt in prompts]


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "phi3"])
def test_a_shared_prefix_changes_nothing(name: str, tiny_family: Callable[[str], Path]) -> None:
    model = load_base(str(tiny_family(name)), precision="float32").model
    assert can_share(model)
    prompts = prompts_of((1, 25, 60, 7), shared=50)
    with torch.inference_mode(), shared_prefix_of(model, prompts[0][: shared_prefix(prompts)]) as prefix:
        shared = decode(model, prompts, stop_ids=STOPS, max_new_tokens=NEW, prefix=prefix)
    assert [output.ids for output in shared] == [stock(model, prompt) for prompt in prompts]
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("lengths", [(1,), (1, 1, 1), (2,), (60, 1)])
@pytest.mark.parametrize("shared", [0, 50])
def test_the_shortest_rests_of_prompts_are_fed_too(
    lengths: tuple[int, ...], shared: int, tiny_family: Callable[[str], Path]
) -> None:
    model = load_base(str(tiny_family("llama")), precision="float32").model
    prompts = prompts_of(lengths, shared=shared)
    with torch.inference_mode(), shared_prefix_of(model, prompts[0][:shared]) as prefix:
        found = decode(model, prompts, stop_ids=STOPS, max_new_tokens=NEW, prefix=prefix)
    assert [output.ids for output in found] == [stock(model, prompt) for prompt in prompts]


@pytest.mark.parametrize("name", ["mistral", "gemma2", "gemma3"])
def test_a_model_with_windows_or_soft_caps_does_not_share(name: str, tiny_family: Callable[[str], Path]) -> None:
    assert not can_share(load_base(str(tiny_family(name)), precision="float32").model)


def test_an_adapter_answers_as_in_transformers_with_and_without_a_shared_prefix(base: Base, adapted: Any) -> None:
    prompts = prompts_of((5, 33, 18), shared=40)
    expected = [stock(adapted, prompt) for prompt in prompts]
    for shared in (0, 40):
        with torch.inference_mode(), shared_prefix_of(adapted, prompts[0][:shared]) as prefix:
            found = decode(adapted, prompts, stop_ids=STOPS, max_new_tokens=NEW, prefix=prefix)
        assert [output.ids for output in found] == expected
    with adapted.disable_adapter():
        assert [stock(adapted, prompt) for prompt in prompts] != expected


def test_the_models_attention_is_put_back_after_an_exception(base: Base, adapted: Any) -> None:
    with pytest.raises(RuntimeError, match="stop here"), shared_prefix_of(adapted, [5, 6, 7]) as prefix:
        assert prefix is not None
        assert base.model.config._attn_implementation != "sdpa"
        raise RuntimeError("stop here")
    assert base.model.config._attn_implementation == adapted.config._attn_implementation == "sdpa"
    with pytest.raises(IndexError), torch.inference_mode(), shared_prefix_of(adapted, [5, 6]) as prefix:
        decode(adapted, [[5, 6, 400], [5, 6, 7]], stop_ids=STOPS, max_new_tokens=2, prefix=prefix)  # 400: no such id
    assert base.model.config._attn_implementation == "sdpa"


def test_a_stop_id_ends_a_row_and_the_others_go_on(base: Base) -> None:
    prompts = prompts_of((8, 20, 14))
    free = [output.ids for output in decode(base.model, prompts, stop_ids=frozenset(), max_new_tokens=NEW)]
    stop = free[0][4]
    outputs = decode(base.model, prompts, stop_ids=frozenset({stop}), max_new_tokens=NEW)
    for output, ids in zip(outputs, free, strict=True):
        cut = ids.index(stop) if stop in ids else NEW
        assert output.ids == ids[:cut]
        assert output.finish_reason == ("stop" if stop in ids else "length")
    assert outputs[0].finish_reason == "stop"


def test_a_prompt_that_does_not_fit_is_refused_with_both_numbers_before_any_is_answered(base: Base) -> None:
    contender = LocalContender("base", base)
    fits = [Message("user", "Hi")]
    long = [Message("user", "x" * 480)]
    size = len(base.renderer.prompt(long))
    finished: list[int] = []
    with pytest.raises(InputError, match=rf"prompt of {size} tokens .* up to 7 do not fit the 512 tokens"):
        contender.answer([fits, long], max_new_tokens=7, progress=finished.append)
    assert finished == []
    assert base.model.config._attn_implementation == "sdpa"


def test_replies_come_in_the_order_of_the_prompts_over_several_batches(base: Base, monkeypatch: Any) -> None:
    monkeypatch.setattr("tunesmith.generate.BATCH_ROWS", 2)
    contender = LocalContender("base", base)
    prompts = [[Message("user", "word " * length)] for length in (9, 1, 30, 4, 17)]
    finished: list[int] = []
    replies = contender.answer(prompts, max_new_tokens=6, progress=finished.append)
    single = [contender.answer([prompt], max_new_tokens=6)[0] for prompt in prompts]
    assert [reply.text for reply in replies] == [reply.text for reply in single]
    assert [reply.prompt_tokens for reply in replies] == [len(base.renderer.prompt(prompt)) for prompt in prompts]
    assert sum(finished) == 5
    assert contender.answer([], max_new_tokens=6) == []


def test_the_shared_prefix_leaves_every_prompt_a_token_of_its_own() -> None:
    assert shared_prefix([[1, 2, 3], [1, 2, 4], [1, 2]]) == 1
    assert shared_prefix([[1, 2, 3]]) == 2
    assert shared_prefix([[1], [2]]) == 0


def test_an_adapter_contender_leaves_the_base_as_it_was(base: Base, tiny_base: Path, tmp_path: Path) -> None:
    model = randomised(base)
    save_adapter(model, tmp_path / "adapter", base=base)
    detach(model)
    system = tmp_path / "system.txt"
    system.write_text("Be brief.\n")
    specs = [f"base:{tiny_base}", f"adapter:{tmp_path / 'adapter'}", f"base:{tiny_base}+prompt:{system}"]
    contenders = build_contenders([*specs, "url:http://localhost:1/v1#m"], precision="float32")
    prompts = [[Message("system", "s"), Message("user", f"case {index}")] for index in range(3)]
    first, tuned, prompted = [contender.answer(prompts, max_new_tokens=8) for contender in contenders[:3]]
    again = contenders[0].answer(prompts, max_new_tokens=8)
    assert [reply.text for reply in again] == [reply.text for reply in first] != [reply.text for reply in tuned]
    assert prompted[0].prompt_tokens == first[0].prompt_tokens + len("Be brief.") - len("s")
    assert reply_limit(answering("four"), contenders) == 4 + 1 + 8
    assert reply_limit(answering("x" * 40), contenders[3:]) == 10 + 2 + 8
    assert reply_limit(answering("four", "five") * 2, contenders) == 4 + 4, "labels"


def test_an_identity_is_another_for_other_weights_or_another_way_to_apply_them(base: Base, tmp_path: Path) -> None:
    def identity(seed: int, *, rewrite: tuple[str, str] = ("", "")) -> str | None:
        model = randomised(base, seed)
        save_adapter(model, tmp_path / "adapter", base=base)
        detach(model)
        config = tmp_path / "adapter" / "adapter_config.json"
        config.write_text(config.read_text().replace(*rewrite))
        return AdapterContender("a", base, tmp_path / "adapter").identity

    plain = LocalContender("base", base)
    found = [plain.identity, identity(0), identity(1), identity(0, rewrite=('"lora_alpha": 8.0', '"lora_alpha": 16.0'))]
    assert len(set(found)) == 4 and identity(0) == found[1]
    assert base.sha256 in str(found[0]) and "float32 cpu" in str(found[0])
    model = randomised(base)
    assert LocalContender("tuned", base, model).identity is None  # in memory only: it has no name
    assert plain.identity is None  # the adapter is on the base itself
    detach(model)
    assert plain.identity == found[0]


def test_the_room_of_a_prompt_is_what_the_context_leaves(base: Base, tmp_path: Path) -> None:
    prompt = [Message("user", "hi")]
    size = len(base.renderer.prompt(prompt))
    assert LocalContender("base", base).room(prompt) == AdapterContender("a", base, tmp_path).room(prompt) == 512 - size


@pytest.mark.parametrize("spec", ["llama", "base:", "url:localhost#m", "url:http://x/v1", "adapter:", "base:/no/such"])
def test_a_contender_that_cannot_be_read_is_refused(spec: str) -> None:
    with pytest.raises(InputError):
        build_contenders([spec])


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_the_fused_attention_to_a_prefix_gives_what_the_plain_one_gives_and_the_sums(
    dtype: torch.dtype, close: float
) -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, tokens, 8).to(dtype) for tokens in (70, 45, 45))
    for fast, slow in zip(_fused(query, key, value, scaling=0.3), _plain(query, key, value, scaling=0.3), strict=True):
        torch.testing.assert_close(fast.float(), slow.float(), atol=close, rtol=close)
