"""Rows that a person looks through: a file or a named data set, the decisions so far, and what is written of them.

Not here: the keyboard interface (cli.review_screen), the log and what a decision means (decisions).
Called by the command `review`.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tunesmith.chat import Example
from tunesmith.data.check import check
from tunesmith.data.dataset import EXAMPLES, content_id
from tunesmith.data.files import write_new_files
from tunesmith.data.finding import Finding
from tunesmith.data.ledger import LedgerRow, check_conservation, counts_of, ledger_of
from tunesmith.data.load import Loaded, load, load_examples
from tunesmith.data.versions.decisions import Action, Decision, DecisionLog, State, decide, state_of
from tunesmith.data.versions.history import Commit, commit, decisions_of, head_of, locked, names, numbers_of, settle
from tunesmith.errors import InputError


@dataclass(frozen=True, slots=True)
class Item:
    """A row under review. `line` is that of its source file, `place` that of `Review.path`, which is checked."""

    key: str
    line: int
    place: int
    example: Example


class Review:
    """The rows of one file or data set in order, where each stands, and the log that every decision goes to."""

    def __init__(self, title: str, items: Sequence[Item], *, log: DecisionLog, path: Path) -> None:
        self.title, self.items, self.log, self.path = title, items, log, path
        self.index_of = {item.key: index for index, item in enumerate(items)}
        self.decisions: dict[str, list[Decision]] = defaultdict(list)
        self._order: list[str] = []  # the key of every decision that stands, oldest first
        for decision in log.read():
            self._take(decision)
        self.states = [state_of(item.example, self.decisions.get(item.key, ())) for item in items]

    @property
    def is_file(self) -> bool:
        """Whether a file is under review; otherwise `title` names a data set."""
        return self.title == str(self.path)

    def _take(self, decision: Decision) -> None:
        self.decisions[decision.key].append(decision)
        if decision.action != "undo":
            self._order.append(decision.key)
        elif decision.key in self._order:
            del self._order[len(self._order) - 1 - self._order[::-1].index(decision.key)]

    def decide(self, index: int, action: Action, *, note: str = "", edited: Example | None = None) -> State:
        """Log a decision and return where the row stands now."""
        key = self.items[index].key
        decision = decide(key, self.states[index], action=action, note=note, edited=edited)
        self.log.append(decision)
        self._take(decision)
        self.states[index] = state_of(self.items[index].example, self.decisions[key])
        return self.states[index]

    def undo(self) -> int | None:
        """Take back the newest decision about one of these rows, also of an earlier session; returns its index."""
        newest = next((key for key in reversed(self._order) if key in self.index_of), None)
        if newest is None:
            return None
        self.decide(self.index_of[newest], "undo")
        return self.index_of[newest]

    def counts(self) -> Counter[str]:
        """Rows by status: open, pending, accepted, rejected."""
        return Counter(state.status for state in self.states)

    def next_undecided(self, start: int) -> int | None:
        """The first row from `start` on, then from the beginning, that is open or pending."""
        order = [*range(start, len(self.items)), *range(start)]
        return next((index for index in order if self.states[index].status in ("open", "pending")), None)

    def findings(self) -> dict[int, list[Finding]]:
        """What `check` has to say about each row, by index; takes a while for a large file."""
        index_of = {item.place: index for index, item in enumerate(self.items)}
        found: dict[int, list[Finding]] = defaultdict(list)
        for finding in check(load(self.path)).findings:
            if finding.line in index_of:
                found[index_of[finding.line]].append(finding)
        return dict(found)


def open_review(target: str, root: Path) -> Review:
    """The review of a file, or of the newest version of a named data set.

    Raises:
        InputError: there is neither; DataError when the file has problems.
    """
    path = Path(target)
    if target in names(root) and not path.is_file():
        head = head_of(root, target)
        assert head
        numbered = enumerate(zip(head.rows, numbers_of(head), strict=True), start=1)
        items = [Item(str(number), row.line, place, row.example) for place, (row, number) in numbered]
        return Review(target, items, log=decisions_of(root, target), path=head.directory / EXAMPLES)
    loaded = load_examples(path)
    log = DecisionLog(path.with_name(f"{path.name}.review.jsonl"))
    return Review(str(path), _items(loaded), log=log, path=path)


def _items(loaded: Loaded) -> list[Item]:
    """Rows of a file are known by their content, so that decisions outlive lines that are added before them."""
    seen: Counter[str] = Counter()
    items = []
    for row in loaded.examples:
        content = row.example.id
        seen[content] += 1
        key = content if seen[content] == 1 else f"{content}.{seen[content]}"
        items.append(Item(key, row.line, row.line, row.example))
    return items


@dataclass(frozen=True, slots=True)
class Written:
    """A reviewed file and its ledger; `counts` are the lines of the source by status."""

    path: Path
    ledger_path: Path
    counts: Mapping[str, int]


def output_path(path: Path) -> Path:
    """Where the reviewed rows of a file go when nothing else is said."""
    return path.with_name(f"{path.stem}.reviewed.jsonl")


def write_file(review: Review, out: Path, *, force: bool = False) -> Written:
    """Write the rows of a file as they were reviewed, and where each line went.

    Rejected rows and generated ones that nobody has approved are left out; undecided rows stay as they are.

    Raises:
        InputError: `out` exists (an earlier output of this review may be replaced), or it cannot be written.
    """
    may_replace(review, out, force=force)
    loaded = load_examples(review.path)
    if [row.example for row in loaded.examples] != [item.example for item in review.items]:
        raise InputError(f"{review.path} was changed during the review; nothing was written.", "Open it again.")
    states = {item.line: state for item, state in zip(review.items, review.states, strict=True)}
    ledger = [_file_row(row, states.get(row.line)) for row in ledger_of(loaded)]
    check_conservation(ledger, loaded.num_lines)
    kept = [states[row.line].example for row in ledger if row.status == "trained"]
    ledger_path = _ledger_path(out)
    lines = [json.dumps(row.as_dict(), ensure_ascii=False) for row in ledger]
    write_new_files({out: [example.to_json() for example in kept], ledger_path: lines}, force=True)
    return Written(out, ledger_path, counts_of(ledger))


def may_replace(review: Review, out: Path, *, force: bool) -> None:
    """Refuse to write over what is not an earlier output of a review, as its ledger beside it tells.

    Raises:
        InputError: `out` is the file under review, or exists and is something else.
    """
    if out.resolve() == review.path.resolve():
        raise InputError(f"{out} is the file under review.", "Choose another --out.")
    if force or not out.exists():
        return
    try:
        ledger = [json.loads(line) for line in _ledger_path(out).read_text(encoding="utf-8").splitlines()]
        ids = [row["example"] for row in ledger if row["status"] == "trained"]
        ours = ids == [content_id(line) for line in out.read_text(encoding="utf-8").split("\n")[:-1]]
    except (OSError, ValueError, TypeError, KeyError):
        ours = False
    if not ours:
        raise InputError(f"{out} exists already and is no output of a review.", "Use --force, or another --out.")


def _ledger_path(out: Path) -> Path:
    return out.with_name(f"{out.stem}.ledger.jsonl")


def _file_row(row: LedgerRow, state: State | None) -> LedgerRow:
    if state is None:  # a blank line
        return row
    status = {"rejected": "rejected", "pending": "dropped"}.get(state.status, "trained")
    return replace(row, example=state.example.id, status=status, reason=state.reason)


def write_version(root: Path, name: str, *, message: str = "") -> Commit:
    """The next version of a data set: its newest with the decisions made about its rows.

    Rejected rows leave it; generated ones that nobody has approved stay, and training refuses them.
    """
    with locked(root):
        head = head_of(root, name)
        if head is None:
            raise InputError(f"there is no data set {name!r} in {root}.", "`tunesmith data log` lists them.")
        decisions = decisions_of(root, name).by_key()
        settled = settle(head.rows, numbers_of(head), ids=head.ids, decisions=decisions)
        ledger = [settled.overrides.get(row.line, row) for row in head.ledger]
        step = {"operation": "review", "name": name} | ({"message": message} if message else {})
        steps = (*head.operations, step)
        return commit(root, head, settled=settled, source=head.source, ledger=ledger, steps=steps)
