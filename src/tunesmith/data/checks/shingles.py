"""Which texts share most of their letters: candidates by MinHash, each verified by the exact similarity.

Not here: what a near match means for a row (near, leaks, split). Works on arrays, so that a million rows take minutes.
MinHash: Broder 1997. Banding: Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets", section 3.4.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

LENGTH = 4  # letters of a shingle; with 5, a typo in a text of three words hides it
BANDS, BAND_ROWS = 24, 3  # a pair of similarity 0.5 is a candidate with probability 0.96, of 0.6 with 0.997
WINDOW = 6  # in a bucket each text is compared with the first and with its 6 neighbours: linear in bad cases too
CHUNK = 20_000
ALL_PAIRS = 100  # so few texts are compared one with each other
COMMON = 0.5  # shingles that stand in more than half of the texts are an instruction around them, not their content
MIN_TEXTS_COMMON, MIN_OWN = 50, 3
SLACK = 0.2  # three standard deviations of a similarity of 0.6 estimated from 72 hashes

Hashes = NDArray[np.uint32]
Indices = NDArray[np.int64]
Number = TypeVar("Number", np.uint64, np.int64)


@dataclass(frozen=True, slots=True)
class Shingles:
    """Of N texts: the hashes of each text's distinct shingles, ascending, one text after the other."""

    hashes_S: Hashes
    starts_N1: Indices  # text n owns hashes_S[starts_N1[n] : starts_N1[n + 1]]

    def of(self, texts_M: Indices) -> tuple[Hashes, Indices]:
        """The hashes of the named texts and, for each hash, which of the M it belongs to."""
        sizes_M = self.starts_N1[texts_M + 1] - self.starts_N1[texts_M]
        owner = np.repeat(np.arange(len(texts_M)), sizes_M)
        offset = np.arange(len(owner)) - np.repeat(np.cumsum(sizes_M) - sizes_M, sizes_M)
        return self.hashes_S[self.starts_N1[texts_M][owner] + offset], owner


def near_pairs(texts: Sequence[str], *, threshold: float) -> tuple[Indices, NDArray[np.float64]]:
    """Pairs (P, 2) of indices, first < second, with Jaccard similarity of at least `threshold`; and the similarities.

    Texts that are equal should be given once. Of pairs of similarity 0.5 one in 25 is missed,
    above 0.6 hardly any.
    """
    if len(texts) < 2:
        return np.empty((0, 2), np.int64), np.empty(0)
    shingles = _without_common(_shingles(texts))
    if len(texts) <= ALL_PAIRS:
        pairs_P2 = np.stack(np.triu_indices(len(texts), 1), axis=1)
    else:
        pairs_P2 = _candidates(_signatures(shingles), threshold - SLACK)
    similarity_P = np.concatenate([np.empty(0), *(_jaccard(shingles, part) for part in _chunks(pairs_P2))])
    near = similarity_P >= threshold
    return pairs_P2[near], similarity_P[near]


def _chunks(items: Indices) -> Iterator[Indices]:
    return (items[start : start + CHUNK] for start in range(0, len(items), CHUNK))


def _shingles(texts: Sequence[str]) -> Shingles:
    hashes, sizes = [], []
    for start in range(0, len(texts), CHUNK):
        padded = [f" {text} ".ljust(LENGTH) for text in texts[start : start + CHUNK]]
        codes = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
        owner = np.repeat(np.arange(len(padded), dtype=np.uint64), [len(text) for text in padded])
        mixed = np.zeros(len(codes) - LENGTH + 1, np.uint64)
        for place in range(LENGTH):
            mixed = (mixed + codes[place : place + len(mixed)]) * np.uint64(0x9E3779B97F4A7C15)
        inside = owner[: len(mixed)] == owner[LENGTH - 1 :]
        keys = _distinct((owner[: len(mixed)][inside] << np.uint64(32)) | (mixed[inside] >> np.uint64(32)))
        hashes.append((keys & np.uint64(0xFFFFFFFF)).astype(np.uint32))
        sizes.append(np.bincount((keys >> np.uint64(32)).astype(np.int64), minlength=len(padded)))
    return Shingles(np.concatenate(hashes), np.concatenate([[0], np.cumsum(np.concatenate(sizes))]).astype(np.int64))


