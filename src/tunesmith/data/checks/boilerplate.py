"""Answers that say nothing: a model's stock phrase, a refusal, a placeholder that was never filled.

Not here: labels that are spelt oddly (labels), answers that are wrong (labels, targets).
Called by text, over the whole file: what many rows say is the file's own way, not an accident.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from tunesmith.data.checks.span import mentions
from tunesmith.data.finding import Finding
from tunesmith.data.load import SourceRow

MAX_REFUSAL_CHARS = 160
REFUSAL_SHARE = 0.1  # of the answers: from here on declining is what the file teaches
PLACEHOLDER_SHARE = 0.02  # of the answers: from here on "none" or "n/a" is a value of this task
MIN_USUAL = 6
SHORT_CHARS = 64

AI_MODEL = re.compile(
    r"\bas an? (?:large |ai |artificial intelligence |text-based )*"
    r"(?:language model\b|ai(?: (?:assistant|model|chatbot|system)\b|(?=[,.]| i\b)))"
    r"|\bi(?:'m| am) (?:just |only )?an? (?:large |ai )*language model\b"
    r"|\bals (?:ki|ai)-?\s?(?:sprach)?modell\b"
    r"|\ben tant (?:que|qu'|qu’) ?(?:modèle de langage|ia\b|intelligence artificielle)"
    r"|\bcomo (?:um )?(?:un )?model[oe] de (?:lenguaje|linguagem|idioma)|\bcome modello (?:linguistico|di linguaggio)"
    r"|作为一个?(?:人工智能|AI|ai)?(?:大)?语言模型|(?:AI|大規模)?言語モデルとして",
    re.IGNORECASE,
)
REFUSAL = re.compile(
    r"(?:i(?:'|’)?m (?:very |really |so )?sorry|i am sorry|sorry|i apologi[sz]e|unfortunately|es tut mir leid|lo siento"
    r"|je suis désolée?|mi dispiace|desculpe)?[ ,.!:;-]*(?:but |aber |pero |mais |ma |mas )*"
    r"(?:i (?:can(?:no|')t|can’t|can not|am (?:not able|unable) to|(?:'m|’m) (?:not able|unable) to|won't be able to)"
    r"|i(?:'|’)m (?:not able|unable) to|ich kann|no puedo|je ne peux pas|non posso|não posso)\b"
    r"[^.!?\n]*\b(?:assist|help|answer|comply|fulfil+|respond|provide|process|classify|complete|generate|do that"
    r"|request|helfen|beantworten|ayudar|aider|aiutar|ajudar)\w*\b",
    re.IGNORECASE,
)
SLOT = r"(?:answer|response|reply|text|label|output|content|completion|category|intent|value|summary|message)"
PLACEHOLDER = re.compile(
    r"n\.?/?a\.?|#n/a|#ref!|#value!|#name\?|nan|null|nil|none|undefined|\[object object\]"
    r"|todo\b.{0,40}|fixme\b.{0,40}|tb[dac]"
    r"|x{3,}|test(?:ing|test)?(?: ?(?:answer|response|123|1|text))?|asdf\w*|qwert\w*|foo ?bar|foo|blah(?: blah)*"
    rf"|place ?holder(?: {SLOT})?|dummy(?: {SLOT})?|sample {SLOT}|(?:your|the) {SLOT} (?:goes )?here|{SLOT} goes here"
    r"|\(?no (?:answer|response|reply)(?: (?:given|provided|available))?\)?|(?:same )?(?:as|see) above|ditto|idem"
    r"|\[?(?:deleted|removed|redacted|blank|empty)\]|[.\-_?*#/\\…]{1,10}|\"\"|''|\{\}|\[\]"
    rf"|[\[<({{]+\s*(?:insert|add|put|enter|fill in|write|your|type|missing|todo)\b[^\]>)}}\n]{{0,60}}[\]>)}}]+"
    rf"|[\[<({{]+\s*{SLOT}\s*[\]>)}}]+|insert {SLOT}(?: here)?",
    re.IGNORECASE,
)
AI_CUES = (
    "language model",
    "s an ai",
    "sprachmodell",
    "ki-modell",
    "en tant qu",
    "como",
    "come modello",
    "语言模型",
    "言語モデル",
)
REFUSAL_CUES = ("can't", "can’t", "can not", "cannot", "able", "won't", "ich kann", "puedo", "je ne peux", "posso")
DECLINING = re.compile(
    r"\bi (?:can(?:no|['’])t|won['’]t|wouldn['’]t|shouldn['’]t|couldn['’]t)|\bi(?:['’]m| am) (?:not (?:able|sure|going"
    r"|comfortable|willing)|unable|sorry)|illegal|unethical|harmful|dangerous",
    re.IGNORECASE,
)
_PLACEHOLDER, _REFUSAL = "a placeholder", "a refusal"


def boilerplate_findings(rows: Sequence[SourceRow]) -> Iterator[Finding]:
    """Answers without an answer; a refusal only where refusing is rare or the answers are labels."""
    answers = [row.example.answer.strip() for row in rows]
    counts = Counter(answers)
    faults = {answer: fault for answer in counts if (fault := _fault(answer))}
    refusing = _REFUSAL in faults.values() and not are_labels(answers) and _declines(answers)
    usual = max(MIN_USUAL, PLACEHOLDER_SHARE * len(rows))
    for row, answer in zip(rows, answers, strict=True):
        fault = faults.get(answer)
        if fault is None or (fault == _REFUSAL and refusing) or (fault == _PLACEHOLDER and counts[answer] >= usual):
            continue
        if not _asked_for(row, answer):
            detail = f"the answer is {fault}: {answer[:80]!r}."
            yield Finding(row.line, "boilerplate_answer", "warning", detail, "Write the real answer, or drop the row.")


def are_labels(answers: Sequence[str]) -> bool:
    """Whether the answers are labels but for a few: short single lines, most of them said more than once."""
    counts = Counter(answer.strip() for answer in answers)
    repeated = sum(
        count for answer, count in counts.items() if count > 1 and len(answer) <= SHORT_CHARS and "\n" not in answer
    )
    return bool(answers) and repeated >= 0.7 * len(answers)


def _fault(answer: str) -> str | None:
    if not answer:
        return None
    if len(answer) <= 120 and PLACEHOLDER.fullmatch(answer):
        return _PLACEHOLDER
    start = answer[:400].casefold()
    if "lorem ipsum" in start:
        return "filler text"
    if mentions(start, AI_CUES) and AI_MODEL.search(start):
        return "a model's stock phrase"
    short = len(answer) < MAX_REFUSAL_CHARS and mentions(start, REFUSAL_CUES)
    return _REFUSAL if short and REFUSAL.match(answer) else None


def _declines(answers: Sequence[str]) -> bool:
    """Whether so many answers decline that declining is what the file teaches."""
    return sum(DECLINING.search(answer) is not None for answer in answers) >= max(
        MIN_USUAL, REFUSAL_SHARE * len(answers)
    )


def _asked_for(row: SourceRow, answer: str) -> bool:
    """Whether the prompt names the answer, or filler text, as what it wants."""
    asked = " ".join(message.content or "" for message in row.example.prompt).casefold()
    return (len(answer) > 2 and answer.casefold() in asked) or "lorem" in asked or "placeholder" in asked
