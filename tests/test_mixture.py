"""What adapters add together is what each adds alone, whatever rows there were before."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tunesmith.mixture import Adapter, Group, Many, One, Packed, Parts, Seats

GROUPS = [Group("qkv", (), 5, (6, 2, 4)), Group("o", (), 4, (5,)), Group("gate_up", (), 3, (4, 4))]


def adapter(draw: random.Random, *, rank: int) -> Adapter:
    """Random, on some of the layers."""
    groups = {}
    for group in GROUPS:
        bs = [torch.randn(rank, outputs) if draw.random() < 0.7 else None for outputs in group.outputs]
        if any(b is not None for b in bs):
            groups[group.name] = Packed(torch.randn(len(bs) * rank, group.inputs), tuple(bs))
    return Adapter(Path(), "", "", rank, groups)


def alone(worn: Adapter | None, group: Group, x_I: torch.Tensor) -> torch.Tensor:
    """The plain form, for one token: (O of all layers,)."""
    packed = worn.groups.get(group.name) if worn else None
    if worn is None or packed is None:
        return torch.zeros(sum(group.outputs))
    h = (packed.a @ x_I).split(worn.rank)
    zeros = [torch.zeros(outputs) for outputs in group.outputs]
    return torch.cat([zero if b is None else part @ b for part, b, zero in zip(h, packed.bs, zeros, strict=True)])


ROWS = 6
CHANGES = st.lists(st.lists(st.tuples(st.integers(0, ROWS - 1), st.integers(0, ROWS)), max_size=2), max_size=4)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32), start=st.lists(st.integers(0, ROWS), min_size=1, max_size=ROWS), changes=CHANGES)
@example(seed=3, start=[1, 2, 3, 4, 5], changes=[[(0, 0)]])  # a row of the base at an idle adapter's place
def test_rows_get_what_their_own_adapter_adds(
    seed: int, start: list[int], changes: list[list[tuple[int, int]]]
) -> None:
    draw = random.Random(seed)
    torch.manual_seed(seed)
    ranks = draw.choice([[4], [1, 2, 3, 8]])  # of one rank they stay where they are
    adapters = [None, *(adapter(draw, rank=draw.choice(ranks)) for _ in range(ROWS))]
    seats = Seats({group.name: group for group in GROUPS})
    numbers = list(start)
    for change in [[], *changes]:
        for row, number in change:
            numbers[row % len(numbers)] = number
        worn = tuple(adapters[number] for number in numbers)
        if not any(worn):
            continue
        uses = [(Many(worn, seats, device=torch.device("cpu")), slice(0, len(worn)))]
        last = next(item for item in worn if item is not None)
        uses.append((One(last), slice(len(worn), len(worn) + 2)))
        rows = [*worn, last, last, None]
        for group in GROUPS:
            x_TI, y_TO = torch.randn(1, len(rows), group.inputs), torch.randn(1, len(rows), sum(group.outputs))
            wanted = y_TO[0] + torch.stack([alone(item, group, x_I) for item, x_I in zip(rows, x_TI[0], strict=True)])
            Parts(uses, num_tokens=len(rows)).add(group, x=x_TI, y=y_TO)
            torch.testing.assert_close(y_TO[0], wanted, rtol=1e-4, atol=1e-4)
