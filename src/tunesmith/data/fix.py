"""Mend a data file by named rules, and keep a ledger that says where each line went and what was changed in it.

Not here: finding faults (check and its parts), files and flags (cli.check); deciding on wrong or conflicting labels.
Called by `tunesmith check --fix`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

from tunesmith.chat import Message, parse_row
from tunesmith.data.checks import leaks, near
from tunesmith.data.checks.labels import label_forms
from tunesmith.data.checks.markup import plain_text
from tunesmith.data.checks.mojibake import repair
from tunesmith.data.checks.personal import PII_KINDS, SECRET_KINDS, mask
from tunesmith.data.checks.text import strip_controls, text_findings
from tunesmith.data.finding import Finding
from tunesmith.data.load import Loaded, SourceRow
from tunesmith.errors import DataError, InputError, RunError, did_you_mean

MAX_PASSES = 20  # a pass that changes something removes a row or joins a label; a file needs two or three


class Rule(NamedTuple):
    """A named way of mending. `issue` is what it answers to in the report; `default` says whether it is on unasked."""

    issue: str
    default: bool
    text: str


RULES = {
    "strip_bom": Rule("bom", True, "takes byte order marks out"),
    "lf": Rule("crlf", True, "ends lines with LF"),
    "drop_blank": Rule("blank_line", True, "removes blank lines"),
    "drop_broken": Rule("broken_json and every other problem", True, "removes lines that hold no usable row"),
    "repair_mojibake": Rule("mojibake", True, "undoes wrong decoding, where the right text is certain"),
    "strip_control": Rule("control_chars", True, "takes control and invisible characters out"),
    "strip_html": Rule("html", False, "takes tags out and resolves entities"),
    "mask_secrets": Rule("secret", True, "puts [SECRET_1] for keys and passwords"),
    "mask_pii": Rule("pii", False, "puts [EMAIL_1] and the like for personal data, the same for the same value"),
    "normalise_label": Rule("label_variant", True, "writes a variant of a label as the label"),
    "drop_exact_duplicate": Rule("exact_duplicate", True, "merges a row into the first with the same messages"),
    "drop_near_duplicate": Rule("near_duplicate", False, "merges a row into the first that is nearly the same"),
    "drop_leaked": Rule("leaked_test, leaked_test_near", True, "removes rows that stand in a file of --against"),
}
LINE_RULES = (("strip_bom", "bom"), ("lf", "crlf"))
FOR_A_PERSON = ("wrong_label", "conflicting_label")


class Change(NamedTuple):
    """One message of a row before and after a rule; `before` is None in a row where something was masked."""

    place: str  # "message 2", "rejected 1"
    rule: str
    before: str | None
    after: str


@dataclass(slots=True)
class LineFate:
    """Where one physical line went: 'kept' (as row `out` of the new file), 'removed', or 'merged' into line `into`."""

    line: int
    fate: str = "kept"
    rules: list[str] = field(default_factory=list)
    reason: str = ""
    changes: list[Change] = field(default_factory=list)
    into: int | None = None
    out: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """A line of the ledger, without what is empty."""
        body: dict[str, Any] = {"line": self.line, "fate": self.fate, "rules": self.rules}
        body |= {"out": self.out, "into": self.into, "reason": self.reason or None}
        body["changes"] = [change._asdict() for change in self.changes] or None
        return {name: value for name, value in body.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Fixed:
    """The lines of the new file and the fate of every line of the old one, in its order."""

    lines: list[str]
    ledger: list[LineFate]

    def counts(self) -> dict[str, int]:
        """Lines by fate; `changed` and `masked` are among `kept`. kept + removed + merged = lines of the file."""
        fates = Counter(fate.fate for fate in self.ledger)
        kept = [fate for fate in self.ledger if fate.changes and fate.fate == "kept"]
        masked = sum(any(change.before is None for change in fate.changes) for fate in kept)
        return {
            **{name: fates[name] for name in ("kept", "removed", "merged")},
            "changed": len(kept) - masked,
            "masked": masked,
        }

    def by_rule(self) -> dict[str, int]:
        """Lines that each rule touched, in the order of RULES, without zeros."""
        counts = Counter(rule for fate in self.ledger for rule in dict.fromkeys(fate.rules))
        return {rule: counts[rule] for rule in RULES if counts[rule]}


def choose_rules(changes: str | None, *, mask_pii: bool = False) -> frozenset[str]:
    """The default rules with `changes` to them: 'no-lf,strip_html' turns one off and one on.

    Raises:
        InputError: a name that is no rule; the text names the nearest.
    """
    chosen = {name for name, rule in RULES.items() if rule.default} | ({"mask_pii"} if mask_pii else set())
    for word in filter(None, (part.strip() for part in (changes or "").split(","))):
        name = word.removeprefix("no-").replace("-", "_")
        if name not in RULES:
            raise InputError(f"there is no rule {name!r}.", did_you_mean(name, RULES, what="rules"))
        chosen = chosen - {name} if word.startswith("no-") else chosen | {name}
    return frozenset(chosen)


def fix(loaded: Loaded, rules: Iterable[str], *, against: Sequence[Loaded] = ()) -> Fixed:
    """Mend what was read, until the rules find nothing more: mending the result again changes no byte of it.

    Every row comes out in the one form of `Example.to_json`, whatever form it had.

    Raises:
        DataError: the file as a whole cannot be read, or lines cannot and `drop_broken` is off.
        InputError: no row would be left, or more lines are broken than are kept in memory.
    """
    work = _Work(loaded, frozenset(rules), against)
    work.take_lines_out()
    work.mend_texts()
    for _ in range(MAX_PASSES):
        before = list(work.rows)
        work.strip_html()
        work.join_labels()
        work.drop_rows()
        if work.rows == before:
            return work.fixed()
    what = f"the rules still change {loaded.path} after {MAX_PASSES} passes."
    raise RunError(what, "Turn rules off one by one to see which, and please report it.")


class _Work:
    """The rows that are left, and what came of every line."""

    def __init__(self, loaded: Loaded, rules: frozenset[str], against: Sequence[Loaded]) -> None:
        self.loaded = loaded
        self.rules = rules
        self.against = against
        self.rows = list(loaded.examples)
        self.fates = {line: LineFate(line) for line in range(1, loaded.num_lines + 1)}
        self.placeholders: dict[str, str] = {}

    # -- lines ---------------------------------------------------------------------------------------------------

    def take_lines_out(self) -> None:
        loaded = self.loaded
        if loaded.problems and (loaded.problems[0].line is None or "drop_broken" not in self.rules):
            raise DataError(loaded.problems, loaded.num_problems)
        if loaded.num_problems > len(loaded.problems):
            what = f"{loaded.path} has {loaded.num_problems:,} problems: is it a data file of this kind?"
            raise InputError(what, "Mend the most frequent kind first; nothing was written.")
        for problem in loaded.problems:
            self._remove(problem.line or 0, "drop_broken", f"{problem.issue}: {problem.what}")
        for line in loaded.lines_by_note.get("table", ()):
            self.fates[line] = LineFate(
                line, "removed", reason="a header, or the rest of a row: part of the table's form"
            )
        if "drop_blank" in self.rules:
            for line in loaded.blank_lines:
                self._remove(line, "drop_blank", "the line is blank")
        for rule, note in LINE_RULES:
            if rule in self.rules:
                for line in loaded.lines_by_note.get(note, ()):
                    self.fates[line].rules.append(rule)

    def _remove(self, line: int, rule: str, reason: str, *, into: int | None = None) -> None:
        fate = self.fates[line]
        if fate.fate == "kept":
            fate.fate, fate.reason, fate.into = "removed" if into is None else "merged", reason, into
            fate.rules.append(rule)

    # -- texts ---------------------------------------------------------------------------------------------------

    def mend_texts(self) -> None:
        self.rows = [mended for row in self.rows if (mended := self._mend(row))]

    def strip_html(self) -> None:
        """Only where `check` reports it: mark-up that a whole file has is its form, and code is no mark-up."""
        if "strip_html" in self.rules:
            found = {found.line for found in text_findings(self.rows) if found.issue == "html"}
            mended = (self._mend(row, html=True) if row.line in found else row for row in self.rows)
            self.rows = [row for row in mended if row]

    def _mend(self, row: SourceRow, *, html: bool = False) -> SourceRow | None:
        parts = {"message": row.example.messages, "rejected": row.example.rejected}
        messages, rejected = (
            tuple(
                self._mend_turn(turn, self.fates[row.line], place=f"{name} {number}", html=html)
                for number, turn in enumerate(turns, start=1)
            )
            for name, turns in parts.items()
        )
        example = replace(row.example, messages=messages, rejected=rejected)
        if example == row.example:
            return row
        fate = self.fates[row.line]
        if any(change.rule.startswith("mask_") for change in fate.changes):
            fate.changes = [change._replace(before=None) for change in fate.changes]
        _, faults = parse_row(json.loads(example.to_json()))
        if faults:
            rule = fate.rules.pop()
            self._remove(row.line, rule, f"after it, {faults[0].what}")
            return None
        return SourceRow(row.line, example)

    def _mend_turn(self, turn: Message, fate: LineFate, *, place: str, html: bool) -> Message:
        content, before = turn.content, None
        ways = self._text_rules(html=html, of_system=turn.role in ("system", "developer"))
        while content != before:  # one rule may lay bare what another mends
            before = content
            for rule, mend in ways:
                mended = mend(content)
                if mended != content:
                    fate.changes.append(Change(place, rule, content, mended))
                    fate.rules.append(rule)
                    content = mended
        return turn if content == turn.content else replace(turn, content=content)

    def _text_rules(self, *, html: bool, of_system: bool) -> list[tuple[str, Callable[[str], str]]]:
        """The ways of mending that are on. A system turn keeps its mark-up and the operator's own address."""
        ways: dict[str, Callable[[str], str]] = {
            "repair_mojibake": repair,
            # half of a wrongly decoded character looks like a control character: never before the repair
            "strip_control": lambda content: strip_controls(content) if repair(content) == content else content,
            "strip_html": plain_text if html and not of_system else str,
            "mask_secrets": partial(mask, placeholders=self.placeholders, kinds=SECRET_KINDS),
            "mask_pii": str if of_system else partial(mask, placeholders=self.placeholders, kinds=PII_KINDS),
        }
        return [(rule, mend) for rule, mend in ways.items() if rule in self.rules]

    # -- rows among each other -----------------------------------------------------------------------------------

    def join_labels(self) -> None:
        if "normalise_label" not in self.rules:
            return
        forms = label_forms([row.example.answer for row in self.rows]) or {}
        self.rows = [self._relabel(row, forms.get(row.example.answer, row.example.answer)) for row in self.rows]

    def _relabel(self, row: SourceRow, label: str) -> SourceRow:
        example = row.example
        if label == example.answer:
            return row
        number = len(example.prompt)
        answer = replace(example.messages[number], content=label)
        fate = self.fates[row.line]
        fate.changes.append(Change(f"message {number + 1}", "normalise_label", example.answer, label))
        fate.rules.append("normalise_label")
        turns = (*example.messages[:number], answer, *example.messages[number + 1 :])
        return SourceRow(row.line, replace(example, messages=turns))

    def drop_rows(self) -> None:
        if "drop_leaked" in self.rules:
            for test in self.against:
                self._take_out("drop_leaked", leaks.leaks(self.rows, test.examples), merge=False)
        if "drop_exact_duplicate" in self.rules:
            self._take_out("drop_exact_duplicate", near.exact_duplicates(self.rows), merge=True)
        if "drop_near_duplicate" in self.rules:
            self._take_out("drop_near_duplicate", near.near_duplicates(self.rows), merge=True)

    def _take_out(self, rule: str, findings: Iterable[Finding], *, merge: bool) -> None:
        gone = set()
        for found in findings:
            if found.line is not None:
                gone.add(found.line)
                self._remove(found.line, rule, found.detail, into=found.related if merge else None)
        self.rows = [row for row in self.rows if row.line not in gone]

    # -- the result ----------------------------------------------------------------------------------------------

    def fixed(self) -> Fixed:
        if not self.rows:
            raise InputError(f"no row of {self.loaded.path} is left; nothing was written.", "See what `check` reports.")
        examples = {row.line: row.example for row in self.rows}
        with_mark, with_cr = (
            frozenset(() if rule in self.rules else self.loaded.lines_by_note.get(note, ()))
            for rule, note in LINE_RULES
        )
        lines: list[str] = []
        for line, fate in self.fates.items():
            while fate.into and (next_line := self.fates[fate.into].into):
                fate.into = next_line
            if fate.fate != "kept":
                continue
            text = examples[line].to_json() if line in examples else ""  # a blank line that was to be kept
            lines.append("\ufeff" * (line in with_mark) + text + "\r" * (line in with_cr))
            fate.out = len(lines)
        return Fixed(lines, list(self.fates.values()))
