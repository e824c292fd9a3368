"""Eval runs being worked on: one thread that takes the runs in turn, some rows of each, until all have ended.

Not here: records (records.eval_runs), rows (serve.eval_rows), graders. Started and stopped by the surface that owns the
process. Every graded row is in the database before the next slice begins, so a server that was killed goes on where it
was: rows that are there are not asked again.
"""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

from pydantic import TypeAdapter

from tunesmith.contender import Reply
from tunesmith.errors import DatabaseError, TunesmithError
from tunesmith.serve.eval_rows import DATA_SOURCE, Row, ask_of, read_rows
from tunesmith.serve.gate import log_failure
from tunesmith.serve.graders.grade import Bench, Grade, grade, sample_of
from tunesmith.serve.graders.template import VariableError
from tunesmith.serve.records.eval_runs import EvalItem, EvalRun, claim_run, done_positions, end_run, keep_item
from tunesmith.serve.records.evals import find_eval
from tunesmith.serve.reply import Ask
from tunesmith.serve.tools import read_calls
from tunesmith.serve.wire.evals import CompletionsRun, DataSource
from tunesmith.serve.wire.graders import LabelModel, Part, ScoreModel

LOG = logging.getLogger("tunesmith.serve")
SLICE = 32  # rows of one run before the next one has its turn
AT_ONCE = 8  # rows asked for at the same time: a batch for the scheduler
LOOK_S = 5.0  # how often the database is looked at when nobody says that there is work
PART: TypeAdapter[Part] = TypeAdapter(Part)


@dataclass(frozen=True, slots=True)
class _Answered:
    """A row with its model's reply, the reply it brought along, or why there is none."""

    row: Row
    ask: Ask | None = None
    reply: Reply | None = None
    fault: tuple[str, str] | None = None  # code, message
    words: str = ""  # of the reply beside its calls
    calls: tuple[dict[str, Any], ...] = ()


class EvalRunner:
    """`start` and `stop` are for the surface; routes `wake` it."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self._news = threading.Event()
        self._thread = threading.Thread(target=self._work, name="tunesmith-evals", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends the replies under way; their rows are asked again at the next start."""
        self.bench.stopping.set()
        self._news.set()
        self._thread.join()

    def wake(self) -> None:
        self._news.set()

    def _work(self) -> None:
        while not self.bench.stopping.is_set():
            self._news.clear()
            try:
                run = claim_run()
                if run is not None:
                    self._advance(run)
            except Exception as error:  # the database is away, or a fault of ours: the next look may find it mended
                log_failure(error, "of the eval runs")
                run = None
            if run is None:
                self._news.wait(LOOK_S)

    def _advance(self, run: EvalRun) -> None:
        """Some rows of a run, or its end."""
        try:
            finished = self._slice(run)
        except DatabaseError:
            raise  # no fault of the run
        except TunesmithError as error:
            end_run(run.id, "failed", error={"code": getattr(error, "code", None) or "failed", "message": str(error)})
        except Exception as error:
            log_failure(error, run.id)
            end_run(run.id, "failed", error={"code": "server_error", "message": "The server failed; see its log."})
        else:
            if finished:
                end_run(run.id, "completed")

    def _slice(self, run: EvalRun) -> bool:
        """Work on up to SLICE rows; True when none is left."""
        found = find_eval(run.eval_id, owner=run.owner)
        if found is None:  # deleted, and the run with it
            return False
        source = DATA_SOURCE.validate_python(run.source)
        if isinstance(source, CompletionsRun) and source.model is not None:
            self.bench.models.get(source.model, owner=run.owner)
        criteria = [PART.validate_python(values) for values in found.criteria]
        done = done_positions(run.id)
        rows = (row for row in read_rows(source, owner=run.owner, chosen=run.chosen) if row.position not in done)
        todo = list(islice(rows, SLICE))

        def work(row: Row) -> None:
            if not self.bench.stopping.is_set():
                self._row(run, source, row=row, criteria=criteria)

        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="tunesmith-eval-row") as pool:
            list(pool.map(work, todo))
        return len(todo) < SLICE and not self.bench.stopping.is_set()

    def _row(self, run: EvalRun, source: DataSource, *, row: Row, criteria: list[Part]) -> None:
        answered = self._answer(run, source, row=row)
        sample = _sample_for_graders(answered)
        grades: list[Grade] = []
        if answered.fault is None:
            grades = [grade(part, self.bench, owner=run.owner, sample=sample, item=row.item) for part in criteria]
        if self.bench.stopping.is_set():
            return
        results = [_result(part, graded) for part, graded in zip(criteria, grades, strict=False)]
        failed = answered.fault is not None or any(graded.failed for graded in grades)
        status = "error" if failed else "pass" if all(result["passed"] for result in results) else "fail"
        item = EvalItem(
            owner=run.owner, eval_id=run.eval_id, run_id=run.id, position=row.position, status=status, item=row.item,
            results=results, sample=_sample_body(source, answered),
        )  # fmt: skip
        keep_item(item, usage=_usage(source, answered.reply))

    def _answer(self, run: EvalRun, source: DataSource, *, row: Row) -> _Answered:
        if row.fault:
            return _Answered(row, fault=("row_gone", row.fault))
        if not isinstance(source, CompletionsRun) or source.model is None:
            return _Answered(row)
        try:
            ask = ask_of(source, row)
        except VariableError as error:
            return _Answered(row, fault=("invalid_input_messages", str(error)))
        try:
            reply = self.bench.ask(source.model, owner=run.owner, ask=ask)
        except TunesmithError as error:
            return _Answered(row, ask, fault=(getattr(error, "code", None) or "model_error", str(error)))
        words, calls = read_calls(reply.text, ask.tools) if ask.tools else (reply.text, ())
        return _Answered(row, ask, reply, words=words, calls=tuple(call.as_dict() for call in calls))


