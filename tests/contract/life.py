"""The whole life with OpenAI's client, told part by part: `python life.py URL TRAINING_FILE BASE`.

Not here: the server, the client's version (test_clients). Runs with any openai client and nothing of tunesmith. Prints
a line of JSON for each part: pass, fail with the reason, or absent where the server has no such route.
"""

from __future__ import annotations

import json
import math
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai

PATIENCE_S = 600
HELLO: list[Any] = [{"role": "user", "content": "My card is lost, case 7."}]


class Life:
    """What one part leaves for the next."""

    def __init__(self, url: str, training_file: str, base: str) -> None:
        self.client = openai.OpenAI(base_url=url, api_key="not needed", timeout=120)
        self.training_file = Path(training_file)
        self.base = base
        self.file: Any = None
        self.job: Any = None

    # -- models and chat ---------------------------------------------------------------------------------------

    def models(self) -> str:
        names = [model.id for model in self.client.models.list()]
        assert self.base in names, names
        assert self.client.models.retrieve(self.base).id == self.base
        return f"{len(names)} models"

    def chat(self) -> str:
        answers = [self._ask(self.base) for _ in range(2)]
        texts = [answer.choices[0].message.content for answer in answers]
        assert texts[0] == texts[1], "temperature 0 does not repeat"
        usage = answers[0].usage
        assert usage and usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
        assert answers[0].choices[0].finish_reason in ("stop", "length")
        assert answers[0]._request_id
        return f"{usage.completion_tokens} tokens"

    def stream(self) -> str:
        whole = self._ask(self.base).choices[0].message.content
        chunks = list(self._ask(self.base, stream=True, stream_options={"include_usage": True}))
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == whole, (text, whole)
        assert chunks[-1].usage and not chunks[-1].choices
        return f"{len(chunks)} chunks"

    def errors(self) -> str:
        refused = (
            (openai.NotFoundError, lambda: self._ask("no-such-model")),
            (openai.BadRequestError, lambda: self._ask(self.base, temperature=9)),
            (openai.BadRequestError, lambda: self.client.chat.completions.create(model=self.base, messages=[])),
            (openai.NotFoundError, lambda: self.client.models.retrieve("no-such-model")),
        )
        for kind, call in refused:
            try:
                call()
            except kind as error:
                assert error.type == "invalid_request_error" and error.message and error.request_id, error
                continue
            raise AssertionError(f"not refused: {kind.__name__}")
        return f"{len(refused)} refusals"

    # -- files and jobs ----------------------------------------------------------------------------------------

    def files(self) -> str:
        with self.training_file.open("rb") as file:
            self.file = self.client.files.create(file=file, purpose="fine-tune")
        done = self.client.files.wait_for_processing(self.file.id, max_wait_seconds=60)
        assert done.status == "processed" and done.purpose == "fine-tune", done
        with self.training_file.open("rb") as file:
            assert self.client.files.content(self.file.id).read() == file.read()
        assert self.file.id in [one.id for one in self.client.files.list(purpose="fine-tune")]
        return self.file.id

    def bad_file(self) -> str:
        try:
            self.client.files.create(file=("bad.jsonl", b'{"messages": []}\n[1]\n'), purpose="fine-tune")
        except openai.BadRequestError as error:
            assert "Line 2" in error.message or "line 2" in error.message, error.message
            return error.message[:80]
        raise AssertionError("a bad file was taken")

    def job_made(self) -> str:
        """The lines of OpenAI's guide."""
        assert self.file, "there is no file"
        self.job = self.client.fine_tuning.jobs.create(
            training_file=self.file.id, model=self.base, hyperparameters={"n_epochs": 1}, suffix="contract"
        )
        assert self.job.object == "fine_tuning.job" and self.job.id.startswith("ftjob-")
        assert self.job.id in [one.id for one in self.client.fine_tuning.jobs.list()]
        deadline = time.time() + PATIENCE_S
        while self.job.status not in ("succeeded", "failed", "cancelled"):
            assert time.time() < deadline, self.job.status
            time.sleep(0.5)
            self.job = self.client.fine_tuning.jobs.retrieve(self.job.id)
        assert self.job.status == "succeeded", self.job.error
        assert self.job.fine_tuned_model and self.job.trained_tokens
        return self.job.fine_tuned_model

    def events(self) -> str:
        assert self.job, "there is no job"
        events = list(self.client.fine_tuning.jobs.list_events(self.job.id, limit=3))
        messages = [event.message for event in events]
        assert messages[-1].startswith("Created fine-tuning job"), messages[-1]
        assert any("successfully completed" in message for message in messages)
        assert len({event.id for event in events}) == len(events)
        return f"{len(events)} events"

    def checkpoints(self) -> str:
        assert self.job, "there is no job"
        found = list(self.client.fine_tuning.jobs.checkpoints.list(self.job.id))
        assert found and all(one.fine_tuning_job_id == self.job.id and one.step_number for one in found)
        return f"{len(found)} checkpoints"

    def tuned_chat(self) -> str:
        assert self.job and self.job.fine_tuned_model, "there is no tuned model"
        assert self._ask(self.job.fine_tuned_model).model == self.job.fine_tuned_model
        assert self.job.fine_tuned_model in [model.id for model in self.client.models.list()]
        return self.job.fine_tuned_model

    def result_file(self) -> str:
        assert self.job and self.job.result_files, "there is no result file"
        head = self.client.files.content(self.job.result_files[0]).read().decode().splitlines()[0]
        assert head.startswith("step,"), head
        return head

    def cancelled(self) -> str:
        assert self.file, "there is no file"
        job = self.client.fine_tuning.jobs.create(training_file=self.file.id, model=self.base)
        job = self.client.fine_tuning.jobs.cancel(job.id)
        deadline = time.time() + PATIENCE_S
        while job.status != "cancelled":
            assert time.time() < deadline and job.status not in ("succeeded", "failed"), job.status
            time.sleep(0.2)
            job = self.client.fine_tuning.jobs.retrieve(job.id)
        return job.id

    # -- the rest ----------------------------------------------------------------------------------------------

    def embeddings(self) -> str:
        model = next((one.id for one in self.client.models.list() if "MiniLM" in one.id), "all-MiniLM-L6-v2")
        answer = self.client.embeddings.create(model=model, input=["a card", "a card", "the weather"])
        one, same, other = (item.embedding for item in answer.data)
        assert math.isclose(sum(a * b for a, b in zip(one, same, strict=True)), 1, abs_tol=1e-4)
        assert sum(a * b for a, b in zip(one, other, strict=True)) < 0.9
        return f"{len(one)} dimensions"

    def graders(self) -> str:
        grader: Any = {"type": "multi", "name": "m", "calculate_output": "0.5 * a + 0.5 * b", "graders": {
            "a": {"type": "string_check", "name": "a", "input": "{{sample.output_text}}",
                  "reference": "{{item.label}}", "operation": "eq"},
            "b": {"type": "text_similarity", "name": "b", "input": "{{sample.output_text}}",
                  "reference": "{{item.label}}", "evaluation_metric": "fuzzy_match"},
        }}  # fmt: skip
        alpha = self.client.fine_tuning.alpha.graders
        assert alpha.validate(grader=grader).grader
        right = alpha.run(grader=grader, model_sample="card", item={"label": "card"})
        wrong = alpha.run(grader=grader, model_sample="login", item={"label": "card"})
        assert right.reward == 1 and 0 <= wrong.reward < 0.5
        assert not right.metadata.errors.other_error
        return f"rewards {right.reward:.2f} and {wrong.reward:.2f}"

    def evals(self) -> str:
        check: Any = {"type": "string_check", "name": "same", "input": "{{sample.output_text}}",
                      "reference": "{{item.label}}", "operation": "eq"}  # fmt: skip
        config: Any = {"type": "custom", "include_sample_schema": True, "item_schema": {
            "type": "object", "properties": {"text": {"type": "string"}, "label": {"type": "string"}},
        }}  # fmt: skip
        made = self.client.evals.create(name="contract", data_source_config=config, testing_criteria=[check])
        rows = [{"item": {"text": f"case {n}", "label": "card"}} for n in range(3)]
        source: Any = {
            "type": "completions", "model": self.base, "source": {"type": "file_content", "content": rows},
            "input_messages": {"type": "template", "template": [{"role": "user", "content": "{{item.text}}"}]},
            "sampling_params": {"max_completion_tokens": 4},
        }  # fmt: skip
        run = self.client.evals.runs.create(made.id, data_source=source, name="first")
        deadline = time.time() + PATIENCE_S
        while run.status in ("queued", "in_progress"):
            assert time.time() < deadline, run
            time.sleep(0.1)
            run = self.client.evals.runs.retrieve(run.id, eval_id=made.id)
        counts = run.result_counts
        assert run.status == "completed" and counts.total == 3 == counts.passed + counts.failed, run
        items = list(self.client.evals.runs.output_items.list(run.id, eval_id=made.id, limit=2))
        assert len(items) == 3 and all(item.sample.output for item in items)
        assert self.client.evals.runs.cancel(run.id, eval_id=made.id).status == "completed"
        assert self.client.evals.runs.delete(run.id, eval_id=made.id)
        assert self.client.evals.delete(made.id).deleted
        return f"{counts.total} rows"

    def stored(self) -> str:
        answer = self._ask(self.base, store=True, metadata={"part": "stored"})
        found = [one.id for one in self.client.chat.completions.list(metadata={"part": "stored"}, limit=1)]
        assert answer.id in found
        messages = self.client.chat.completions.messages.list(answer.id).data
        assert messages[0].content == HELLO[0]["content"]
        assert self.client.chat.completions.delete(answer.id).deleted
        return answer.id

    def paging(self) -> str:
        check: Any = {"type": "string_check", "name": "c", "input": "a", "reference": "a", "operation": "eq"}
        config: Any = {"type": "custom", "item_schema": {}}
        ids = [self.client.evals.create(data_source_config=config, testing_criteria=[check]).id for _ in range(5)]
        listed = [one.id for one in self.client.evals.list(limit=2)]
        assert listed[-5:] == ids, listed
        for one in self.client.evals.list(limit=2):
            self.client.evals.delete(one.id)
        assert not list(self.client.evals.list())
        return "5 over pages of 2"

    def _ask(self, model: str, **options: Any) -> Any:
        asked: dict[str, Any] = {"model": model, "messages": HELLO, "temperature": 0, "max_tokens": 8}
        return self.client.chat.completions.create(**{**asked, **options})


PARTS = (
    "models", "chat", "stream", "errors", "embeddings", "graders", "evals", "paging", "stored", "files", "bad_file",
    "job_made", "events", "checkpoints", "tuned_chat", "result_file", "cancelled",
)  # fmt: skip


def tell(name: str, part: Callable[[], str]) -> dict[str, str]:
    try:
        return {"part": name, "result": "pass", "detail": part()}
    except openai.APIStatusError as error:
        said = str(error.body)
        absent = error.status_code in (404, 405) and (": Not Found." in said or ": Method Not Allowed." in said)
        return {"part": name, "result": "absent" if absent else "fail", "detail": str(error)}
    except Exception as error:
        lacks = isinstance(error, AssertionError) and str(error).startswith("there is no ")
        place = traceback.format_exc(limit=-1)
        return {"part": name, "result": "absent" if lacks else "fail", "detail": str(error) if lacks else place}


def main() -> None:
    life = Life(*sys.argv[1:4])
    print(json.dumps({"part": "version", "result": "pass", "detail": openai.__version__}), flush=True)
    for name in PARTS:
        print(json.dumps(tell(name, getattr(life, name))), flush=True)


if __name__ == "__main__":
    main()
