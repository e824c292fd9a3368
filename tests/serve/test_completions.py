"""Plain completions beyond one reply: the best of several, and a prompt told back with its log-probabilities."""

from __future__ import annotations

from typing import Any

import openai
import pytest
import torch

from tunesmith.model import load_base
from tunesmith.sampling import text_tokens

PROMPT = "My card is lost"


def complete(client: openai.OpenAI, **options: Any) -> Any:
    return client.completions.create(**{"model": "red", "prompt": PROMPT, "max_tokens": 8, **options})


def mean(choice: Any) -> float:
    return sum(choice.logprobs.token_logprobs) / len(choice.logprobs.token_logprobs)


def test_the_best_of_several_are_those_with_the_highest_mean(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"temperature": 1.5, "seed": 2, "logprobs": 0, "prompt": [PROMPT, "Refund"]}
    every = complete(client, n=6, **options)
    best = complete(client, n=2, best_of=6, **options)
    for number in range(2):
        made = sorted(every.choices[6 * number : 6 * number + 6], key=mean, reverse=True)
        assert [choice.text for choice in best.choices[2 * number : 2 * number + 2]] == [one.text for one in made[:2]]
    assert [choice.index for choice in best.choices] == [0, 1, 2, 3]
    assert best.usage.completion_tokens == every.usage.completion_tokens, "all that were made are paid for"
    del options["logprobs"]
    silent = complete(client, n=2, best_of=6, **options)
    assert [choice.text for choice in silent.choices] == [choice.text for choice in best.choices]
    assert all(choice.logprobs is None for choice in silent.choices)


def test_a_prompt_comes_back_with_its_log_probabilities(client: openai.OpenAI, served: Any) -> None:
    made = complete(client, echo=True, logprobs=2, prompt=[PROMPT, "Refund"], n=2)
    for choice, prompt in zip(made.choices, [PROMPT] * 2 + ["Refund"] * 2, strict=True):
        told = choice.logprobs
        assert choice.text.startswith(prompt) and len(told.tokens) == len(told.token_logprobs)
        assert told.token_logprobs[0] is None and told.top_logprobs[0] is None
        assert "".join(told.tokens[: len(prompt)]) == prompt
        assert told.text_offset[: len(prompt)] == list(range(len(prompt)))
    model = served.get("red")
    ids = model.base.renderer.tokenizer.backend_tokenizer.encode(PROMPT, add_special_tokens=False).ids
    with model.engine.active(model.adapter) as active, torch.inference_mode():
        logprobs_TV = torch.log_softmax(active(input_ids=torch.tensor([ids])).logits[0].float(), -1)
    expected = [float(logprobs_TV[place, token]) for place, token in enumerate(ids[1:])]
    assert made.choices[0].logprobs.token_logprobs[1 : len(ids)] == pytest.approx(expected, abs=1e-4)
    best = max(made.choices[0].logprobs.top_logprobs[1].values())
    assert best == pytest.approx(float(logprobs_TV[0].max()), abs=1e-4)


def test_a_prompt_alone_is_told_without_a_reply_and_in_a_stream(client: openai.OpenAI) -> None:
    whole = complete(client, echo=True, logprobs=1)
    only = complete(client, echo=True, logprobs=1, max_tokens=0)
    assert only.choices[0].text == PROMPT and only.choices[0].finish_reason == "length"
    assert only.choices[0].logprobs.token_logprobs == whole.choices[0].logprobs.token_logprobs[: len(PROMPT)]
    assert only.usage.completion_tokens == 0 and only.usage.prompt_tokens == len(PROMPT)
    assert complete(client, echo=True, max_tokens=0).choices[0].logprobs is None
    chunks = [chunk.choices[0] for chunk in complete(client, echo=True, logprobs=1, stream=True) if chunk.choices]
    assert "".join(chunk.text for chunk in chunks) == whole.choices[0].text
    told = [chunk.logprobs for chunk in chunks if chunk.logprobs]
    for name in ("tokens", "token_logprobs", "text_offset"):
        assert [one for part in told for one in getattr(part, name)] == getattr(whole.choices[0].logprobs, name)


def test_a_text_longer_than_a_chunk_is_told_alike(tiny_base: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    base = load_base(str(tiny_base), precision="float32")
    ids = list(range(3, 60))
    whole = text_tokens(base.model, ids, top=2)
    monkeypatch.setattr("tunesmith.sampling.CHUNK_LOGITS", 7 * 259)
    again = text_tokens(base.model, ids, top=2)
    assert [token.id for token in again] == ids and whole[0].logprob is None
    assert [token.logprob for token in again[1:]] == pytest.approx([token.logprob for token in whole[1:]], abs=1e-5)
    assert [[other for other, _ in token.top] for token in again] == [[id for id, _ in token.top] for token in whole]