def passes(criterion: Part, score: float) -> bool:
    """By its threshold; without one, the middle of a judge's range, or of 0 to 1."""
    threshold = getattr(criterion, "pass_threshold", None)
    if threshold is None:
        threshold = sum(criterion.span) / 2 if isinstance(criterion, ScoreModel) else 0.5
    return bool(score >= threshold)


def _result(criterion: Part, graded: Grade) -> dict[str, Any]:
    passed = not graded.failed and passes(criterion, graded.score)
    result = {"name": criterion.name, "type": criterion.type, "score": graded.score, "passed": passed}
    if isinstance(criterion, LabelModel) and graded.label is not None:
        result["sample"] = {"output_text": graded.label}
    return result | ({"error": graded.detail} if graded.detail else {})


def _sample_for_graders(answered: _Answered) -> dict[str, Any]:
    if answered.reply is not None:
        reason = "tool_calls" if answered.calls else answered.reply.finish_reason
        return sample_of(answered.words, {"finish_reason": reason, "output_tools": list(answered.calls)})
    brought = answered.row.sample or {}
    text = brought.get("output_text")
    return sample_of(text, brought) if isinstance(text, str) else brought


def _sample_body(source: DataSource, answered: _Answered) -> dict[str, Any]:
    """What was asked and answered, and how. Without a model: the answer that the row brought along."""
    ask, reply = answered.ask, answered.reply
    text = answered.words if reply else (answered.row.sample or {}).get("output_text")
    calls = {"tool_calls": list(answered.calls)} if answered.calls else {}
    tokens = (reply.prompt_tokens, reply.completion_tokens) if reply else (0, 0)
    return {
        "input": [{"role": turn.role, "content": turn.content} for turn in ask.messages] if ask else [],
        "output": [{"role": "assistant", "content": text, **calls}] if text is not None else [],
        "finish_reason": "tool_calls" if calls else reply.finish_reason if reply else "",
        "model": (source.model or "") if isinstance(source, CompletionsRun) else "",
        "usage": {
            "prompt_tokens": tokens[0],
            "completion_tokens": tokens[1],
            "total_tokens": sum(tokens),
            "cached_tokens": 0,
        },
        "error": {"code": answered.fault[0], "message": answered.fault[1]} if answered.fault else None,
        "temperature": ask.sampling.temperature if ask else None,
        "top_p": ask.sampling.top_p if ask else None,
        "seed": ask.sampling.seed if ask else None,
        "max_completion_tokens": ask.max_new_tokens if ask else None,
    }


def _usage(source: DataSource, reply: Reply | None) -> dict[str, list[int]]:
    """What the model under test was asked; judges are not its usage."""
    if reply is None or not isinstance(source, CompletionsRun) or source.model is None:
        return {}
    return {source.model: [1, reply.prompt_tokens, reply.completion_tokens]}
