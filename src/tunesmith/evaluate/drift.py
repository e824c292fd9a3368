"""How replies look: their length and form, which a fine-tune changes also where it was not asked to.

Not here: whether a look is good (nobody knows but the user), intervals (regress). Called by the suite "general".
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from tunesmith.contender import Reply
from tunesmith.evaluate.language import language_of
from tunesmith.evaluate.refusals import why_refused
from tunesmith.evaluate.scorers.text import words

LIST_ITEM = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s+\S", re.MULTILINE)
MARKDOWN = re.compile(r"^#{1,6} \S|\*\*[^*\n]+\*\*|^\|.+\|$|^> \S", re.MULTILINE)
LOOP_WORDS, LOOP_TIMES = 6, 3

LOOKS = {  # name -> in words
    "words": "words a reply",
    "ended": "ended by itself",
    "lists": "with a list",
    "code": "with a code block",
    "markdown": "with Markdown headings, bold or tables",
    "same_language": "in the language of the question",
    "loops": f"that say the same {LOOP_WORDS} words {LOOP_TIMES} times",
    "refusals": "that refuse",
}


def looks(question: str, reply: Reply) -> dict[str, float]:
    """A value for each of LOOKS: a count of words, else 1 or 0."""
    text = reply.text
    return {
        "words": float(len(words(text))),
        "ended": float(reply.stopped),
        "lists": float(len(LIST_ITEM.findall(text)) >= 2),
        "code": float("```" in text),
        "markdown": float(MARKDOWN.search(text) is not None),
        "same_language": float(language_of(text) in (None, language_of(question))),
        "loops": float(_loops(words(text))),
        "refusals": float(why_refused(text) is not None),
    }


def _loops(said: Sequence[str]) -> bool:
    runs = [tuple(said[start : start + LOOP_WORDS]) for start in range(len(said) - LOOP_WORDS + 1)]
    return any(runs.count(run) >= LOOP_TIMES for run in set(runs))
