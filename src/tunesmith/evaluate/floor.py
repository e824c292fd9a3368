"""The floor to beat on label tasks: TF-IDF with a linear SVM, a contender that needs no language model.

Not here: other kinds of task, for which there is no such floor.
Called by cli.evaluate and cli.train beside the contenders that are measured. scikit-learn is imported when it is built.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from tunesmith.chat import Example, Message
from tunesmith.contender import Progress, Reply
from tunesmith.errors import InputError

NAME = "tf-idf + linear svm"


class FloorContender:
    """TF-IDF over words (1-2) and characters within words (2-5), LinearSVC trained on `examples`. Deterministic.

    Raises InputError when the examples hold fewer than two distinct answers or no text to learn from.
    """

    def __init__(self, examples: Sequence[Example]) -> None:
        self.name = NAME
        answers = [example.answer.strip() for example in examples]
        if len(set(answers)) < 2:
            raise InputError(
                "The floor needs training rows with two different answers or more.", "Leave the floor out."
            )
        self._pipeline = _untrained_pipeline()
        try:
            self._pipeline.fit([_user_text(example.prompt) for example in examples], answers)
        except ValueError as error:  # scikit-learn: no word or character pair in any text
            raise InputError(f"The floor cannot be trained on these rows: {error}.", "Leave the floor out.") from error

    def answer(
        self, prompts: Sequence[Sequence[Message]], *, max_new_tokens: int, progress: Progress | None = None
    ) -> list[Reply]:
        """The predicted label of each prompt; no tokens, latency is the batch's time divided by its rows."""
        if not prompts:
            return []
        start = time.perf_counter()
        labels = self._pipeline.predict([_user_text(prompt) for prompt in prompts])
        latency_s = (time.perf_counter() - start) / len(prompts)
        if progress:
            progress(len(prompts))
        return [Reply(str(label), 0, 0, latency_s, "stop") for label in labels]


def _user_text(prompt: Sequence[Message]) -> str:
    return "\n".join(message.content for message in prompt if message.role == "user")


def _untrained_pipeline() -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_pipeline, make_union
    from sklearn.svm import LinearSVC

    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
    characters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)
    return make_pipeline(make_union(words, characters), LinearSVC(random_state=0))
