"""The user's own suites: a file of multiple-choice questions, or rows with expected answers and a scorer.

Not here: reading chat files (data.load; the command hands their examples over). Called by cli.regress.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tunesmith.chat import Example
from tunesmith.contender import Reply
from tunesmith.errors import DataError, InputError, Problem, RowProblem, kind_of, near_of
from tunesmith.evaluate.choices import Question
from tunesmith.evaluate.scorers import Scorer
from tunesmith.evaluate.suites.suite import ChoiceSuite, Measure, ReplySuite, Suite, Values

FORM = "Question: {}\nAnswer:"


def holds_choices(path: Path) -> bool:
    """Whether the first row of a JSONL file is a multiple-choice question."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            first = json.loads(next((line for line in file if line.strip()), "null"))
    except (OSError, ValueError):
        return False  # another format, or an error that data.load words better
    return isinstance(first, dict) and "choices" in first


def choice_suite(path: Path, *, limit: int | None = None) -> Suite:
    """`{"question", "choices", "answer"}` rows; the answer is a place from 0, or the text of a choice.

    Raises DataError with every row that cannot be used.
    """
    questions, problems = [], []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        if not line.strip():
            continue
        question, fault = parse_choices(line)
        if question:
            questions.append(question)
        elif fault:
            at = line.find(fault.near) + 1 if fault.near else 0
            problems.append(Problem(str(path), number, at or None, fault.what, fault.todo, fault.issue))
    if problems:
        raise DataError(problems)
    return ChoiceSuite(path.stem, questions[:limit])


def parse_choices(line: str) -> tuple[Question | None, RowProblem | None]:
    """One line as a question, or the first thing that is wrong with it."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return None, RowProblem("broken_json", f"the line is no JSON ({error}).", "Mend it.")
    if not isinstance(row, dict):
        what = f"the line holds {kind_of(row)}, not an object."
        return None, RowProblem("not_object", what, 'Write {"question", "choices", "answer"}.')
    question, answer, choices = row.get("question"), row.get("answer"), _choices(row.get("choices"))
    if not isinstance(question, str) or not question.strip():
        return None, RowProblem("missing_question", "'question' is no text.", "Add the text that is asked.")
    if choices is None:
        todo = "Give a list of two or more different texts."
        return None, RowProblem("bad_choices", "'choices' cannot be used.", todo, near_of(row.get("choices")))
    place = choices.index(answer) if isinstance(answer, str) and answer in choices else answer
    if isinstance(place, bool) or not isinstance(place, int) or not 0 <= place < len(choices):
        todo = f"Give a place from 0 to {len(choices) - 1}, or the text of a choice."
        return None, RowProblem("bad_answer", f"'answer' is none of the {len(choices)} choices.", todo, near_of(answer))
    return Question(FORM.format(question.strip()), tuple(choices), place), None


def _choices(value: object) -> list[str] | None:
    """The value if it is two or more different texts."""
    if not isinstance(value, list) or not all(isinstance(choice, str) and choice.strip() for choice in value):
        return None
    return value if len(set(value)) == len(value) >= 2 else None


def example_suite(name: str, examples: Sequence[Example], *, scorer: Scorer, how: str, max_new_tokens: int) -> Suite:
    """Rows with expected answers, scored by one scorer; `how` is its name."""
    if not examples:
        raise InputError(f"The suite {name!r} has no row.", "Give a file with at least one example.")
    for row, example in enumerate(examples, start=1):
        if example.kind != "chat" or example.tools:
            raise InputError(f"Row {row} of {name} is no question with an answer.", "Take such rows out of the file.")
        scorer.check(example)

    def score(replies: Sequence[Reply]) -> Values:
        return {how: [scorer(example, reply).value for example, reply in zip(examples, replies, strict=True)]}

    prompts = [example.prompt for example in examples]
    return ReplySuite(name, [Measure(how, f"by {how}")], prompts, max_new_tokens, score)
