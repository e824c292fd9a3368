"""Which language a text is in, by py3langid's model.

Not here: what follows from it. Called by ifeval and drift. Of a few words the answer is a guess.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

JUDGED_CHARS = 1000
CODES = {"zh-cn": "zh", "zh-tw": "zh"}  # names that other identifiers use


def language_of(text: str) -> str | None:
    """ISO 639-1 code; None for a text without a letter. Case says nothing of a language, but misleads: it is folded."""
    if not any(char.isalpha() for char in text):
        return None
    return str(_identifier().classify(text[:JUDGED_CHARS].lower())[0])


@lru_cache(maxsize=1)
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE)
