"""How alike two texts are, from 0 to 1, by the names that OpenAI's graders use.

Not here: scorers of an evaluation (scorers.overlap), meaning (retrieve's vectors). Called by the server's graders
through cli.server_verbs. sacrebleu is imported when used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

from tunesmith.errors import InputError
from tunesmith.evaluate.scorers.overlap import longest_common_subsequence
from tunesmith.evaluate.scorers.text import words

MAX_CHARACTERS = 50_000  # the cost of a common subsequence grows with the square
GLEU_ORDER = 4


def similarity(metric: str, text: str, *, reference: str) -> float:
    """`metric` is a key of METRICS. Raises InputError for texts that are too long, or without sacrebleu for bleu."""
    if max(len(text), len(reference)) > MAX_CHARACTERS:
        raise InputError(f"Texts above {MAX_CHARACTERS} characters are not compared.", "Grade a part of them.")
    return METRICS[metric](text, reference)


def fuzzy_match(text: str, reference: str) -> float:
    """Twice the longest common subsequence of characters over both lengths (the normalised indel similarity)."""
    if not text and not reference:
        return 1.0
    return 2 * longest_common_subsequence(text, reference) / (len(text) + len(reference))


def bleu(text: str, reference: str) -> float:
    """sacrebleu's sentence BLEU with effective order."""
    try:
        from sacrebleu.metrics import BLEU
    except ImportError as error:
        raise InputError("bleu needs sacrebleu.", "pip install 'tunesmith[scorers]'") from error
    return min(1.0, float(BLEU(effective_order=True).sentence_score(text, [reference]).score) / 100)


def gleu(text: str, reference: str) -> float:
    """The smaller of precision and recall over all runs of 1 to 4 words (Wu et al. 2016, arXiv:1609.08144, 6)."""
    got, wanted = _folded(text), _folded(reference)
    ours: Counter[tuple[str, ...]] = Counter()
    theirs: Counter[tuple[str, ...]] = Counter()
    for order in range(1, GLEU_ORDER + 1):
        ours.update(_runs(got, order))
        theirs.update(_runs(wanted, order))
    longest = max(ours.total(), theirs.total())
    return (ours & theirs).total() / longest if longest else float(text.strip() == reference.strip())


def rouge_n(text: str, reference: str, *, order: int) -> float:
    """F1 of runs of `order` words (Lin 2004, section 2), case folded, no stemming. Texts shorter than that: 0."""
    ours, theirs = Counter(_runs(_folded(text), order)), Counter(_runs(_folded(reference), order))
    total = ours.total() + theirs.total()
    return 2 * (ours & theirs).total() / total if total else 0.0


def rouge_l(text: str, reference: str) -> float:
    """F1 of the longest common subsequence of words (Lin 2004, section 3)."""
    got, wanted = _folded(text), _folded(reference)
    total = len(got) + len(wanted)
    return 2 * longest_common_subsequence(wanted, got) / total if total else float(text.strip() == reference.strip())


METRICS: dict[str, Callable[[str, str], float]] = {
    "fuzzy_match": fuzzy_match,
    "bleu": bleu,
    "gleu": gleu,
    **{f"rouge_{order}": partial(rouge_n, order=order) for order in range(1, 6)},
    "rouge_l": rouge_l,
}


def _folded(text: str) -> list[str]:
    return [word.casefold() for word in words(text)]


def _runs(tokens: Sequence[str], order: int) -> list[tuple[str, ...]]:
    return [tuple(tokens[start : start + order]) for start in range(len(tokens) - order + 1)]
