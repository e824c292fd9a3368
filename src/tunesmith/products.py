"""Matrix products: the precision and the library's route that are fast on this machine, measured, and the products.

Not here: what is multiplied (fused, nll), the peak that utilisation is a share of (train.meter). model asks for the
precision, train says both choices with their reasons. A choice must win clearly, so that it comes out the same again.
Axes: T rows, I inputs, O outputs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache, lru_cache
from math import inf

import torch

WIDE, PART = 1536, 768  # outputs: with AVX2, so wide a product is 1.1 to 1.3 times as fast in parts (MKL, two threads)
CLEARLY = 1.3  # times as fast as the default
DECODING_CLEARLY = 1.05
DECODING_ROWS = (16, 4, 1)  # MKL is the faster one for few rows, on Intel's and with AVX-512
SHAPE = (256, 576, 1536)  # T, I, O: as wide as a small model's
ENOUGH_S = 0.2  # of measuring a precision: one that is emulated takes as long for each turn


@lru_cache(maxsize=4)
def choose_dtype(precision: str) -> tuple[torch.dtype, str]:
    """The precision of the frozen base and why: what was asked, or by a short measurement.

    Processors without native support emulate bfloat16 several times slower, and their flags do not tell reliably.
    """
    if precision != "auto":
        return getattr(torch, precision), "asked for"
    if torch.cuda.is_available():
        return torch.bfloat16, "an accelerator multiplies it fastest"
    rates = {dtype: max(_rates(dtype).values()) for dtype in (torch.float32, torch.bfloat16)}
    best = torch.bfloat16 if rates[torch.bfloat16] > CLEARLY * rates[torch.float32] else torch.float32
    measured = ", ".join(f"{str(dtype)[6:]} {rate:.0f}" for dtype, rate in rates.items())
    return best, f"measured matrix products: {measured} GFLOP/s a core"


@lru_cache(maxsize=4)
def choose_route(dtype: torch.dtype) -> tuple[str, str]:
    """Which of torch's libraries multiplies on the processor, and why: "default", or "onednn" where it is clearly
    faster, as in float32 on AMD processors with AVX-512, which MKL leaves unused (pytorch/builder#504)."""
    rates = _rates(dtype)
    if "onednn" not in rates:
        return "default", "the only one for this precision and processor"
    route = "onednn" if rates["onednn"] > CLEARLY * rates["default"] else "default"
    return route, "measured: " + ", ".join(f"{name} {rate:.0f}" for name, rate in rates.items()) + " GFLOP/s"


def fewest_rows_for_onednn(w_OI: torch.Tensor) -> float:
    """How many rows a decoding step must have so that its products are clearly faster by oneDNN; inf where they never
    are. Give it the largest weights of a base: a step reads more than stays in the cache. Only float32 on a processor
    is measured."""
    if w_OI.device.type != "cpu" or w_OI.dtype != torch.float32 or not torch.backends.mkldnn.is_available():
        return inf
    fewest = inf
    for rows in DECODING_ROWS:
        x_TI, best = w_OI.new_ones(rows, w_OI.shape[1]), {1: inf, inf: inf}
        for _ in range(3):
            for onednn_from in best:
                start = time.perf_counter()
                decoding_product(x_TI, w_OI, onednn_from=onednn_from)
                best[onednn_from] = min(best[onednn_from], time.perf_counter() - start)
        if best[inf] < DECODING_CLEARLY * best[1]:
            break
        fewest = rows
    return fewest


def decoding_product(
    x: torch.Tensor, w_OI: torch.Tensor, *, bias_O: torch.Tensor | None = None, onednn_from: float
) -> torch.Tensor:
    """x W' + bias without a gradient, by oneDNN where x has so many rows."""
    if x.numel() < onednn_from * x.shape[-1]:
        return torch.nn.functional.linear(x, w_OI, bias_O)
    return _onednn(x, w_OI, bias_O)


def linear(x_TI: torch.Tensor, w_OI: torch.Tensor, *, bias_O: torch.Tensor | None = None) -> torch.Tensor:
    """x W' + bias by the faster route. No gradient of its own: for autograd functions."""
    if _by_onednn(x_TI, w_OI):
        return _onednn(x_TI, w_OI, bias_O)
    plain = bias_O is None and x_TI.device.type == "cpu" and x_TI.dtype == torch.float32
    if not plain or len(w_OI) < WIDE or _has_avx512():
        return torch.nn.functional.linear(x_TI, w_OI, bias_O)
    y_TO = x_TI.new_empty(len(x_TI), len(w_OI))
    for start in range(0, len(w_OI), PART):
        part = slice(start, start + PART)
        torch.mm(x_TI, w_OI[part].t(), out=y_TO[:, part])
    return y_TO


def linear_input_gradient(
    dy_TO: torch.Tensor, w_OI: torch.Tensor, *, onto_TI: torch.Tensor | None = None
) -> torch.Tensor:
    """dy W, the gradient of `linear` by its input; added to `onto_TI`, in place, where that is given."""
    if _by_onednn(dy_TO, w_OI):
        dx_TI = _onednn(dy_TO, w_OI.t(), None)
        return dx_TI if onto_TI is None else onto_TI.add_(dx_TI)
    return dy_TO @ w_OI if onto_TI is None else onto_TI.addmm_(dy_TO, w_OI)


def _by_onednn(x: torch.Tensor, w: torch.Tensor) -> bool:
    plain = x.device.type == "cpu" and x.dtype == w.dtype and x.dtype == torch.float32 and x.is_contiguous()
    return plain and choose_route(x.dtype)[0] == "onednn"


def _onednn(x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    y: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, w, bias, "none", [], "")
    return y


@cache
def _has_avx512() -> bool:
    return bool(torch.backends.cpu.get_cpu_capability() == "AVX512")


@lru_cache(maxsize=4)
def _rates(dtype: torch.dtype) -> dict[str, float]:
    """GFLOP/s on one thread of each route there is, for a product and its input gradient.

    The routes take turns and processor seconds are counted, so that a busy machine does not choose.
    """
    T, I, O = SHAPE  # noqa: E741
    generator = torch.Generator().manual_seed(0)  # of its own: a training's random numbers stay as they are
    x, w, dy = (torch.empty(shape).normal_(generator=generator).to(dtype) for shape in ((T, I), (O, I), (T, O)))
    routes: dict[str, Callable[[], object]] = {"default": lambda: (torch.nn.functional.linear(x, w), dy @ w)}
    if dtype == torch.float32 and _has_avx512():
        routes["onednn"] = lambda: (_onednn(x, w, None), _onednn(dy, w.t(), None))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    best = dict.fromkeys(routes, float("inf"))
    begun = time.thread_time()
    for turn in range(6):
        if turn > 1 and time.thread_time() - begun > ENOUGH_S:
            break
        for name, run in routes.items():
            start = time.thread_time()
            run()
            if turn:  # the first warms up
                best[name] = min(best[name], time.thread_time() - start)
    torch.set_num_threads(threads)
    return {name: 2 * 2 * T * I * O / seconds / 1e9 for name, seconds in best.items()}
