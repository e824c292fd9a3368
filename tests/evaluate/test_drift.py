"""The look of a reply: its length, form, language, and whether it goes round in circles."""

from __future__ import annotations

import pytest

from tunesmith.contender import Reply
from tunesmith.evaluate.drift import LOOKS, looks


def seen(text: str, *, finish_reason: str = "stop") -> set[str]:
    found = looks("How do I find a good book to read in the evening?", Reply(text, 1, 1, 0.1, finish_reason))
    assert set(found) == set(LOOKS)
    return {name for name, value in found.items() if value and name != "words"}


@pytest.mark.parametrize(
    ("text", "look"),
    [
        ("Some ideas for you:\n- one\n- two", "lists"),
        ("First do this:\n1. one\n2) two", "lists"),
        ("Use this code:\n```\nx = 1\n```", "code"),
        ("# Title\nThe text that you asked for", "markdown"),
        ("It is **very** good for you", "markdown"),
        ("you and me and the dog went " * 3, "loops"),
        ("I cannot help you with this question.", "refusals"),
    ],
)
def test_a_look_is_seen(text: str, look: str) -> None:
    assert look in seen(text)
    assert look not in seen("This is plain prose, one line - no list, and it ends.")


def test_language_and_end_are_compared_with_what_was_asked() -> None:
    assert "same_language" not in seen("Das ist ein deutscher Satz, der nichts mit der Frage zu tun hat.")
    assert {"same_language", "ended"} <= seen("Ask a friend which book they liked, and read that one.")
    assert "ended" not in seen("Ask a friend", finish_reason="length")
    assert looks("Hello you", Reply("two words", 1, 1, 0.1, "stop"))["words"] == 2
