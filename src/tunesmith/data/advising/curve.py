"""How the error falls with rows, on a fast proxy, and where it goes with twice and four times as many.

Not here: what follows from it for a person (advice). The proxy: a least-squares classifier over TF-IDF of words and
letters; a language model starts lower, and its curve bends alike (Hestness et al. 2017; Viering and Loog 2022).
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

SHARES = (0.125, 0.25, 0.5, 1.0)
ROUNDS = 6  # different held-out fifths
HELD = 0.2
MAX_ROWS = 4000  # of a larger file a sample is measured: the solve grows with the cube
RIDGE = 0.3
AHEAD = (1.0, 2.0, 4.0)  # times the rows: those held out to measure are trained on in the end
DRAWS = 400
EXPONENTS = np.linspace(0.05, 1.5, 30)
FLOORS = np.linspace(0.0, 0.95, 20)  # of the lowest error seen

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Point:
    """Mean error (0 to 1) of rows not trained on, after training on so many; between `low` and `high` in 95 of 100."""

    rows: int
    error: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Curve:
    """`measured` on 1/8 to all of what is not held out; `expected` with all rows, and 2 and 4 times as many.
    `recall`: of each label, held out; `num_rows`: the sample that was measured."""

    target: str
    num_rows: int
    measured: tuple[Point, ...]
    expected: tuple[Point, ...]
    recall: dict[str, float]
    mistaken_for: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def learning_curve(
    texts: Sequence[str], labels: Sequence[str], *, groups: Sequence[str], target: str = "answer", seed: int = 0
) -> Curve:
    """Measure and extrapolate. Texts of one group never stand on both sides. Needs two labels and a dozen groups."""
    rows = _sample(len(texts), seed)
    kernel = _kernel([texts[row] for row in rows])
    names = sorted({labels[row] for row in rows})
    wanted = np.array([names.index(labels[row]) for row in rows])
    units = _units([groups[row] for row in rows], wanted)
    errors_RS, sizes_S = np.zeros((ROUNDS, len(SHARES))), np.zeros(len(SHARES))
    confusion = np.zeros((len(names), len(names)))
    for turn in range(ROUNDS):
        train, held = _parts(units, random.Random(f"{seed}/{turn}"))
        for place, share in enumerate(SHARES):
            part = train[: max(2, round(share * len(train)))]
            found = _predict(kernel, wanted, train=part, held=held, num_labels=len(names))
            errors_RS[turn, place] = np.mean(found != wanted[held])
            sizes_S[place] += len(part) / ROUNDS
        np.add.at(confusion, (wanted[held], found), 1)
    num_tested = min(len(rows), round(ROUNDS * HELD * len(rows)))
    measured, expected = _extrapolate(
        errors_RS, sizes_S, np.array(AHEAD) * len(texts), num_tested=num_tested, seed=seed
    )
    return Curve(target, len(rows), measured, expected, *_by_label(names, confusion))


def _sample(num_rows: int, seed: int) -> list[int]:
    if num_rows <= MAX_ROWS:
        return list(range(num_rows))
    return sorted(random.Random(seed).sample(range(num_rows), MAX_ROWS))


def _kernel(texts: Sequence[str]) -> Floats:
    """Inner products (N, N) of the texts' TF-IDF vectors."""
    from scipy.sparse import hstack
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
    letters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)
    features = hstack([letters.fit_transform(texts), words.fit_transform(texts)]).tocsr()
    return np.asarray((features @ features.T).todense())


def _units(groups: Sequence[str], wanted: NDArray[np.int64]) -> dict[int, list[list[int]]]:
    """The rows by label, in groups that stay together."""
    together: dict[str, list[int]] = defaultdict(list)
    for row, group in enumerate(groups):
        together[group].append(row)
    units: dict[int, list[list[int]]] = defaultdict(list)
    for rows in together.values():
        units[int(wanted[rows[0]])].append(rows)
    return units


def _parts(units: dict[int, list[list[int]]], draw: random.Random) -> tuple[list[int], list[int]]:
    """Train and held-out rows; each label gives its fifth. The train rows are in such an order that any part from the
    start holds the labels in their shares."""
    placed: list[tuple[float, list[int]]] = []
    held: list[int] = []
    for groups in units.values():
        order = draw.sample(groups, len(groups))
        # A fifth of a small class is no whole number: the rest is drawn.
        cut = int(HELD * len(order) + draw.random())
        held += [row for rows in order[:cut] for row in rows]
        kept = order[cut:]
        placed += [((place + draw.random()) / len(kept), rows) for place, rows in enumerate(kept)]
    placed.sort(key=lambda item: item[0])
    if not held:
        held = placed.pop()[1]
    return [row for _, rows in placed for row in rows], held


