"""Faster forms of a model's own parts while it trains: the same result, fewer passes over memory.

Not here: attention (attention), the loss (nll). `fused(model)` exchanges forwards for the time of a `with` block and
leaves alone what it does not know; the preflight compares with the stock forward. Source: LoRAFusion (2510.00206).
Axes: T rows, I inputs, O outputs, R rank.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from tunesmith.products import linear, linear_input_gradient

SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # of a module: linear layers of one input
ROW_WISE = ("self_attn.q_proj", "self_attn.o_proj", "mlp")  # of a layer: what computes each row on its own
Forward = Callable[..., torch.Tensor]


@contextlib.contextmanager
def fused(model: Any, *, last_rows_N: torch.Tensor) -> Iterator[None]:
    """While open, plain LoRA layers and frozen RMS norms of `model` compute in the fused form, and the parts of the
    last layer that treat each row alone compute `last_rows_N` only; their other rows are zero."""
    apart = {id(module) for module in _row_wise(model.get_decoder().layers[-1])}
    with contextlib.ExitStack() as exchanges:
        for module in model.modules():
            for layers in _lora_groups(module, apart):
                together = _Together(layers)
                for place, layer in enumerate(layers):
                    exchanges.enter_context(_exchanged(layer, partial(together.forward, place)))
            if _is_frozen_rms_norm(module):
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


def _lora_groups(module: Any, apart: set[int]) -> Iterator[list[Any]]:
    """The plain LoRA layers among a module's own children: those of one input together, each of the others alone."""
    from peft.tuners.lora.layer import Linear

    plain = {name: child for name, child in module.named_children() if type(child) is Linear and _is_plain(child)}
    for names in SIBLINGS:
        yield [plain.pop(name) for name in names if name in plain and id(plain[name]) not in apart]
    yield from ([layer] for layer in plain.values())


class _Together:
    """Computes its layers when the first is asked, and hands the others theirs when they come with the same input."""

    def __init__(self, layers: list[Any]) -> None:
        self.layers = layers
        self.x: torch.Tensor | None = None
        self.waiting: dict[int, torch.Tensor] = {}

    def forward(self, place: int, x: torch.Tensor) -> torch.Tensor:
        layer = self.layers[place]
        if layer.disable_adapters or layer.merged:
            return layer.base_layer(x)
        if layer.training and getattr(layer.lora_dropout[layer.active_adapters[0]], "p", 0.0) > 0:
            return type(layer).forward(layer, x)
        if x is not self.x or place not in self.waiting:
            self.x, self.waiting = x, dict(enumerate(_lora_forward(self.layers, x)))
        y = self.waiting.pop(place)
        if not self.waiting:
            self.x = None
        return y


def _lora_forward(layers: list[Any], x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    names = [layer.active_adapters[0] for layer in layers]
    scales = tuple(layer.scaling[name] for layer, name in zip(layers, names, strict=True))
    tensors = []
    for layer, name in zip(layers, names, strict=True):
        base = layer.base_layer
        tensors += [base.weight, base.bias, layer.lora_A[name].weight, layer.lora_B[name].weight]
    return _LoraLinears.apply(x, scales, *tensors)


class _LoraLinears(torch.autograd.Function):
    """y = x W' + bias + s (x A') B' for each (W, bias, A, B) of one x, added up inside the products.

    The As are stacked, so x is read once for all of them; x and x A' are all that is kept. R: ranks, all together.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scales: tuple[float, ...], *tensors: Any) -> tuple[torch.Tensor, ...]:
        ws, biases, as_, bs = (tensors[start::4] for start in range(4))
        x_TI = x.reshape(-1, x.shape[-1])
        h_TR = x_TI @ torch.cat(as_).to(x.dtype).t()
        ys = []
        for w_OI, bias_O, b_Or, h_Tr, scale in zip(ws, biases, bs, _columns(h_TR, bs), scales, strict=True):
            y_TO = linear(x_TI, w_OI, bias_O=bias_O)
            ys.append(y_TO.addmm_(h_Tr, b_Or.to(x.dtype).t(), alpha=scale).view(*x.shape[:-1], -1))
        ctx.save_for_backward(x_TI, h_TR, *ws, *as_, *bs)
        ctx.scales = scales
        return tuple(ys)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
        count, (x_TI, h_TR, *tensors) = len(ctx.scales), ctx.saved_tensors
        ws, as_, bs = tensors[:count], tensors[count : 2 * count], tensors[2 * count :]
        dh_TR = torch.empty_like(h_TR)
        dx_TI, dbs = None, []
        columns = zip(_columns(h_TR, bs), _columns(dh_TR, bs), strict=True)
        for dy, w_OI, b_Or, scale, (h_Tr, dh_Tr) in zip(grads, ws, bs, ctx.scales, columns, strict=True):
            dy_TO = dy.reshape(-1, len(w_OI))
            torch.mm(dy_TO, b_Or.to(dy_TO.dtype), out=dh_Tr).mul_(scale)
            dbs.append((h_Tr.t() @ dy_TO).mul_(scale).t().to(b_Or.dtype))  # this way round MKL is half as fast again
            if ctx.needs_input_grad[0]:
                dx_TI = linear_input_gradient(dy_TO, w_OI, onto_TI=dx_TI)
        if dx_TI is not None:
            dx_TI = dx_TI.addmm_(dh_TR, torch.cat(as_).to(dh_TR.dtype)).view(*grads[0].shape[:-1], -1)
        das = (dh_TR.t() @ x_TI).to(as_[0].dtype).split([len(a) for a in as_])
        of_each = (gradient for da, db in zip(das, dbs, strict=True) for gradient in (None, None, da, db))
        return dx_TI, None, *of_each


def _columns(h_TR: torch.Tensor, bs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    return h_TR.split([b_Or.shape[1] for b_Or in bs], dim=1)


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
