"""The verifiable instructions of IFEval: is each one followed? Strict, and loose about wrapping and asterisks.

Not here: the prompts (suites). Called by the suite of that name. Zhou et al. 2023, arXiv:2311.07911; the meanings are
those of its published checkers, with our own word and sentence cuts and language identifier. Letters to count may be
signs such as ! (the published checker draws a random letter for those).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tunesmith.errors import InputError, did_you_mean
from tunesmith.evaluate.language import CODES, language_of
from tunesmith.evaluate.scorers.text import sentences, words

Instruction = Mapping[str, Any]  # {"id": one of CHECKS, and its arguments}
ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")


def followed(instructions: Sequence[Instruction], reply: str) -> list[bool]:
    """Which instructions the reply follows as it stands; an empty reply follows none."""
    return [bool(reply.strip()) and bool(_check(one)(one, reply)) for one in instructions]


def followed_loosely(instructions: Sequence[Instruction], reply: str) -> list[bool]:
    """Which are followed when a first or last line ("Sure, here it is:") or asterisks may be taken away."""
    tried = [followed(instructions, version) for version in _versions(reply)]
    return [any(of_one) for of_one in zip(*tried, strict=True)]


def _versions(reply: str) -> list[str]:
    lines = reply.split("\n")
    cuts = [reply, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return [*cuts, *(cut.replace("*", "") for cut in cuts)]


def _check(instruction: Instruction) -> Callable[[Instruction, str], bool]:
    name = instruction["id"]
    if name not in CHECKS:
        raise InputError(f"There is no instruction {name!r}.", did_you_mean(name, CHECKS, what="instructions"))
    return CHECKS[name]


def _related(count: int, relation: str, wanted: int) -> bool:
    return count < wanted if relation == "less than" else count >= wanted


def _times(pattern: str, text: str) -> int:
    return len(re.findall(pattern, text, re.IGNORECASE))


def _keyword_frequency(want: Instruction, text: str) -> bool:
    return _related(_times(want["keyword"], text), want["relation"], want["frequency"])


def _letter_frequency(want: Instruction, text: str) -> bool:
    return _related(text.lower().count(want["letter"].lower()), want["let_relation"], want["let_frequency"])


def _in_language(want: Instruction, text: str) -> bool:
    return language_of(text) in (None, CODES.get(want["language"], want["language"]))


def _number_of_words(want: Instruction, text: str) -> bool:
    return _related(len(re.findall(r"\w+", text)), want["relation"], want["num_words"])


def _number_of_sentences(want: Instruction, text: str) -> bool:
    return _related(len(sentences(text)), want["relation"], want["num_sentences"])


def _filled(parts: Sequence[str]) -> int | None:
    """How many parts hold text; None when one between others is empty. The ends may be."""
    return None if any(not part.strip() for part in parts[1:-1]) else sum(bool(part.strip()) for part in parts)


def _number_of_paragraphs(want: Instruction, text: str) -> bool:
    return _filled(re.split(r"\s?\*\*\*\s?", text)) == want["num_paragraphs"]


def _nth_paragraph_first_word(want: Instruction, text: str) -> bool:
    """Paragraphs are divided by an empty line; a place past the end, or an empty one, does not count."""
    parts = text.split("\n\n")
    number = sum(bool(part.strip()) for part in parts)
    nth = want["nth_paragraph"]
    if number != want["num_paragraphs"] or nth > number or not parts[nth - 1].strip():
        return False
    first = re.match(r"[\"']*([^.,?!'\"]*)", parts[nth - 1].split()[0])
    return first is not None and first[1].lower() == want["first_word"].lower()


def _postscript(want: Instruction, text: str) -> bool:
    marker = want["postscript_marker"]
    spaced = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}.get(marker, re.escape(marker.lower()))
    return re.search(spaced, text.lower()) is not None


def _bullets(want: Instruction, text: str) -> bool:
    stars, dashes = (re.findall(form, text, re.MULTILINE) for form in (r"^\s*\*[^\*].*$", r"^\s*-.*$"))
    return len(stars) + len(dashes) == want["num_bullets"]


def _highlights(want: Instruction, text: str) -> bool:
    once = [part for part in re.findall(r"\*[^\n\*]*\*", text) if part.strip("*").strip()]
    twice = [part for part in re.findall(r"\*\*([^\n\*]*)\*\*", text) if part.strip()]
    return len(once) + len(twice) >= want["num_highlights"]


def _sections(want: Instruction, text: str) -> bool:
    return len(re.findall(rf"\s?{want['section_spliter']}\s?\d+\s?", text)) >= want["num_sections"]


def _is_json(want: Instruction, text: str) -> bool:
    bare = re.sub(r"^```(?:json|Json|JSON)?|```$", "", text.strip()).strip()
    try:
        json.loads(bare)
    except ValueError:
        return False
    return True


def _title(want: Instruction, text: str) -> bool:
    return any(title.strip("<>").strip() for title in re.findall(r"<<[^\n]+>>", text))


def _two_responses(want: Instruction, text: str) -> bool:
    parts = text.split("******")
    answers = [part.strip() for part in parts if part.strip()]
    return _filled(parts) == 2 and answers[0] != answers[1]


def _ends(want: Instruction, text: str) -> bool:
    return text.strip().strip('"').lower().endswith(want["end_phrase"].strip().lower())


def _quoted(want: Instruction, text: str) -> bool:
    bare = text.strip()
    return len(bare) > 1 and bare[0] == bare[-1] == '"'


def _capital_words(want: Instruction, text: str) -> bool:
    number = sum(word.isupper() for word in words(text))
    return _related(number, want["capital_relation"], want["capital_frequency"])


def _english(text: str) -> bool:
    return language_of(text) in (None, "en")


CHECKS: dict[str, Callable[[Instruction, str], bool]] = {
    "change_case:capital_word_frequency": _capital_words,
    "change_case:english_capital": lambda want, text: text.isupper() and _english(text),
    "change_case:english_lowercase": lambda want, text: text.islower() and _english(text),
    "combination:repeat_prompt": lambda want, text: (
        text.strip().lower().startswith(want["prompt_to_repeat"].strip().lower())
    ),
    "combination:two_responses": _two_responses,
    "detectable_content:number_placeholders": lambda want, text: _times(r"\[.*?\]", text) >= want["num_placeholders"],
    "detectable_content:postscript": _postscript,
    "detectable_format:constrained_response": lambda want, text: any(one in text for one in ANSWERS),
    "detectable_format:json_format": _is_json,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:title": _title,
    "keywords:existence": lambda want, text: all(_times(word, text) for word in want["keywords"]),
    "keywords:forbidden_words": lambda want, text: (
        not any(_times(rf"\b{word}\b", text) for word in want["forbidden_words"])
    ),
    "keywords:frequency": _keyword_frequency,
    "keywords:letter_frequency": _letter_frequency,
    "language:response_language": _in_language,
    "length_constraints:nth_paragraph_first_word": _nth_paragraph_first_word,
    "length_constraints:number_paragraphs": _number_of_paragraphs,
    "length_constraints:number_sentences": _number_of_sentences,
    "length_constraints:number_words": _number_of_words,
    "punctuation:no_comma": lambda want, text: "," not in text,
    "startend:end_checker": _ends,
    "startend:quotation": _quoted,
}
