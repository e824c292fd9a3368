"""Faults of the labels of a classification file: spelled otherwise, contradicting each other, wrong for their text.

Not here: the classifier behind `wrong_label` (mislabel), JSON answers (targets).
Called by data.check.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

from tunesmith.chat import MAX_LABEL_CHARS, MAX_LABELS
from tunesmith.data.checks.boilerplate import boilerplate_findings
from tunesmith.data.checks.wording import POLITE, is_typo, normal_text, request_text, words
from tunesmith.data.finding import Finding, shortened
from tunesmith.data.load import SourceRow

LABELLED_SHARE = 0.8  # of the rows have an answer that is short and stands there twice: the rest may be damaged
RARE_SHARE = 0.1
ANNOUNCED = re.compile(
    r"^(?:the )?(?:intent|label|answer|category|class|output|result|response)(?: is)?\s*[:=]\s*", re.I
)
SEPARATORS = re.compile(r"[\s_\-\u2010-\u2015]+")
EDGES = " \t\n.,;:!?\"'`*()[]<>\u201c\u201d\u2018\u2019"


def label_findings(rows: Sequence[SourceRow], against: Sequence[SourceRow] = ()) -> Iterator[Finding]:
    """`label_variant`, `conflicting_label` and `wrong_label`; nothing but conflicts where the answers are no labels.

    The labels of `against`, the file to be judged on, are learned from too. Answers such as TODO are no labels, and are
    reported as what they are by `boilerplate_findings`.
    """
    empty = {finding.line for finding in boilerplate_findings(rows)}
    rows = [row for row in rows if row.line not in empty]
    forms = label_forms([row.example.answer for row in rows])
    conflicts = list(_conflicts(rows, labelled=forms is not None))
    yield from conflicts
    if forms is None:
        return
    yield from _variants(rows, forms)
    yield from _wrong(rows, against, forms, {finding.line for finding in conflicts})


def folded(answer: str) -> str:
    """A label without case, announcement ("Intent: ..."), separators, quotes and punctuation at its ends."""
    text = ANNOUNCED.sub("", unicodedata.normalize("NFKC", answer).casefold().strip())
    if not any(letter.isalpha() for letter in text):
        return text
    return SEPARATORS.sub(" ", text).strip(EDGES) or text


def label_forms(answers: Sequence[str]) -> dict[str, str] | None:
    """For each distinct answer the way most rows spell that label; None when the answers are no labels.

    They are when most rows have a short one-line answer that other rows have too. A rare answer one letter away from a
    common one is that one misspelt.
    """
    short = [text for text in answers if len(text) <= MAX_LABEL_CHARS and "\n" not in text.strip()]
    spellings: dict[str, Counter[str]] = defaultdict(Counter)
    for text in short:
        if text.strip()[:1] not in ("{", "["):
            spellings[folded(text)][text] += 1
    sizes = {fold: forms.total() for fold, forms in spellings.items()}
    shared = sum(size for size in sizes.values() if size > 1)
    if not 2 <= len(sizes) <= min(MAX_LABELS, max(2, len(answers) // 2)) or shared < LABELLED_SHARE * len(answers):
        return None
    usual = {fold: _usual(forms) for fold, forms in spellings.items()}
    joined = {fold.replace(" ", ""): fold for fold, size in sizes.items() if size >= 5}
    result: dict[str, str] = {}
    for fold, forms in spellings.items():
        common = _misspelt(fold, sizes, joined)
        result |= dict.fromkeys(forms, usual[common or fold])
    return result


def _usual(forms: Counter[str]) -> str:
    return min(forms, key=lambda form: (-forms[form], form != form.strip(), form))


def _misspelt(fold: str, sizes: Mapping[str, int], joined: Mapping[str, str]) -> str | None:
    """The common label of which this rare one is a misspelling."""
    text = fold.replace(" ", "")
    for other, common in joined.items():
        same = text == other or is_typo(text, other)
        if same and common != fold and sizes[fold] <= max(1, RARE_SHARE * sizes[common]):
            return common
    return None


def _variants(rows: Sequence[SourceRow], forms: Mapping[str, str]) -> Iterator[Finding]:
    counts = Counter(row.example.answer for row in rows)
    for row in rows:
        answer = row.example.answer
        usual = forms.get(answer, answer)
        if usual != answer:
            detail = f"the label {answer!r} is {usual!r} in {counts[usual]} other rows."
            yield Finding(row.line, "label_variant", "warning", detail, f"Write {usual!r}.")


def _conflicts(rows: Sequence[SourceRow], *, labelled: bool) -> Iterator[Finding]:
    """Rows that ask what another row asks and answer otherwise: those outvoted, at a tie those that come later.

    Among labels or values one of the answers is a mistake; two different texts may both be good.
    """
    groups: dict[tuple[str, str], list[SourceRow]] = defaultdict(list)
    for row in rows:
        system = "\n".join(turn.content for turn in row.example.prompt if turn.role in ("system", "developer"))
        said = words(request_text(row.example))
        asked = [word for word in said if word not in POLITE]
        groups[system, "".join(asked or said)].append(row)
    severity, suggestion = (
        ("warning", "Decide which answer is right.")
        if labelled
        else ("info", "Check that each of the answers is a good one.")
    )
    for group in groups.values():
        votes = Counter(_meaning(row) for row in group)
        if len(votes) < 2:
            continue
        winner = votes.most_common(1)[0][0]  # at a tie the one that came first
        first = next(row for row in group if _meaning(row) == winner)
        for row in group:
            if _meaning(row) != winner:
                answers = f"{shortened(row.example.answer)!r} instead of {shortened(first.example.answer)!r}"
                detail = f"asks what line {first.line} asks, but has the answer {answers}."
                yield Finding(row.line, "conflicting_label", severity, detail, suggestion, related=first.line)


def _meaning(row: SourceRow) -> str:
    return folded(" ".join(row.example.answer.split()))


def _wrong(
    rows: Sequence[SourceRow], against: Sequence[SourceRow], forms: Mapping[str, str], skipped: set[int | None]
) -> Iterator[Finding]:
    from tunesmith.data.checks.mislabel import MAX_JUDGED, mislabelled

    sizes = Counter(forms.get(row.example.answer) for row in rows)
    judged: dict[str, tuple[SourceRow, str]] = {}
    for row in rows:
        label = forms.get(row.example.answer)
        if label is not None and sizes[label] > 1 and row.line not in skipped:
            judged.setdefault(normal_text(request_text(row.example)), (row, label))
    usual = {folded(form): label for form, label in forms.items()}
    reference = [
        (text, usual[fold])
        for text, fold in ((normal_text(request_text(row.example)), folded(row.example.answer)) for row in against)
        if fold in usual and text not in judged
    ]
    kept = list(judged.values())
    for index, better in mislabelled(list(judged), [label for _, label in kept], reference=reference):
        row, label = kept[index]
        detail = f"labelled {label!r}, but by the other rows the text is {better!r}."
        yield Finding(row.line, "wrong_label", "warning", detail, "Read the row and correct the label if it is wrong.")
    if len(kept) > MAX_JUDGED:
        detail = f"the labels of the first {MAX_JUDGED} of {len(kept)} different texts were judged."
        yield Finding(None, "wrong_label", "info", detail, "Check the rest as a file of its own.")
