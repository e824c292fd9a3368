"""The rungs of `tunesmith decide` made of the real parts: models, examples, indexes, trainings, a server.

Not here: the order and the budget (decide.ladder), flags and words (cli.decide).
Called by cli.decide only. No reply is kept in the cache: what is timed here is really asked.
"""

from __future__ import annotations

import pickle
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.cli.output import Output

if TYPE_CHECKING:
    from tunesmith.chat import Example
    from tunesmith.contender import Contender, Retrieve
    from tunesmith.decide.ladder import Built, Offer, Score
    from tunesmith.decide.rows import Rows
    from tunesmith.decide.state import State
    from tunesmith.decide.training import Extent
    from tunesmith.model import Base
    from tunesmith.retrieve.search import Index

SHOTS = 8
CHOOSING_ROWS = 40  # validation rows that each drafted prompt is asked
PROBE_ROWS, PROBE_WATCHED = 16, 4  # of the training that tells how long a training takes
FEWEST_TRAINED = 32
PASSAGE_WORDS = 180
SMALL_DOCS = 200_000  # bytes: indexed in half a minute
DRAFTS = 5  # prompts asked on the choosing rows, the user's own among them; longer ones take longer


@dataclass(slots=True)
class Fields:
    """What a rung may need: everything is loaded when the first of them asks."""

    output: Output
    base_name: str
    rows: Rows
    folder: Path
    state: State
    docs: Path | None
    score: Score
    seed: int


