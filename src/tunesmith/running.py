"""Continuous batching on one base: rows join and leave between two steps, each with its own adapter and sampling.

Not here: who waits and whose turn it is (serve.scheduler), text (serve.reply). For one thread at a time.
Prompts are fed in chunks, in the same forward as the running rows' tokens; what an earlier prompt of the same adapter
and owner began with is not computed again. Axes: B rows, V vocabulary.
"""

from __future__ import annotations

import contextlib
import copy
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tunesmith.adapter import add_adapter, logit_change
from tunesmith.bank import Bank, why_not
from tunesmith.chat import Message
from tunesmith.errors import ModelError
from tunesmith.facts import weights_sha256
from tunesmith.mixture import Adapter
from tunesmith.model import Base
from tunesmith.prefill import State, prefill
from tunesmith.sampling import Drawing, Token
from tunesmith.slots import COLUMNS, Slots, Span, forward

CACHE_BYTES = 2 << 30  # of the running rows' keys and values
IDLE_BYTES = 64 << 20  # of places for rows that are kept while there are none
REUSE_BYTES = 256 << 20  # of those kept for later prompts
REUSE_PROMPTS = 256  # of which each is looked at
TOLERANCE = 1e-3  # of the logits' spread, between this decoding and the stock forward; in 16 bits 100 times that


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Switched:
    """An adapter that the bank cannot hold (`reason`): PEFT puts it on and takes it off around each of its steps, and
    holds it as long as anybody, such as a request that waits, holds this."""

    name: str  # on the PEFT model
    sha256: str
    reason: str
    num_bytes: int


Worn = Adapter | Switched | None  # what a row wears: None is the base as it is


@dataclass(eq=False)
class Row:
    """A reply that is being made: `token` is not fed yet; `length` tokens are in the cache."""

    adapter: Worn
    length: int
    drawing: Drawing
    token: Token
    state: State | None = None  # of a row that is not in the batch
    failure: BaseException | None = None  # why no token could be chosen, such as a grammar that leaves none


class Prompt:
    """A prompt that `step` feeds. Once it `is_ready`, rows may go on from it."""

    def __init__(self, ids: Sequence[int], *, adapter: Worn, owner: str, slots: Slots) -> None:
        self.ids = tuple(ids)
        self.adapter = adapter
        self.key = (adapter.identity if isinstance(adapter, Adapter) else "", owner)
        self.slots = slots
        self.reused = self.fed = 0  # tokens that an earlier prompt brought; those that are in the slots
        self.logits_V: torch.Tensor | None = None  # after the last
        self.state: State | None = None  # of one that is fed by itself
        self.failure: Exception | None = None  # why no row can go on from it

    @property
    def left(self) -> int:
        return len(self.ids) - self.fed

    @property
    def is_ready(self) -> bool:
        """Fed, or all but the last token came from an earlier prompt: rows take that one as their first."""
        return self.left == 0 or (self.left == 1 and self.reused > 0)


