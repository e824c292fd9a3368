"""One grader on one answer: the score, what went wrong, and which model was asked how many tokens.

Not here: bodies (wire.graders), formulas, templates, processes and models (beside this file). Called by the routes of
graders and by eval runs. A fault never becomes a score: it is named, and the score is 0.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from tunesmith.chat import Message
from tunesmith.contender import Reply
from tunesmith.errors import TunesmithError
from tunesmith.serve.graders.formula import FormulaError, parse_formula
from tunesmith.serve.graders.judge import (
    UnreadableReply,
    ask_model,
    label_question,
    read_label,
    read_score,
    score_question,
)
from tunesmith.serve.graders.python import CellError, PythonFault, PythonGraders
from tunesmith.serve.graders.template import VariableError, fill, variables
from tunesmith.serve.models import ServedModels
from tunesmith.serve.reply import Ask
from tunesmith.serve.wire.errors import RequestError
from tunesmith.serve.wire.graders import (
    Faults,
    Grader,
    LabelModel,
    Multi,
    Part,
    PythonSource,
    ScoreModel,
    StringCheck,
    TemplateMessage,
    TextSimilarity,
)

PYTHON_OFF = (
    "Python graders are switched off: they run a user's code on this machine. "
    "An administrator allows them by starting the server with --allow-python-graders."
)


class Similar(Protocol):
    """How alike two texts are, by OpenAI's names of metrics."""

    def refusal(self, metric: str) -> str | None:
        """Why this metric cannot be had here; None when it can."""
        ...

    def score(self, metric: str, text: str, *, reference: str) -> float:
        """From 0 to 1. Raises InputError for texts it cannot compare."""
        ...


@dataclass(frozen=True, slots=True)
class Bench:
    """What graders work with. `python` None: their code is not run here."""

    models: ServedModels
    similar: Similar
    python: PythonGraders | None = None
    stopping: threading.Event = field(default_factory=threading.Event)

    def ask(self, model: str, *, owner: str, ask: Ask) -> Reply:
        """One whole reply. Raises ServeError once the server stops."""
        return ask_model(self.models, model, owner=owner, ask=ask, stopping=self.stopping)


@dataclass(slots=True)
class Grade:
    """`scores` are those of a multi grader's parts. `label` is what a label model chose."""

    score: float = 0.0
    faults: Faults = field(default_factory=Faults)
    detail: str | None = None  # of the first fault, in words
    scores: dict[str, float] = field(default_factory=dict)
    tokens: Counter[str] = field(default_factory=Counter)  # by model asked
    label: str | None = None

    @property
    def failed(self) -> bool:
        return self.detail is not None

    def blame(self, flag: str, detail: str, *, extra: str | None = None) -> None:
        """`extra` names the field of `Faults` that holds a text beside the flag."""
        setattr(self.faults, flag, True)
        if extra:
            setattr(self.faults, extra, detail)
        self.score = 0.0
        self.detail = self.detail or detail


def sample_of(text: str, more: dict[str, Any] | None = None) -> dict[str, Any]:
    """The `sample` of templates: the text, and as `output_json` what it says where it is JSON."""
    sample: dict[str, Any] = {"output_text": text}
    with contextlib.suppress(ValueError, RecursionError):  # a template that asks for it says so
        sample["output_json"] = json.loads(text)
    return sample | (more or {})


def check_grader(grader: Grader | Part, bench: Bench, *, owner: str, param: str) -> None:
    """Raises RequestError for what can be known to fail before anything is graded."""
    try:
        for text in _texts(grader):
            variables(text)
        if isinstance(grader, Multi):
            _check_formula(grader)
    except (VariableError, FormulaError) as error:
        raise RequestError(str(error), param=param, code="invalid_grader") from error
    if isinstance(grader, Multi):
        for name, part in grader.graders.items():
            check_grader(part, bench, owner=owner, param=f"{param}.graders.{name}")
    elif isinstance(grader, PythonSource):
        _check_python(grader, bench, param=f"{param}.source")
    elif isinstance(grader, ScoreModel | LabelModel):
        bench.models.get(grader.model, owner=owner)
    elif isinstance(grader, TextSimilarity) and (why := bench.similar.refusal(grader.evaluation_metric)):
        raise RequestError(why, param=f"{param}.evaluation_metric", code="unsupported_metric")