def _predict(
    kernel: Floats, wanted: NDArray[np.int64], *, train: list[int], held: list[int], num_labels: int
) -> NDArray[np.int64]:
    """Ridge regression onto one column per label, in its dual form; the label of the highest column."""
    seen = wanted[train]
    targets = -np.ones((len(train), num_labels))
    targets[np.arange(len(train)), seen] = 1.0
    inner = kernel[np.ix_(train, train)] + RIDGE * np.eye(len(train))
    scores = kernel[np.ix_(held, train)] @ np.linalg.solve(inner, targets)
    missing = np.setdiff1d(np.arange(num_labels), seen)
    scores[:, missing] = -np.inf
    return np.asarray(scores.argmax(axis=1))


def _extrapolate(
    errors_RS: Floats, sizes_S: Floats, ahead: Floats, *, num_tested: int, seed: int
) -> tuple[tuple[Point, ...], tuple[Point, ...]]:
    """Points with 95 % intervals. Each draw takes rounds with replacement, adds the noise of testing on `num_tested`
    rows, and fits a power law, with and without a floor: what the four points cannot tell apart widens the interval."""
    rng = np.random.default_rng(seed)
    seen, coming = [], []
    mean_S = errors_RS.mean(axis=0)
    for _ in range(DRAWS):
        drawn_S = errors_RS[rng.integers(0, len(errors_RS), len(errors_RS))].mean(axis=0)
        # A lucky file shifts all points alike: once for the rows it is tested on, once for those it is trained on.
        spread = np.sqrt(2 * np.maximum(mean_S * (1 - mean_S), 1e-4) / num_tested)
        drawn_S = np.clip(drawn_S + rng.normal() * spread, 1e-4, 1.0)
        seen.append(drawn_S)
        coming += [_power_law(sizes_S, drawn_S, ahead, floors) for floors in (FLOORS[:1], FLOORS)]
    return _points(sizes_S, np.array(seen), middle=mean_S), _points(ahead, np.array(coming))


def _power_law(sizes_S: Floats, errors_S: Floats, ahead: Floats, floors: Floats) -> Floats:
    """Errors at `ahead` by the best c + a n^-b with c among `floors` (shares of the lowest error)."""
    relative = sizes_S / sizes_S[-1]
    powers_BS = relative ** -EXPONENTS[:, None]
    floors_C = floors * errors_S.min()
    above_CS = errors_S - floors_C[:, None]
    # a by least squares of relative errors, for every b and c at once
    weighted_BS = powers_BS / errors_S
    factors_BC = weighted_BS @ (above_CS / errors_S).T / (weighted_BS**2).sum(axis=1, keepdims=True)
    fitted_BCS = factors_BC[:, :, None] * powers_BS[:, None, :] + floors_C[None, :, None]
    loss_BC = (((fitted_BCS - errors_S) / errors_S) ** 2).sum(axis=2)
    b, c = np.unravel_index(int(loss_BC.argmin()), loss_BC.shape)
    found = floors_C[c] + factors_BC[b, c] * (ahead / sizes_S[-1]) ** -EXPONENTS[b]
    return np.asarray(np.minimum(found, errors_S[-1]))


def _points(sizes: Floats, draws: Floats, *, middle: Floats | None = None) -> tuple[Point, ...]:
    low, median, high = np.quantile(draws, (0.025, 0.5, 0.975), axis=0)
    centre = median if middle is None else middle
    return tuple(
        Point(round(size), round(float(mid), 4), round(float(min(down, mid)), 4), round(float(max(up, mid)), 4))
        for size, mid, down, up in zip(sizes, centre, low, high, strict=True)
    )


def _by_label(names: Sequence[str], confusion: Floats) -> tuple[dict[str, float], dict[str, str]]:
    """Share of each label's held-out rows that were found, and what the others were most often taken for."""
    totals = confusion.sum(axis=1)
    recall = {name: round(float(confusion[i, i] / totals[i]), 4) for i, name in enumerate(names) if totals[i]}
    wrong = confusion - np.diag(np.diag(confusion))
    taken = {name: names[int(wrong[i].argmax())] for i, name in enumerate(names) if wrong[i].any()}
    return recall, taken
