"""Faster forms of a model's own parts while it trains: the same result, fewer passes over memory.

Not here: attention (attention), the loss (nll). `fused(model)` exchanges forwards for the time of a `with` block and
leaves alone what it does not know; the preflight compares with the stock forward. Source: LoRAFusion (2510.00206).
Axes: T rows, I inputs, O outputs, R rank.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from types import FunctionType
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from tunesmith.products import linear, linear_input_gradient

SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # of a module: linear layers of one input
ROW_WISE = ("self_attn.q_proj", "self_attn.o_proj", "mlp")  # of a layer: what computes each row on its own
Forward = Callable[..., torch.Tensor]


@contextlib.contextmanager
def fused(model: Any, *, last_rows_N: torch.Tensor) -> Iterator[None]:
    """While open, plain LoRA layers, frozen RMS norms and rotary positions of `model` compute in the fused form, and
    the parts of the last layer that treat each row alone compute `last_rows_N` only; their other rows are zero."""
    apart = list(_row_wise(model.get_decoder().layers[-1]))
    with (
        _exchanged(_fast_forms(model, {id(module) for module in apart})),
        _exchanged((module, _at_rows(module.forward, last_rows_N)) for module in apart),
    ):
        yield


def _fast_forms(module: Any, apart: set[int]) -> Iterator[tuple[Any, Forward]]:
    """The modules that have a faster forward, each with it, from `module` down to LoRA layers, not into them."""
    from peft.tuners.lora.layer import LoraLayer

    for layers in _lora_groups(module, apart):
        together = _Together(layers)
        yield from ((layer, partial(together.forward, place)) for place, layer in enumerate(layers))
    if _is_frozen_rms_norm(module):
        yield module, partial(_norm_forward, module)
    if rotating := _rotating_forward(type(module).forward):
        yield module, partial(rotating, module)
    for child in module.children():
        if not isinstance(child, LoraLayer):
            yield from _fast_forms(child, apart)


@contextlib.contextmanager
def recomputed(layers: Iterable[Any], forms: Callable[[], contextlib.AbstractContextManager[Any]]) -> Iterator[None]:
    """While open, the layers keep only their input; `forms()` is opened when the backward pass computes them again."""
    again = partial(checkpoint, use_reentrant=False, context_fn=lambda: (contextlib.nullcontext(), forms()))
    with _exchanged((layer, partial(again, layer.forward)) for layer in layers):
        yield


@contextlib.contextmanager
def _exchanged(forwards: Iterable[tuple[Any, Forward]]) -> Iterator[None]:
    """While open, each module has the forward beside it. Written past torch's `__setattr__`, which takes longer."""
    before = []
    try:
        for module, forward in forwards:
            before.append((module, vars(module).get("forward")))
            vars(module)["forward"] = forward
        yield
    finally:
        for module, forward in reversed(before):
            if forward is None:
                del vars(module)["forward"]
            else:
                vars(module)["forward"] = forward


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

    The As are stacked, so x is read once for all of them; x, x A' and the stack are kept. R: ranks, all together.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scales: tuple[float, ...], *tensors: Any) -> tuple[torch.Tensor, ...]:
        ws, biases, as_, bs = (tensors[start::4] for start in range(4))
        x_TI = x.reshape(-1, x.shape[-1])
        a_RI = (torch.cat(as_) if len(as_) > 1 else as_[0]).to(x.dtype)
        h_TR = x_TI @ a_RI.t()
        ys = []
        for w_OI, bias_O, b_Or, h_Tr, scale in zip(ws, biases, bs, _of_each(h_TR, bs, dim=1), scales, strict=True):
            y_TO = linear(x_TI, w_OI, bias_O=bias_O)
            ys.append(y_TO.addmm_(h_Tr, b_Or.to(x.dtype).t(), alpha=scale).view(*x.shape[:-1], -1))
        ctx.save_for_backward(x_TI, h_TR, a_RI, *ws, *bs)
        ctx.scales, ctx.a_dtype = scales, as_[0].dtype
        return tuple(ys)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
        count, (x_TI, h_TR, a_RI, *tensors) = len(ctx.scales), ctx.saved_tensors
        ws, bs = tensors[:count], tensors[count:]
        dh_TR = torch.empty_like(h_TR)
        dx_TI, dbs = None, []
        columns = zip(_of_each(h_TR, bs, dim=1), _of_each(dh_TR, bs, dim=1), strict=True)
        for dy, w_OI, b_Or, scale, (h_Tr, dh_Tr) in zip(grads, ws, bs, ctx.scales, columns, strict=True):
            dy_TO = dy.reshape(-1, len(w_OI))
            torch.addmm(dh_Tr, dy_TO, b_Or.to(dy_TO.dtype), beta=0, alpha=scale, out=dh_Tr)
            db_rO = dy_TO.new_empty(b_Or.shape[1], len(w_OI))  # this way round MKL is half as fast again
            torch.addmm(db_rO, h_Tr.t(), dy_TO, beta=0, alpha=scale, out=db_rO)
            dbs.append(db_rO.t().to(b_Or.dtype))
            if ctx.needs_input_grad[0]:
                dx_TI = linear_input_gradient(dy_TO, w_OI, onto_TI=dx_TI)
        if dx_TI is not None:
            dx_TI = dx_TI.addmm_(dh_TR, a_RI).view(*grads[0].shape[:-1], -1)
        das = _of_each((dh_TR.t() @ x_TI).to(ctx.a_dtype), bs, dim=0)
        of_each = (gradient for da, db in zip(das, dbs, strict=True) for gradient in (None, None, da, db))
        return dx_TI, None, *of_each


