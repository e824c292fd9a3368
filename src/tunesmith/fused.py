"""Faster forms of a model's own parts while it trains: the same result, fewer passes over memory.

Not here: attention (attention), the loss (nll). `fused(model)` exchanges forwards for the time of a `with` block and
leaves alone what it does not know; the preflight compares with the stock forward. Source: LoRAFusion (2510.00206).
Axes: T rows, I inputs, O outputs, R rank.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from tunesmith.products import linear, linear_input_gradient

ROW_WISE = ("self_attn.q_proj", "self_attn.o_proj", "mlp")  # of a layer: what computes each row on its own
Forward = Callable[..., torch.Tensor]


@contextlib.contextmanager
def fused(model: Any, *, last_rows_N: torch.Tensor) -> Iterator[None]:
    """While open, plain LoRA layers and frozen RMS norms of `model` compute in the fused form, and the parts of the
    last layer that treat each row alone compute `last_rows_N` only; their other rows are zero."""
    from peft.tuners.lora.layer import Linear

    with contextlib.ExitStack() as exchanges:
        for module in model.modules():
            if type(module) is Linear and _is_plain(module):
                exchanges.enter_context(_exchanged(module, partial(_lora_forward, module)))
            elif _is_frozen_rms_norm(module):
                exchanges.enter_context(_exchanged(module, partial(_norm_forward, module)))
        for module in _row_wise(model.get_decoder().layers[-1]):
            exchanges.enter_context(_exchanged(module, _at_rows(module.forward, last_rows_N)))
        yield


@contextlib.contextmanager
def recomputed(layers: Iterable[Any], forms: Callable[[], contextlib.AbstractContextManager[Any]]) -> Iterator[None]:
    """While open, the layers keep only their input; `forms()` is opened when the backward pass computes them again."""
    again = partial(checkpoint, use_reentrant=False, context_fn=lambda: (contextlib.nullcontext(), forms()))
    with contextlib.ExitStack() as exchanges:
        for layer in layers:
            exchanges.enter_context(_exchanged(layer, partial(again, layer.forward)))
        yield


@contextlib.contextmanager
def _exchanged(module: Any, forward: Forward) -> Iterator[None]:
    before = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if before:
            module.forward = before


def _row_wise(layer: Any) -> Iterator[Any]:
    for name in ROW_WISE:
        with contextlib.suppress(AttributeError):
            yield layer.get_submodule(name)


def _at_rows(forward: Forward, rows_N: torch.Tensor) -> Forward:
    def at_rows(x_BTC: torch.Tensor) -> torch.Tensor:
        y_BNC = forward(x_BTC.index_select(1, rows_N))
        return y_BNC.new_zeros(1, x_BTC.shape[1], y_BNC.shape[-1]).index_copy(1, rows_N, y_BNC)

    return at_rows


def _is_plain(layer: Any) -> bool:
    """One adapter, nothing beside A and B, a frozen dense base: what the function below computes."""
    name = layer.active_adapters[0]
    return (
        len(layer.active_adapters) == 1
        and name in layer.lora_A
        and name not in layer.lora_variant
        and not layer.lora_bias[name]
        and type(layer.base_layer) is torch.nn.Linear
        and not layer.base_layer.weight.requires_grad
    )


def _lora_forward(layer: Any, x: torch.Tensor) -> torch.Tensor:
    name = layer.active_adapters[0]
    if layer.disable_adapters or layer.merged:
        return layer.base_layer(x)
    dropout = layer.lora_dropout[name]
    if layer.training and getattr(dropout, "p", 0.0) > 0:
        return type(layer).forward(layer, x)
    base = layer.base_layer
    a_RI, b_OR = layer.lora_A[name].weight, layer.lora_B[name].weight
    return _LoraLinear.apply(x, base.weight, base.bias, a_RI, b_OR, layer.scaling[name])


class _LoraLinear(torch.autograd.Function):
    """y = x W' + bias + s (x A') B', added up inside the products; x and x A' are all that is kept."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        w_OI: torch.Tensor,
        bias_O: torch.Tensor | None,
        a_RI: torch.Tensor,
        b_OR: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        x_TI = x.reshape(-1, x.shape[-1])
        a, b = a_RI.to(x.dtype), b_OR.to(x.dtype)
        h_TR = x_TI @ a.t()
        y_TO = linear(x_TI, w_OI, bias_O=bias_O)
        y_TO.addmm_(h_TR, b.t(), alpha=scale)
        ctx.save_for_backward(x_TI, w_OI, a_RI, b_OR, h_TR)
        ctx.scale = scale
        return y_TO.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_TI, w_OI, a_RI, b_OR, h_TR = ctx.saved_tensors
        dy_TO = grads[0].reshape(-1, len(w_OI))
        a, b = a_RI.to(dy_TO.dtype), b_OR.to(dy_TO.dtype)
        dh_TR = (dy_TO @ b).mul_(ctx.scale)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = linear_input_gradient(dy_TO, w_OI)
            dx.addmm_(dh_TR, a)
            dx = dx.view(*grads[0].shape[:-1], -1)
        da = (dh_TR.t() @ x_TI).to(a_RI.dtype)
        db = (h_TR.t() @ dy_TO).mul_(ctx.scale).t().to(b_OR.dtype)  # this way round MKL is half as fast again
        return dx, None, None, da, db, None


def _is_frozen_rms_norm(module: Any) -> bool:
    """The form that Llama, Mistral, Qwen and Phi share; Gemma's scales by 1 + weight and keeps its own."""
    own = type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon")
    return own and not module.weight.requires_grad


def _norm_forward(norm: Any, x: torch.Tensor) -> torch.Tensor:
    return _RmsNorm.apply(x, norm.weight, norm.variance_epsilon)


class _RmsNorm(torch.autograd.Function):
    """x / sqrt(mean(x^2) + eps) * weight, in float32; only x and one number a row are kept."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight_C: torch.Tensor, eps: float) -> torch.Tensor:
        x32 = x.float()
        norm = torch.linalg.vector_norm(x32, dim=-1, keepdim=True)
        scale = torch.rsqrt(norm.square_().div_(x.shape[-1]).add_(eps))
        ctx.save_for_backward(x, weight_C, scale)
        return (x32 * scale).to(x.dtype) * weight_C

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight_C, scale = ctx.saved_tensors
        x32 = x.float()
        slope = (grads[0] * weight_C).float()
        along = torch.linalg.vecdot(slope, x32)[..., None] * (scale**3 / -x.shape[-1])
        return slope.mul_(scale).addcmul_(x32, along).to(x.dtype), None, None