class Workshop:
    """Makes the offers; those on the same base share it."""

    def __init__(self, fields: Fields) -> None:
        self.given = fields

    @cached_property
    def base(self) -> Base:
        from tunesmith.model import load_base

        return load_base(self.given.base_name, say=self.given.output.say)

    @cached_property
    def base_bytes(self) -> int:
        return int(self.base.model.get_memory_footprint())

    @cached_property
    def plain(self) -> Contender:
        from tunesmith.generate import LocalContender

        return LocalContender("prompt", self.base)

    @cached_property
    def max_new_tokens(self) -> int:
        from tunesmith.generate import reply_limit

        return reply_limit(self.given.rows.train, [self.plain])

    def offers(self) -> tuple[dict[str, Offer], dict[str, str]]:
        """The rungs these inputs allow, and why others are not among them."""
        from tunesmith.chat import label_set
        from tunesmith.decide.drafts import own_prompt
        from tunesmith.decide.ladder import Offer

        offers = {"prompt": Offer("prompt", self._prompt)}
        out = {}
        if label_set(self.given.rows.train):
            offers = {"floor": Offer("floor", self._floor), **offers}
        else:
            out["floor"] = "the answers are no labels: there is no plain floor for them"
        if own_prompt(self.given.rows.train) is None:
            out["drafted prompt"] = "the rows have different system prompts, which one draft cannot replace"
        else:
            offers["drafted prompt"] = Offer("drafted prompt", self._drafted, setup_s=self._drafted_s)
        offers["few-shot"] = Offer("few-shot", lambda seconds: self._few_shot(nearest=False))
        offers["few-shot nearest"] = Offer("few-shot nearest", lambda seconds: self._few_shot(nearest=True))
        offers["fine-tune"] = Offer("fine-tune", self._tuned, setup_s=self._tuned_s, shrinks=True)
        if self.given.docs:
            is_small = self._docs_bytes <= SMALL_DOCS  # made at once: what its passages take to read is then measured
            estimate = None if is_small else self._index_s
            like = "few-shot nearest"  # what stands before the question is another in every row
            offers["retrieval"] = Offer("retrieval", self._retrieval, setup_s=estimate, answers_like=like)
            offers["fine-tune + retrieval"] = Offer(
                "fine-tune + retrieval", self._both, setup_s=lambda row_s: 0.0, answers_like="retrieval",
                needs=("fine-tune", "retrieval"),
            )  # fmt: skip
        else:
            out["retrieval"] = out["fine-tune + retrieval"] = "no documents were given (--docs)"
        return offers, out

    # -- nothing is trained ------------------------------------------------------------------------------------------

    def _prompt(self, seconds: float) -> Built:
        from tunesmith.decide.ladder import Built

        return Built(self.plain, self.base_bytes, setup_s=0.0)

    def _floor(self, seconds: float) -> Built:
        from tunesmith.decide.ladder import Built
        from tunesmith.evaluate.floor import FloorContender

        floor = FloorContender(self.given.rows.train)
        return Built(floor, len(pickle.dumps(floor)), notes=[f"{floor.name}, fitted to the training rows."])

    def _few_shot(self, *, nearest: bool) -> Built:
        from tunesmith.cli.contenders import search_texts
        from tunesmith.contender import FewShotContender, question_of, shots_of
        from tunesmith.decide.ladder import Built

        shots = shots_of(self.given.rows.train)
        k = min(SHOTS, len(shots))
        search = search_texts([question_of(shot.prompt) for shot in shots]) if nearest else None
        name = "few-shot nearest" if nearest else "few-shot"
        contender = FewShotContender(self.plain, shots, k=k, nearest=search, name=name)
        return Built(contender, self.base_bytes, setup_s=None if nearest else 0.0)

    def _drafted_s(self, row_s: float) -> float:
        return DRAFTS * min(CHOOSING_ROWS, len(self.given.rows.validation)) * row_s

    def _drafted(self, seconds: float) -> Built:
        """The best of a few drafts on validation rows; absent where that is the user's own, which is a rung already."""
        from tunesmith.contender import PromptedContender
        from tunesmith.decide.drafts import OWN, choose, draft
        from tunesmith.decide.ladder import Absent, Built

        task = task_of(self.given.rows.train)
        drafts = {OWN: task.own, **draft(task, self.given.rows.train)}
        rows = self.given.rows.validation[:CHOOSING_ROWS]

        def asking(text: str) -> Contender:
            return PromptedContender(self.plain, text, name="drafted prompt") if text else self.plain

        def mean_of(text: str, rows: Sequence[Example]) -> float:
            contender = asking(text)
            replies = contender.answer([row.prompt for row in rows], max_new_tokens=self.max_new_tokens)
            values = self.given.score(contender, rows, replies).values
            return sum(values) / len(values)

        choice, text = choose(drafts, rows, mean_of=mean_of)
        means = ", ".join(f"{name} {100 * mean:.1f} %" for name, mean in choice.tried.items())
        self.given.output.say(f"Prompts on {len(rows)} validation rows: {means}.")
        if choice.chosen == OWN:
            raise Absent(f"no draft was better than your own prompt on {len(rows)} validation rows ({means})", [choice])
        (self.given.folder / "prompt.txt").write_text(text + "\n", encoding="utf-8")
        note = f"Your own prompt with: {choice.chosen}. It is in prompt.txt."
        return Built(asking(text), self.base_bytes, notes=[note], choices=[choice])

    # -- documents ---------------------------------------------------------------------------------------------------

    @property
    def _docs_bytes(self) -> int:
        """That are still to be indexed."""
        from tunesmith.retrieve.documents import list_files
        from tunesmith.retrieve.shelf import MANIFEST

        docs = self.given.docs
        if docs is None or (docs / MANIFEST).is_file():
            return 0
        return sum(path.stat().st_size for path in list_files(docs, leave_out=self.given.folder).files.values())

    def _index_s(self, row_s: float) -> float:
        """From the time a few texts of a passage's length take to encode, and the size of the documents."""
        from tunesmith.retrieve.encoder import find_encoder

        encoder, _ = find_encoder("auto")
        if encoder is None:
            return 1.0
        words = " ".join(example.prompt[-1].content for example in self.given.rows.train).split()
        text = " ".join((words * PASSAGE_WORDS)[:PASSAGE_WORDS])
        encoder.encode([text])
        start = time.perf_counter()
        encoder.encode([text] * 4)
        each = (time.perf_counter() - start) / 4
        return 1.0 + each * self._docs_bytes / len(text.encode())

    @cached_property
    def index(self) -> Index:
        """The index that was given, or one of the documents in the decision's folder."""
        from tunesmith.retrieve.encoder import find_encoder
        from tunesmith.retrieve.index import build_index
        from tunesmith.retrieve.search import open_index
        from tunesmith.retrieve.shelf import MANIFEST

        assert self.given.docs
        place = self.given.docs
        if not (place / MANIFEST).is_file():
            place = self.given.folder / "index"
            build_index(self.given.docs, place, encoder=find_encoder("auto")[0])
        return open_index(place)

    def _retrieve(self) -> Retrieve:
        from tunesmith.specs import PASSAGES

        return lambda question: self.index.retrieve(question, PASSAGES)

    def _retrieval(self, seconds: float) -> Built:
        from tunesmith.contender import RetrievalContender
        from tunesmith.decide.ladder import Built

        contender = RetrievalContender(self.plain, self._retrieve(), name="retrieval")
        note = f"{self.index.manifest.passages:,} passages of {self.index.manifest.documents:,} documents."
        return Built(contender, self.base_bytes + bytes_of(self.index.directory), notes=[note])

    # -- training ----------------------------------------------------------------------------------------------------

    @property
    def _run_dir(self) -> Path:
        return self.given.folder / "fine-tune"

    def _tuned_s(self, row_s: float) -> float:
        """From a small training on a few rows, which is thrown away."""
        from tunesmith.decide.training import Extent, Pace
        from tunesmith.runs import Run, is_run

        if is_run(self._run_dir) and Run(self._run_dir).status["state"] == "finished":
            return 0.0
        probe = self.given.folder / "probe"
        shutil.rmtree(probe, ignore_errors=True)  # of a start that was cut off here
        start = time.perf_counter()
        self.given.output.say(f"A training on {PROBE_ROWS} rows, to see how long one takes:")
        metrics = self._train(probe, Extent(PROBE_ROWS, 1, PROBE_WATCHED, is_cut=True))
        each = metrics["step_seconds"] / min(PROBE_ROWS, len(self.given.rows.train))
        fixed = time.perf_counter() - start - metrics["step_seconds"]
        shutil.rmtree(probe)
        self.given.state.values["training_seconds"] = {"fixed": fixed, "each": each}
        return self._whole.seconds(Pace(fixed, each))

    @property
    def _whole(self) -> Extent:
        """The training that `tunesmith train` would make of these rows."""
        from tunesmith.decide.training import Extent

        num_rows = len(self.given.rows.train)
        return Extent(num_rows, usual_epochs(num_rows), len(self.given.rows.validation))

    def _tuned(self, seconds: float) -> Built:
        """A training on as many rows as fit into the seconds; one that was cut off goes on."""
        from tunesmith.decide.ladder import Absent, Built
        from tunesmith.decide.rows import Choice, ids_of
        from tunesmith.decide.training import Pace, extent_within
        from tunesmith.runs import Run, is_run

        whole = self._whole
        if not (is_run(self._run_dir) and Run(self._run_dir).status["state"] == "finished"):
            extent = extent_within(seconds, whole, pace=Pace(**self.given.state.values["training_seconds"]))
            if extent.rows < min(FEWEST_TRAINED, whole.rows):
                raise Absent(f"{seconds:.0f} s would hold a training on {extent.rows} rows only")
            self._train(self._run_dir, extent)
        run = Run(self._run_dir)
        trained, watched = (len(path.read_bytes().splitlines()) for path in self._row_files(self._run_dir))
        metrics, epochs = run.status["metrics"], run.recipe["epochs"]
        told = f"trained on {trained:,} of {whole.rows:,} rows, {epochs} of {whole.epochs} epochs"
        notes = [f"{told.capitalize()}, {metrics['steps']} steps."]
        cut = told if trained < whole.rows or epochs < whole.epochs else ""
        seen = ids_of(self.given.rows.validation[:watched])
        stop = Choice("step of the fine-tune", f"step {metrics['best_step']}", {}, seen)
        size = self.base_bytes + bytes_of(run.weights_dir)
        took_s = max(metrics["seconds"], metrics["step_seconds"])  # of the last start; the steps of all
        return Built(self._adapter(), size, setup_s=float(took_s), notes=notes, choices=[stop], cut=cut)

    def _adapter(self) -> Contender:
        from tunesmith.generate import AdapterContender

        return AdapterContender("fine-tune", self.base, self._run_dir / "adapter")

    def _row_files(self, out: Path) -> tuple[Path, Path]:
        """The rows a training in `out` learns from, and those it watches."""
        folder = self.given.folder / "rows"
        return folder / f"{out.name}.jsonl", folder / f"{out.name}-validation.jsonl"

    def _train(self, out: Path, extent: Extent) -> dict[str, Any]:
        """Its data are files in the decision's folder, the same for the same rows: so a training is found again."""
        from tunesmith.cli.train import show_training
        from tunesmith.recipe import recipe_from

        data, validation = self._row_files(out)
        data.parent.mkdir(exist_ok=True)
        learned = spread_rows(self.given.rows.train, extent.rows, seed=self.given.seed)
        for path, rows in ((data, learned), (validation, self.given.rows.validation[: extent.watched])):
            path.write_text("".join(f"{example.to_json()}\n" for example in rows), encoding="utf-8")
        values: Mapping[str, Any] = {"data": str(data), "validation": str(validation), "base": self.given.base_name}
        values = {**values, "seed": self.given.seed, "epochs": extent.epochs, **extent.settings}
        recipe = recipe_from(values, source="the decision")
        _, metrics = show_training(self.given.output, recipe, out=out, base=self.base)
        return metrics

    def _both(self, seconds: float) -> Built:
        from tunesmith.contender import RetrievalContender
        from tunesmith.decide.ladder import Built

        contender = RetrievalContender(self._adapter(), self._retrieve(), name="fine-tune + retrieval")
        rungs = self.given.state.values["rungs"]
        spent_s = sum(rungs[name]["rung"]["use"]["setup_s"] for name in ("fine-tune", "retrieval"))
        size = self.base_bytes + bytes_of(self._run_dir / "adapter") + bytes_of(self.index.directory)
        return Built(contender, size, setup_s=spent_s, notes=["The fine-tune was trained without passages."])


