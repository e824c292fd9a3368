"""Layers computed as one product give what each gives alone, in whatever order they are asked."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.joint import Joint, can_join
from tunesmith.mixture import Group

INPUTS, OUTPUTS = 5, (6, 2, 4)


class Adds:
    """A use that adds a number to all outputs."""

    def __init__(self, number: float) -> None:
        self.number = number

    def add(self, group: Group, *, x: torch.Tensor, y: torch.Tensor) -> None:
        assert y.shape == (*x.shape[:-1], sum(group.outputs))
        y.add_(self.number)


def layers(*, bias: bool) -> list[torch.nn.Linear]:
    torch.manual_seed(0)
    return [torch.nn.Linear(INPUTS, outputs, bias=bias) for outputs in OUTPUTS]


@settings(max_examples=40, deadline=None)
@given(
    asked=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1), st.integers(0, 2)), max_size=12), bias=st.booleans()
)
def test_each_layer_gives_its_own_output_in_any_order(asked: list[tuple[int, int, int]], bias: bool) -> None:
    linears, xs, uses = layers(bias=bias), torch.randn(2, 3, INPUTS).unbind(), [None, Adds(1.0), Adds(2.0)]
    with torch.inference_mode():
        expected = [[linear(x) for linear in linears] for x in xs]
        joint = Joint(Group("", tuple(linears), INPUTS, OUTPUTS), onednn_from=float("inf"))
        for place, number, kind in asked:
            use = uses[kind]
            found = joint.product(place, xs[number], use=use)
            wanted = expected[number][place] + (use.number if use else 0.0)
            torch.testing.assert_close(found, wanted)
            found.fill_(9.0)  # it may be written to
        for linear, wanted in zip(linears, expected[0], strict=True):
            torch.testing.assert_close(linear(xs[0]), wanted)


def test_what_is_not_alike_is_not_joined() -> None:
    linears = layers(bias=True)
    assert can_join(linears) and can_join(linears[:1])
    assert not can_join([linears[0], torch.nn.Linear(INPUTS, 2, bias=False)])
    assert not can_join([linears[0], torch.nn.Linear(INPUTS, 2, dtype=torch.bfloat16)])
    assert not can_join([linears[0], torch.nn.LazyLinear(2)])