def grade(grader: Grader | Part, bench: Bench, *, owner: str, sample: dict[str, Any], item: Any) -> Grade:
    """Never raises for what the grader, the answer or the row did; that is in `faults` and `detail`."""
    graded = Grade()
    try:
        _grade(grader, bench, graded=graded, owner=owner, spaces={"item": item, "sample": sample})
    except VariableError as error:
        graded.blame("sample_parse_error" if error.of_sample else "invalid_variable_error", str(error))
    except FormulaError as error:
        graded.blame("formula_parse_error", str(error))
    except PythonFault as error:
        graded.blame("python_grader_runtime_error", str(error), extra="python_grader_runtime_error_details")
    except CellError as error:
        graded.blame("python_grader_server_error", str(error))
        graded.faults.python_grader_server_error_type = error.kind
    except UnreadableReply as error:
        graded.blame("model_grader_parse_error", str(error))
        graded.faults.truncated_observation_error = error.cut
    except TunesmithError as error:
        if isinstance(grader, ScoreModel | LabelModel):
            graded.blame("model_grader_server_error", str(error), extra="model_grader_server_error_details")
        else:
            graded.blame("other_error", str(error))
    return graded


def _grade(grader: Grader | Part, bench: Bench, *, graded: Grade, owner: str, spaces: dict[str, Any]) -> None:
    if isinstance(grader, Multi):
        _grade_parts(grader, bench, graded=graded, owner=owner, spaces=spaces)
    elif isinstance(grader, StringCheck):
        graded.score = string_check(
            grader.operation, fill(grader.input, spaces), reference=fill(grader.reference, spaces)
        )
    elif isinstance(grader, TextSimilarity):
        text, reference = fill(grader.input, spaces), fill(grader.reference, spaces)
        graded.score = bench.similar.score(grader.evaluation_metric, text, reference=reference)
    elif isinstance(grader, PythonSource):
        if bench.python is None:
            raise CellError(PYTHON_OFF, "switched_off")
        graded.score = bench.python.grade(grader.source, sample=spaces["sample"], item=spaces["item"])
    else:
        _ask_judge(grader, bench, graded=graded, owner=owner, spaces=spaces)


def _grade_parts(grader: Multi, bench: Bench, *, graded: Grade, owner: str, spaces: dict[str, Any]) -> None:
    formula = parse_formula(grader.calculate_output)
    for name, part in grader.graders.items():
        inner = grade(part, bench, owner=owner, sample=spaces["sample"], item=spaces["item"])
        graded.tokens.update(inner.tokens)
        if inner.detail is not None:
            graded.faults, graded.detail = inner.faults, f"{name}: {inner.detail}"
            return
        graded.scores[name] = inner.score
    graded.score = formula.value(graded.scores)


def _ask_judge(
    grader: ScoreModel | LabelModel, bench: Bench, *, graded: Grade, owner: str, spaces: dict[str, Any]
) -> None:
    messages = fill_messages(grader.input, spaces)
    question = score_question(grader, messages) if isinstance(grader, ScoreModel) else label_question(grader, messages)
    reply = bench.ask(grader.model, owner=owner, ask=question)
    graded.tokens[grader.model] += reply.prompt_tokens + reply.completion_tokens
    if isinstance(grader, ScoreModel):
        graded.score = read_score(grader, reply)
    else:
        graded.label = read_label(grader, reply)
        graded.score = float(graded.label in grader.passing_labels)


def fill_messages(template: Sequence[TemplateMessage], spaces: dict[str, Any]) -> list[Message]:
    """Raises VariableError."""
    return [Message(message.role, fill(message.text, spaces)) for message in template]


def string_check(operation: str, text: str, *, reference: str) -> float:
    """`like` is contains, `ilike` the same whatever the case."""
    if operation in ("eq", "ne"):
        return float((text == reference) is (operation == "eq"))
    if operation == "ilike":
        text, reference = text.casefold(), reference.casefold()
    return float(reference in text)


def _texts(grader: Grader | Part) -> list[str]:
    """Those that may hold variables."""
    if isinstance(grader, StringCheck | TextSimilarity):
        return [grader.input, grader.reference]
    if isinstance(grader, ScoreModel | LabelModel):
        return [message.text for message in grader.input]
    return []


def _check_formula(grader: Multi) -> None:
    unknown = parse_formula(grader.calculate_output).names - grader.graders.keys()
    if unknown:
        there = ", ".join(grader.graders)
        raise FormulaError(f"calculate_output names {', '.join(sorted(unknown))}; the graders are: {there}.")


def _check_python(grader: PythonSource, bench: Bench, *, param: str) -> None:
    if bench.python is None:
        raise RequestError(PYTHON_OFF, param=param, code="python_graders_off", status=403)
    try:
        bench.python.check(grader.source)
    except (PythonFault, CellError) as error:
        raise RequestError(f"The grader's source fails: {error}", param=param, code="invalid_grader") from error
