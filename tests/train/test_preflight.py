"""The checks before step 1 pass on every family, and see each fault that is put in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import FAMILIES, make_rows
from tunesmith.adapter import attach_lora
from tunesmith.chat import parse_row
from tunesmith.errors import ModelError, RunError
from tunesmith.model import Base, load_base
from tunesmith.render import Rendered
from tunesmith.train import preflight
from tunesmith.train.preflight import check_layout, check_vocabulary, plain_nll_N
from tunesmith.train.rows import Row, render_rows
from tunesmith.trie import Trie, lay_out


def rows_for(base: Base, tiny_rows: Any, num: int = 8) -> list[Row]:
    examples = [example for row in tiny_rows(num) if (example := parse_row(row)[0])]
    return render_rows(examples, base.renderer, max_length=512)[0]


def adapted(base: Base) -> Any:
    torch.manual_seed(0)
    return attach_lora(base, rank=4, alpha=8.0, dropout=0.1, targets="all-linear")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_good_model_passes_and_is_left_as_it_was(
    name: str, precision: str, tiny_family: Callable[[str], Path], tiny_rows: Any
) -> None:
    base = load_base(str(tiny_family(name)), precision=precision)
    rows = rows_for(base, tiny_rows)
    model = adapted(base)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    random = torch.get_rng_state()
    share, words = check_layout(model, rows)
    check_vocabulary(base, rows, embeddings_train=False)
    assert share
    assert "sharing prefixes gives the plain result" in words
    assert "moves the others by 0.0e+00 nats" in words
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("num_rows", [1, 2])
def test_a_row_or_two_are_enough(tiny: Base, tiny_rows: Any, num_rows: int) -> None:
    model = adapted(tiny)
    rows = rows_for(tiny, tiny_rows)[:num_rows]
    assert check_layout(model, rows)[0]
    assert check_layout(model, rows[:1] * 3)[0]  # equal rows have nothing of their own to change


def test_the_reference_is_the_models_own_loss(tiny: Base, tiny_rows: Any) -> None:
    (row, *_) = rows_for(tiny, tiny_rows)
    labels = [token if here else -100 for token, here in zip(row.rendered.ids, row.rendered.trained, strict=True)]
    stock = tiny.model(input_ids=torch.tensor([row.rendered.ids]), labels=torch.tensor([labels])).loss
    assert float(plain_nll_N(tiny.model, row.rendered).mean()) == pytest.approx(float(stock), rel=1e-6)


# -- faults put in: `lay_out` gives the model a layout that lies ------------------------------------------------

Fault = Callable[[Trie], Trie]


def sees_all_before(trie: Trie) -> Trie:
    """Plain packing without isolation: every token sees all tokens before it."""
    return replace(trie, ends_T=torch.full_like(trie.ends_T, len(trie.ids_T)))


def sees_one_more(trie: Trie) -> Trie:
    """One token of the first row is seen by all rows after it."""
    ends_T = trie.ends_T.clone()
    last = int(trie.rows_N[trie.owners_N == trie.owners_N[trie.rows_N.argmin()]].max())
    ends_T[last] = len(trie.ids_T)
    return replace(trie, ends_T=ends_T)


def stands_still(trie: Trie) -> Trie:
    """Every token at position 0. (Starting elsewhere would change nothing: only distances count.)"""
    return replace(trie, positions_T=torch.zeros_like(trie.positions_T))


def label_before(trie: Trie) -> Trie:
    """Labels predicted from the token before the right one."""
    return replace(trie, rows_N=(trie.rows_N - 1).clamp_min(0))


def forgets_weights(trie: Trie) -> Trie:
    return replace(trie, weights_N=torch.ones_like(trie.weights_N))


def lying(monkeypatch: Any, fault: Fault, *, when_shared_only: bool = False) -> None:
    def lie(sequences: Any, weights: Any, *, share: bool) -> Trie:
        trie = lay_out(sequences, weights, share=share)
        return trie if when_shared_only and not share else fault(trie)

    monkeypatch.setattr(preflight, "lay_out", lie)


@pytest.mark.parametrize("fault", [sees_all_before, sees_one_more, stands_still, label_before, forgets_weights])
def test_a_layout_that_changes_the_result_is_used_packed_or_not_at_all(
    fault: Fault, tiny: Base, tiny_rows: Any, monkeypatch: Any
) -> None:
    model = adapted(tiny)
    rows = [replace(row, weight=2.0) for row in rows_for(tiny, tiny_rows)]
    lying(monkeypatch, fault, when_shared_only=True)
    share, words = check_layout(model, rows)
    assert not share
    assert words.startswith("sharing prefixes is off: on this model it changes the result")
    lying(monkeypatch, fault)
    with pytest.raises(RunError, match="do not give what this model gives for each alone"):
        check_layout(model, rows)


def test_in_low_precision_only_the_exact_check_sees_a_small_leak(
    tiny_base: Path, tiny_rows: Any, monkeypatch: Any
) -> None:
    base = load_base(str(tiny_base), precision="bfloat16")
    lying(monkeypatch, sees_one_more)
    model, rows = adapted(base), rows_for(base, tiny_rows)
    with pytest.raises(RunError):
        check_layout(model, rows)
    no_leak_check = replace(preflight.LOW_PRECISION_LIMIT, leak_nats=float("inf"))
    monkeypatch.setattr(preflight, "LOW_PRECISION_LIMIT", no_leak_check)
    assert check_layout(model, rows)[0]


def test_gradients_that_are_wrong_behind_a_right_loss_are_seen(tiny: Base, tiny_rows: Any, monkeypatch: Any) -> None:
    """What a fused kernel with a mistake in its backward pass would look like."""
    real = preflight.label_nll_N

    def half_gradient(model: Any, trie: Trie) -> torch.Tensor:
        nll_N = real(model, trie)
        return nll_N.detach() + 0.999 * (nll_N - nll_N.detach())

    monkeypatch.setattr(preflight, "label_nll_N", half_gradient)
    with pytest.raises(RunError, match=r"of the loss \d\.\de-0[6-9], of the gradients 1\.0e-03"):
        check_layout(adapted(tiny), rows_for(tiny, tiny_rows))


def test_a_base_with_damaged_weights_is_named_as_such(tiny: Base, tiny_rows: Any) -> None:
    with torch.no_grad():
        tiny.model.get_decoder().layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(RunError, match=r"base's own loss on these rows is nan.*damaged"):
        check_layout(adapted(tiny), rows_for(tiny, tiny_rows))


# -- tokens the model does not know -----------------------------------------------------------------------------


def test_a_token_beyond_the_embeddings_is_named(tiny: Base) -> None:
    row = Row(0, Rendered((1, 259, 2), (False, True, True)), 1.0)
    with pytest.raises(ModelError, match="writes token 259, but the model has 259 tokens"):
        check_vocabulary(tiny, [row], embeddings_train=True)


@pytest.mark.parametrize("start", ["another token's", "the mean"])
def test_an_added_token_that_was_never_trained_is_named_unless_embeddings_train(
    start: str, tiny: Base, tiny_rows: Any
) -> None:
    rows = rows_for(tiny, tiny_rows)
    embeddings_VC = tiny.model.get_input_embeddings().weight
    with torch.no_grad():
        embeddings_VC[1] = embeddings_VC[50] if start == "another token's" else embeddings_VC.mean(0)
    with pytest.raises(ModelError, match=r"never trained on its token 1 \('<\|im_start\|>'\)"):
        check_vocabulary(tiny, rows, embeddings_train=False)
    check_vocabulary(tiny, rows, embeddings_train=True)
    without = Row(0, Rendered((5, 6, 2), (False, True, True)), 1.0)
    check_vocabulary(tiny, [without], embeddings_train=False)  # who does not use it does not mind


@pytest.mark.slow
def test_the_embedded_base_passes() -> None:
    from tunesmith.recipe import EMBEDDED_BASE

    base = load_base(EMBEDDED_BASE, precision="float32")
    rows = rows_for(base, make_rows)
    check_vocabulary(base, rows, embeddings_train=False)
    assert check_layout(adapted(base), rows)[0]
