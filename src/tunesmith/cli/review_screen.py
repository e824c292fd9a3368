"""The keyboard interface of `tunesmith review`: one row at a time, with its findings, notes and state.

Not here: what a decision means (data.versions.decisions), what is written in the end (data.versions.review).
Called by the command `review`; textual is loaded only then.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Footer, Input, Label, ProgressBar, Static, TextArea

from tunesmith.chat import Example
from tunesmith.cli.side_by_side import compared, parts, turn_text
from tunesmith.data.finding import Finding
from tunesmith.data.versions.decisions import State
from tunesmith.data.versions.review import Review
from tunesmith.errors import TunesmithError

STATUS_STYLE = {"open": "dim", "pending": "yellow", "accepted": "green", "rejected": "red"}
STATUS_WORDS = {"open": "not decided", "pending": "generated: not trained on until approved"}
ROLE_STYLE = {"system": "magenta", "developer": "magenta", "user": "cyan", "assistant": "green", "tool": "yellow"}
SEVERITY_STYLE = {"error": "bold red", "warning": "yellow", "info": "dim"}


KEYS = (  # two lines that fit 80 columns
    "a accept   r reject   e edit   n note   u undo   w write and close   q close",
    "→ skip   ← back   Tab next undecided   f next finding   g go to a line",
)


class Ask(ModalScreen[str | None]):
    """One line of text; Escape gives None."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss(None)", "Cancel")]
    DEFAULT_CSS = """
    Ask { align: center middle; }
    Ask Vertical { width: 72; height: auto; border: round $accent; padding: 1 2; background: $surface; }
    """

    def __init__(self, question: str) -> None:
        super().__init__()
        self.question = question

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Label(self.question)
            yield Input()
            yield Label("Enter to confirm, Escape to go back", classes="hint")

    def on_input_submitted(self, event: Input.Submitted) -> None:
        self.dismiss(event.value.strip())


