"""The choices are stable, and every route gives the same product."""

from __future__ import annotations

import pytest
import torch

from tunesmith import products
from tunesmith.products import choose_dtype, choose_route


def test_the_precision_asked_for_is_taken_and_auto_measures() -> None:
    assert choose_dtype("float32") == (torch.float32, "asked for")
    assert choose_dtype("bfloat16")[0] == torch.bfloat16
    dtype, reason = choose_dtype("auto")
    assert dtype in (torch.float32, torch.bfloat16)
    assert "float32" in reason
    assert "GFLOP/s" in reason
    assert choose_dtype("auto") == (dtype, reason)


def test_the_choice_of_precision_draws_no_random_numbers_and_leaves_the_threads() -> None:
    products._rates.cache_clear()
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    products._rates(torch.float32)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_another_route_must_win_clearly(monkeypatch: pytest.MonkeyPatch) -> None:
    for rate, expected in ((90.0, "default"), (200.0, "onednn")):
        choose_route.cache_clear()
        monkeypatch.setattr(products, "_rates", lambda dtype, rate=rate: {"default": 80.0, "onednn": rate})
        route, reason = choose_route(torch.float32)
        assert route == expected
        assert "80" in reason
    choose_route.cache_clear()


@pytest.mark.parametrize("route", ["default", "onednn"])
def test_each_route_gives_the_product_and_its_gradient(route: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "choose_route", lambda dtype: (route, ""))
    torch.manual_seed(0)
    x, w, bias, dy = torch.randn(7, 16), torch.randn(5, 16), torch.randn(5), torch.randn(7, 5)
    torch.testing.assert_close(products.linear(x, w, bias_O=bias), torch.nn.functional.linear(x, w, bias))
    torch.testing.assert_close(products.linear_input_gradient(dy, w), dy @ w)


def test_a_wide_product_is_the_same_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_has_avx512", lambda: False)
    monkeypatch.setattr(products, "WIDE", 10)
    monkeypatch.setattr(products, "PART", 4)
    torch.manual_seed(0)
    x, w = torch.randn(7, 16), torch.randn(10, 16)
    torch.testing.assert_close(products.linear(x, w), x @ w.t())


def test_decoding_goes_to_onednn_from_so_many_rows_on(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    onednn = products._onednn
    monkeypatch.setattr(products, "_onednn", lambda x, *rest: taken.append(x.shape[-2]) or onednn(x, *rest))
    w = torch.randn(5, 16)
    for rows in (1, 3, 4, 9):
        x = torch.randn(1, rows, 16)
        torch.testing.assert_close(products.decoding_product(x, w, onednn_from=4), x @ w.t())
    assert taken == [4, 9]
    assert products.fewest_rows_for_onednn(torch.randn(64, 16)) in (1, 4, 16, float("inf"))