class Running:
    """The rows of one base. `alone`: why this base's rows cannot share a step, None where they can."""

    def __init__(
        self, base: Base, *, cache_bytes: int = CACHE_BYTES, reuse_bytes: int = REUSE_BYTES, check: bool = True
    ) -> None:
        self.base = base
        self.bank = Bank(base)
        self.num_layers = base.model.config.get_text_config().num_hidden_layers
        self.cache_bytes = cache_bytes
        self.reuse = _Reuse(reuse_bytes)
        self.rows: list[Row] = []  # in the order of their slots
        self.apart: list[Row] = []  # each with a state of its own
        self.slots = Slots(self.num_layers)
        self.token_bytes = 0
        self.peft: Any | None = None
        self._num_switched = 0
        self._switched: dict[str, weakref.ref[Switched]] = {}  # by name on the PEFT model
        self.alone: str | None = None
        if check:
            self.alone = self._why_alone()

    # -- adapters ------------------------------------------------------------------------------------------------

    def put_on(self, folder: Path) -> Adapter | Switched:
        """An adapter of this base, proved to have an effect. Raises ModelError as `Bank.read` does.

        Where `why_not(folder)` is None, any thread may call it at any time; else only the one that decodes.
        """
        reason = why_not(folder)
        if reason is None:
            return self.bank.read(folder)
        self.forget_unused()
        name = f"adapter_{self._num_switched}"
        self._num_switched += 1
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        adapter = Switched(name, weights_sha256(folder), reason, size)
        self.peft = add_adapter(self.base, folder, name=name, model=self.peft)
        self._switched[name] = weakref.ref(adapter)
        if not logit_change(self.base, self.peft) > 0:  # NaN fails as well
            raise ModelError(
                f"{folder} does not change what {self.base.name} answers.", "Train it again; it must not be served."
            )
        return adapter

    def forget_unused(self) -> None:
        """Let PEFT forget the adapters that nobody holds any more. For the thread that decodes."""
        for name in [name for name, held in self._switched.items() if held() is None]:
            if self.peft is not None and len(self.peft.peft_config) > 1:  # PEFT keeps the last one
                del self._switched[name]
                self.peft.delete_adapter(name)

    @contextlib.contextmanager
    def wearing(self, adapter: Worn) -> Iterator[Any]:
        """The model with just this adapter in effect, for any number of rows and tokens."""
        if isinstance(adapter, Switched):
            assert self.peft is not None
            self.peft.set_adapter(adapter.name, inference_mode=True)
            yield self.peft
            return
        with self._without_peft(), self.bank.using([adapter]):
            yield self.base.model

    def _without_peft(self) -> contextlib.AbstractContextManager[None]:
        return self.peft.disable_adapter() if self.peft is not None else contextlib.nullcontext()

    # -- rows ----------------------------------------------------------------------------------------------------

    def fits(self, num_rows: int, most: int) -> bool:
        """Whether so many rows of up to `most` tokens have room in the cache."""
        return num_rows * most * self.token_bytes <= self.cache_bytes

    def begin(self, ids: Sequence[int], *, adapter: Worn = None, owner: str = "") -> Prompt:
        """A prompt to be fed; its keys and values may serve later prompts of the same adapter and owner only."""
        prompt = Prompt(ids, adapter=adapter, owner=owner, slots=Slots(self.num_layers))
        if self._is_apart(prompt):
            return prompt
        found, prompt.reused = self.reuse.find(prompt.ids, key=prompt.key)
        prompt.fed = prompt.reused
        if found is not None and prompt.is_ready:
            prompt.slots = found  # rows copy it; nothing is written to it
            return prompt
        prompt.slots.make_room(1, len(ids))
        if found is not None:
            prompt.slots.take(found, row=0, columns=prompt.reused)
        return prompt

    def _is_apart(self, prompt: Prompt) -> bool:
        return self.alone is not None or isinstance(prompt.adapter, Switched)

    def join(self, prompt: Prompt, drawings: Sequence[Drawing]) -> list[Row]:
        """Rows that go on from a prompt that is ready, one for each drawing. Of one that is fed their first token is
        chosen here; else their token is the prompt's last, which the next step feeds."""
        rows = [Row(prompt.adapter, prompt.fed, drawing, Token(prompt.ids[-1])) for drawing in drawings]
        if prompt.logits_V is not None:
            for row in rows:
                self._choose_for(row, prompt.logits_V)
        if prompt.state is not None:
            for row in rows:
                row.state = copy.copy(prompt.state)
                row.state.cache = copy.deepcopy(prompt.state.cache) if len(rows) > 1 else prompt.state.cache
            self.apart += rows
            return rows
        room = 1 << (len(self.rows) + len(rows) - 1).bit_length(), prompt.fed + COLUMNS
        if not self.rows and not self.slots.has_room(*room):
            self.slots = Slots(self.num_layers)  # what is left in them is nobody's
        self.slots.make_room(*room)
        for row in rows:
            self.slots.take(prompt.slots, row=len(self.rows), columns=prompt.fed)
            self.rows.append(row)
        if not prompt.left:
            self.reuse.keep(prompt)
        return rows

    def step(self, feeds: Sequence[tuple[Prompt, int]] = ()) -> None:
        """Feed every row's token and so many more tokens of each of these prompts; choose the rows' next."""
        self.forget_unused()
        together = [(prompt, count) for prompt, count in feeds if not self._is_apart(prompt)]
        if self.rows or together:
            self._step_together(together)
        for row in self.apart:
            assert row.state is not None
            with self.wearing(row.adapter) as model, torch.inference_mode():
                row.state.model = model
                row.state.advance(torch.tensor([[row.token.id]]), torch.tensor([[row.length]]))
            self._choose([row], row.state.logits_BV)
        for prompt, _ in feeds:
            if self._is_apart(prompt):
                self._feed_apart(prompt)

    def _step_together(self, feeds: Sequence[tuple[Prompt, int]]) -> None:
        spans = [Span(prompt.slots, prompt.fed, prompt.ids[prompt.fed : prompt.fed + count]) for prompt, count in feeds]
        worn = [row.adapter for row in self.rows] + [prompt.adapter for prompt, _ in feeds]
        counts = [1] * len(self.rows) + [len(span.ids) for span in spans]
        with self._without_peft(), self.bank.using(worn, counts):  # type: ignore[arg-type]  # none of them is Switched
            logits_BV = forward(
                self.base.model,
                [row.token.id for row in self.rows],
                slots=self.slots,
                starts=[row.length for row in self.rows],
                spans=spans,
            )
        self._choose(self.rows, logits_BV[: len(self.rows)])
        for (prompt, _), span, logits_V in zip(feeds, spans, logits_BV[len(self.rows) :], strict=True):
            prompt.fed = span.end
            prompt.logits_V = logits_V if not prompt.left else None
            if not logits_V.max().isfinite():
                prompt.failure = _not_finite()

    def _feed_apart(self, prompt: Prompt) -> None:
        try:
            with self.wearing(prompt.adapter) as model:
                prompt.state = prefill(model, [prompt.ids], prefix=None)
            prompt.fed, prompt.logits_V = len(prompt.ids), prompt.state.logits_BV[0]
            if not prompt.logits_V.max().isfinite():
                raise _not_finite()
        except Exception as error:  # it belongs to whoever asked
            prompt.failure = error

    def _choose(self, rows: Sequence[Row], logits_BV: torch.Tensor) -> None:
        largest_B, best_B = logits_BV.max(-1)  # not a number where any of them is not
        finite_B = largest_B.isfinite().tolist()
        for row, best, finite, logits_V in zip(rows, best_B.tolist(), finite_B, logits_BV, strict=True):
            row.length += 1
            if not finite:
                row.failure = _not_finite()
            elif row.drawing.is_argmax:
                row.token = Token(best)
            else:
                self._choose_for(row, logits_V)

    def _choose_for(self, row: Row, logits_V: torch.Tensor) -> None:
        try:
            row.token = row.drawing.draw(logits_V)
        except BaseException as error:  # it belongs to whoever asked for this row; a panic in Rust is no Exception
            row.failure = error

    def leave(self, row: Row) -> None:
        """Take a row out; the last one takes its slot."""
        if row.state is not None:
            self.apart.remove(row)
            return
        place = self.rows.index(row)
        if row.failure is not None:
            self.slots.wipe(place)  # what is not a number would reach later rows even from hidden columns
        last = self.rows.pop()
        if last is not row:
            self.slots.move(len(self.rows), to=place, columns=last.length)
            self.rows[place] = last
        if not self.rows and self.slots.num_bytes > IDLE_BYTES:
            self.slots = Slots(self.num_layers)

    def clear(self) -> None:
        """Take all rows out, after a step that failed."""
        self.rows, self.apart = [], []
        self.slots = Slots(self.num_layers)

    # -- the proof -----------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def _why_alone(self) -> str | None:
        """Two rows of different lengths, a prompt in two chunks and one step: what the stock forward gives, or why the
        base's rows are decoded one by one by that."""
        if kind := _rotary_by_length(self.base.model.config.get_text_config()):
            return f"its rotary positions ({kind}) are others where any row of the batch is long"
        ids = self.base.renderer.prompt([Message("user", "Where is my card?")])
        prompts = [ids, ids[: len(ids) // 2 + 1]]
        expected = [self.base.model(input_ids=torch.tensor([row]).to(self.base.model.device)).logits for row in prompts]
        try:
            found = self._probe(prompts)
        except Exception as error:  # a model's own code, which may fail in any way on a cache it does not know
            return f"its layers do not keep keys and values in the usual form: {type(error).__name__}: {error}"
        finally:
            self.clear()
            self.reuse.clear()
        stock_BV = torch.stack([logits[0, -1].float().cpu() for logits in expected])
        spread = float(stock_BV.std())
        difference = float((found.float() - stock_BV).abs().max()) / (spread or 1.0)
        limit = TOLERANCE if expected[0].dtype == torch.float32 else 100 * TOLERANCE
        if difference <= limit:
            return None
        return f"its logits would differ by {difference:.2g} of their spread from the stock forward"

    def _probe(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Logits (B, V) of each prompt: its beginning fed in chunks beside the rows that there are, its last token with
        those of the others."""
        for number, ids in enumerate(prompts):
            prompt = self.begin(ids[:-1], owner=str(number))
            while prompt.left:
                self.step([(prompt, len(ids) // 2)])
            self.token_bytes = max(1, prompt.slots.num_bytes // len(prompt.ids))
            self.join(prompt, [Drawing()])
        starts, lasts = [len(ids) - 1 for ids in prompts], [ids[-1] for ids in prompts]
        return forward(self.base.model, lasts, slots=self.slots, starts=starts)


class _Reuse:
    """Keys and values of earlier prompts, by adapter and owner; the least used go first."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.held: OrderedDict[tuple[tuple[str, str], tuple[int, ...]], Slots] = OrderedDict()

    def find(self, ids: tuple[int, ...], *, key: tuple[str, str]) -> tuple[Slots | None, int]:
        """The prompt that has the longest beginning in common with this one; how many tokens. At least one is left."""
        best, length = None, 0
        for entry in self.held:
            if entry[0] == key and (common := _common(entry[1], ids)) > length:
                best, length = entry, common
        length = min(length, len(ids) - 1)
        if best is None or length < 1:
            return None, 0
        self.held.move_to_end(best)
        return self.held[best], length

    def keep(self, prompt: Prompt) -> None:
        """Keep a prompt that was mostly new; one that it goes on from is let go."""
        if prompt.reused * 2 > len(prompt.ids):
            return
        key = prompt.key
        for entry in [entry for entry in self.held if entry[0] == key and prompt.ids[: len(entry[1])] == entry[1]]:
            del self.held[entry]
        self.held[key, prompt.ids] = prompt.slots
        while len(self.held) > REUSE_PROMPTS or self.num_bytes > self.most_bytes:
            self.held.popitem(last=False)

    @property
    def num_bytes(self) -> int:
        return sum(slots.num_bytes for slots in self.held.values())

    def clear(self) -> None:
        self.held.clear()


def _rotary_by_length(config: Any) -> str | None:
    """The kind of rotary positions whose frequencies follow the longest row that is fed, which are another for the
    rows beside it and for a prompt fed in chunks; None for all others."""
    parameters = getattr(config, "rope_parameters", None) or {}
    by_layer = [value for value in parameters.values() if isinstance(value, dict)]
    kinds = [str(item.get("rope_type", "")) for item in (parameters, *by_layer)]
    return next((kind for kind in kinds if "dynamic" in kind or kind == "longrope"), None)


def _not_finite() -> ModelError:
    return ModelError("The model's numbers are not finite.", "Train it again with a lower learning rate.")


def _common(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    length = min(len(a), len(b))
    if a[:length] == b[:length]:
        return length
    low, high = 0, length  # a[:low] == b[:low], a[:high] != b[:high]
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if a[low:middle] == b[low:middle] else (low, middle)
    return low