def _of_each(x: torch.Tensor, bs: Sequence[torch.Tensor], *, dim: int) -> Sequence[torch.Tensor]:
    """The part of the stacked ranks that belongs to each B."""
    return x.split_with_sizes([b_Or.shape[1] for b_Or in bs], dim=dim) if len(bs) > 1 else [x]


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


@cache
def _rotating_forward(forward: Any) -> Forward | None:
    """The stock forward of an attention class, calling our rotation instead of the one that it names; None where that
    is not, to the instruction, the one of Llama, which Mistral, Qwen and Gemma share."""
    from transformers.models.llama import modeling_llama as llama

    code, names = getattr(forward, "__code__", None), getattr(forward, "__globals__", {})
    if code is None or "apply_rotary_pos_emb" not in code.co_names:
        return None
    if not all(_is_same(names.get(name), getattr(llama, name)) for name in ("apply_rotary_pos_emb", "rotate_half")):
        return None
    names = {**names, "apply_rotary_pos_emb": _rotated}
    rotating = FunctionType(code, names, forward.__name__, forward.__defaults__, forward.__closure__)
    rotating.__kwdefaults__ = forward.__kwdefaults__
    return rotating


def _is_same(function: Any, other: Any) -> bool:
    if not (isinstance(function, FunctionType) and isinstance(other, FunctionType)):
        return False
    code, expected = function.__code__, other.__code__
    return (code.co_code, code.co_names) == (expected.co_code, expected.co_names)


def _rotated(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, ...]:
    rotated: tuple[torch.Tensor, ...] = _Rotation.apply(q, k, cos.unsqueeze(1), sin.unsqueeze(1))
    return rotated


class _Rotation(torch.autograd.Function):
    """Rotary positions (Su et al. 2021) of queries and keys, each (1, heads, T, D): x cos + (-x2, x1) sin, x1 and x2
    the halves of D. Its gradient turns back: the signs and the sines change places."""

    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        ctx.save_for_backward(cos, sin)
        sines = sin.chunk(2, dim=-1)
        return _turned(q, cos, *sines, sign=1), _turned(k, cos, *sines, sign=1)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        dq, dk = (_turned(d, cos, *reversed(sin.chunk(2, dim=-1)), sign=-1) for d in grads)
        return dq, dk, None, None


def _turned(x: torch.Tensor, cos: torch.Tensor, sin1: torch.Tensor, sin2: torch.Tensor, *, sign: int) -> torch.Tensor:
    y = x * cos
    (x1, x2), (y1, y2) = x.chunk(2, dim=-1), y.chunk(2, dim=-1)
    y1.addcmul_(x2, sin1, value=-sign)
    y2.addcmul_(x1, sin2, value=sign)
    return y
