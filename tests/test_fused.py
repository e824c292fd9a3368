"""The fused forms give what the stock forward gives, and leave the model as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from tests.conftest import FAMILIES
from tests.test_trie import gradient, plain
from tunesmith import fused
from tunesmith.model import load_base
from tunesmith.nll import label_nll_N
from tunesmith.render import Rendered
from tunesmith.trie import lay_out

START = tuple(range(10, 30))
ROWS = [Rendered((*START, *tail), (False,) * 20 + (True,) * len(tail)) for tail in ((5, 6), (5, 7, 8), (9,))]
WEIGHTS = [1.0, 2.0, 0.5]


def adapted(folder: Path, **options: Any) -> Any:
    """A tiny model with an adapter whose B is not zero, so that A has a gradient too."""
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=6, target_modules="all-linear", task_type="CAUSAL_LM", **options)
    model = get_peft_model(load_base(str(folder), precision="float32").model, config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"use_dora": True}, {"lora_bias": True}], ids=str)
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_loss_and_adapter_gradients_equal_stock_peft(
    name: str, options: dict[str, Any], tiny_family: Callable[[str], Path]
) -> None:
    model = adapted(tiny_family(name), **options)
    loss, expected = plain(model, ROWS, WEIGHTS)
    model.zero_grad(set_to_none=True)
    trie = lay_out(ROWS, WEIGHTS)
    found = (label_nll_N(model, trie) * trie.weights_N).sum()
    found.backward()
    assert found.item() == pytest.approx(loss, rel=1e-5)
    assert (gradient(model) - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("name", FAMILIES)
def test_layers_computed_again_give_the_same_bits(
    name: str, dropout: float, tiny_family: Callable[[str], Path]
) -> None:
    model = adapted(tiny_family(name), lora_dropout=dropout).train()
    trie = lay_out(ROWS, WEIGHTS)
    found = []
    for recompute in (False, True):
        model.zero_grad(set_to_none=True)
        torch.manual_seed(1)
        label_nll_N(model, trie, recompute=recompute).sum().backward()
        found.append(gradient(model))
    assert torch.equal(*found)
    assert found[0].norm() > 0


@pytest.mark.parametrize("name", FAMILIES)
def test_rotary_positions_are_turned_in_the_fused_form_wherever_they_are_those_of_llama(
    name: str, tiny_family: Callable[[str], Path]
) -> None:
    """Phi turns a part of each head, by a function of its own: it keeps that."""
    layers = load_base(str(tiny_family(name)), precision="float32").model.get_decoder().layers
    found = fused._rotating_forward(type(layers[0].self_attn).forward)
    assert (found is not None) == (name != "phi3")
    assert fused._rotating_forward(type(layers[0].mlp).forward) is None


@pytest.mark.parametrize("name", FAMILIES)
def test_the_model_is_as_it_was_afterwards(name: str, tiny_family: Callable[[str], Path]) -> None:
    model = adapted(tiny_family(name))
    kind = model.config._attn_implementation
    ids_BT = torch.tensor([START])
    before = model(input_ids=ids_BT).logits
    trie = lay_out(ROWS, WEIGHTS)
    label_nll_N(model, trie)
    assert not [module for module in model.modules() if "forward" in vars(module)]
    assert model.config._attn_implementation == kind
    assert torch.equal(model(input_ids=ids_BT).logits, before)


def test_a_failing_forward_restores_the_model_too(tiny_base: Path) -> None:
    model = adapted(tiny_base)
    trie = lay_out([Rendered((10**6, 5, 6), (False, True, True))], [1.0])  # an id outside the vocabulary
    with pytest.raises(IndexError):
        label_nll_N(model, trie)
    assert not [module for module in model.modules() if "forward" in vars(module)]


def test_dropout_is_still_dropped_out(tiny_base: Path) -> None:
    model = adapted(tiny_base, lora_dropout=0.5).train()
    trie = lay_out(ROWS, WEIGHTS)
    assert not torch.equal(label_nll_N(model, trie), label_nll_N(model, trie))
    model.eval()
    assert torch.equal(label_nll_N(model, trie), label_nll_N(model, trie))


def test_a_disabled_adapter_is_the_base(tiny_base: Path) -> None:
    model = adapted(tiny_base)
    trie = lay_out(ROWS, WEIGHTS)
    with torch.no_grad(), model.disable_adapter():
        off = label_nll_N(model, trie)
    assert torch.equal(off, label_nll_N(load_base(str(tiny_base), precision="float32").model, trie))