def _distinct(values: NDArray[Number]) -> NDArray[Number]:
    """Sorted, each once; np.unique hashes first, which takes five times as long here."""
    ordered = np.sort(values)
    return ordered[np.concatenate([ordered[:1] == ordered[:1], ordered[1:] != ordered[:-1]])]


def _without_common(shingles: Shingles) -> Shingles:
    num_texts = len(shingles.starts_N1) - 1
    if num_texts < MIN_TEXTS_COMMON:
        return shingles
    sample = np.arange(0, num_texts, max(1, num_texts // CHUNK))
    hashes, counts = np.unique(shingles.of(sample)[0], return_counts=True)
    common = hashes[counts > COMMON * len(sample)]
    own_S = ~np.isin(shingles.hashes_S, common)
    own_N = np.add.reduceat(own_S, shingles.starts_N1[:-1], dtype=np.int64)
    sizes_N = np.diff(shingles.starts_N1)
    few_N = own_N < MIN_OWN  # hardly more than the instruction: such a text keeps all it has
    kept_S = own_S | np.repeat(few_N, sizes_N)
    starts = np.concatenate([[0], np.cumsum(np.where(few_N, sizes_N, own_N))])
    return Shingles(shingles.hashes_S[kept_S], starts.astype(np.int64))


def _signatures(shingles: Shingles) -> Hashes:
    """MinHash signatures (N, BANDS * BAND_ROWS)."""
    factors = np.random.default_rng(0).integers(1, 2**63, BANDS * BAND_ROWS, dtype=np.uint64) * np.uint64(
        2
    ) + np.uint64(1)
    starts_N = shingles.starts_N1[:-1]
    signatures = np.empty((len(starts_N), len(factors)), np.uint32)
    for start in range(0, len(starts_N), CHUNK):
        bounds = shingles.starts_N1[start : start + CHUNK + 1]
        hashes = shingles.hashes_S[bounds[0] : bounds[-1]].astype(np.uint64)
        for column, factor in enumerate(factors):
            drawn = ((hashes * factor) >> np.uint64(32)).astype(np.uint32)
            signatures[start : start + CHUNK, column] = np.minimum.reduceat(drawn, bounds[:-1] - bounds[0])
    return signatures


def _candidates(signatures: Hashes, least: float) -> Indices:
    """Pairs of texts that share a band and whose signatures agree in a share of `least`."""
    num_texts = len(signatures)
    found: list[Indices] = []
    for band in range(BANDS):
        keys = np.zeros(num_texts, np.uint64)
        for column in range(band * BAND_ROWS, (band + 1) * BAND_ROWS):
            keys = (keys + signatures[:, column]) * np.uint64(0x9E3779B97F4A7C15)
            keys ^= keys >> np.uint64(29)
        order = np.argsort(keys, kind="stable")
        for first, second in _bucket_pairs(keys[order], order):
            for part in range(0, len(first), CHUNK):
                one, two = first[part : part + CHUNK], second[part : part + CHUNK]
                agree = (signatures[one] == signatures[two]).mean(axis=1) >= least
                found.append(one[agree] * num_texts + two[agree])
    codes = _distinct(np.concatenate([np.empty(0, np.int64), *found]))
    return np.stack([codes // num_texts, codes % num_texts], axis=1)


def _bucket_pairs(keys: NDArray[np.uint64], order: Indices) -> Iterator[tuple[Indices, Indices]]:
    """Of texts sorted by key, as (first, second): each with its next neighbours in the bucket, and with its first."""
    for distance in range(1, WINDOW + 1):
        same = keys[distance:] == keys[:-distance]
        if not same.any():
            return
        yield order[:-distance][same], order[distance:][same]
    begins = np.concatenate([[True], keys[1:] != keys[:-1]])
    first = np.maximum.accumulate(np.where(begins, np.arange(len(keys)), 0))
    far = np.arange(len(keys)) - first > WINDOW
    yield order[first[far]], order[far]


def _jaccard(shingles: Shingles, pairs_P2: Indices) -> NDArray[np.float64]:
    """Shared over all distinct shingles, for each pair."""
    sizes_N = np.diff(shingles.starts_N1)
    one, two = (np.asarray(owner << 32 | hashes, np.int64) for hashes, owner in map(shingles.of, pairs_P2.T))
    shared = np.intersect1d(one, two, assume_unique=True)
    shared_P = np.bincount(shared >> 32, minlength=len(pairs_P2))
    return shared_P / (sizes_N[pairs_P2].sum(axis=1) - shared_P)