def remote_offer(line: str, *, leaves: bool) -> Offer:
    """A server as a rung. Raises InputError for a line that cannot be read."""
    from tunesmith.decide.ladder import Built, Offer
    from tunesmith.specs import parse_spec, remote_contender

    server = remote_contender(parse_spec(line if line.startswith("url:") else f"url:{line}"))
    built = Built(server, setup_s=0.0, notes=[f"{server.model} at {server.url}."])
    return Offer("big model", lambda seconds: built, is_remote=True, leaves=leaves)


def task_of(examples: Sequence[Example]) -> Any:
    """What the drafts need to know of the answers."""
    from tunesmith.data.drafts.form import learn_form
    from tunesmith.decide.drafts import Task, own_prompt

    form = learn_form(examples)
    words = sorted(len(example.answer.split()) for example in examples)
    tenth = len(words) // 10
    fields = {name: sorted(types) for name, types in form.fields.items()}
    own = own_prompt(examples) or ""
    return Task(own, form.labels, fields, form.required, (max(1, words[tenth]), max(1, words[-1 - tenth])))


def usual_epochs(num_rows: int) -> int:
    from tunesmith.train.settings import default_epochs

    return default_epochs(num_rows)


def spread_rows(rows: Sequence[Example], count: int, *, seed: int) -> list[Example]:
    """`count` rows drawn by seed, in their order."""
    import random

    places = sorted(random.Random(seed).sample(range(len(rows)), count)) if count < len(rows) else range(len(rows))
    return [rows[place] for place in places]


def bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