class Edit(ModalScreen[Example | None]):
    """The texts of a row's turns, each in its own field; Escape gives None."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+s", "save", "Save and accept", priority=True),
        Binding("escape", "dismiss(None)", "Cancel", priority=True),
    ]
    DEFAULT_CSS = """
    Edit { align: center middle; }
    Edit VerticalScroll { width: 90%; height: 90%; border: round $accent; padding: 0 1; background: $surface; }
    Edit TextArea { height: auto; min-height: 4; max-height: 16; margin-bottom: 1; }
    """

    def __init__(self, example: Example) -> None:
        super().__init__()
        self.example = example

    def compose(self) -> ComposeResult:
        with VerticalScroll():
            for turn in self.example.messages:
                yield Label(Text(turn.role, style=f"bold {ROLE_STYLE.get(turn.role, '')}"))
                yield TextArea(turn.content)
        yield Footer()

    def on_mount(self) -> None:
        list(self.query(TextArea))[-1].focus()  # the answer is what is mended most

    def action_save(self) -> None:
        fields = list(self.query(TextArea))
        turns = zip(self.example.messages, fields, strict=True)
        edited = replace(self.example, messages=tuple(replace(turn, content=field.text) for turn, field in turns))
        fault = faults_of(edited)
        if fault:
            self.notify(fault, severity="error")
        else:
            self.dismiss(edited)


def faults_of(example: Example) -> str:
    """What would make a row unreadable, in one text; empty when nothing would."""
    import json

    from tunesmith.chat import parse_row

    return " ".join(problem.what for problem in parse_row(json.loads(example.to_json()))[1])


class ReviewScreen(App[bool]):
    """`run()` gives True when the result is to be written, False when the review was only closed."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("a", "accept"),
        Binding("r", "reject"),
        Binding("e", "edit"),
        Binding("n", "note"),
        Binding("u", "undo"),
        Binding("right,j,s,space", "step(1)"),
        Binding("left,k", "step(-1)"),
        Binding("tab", "next_undecided", priority=True),
        Binding("f", "next_finding"),
        Binding("g", "jump"),
        Binding("w", "write"),
        Binding("q", "quit_review"),
    ]
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #top { height: auto; padding: 0 1; background: $panel; }
    #row { padding: 1 2; }
    #findings { height: auto; max-height: 40%; padding: 0 2; border-top: solid $panel; }
    #keys { height: auto; padding: 0 1; background: $panel; }
    .hint { color: $text-muted; }
    ProgressBar { width: 100%; }
    Bar { width: 1fr; }
    """

    def __init__(self, review: Review) -> None:
        super().__init__()
        self.review = review
        self.findings: dict[int, list[Finding]] | None = None  # None until the check is through
        self.failure = ""
        self.index = review.next_undecided(0) or 0

    def compose(self) -> ComposeResult:
        with Vertical(id="top"):
            yield Static(id="progress")
            yield ProgressBar(total=len(self.review.items), show_eta=False)
        with VerticalScroll(id="row"):
            yield Static(id="text")
        yield Static(id="findings")
        yield Static(keys_text(), id="keys")

    def on_mount(self) -> None:
        self.title = self.review.title
        self.show()
        # Not one of textual's workers: closing would wait for the check of a large file to end.
        threading.Thread(target=self.find, daemon=True).start()

    def find(self) -> None:
        failure, found = "", {}
        try:
            found = self.review.findings()
        except TunesmithError as error:
            failure = f"the check failed: {error}"
        with contextlib.suppress(RuntimeError):  # closed in the meantime
            self.call_from_thread(self.take_findings, found, failure)

    def take_findings(self, found: dict[int, list[Finding]], failure: str) -> None:
        self.findings, self.failure = found, failure
        self.query_one("#findings", Static).update(self.findings_text())

    def show(self) -> None:
        counts, total = self.review.counts(), len(self.review.items)
        decided = counts["accepted"] + counts["rejected"]
        words = f"{counts['accepted']} accepted, {counts['rejected']} rejected, {total - decided} left"
        item, state = self.review.items[self.index], self.review.states[self.index]
        place = Text.assemble((self.review.title, "bold"), f"   row {self.index + 1} of {total} (line {item.line})   ")
        place.append(STATUS_WORDS.get(state.status, state.status), style=f"bold {STATUS_STYLE[state.status]}")
        self.query_one("#progress", Static).update(Text.assemble(place, f"\n{words}"))
        self.query_one(ProgressBar).update(progress=decided)
        self.query_one("#text", Static).update(row_text(item.example, state))
        self.query_one("#findings", Static).update(self.findings_text())
        self.query_one("#row", VerticalScroll).scroll_home(animate=False)

    def findings_text(self) -> Text:
        if self.findings is None:
            return Text("checking ...", style="dim")
        found = self.findings.get(self.index, [])
        text = Text(self.failure or "no findings", style="dim") if not found else Text()
        for number, finding in enumerate(found):
            text.append("\n" if number else "")
            text.append(f"{finding.severity} {finding.issue}: ", style=SEVERITY_STYLE.get(finding.severity, ""))
            text.append(f"{finding.detail} {finding.suggestion}")
        return text

    def decided(self) -> None:
        """Go on to the next row without a decision; say so when there is none left."""
        following = self.review.next_undecided(self.index)
        if following is None:
            self.notify("Every row is decided. w writes the result, q closes.", timeout=8)
        else:
            self.index = following
        self.show()

    def action_accept(self) -> None:
        self.review.decide(self.index, "accept")
        self.decided()

    def action_reject(self) -> None:
        self.ask("Why is it rejected? (may be empty)", self._reject)

    def action_note(self) -> None:
        self.ask("Note on this row:", self._note)

    def action_edit(self) -> None:
        def take(edited: Example | None) -> None:
            if edited is not None and edited != self.review.states[self.index].example:
                self.review.decide(self.index, "edit", edited=edited)
                self.decided()

        self.push_screen(Edit(self.review.states[self.index].example), take)

    def action_undo(self) -> None:
        index = self.review.undo()
        if index is None:
            self.notify("There is nothing to undo.")
        else:
            self.index = index
            self.show()

    def action_step(self, by: int) -> None:
        self.index = (self.index + by) % len(self.review.items)
        self.show()

    def action_next_undecided(self) -> None:
        following = self.review.next_undecided((self.index + 1) % len(self.review.items))
        self._go(following, "Every row is decided.")

    def action_next_finding(self) -> None:
        if self.findings is None:
            self.notify("The check is still running.")
            return
        order = sorted(self.findings, key=lambda index: (index <= self.index, index))
        self._go(order[0] if order else None, "No row has a finding.")

    def action_jump(self) -> None:
        self.ask("Go to line:", self._jump)

    def action_write(self) -> None:
        self.exit(True)

    def action_quit_review(self) -> None:
        self.exit(False)

    def ask(self, question: str, then: Callable[[str], object]) -> None:
        def take(answer: str | None) -> None:
            if answer is not None:
                then(answer)

        self.push_screen(Ask(question), take)

    def _reject(self, note: str) -> None:
        self.review.decide(self.index, "reject", note=note)
        self.decided()

    def _note(self, note: str) -> None:
        if note:
            self.review.decide(self.index, "note", note=note)
            self.show()

    def _jump(self, answer: str) -> None:
        found = [index for index, item in enumerate(self.review.items) if str(item.line) == answer]
        self._go(found[0] if found else None, f"There is no row on line {answer}.")

    def _go(self, index: int | None, otherwise: str) -> None:
        if index is None:
            self.notify(otherwise)
        else:
            self.index = index
            self.show()


def keys_text() -> Text:
    """The keys in bold, what they do beside them."""
    text = Text("\n").join(Text(line) for line in KEYS)
    text.highlight_regex(r"(?:(?<=   )|^)\S+(?= )", "bold yellow")
    return text


def row_text(original: Example, state: State) -> Text:
    """A row as it would be trained: its turns, what else it holds, its notes, and what an edit changed."""
    text = Text()
    for turn in state.example.messages:
        text.append(f"{turn.role}\n", style=f"bold {ROLE_STYLE.get(turn.role, '')}")
        text.append(f"{turn_text(turn)}\n\n")
    beside = {label: value for label, value in parts(state.example).items() if not label[:1].isdigit()}
    for label, value in beside.items():
        text.append(f"{label}: ", style="bold dim")
        text.append(f"{value}\n", style="dim")
    if state.example.messages != original.messages:
        text.append("\nedited\n", style="bold yellow")
        for label, old, new in compared(original, state.example, colour=True):
            if label in beside:
                continue
            text.append_text(Text.assemble(f"  {label}: ", old, " → ", new, "\n"))
    for said in state.notes:
        text.append(f"\n{said.who}, {said.time}: ", style="bold yellow")
        text.append(said.note)
    return text
