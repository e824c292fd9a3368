"""Logits a chunk at a time: the same losses and gradients, memory that does not grow with the prompt."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.test_fused import ROWS, WEIGHTS, adapted
from tests.test_trie import gradient
from tunesmith import nll
from tunesmith.nll import label_nll_N
from tunesmith.trie import lay_out


@pytest.mark.parametrize("cap", [0.0, 3.0])
def test_chunks_of_any_size_give_cross_entropy_its_gradient_and_what_is_right(
    cap: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    hidden, weight, bias = torch.randn(7, 8), torch.randn(11, 8), torch.randn(11)
    labels, slopes = torch.randint(0, 11, (7,)), torch.randn(7)
    stock = hidden.clone().requires_grad_()
    logits = torch.nn.functional.linear(stock, weight, bias)
    labels[:3] = logits[:3].argmax(-1)
    expected = torch.nn.functional.cross_entropy(nll._capped(logits, cap), labels, reduction="none")
    (expected * slopes).sum().backward()
    for rows in (1, 3, 100):
        monkeypatch.setattr(nll, "CHUNK_LOGITS", rows * 11)
        ours = hidden.clone().requires_grad_()
        found, right = nll._HeadNll.apply(ours, weight, bias, labels, cap)
        assert right.tolist() == (logits.argmax(-1) == labels).tolist() and not right.requires_grad
        (found * slopes).sum().backward()
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(ours.grad, stock.grad)


def test_over_a_large_vocabulary_the_gradient_is_that_of_float64() -> None:
    """torch's own log-softmax in float32 misses both bounds."""
    torch.manual_seed(0)
    hidden, weight, labels = torch.randn(20, 16), torch.randn(50_000, 16), torch.randint(0, 50_000, (20,))
    exact = hidden.double().requires_grad_()
    expected = torch.nn.functional.cross_entropy(exact @ weight.double().t(), labels, reduction="none")
    expected.sum().backward()
    assert exact.grad is not None
    ours = hidden.clone().requires_grad_()
    found, _ = nll._HeadNll.apply(ours, weight, None, labels, 0.0)
    found.sum().backward()
    assert (found - expected).abs().max() <= 5e-6
    assert (ours.grad - exact.grad).norm() <= 2e-6 * exact.grad.norm()


def test_an_adapter_on_the_output_layer_is_trained(tiny_base: Path) -> None:
    model = adapted(tiny_base, modules_to_save=None)
    from peft import LoraConfig

    model.add_adapter("head", LoraConfig(r=2, target_modules=["lm_head"], task_type="CAUSAL_LM"))
    model.set_adapter("head")
    trie = lay_out(ROWS, WEIGHTS)
    label_nll_N(model, trie).sum().backward()
    assert gradient(model).norm() > 0


def test_no_gradient_is_prepared_where_none_is_asked(tiny_base: Path) -> None:
    with torch.inference_mode():
        assert not label_nll_N(adapted(tiny_base), lay_out(ROWS, WEIGHTS)).requires_grad
