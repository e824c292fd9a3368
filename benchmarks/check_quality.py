"""How well `tunesmith check` finds what is wrong: clean sets are damaged with a key, and each issue gets its precision
and recall.

Not here: the checks (tunesmith.data), speed. A fault is one entry of FAULTS: a function that spoils a row.
Run: `python benchmarks/check_quality.py [FOLDER ...]`; a folder holds train.jsonl and, for leaks, test.jsonl.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.data.checks import labels, language, leaks, near, personal, targets, text
from tunesmith.data.finding import Finding
from tunesmith.data.load import SourceRow, load

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = (
    ROOT / "src/tunesmith/demo_data/banking77",
    ROOT / "benchmarks/data/bitext_support_replies",
    ROOT / "benchmarks/data/snips_slots_json",
    ROOT / "benchmarks/data/ingredients_json",
)
Row = dict[str, Any]


@dataclass(frozen=True)
class Corpus:
    """The rows a fault may borrow from: the clean file, its answers if they are labels, and its test file."""

    rows: list[Row]
    test: list[Row]
    labels: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Fault:
    """`spoil` returns the damaged row (or a raw line of text), None where the fault cannot be made of this row."""

    issue: str
    spoil: Callable[[Row, random.Random, Corpus], Row | str | None]
    adds: bool = False  # the damaged row stands beside the sound one, somewhere after it


def text_of(row: Row, role: str = "user") -> str:
    return next(str(turn["content"]) for turn in reversed(row["messages"]) if turn["role"] == role)


def with_text(row: Row, text: str, role: str = "user") -> Row:
    """The row with another last turn of this role."""
    last = max(number for number, turn in enumerate(row["messages"]) if turn["role"] == role)
    turns = [{**turn, "content": text} if number == last else turn for number, turn in enumerate(row["messages"])]
    return {**row, "messages": turns}


def reword(text: str, rng: random.Random) -> str | None:
    """An edit that keeps the meaning: a greeting, a plea, letters swapped, case, punctuation, a contraction."""
    words = text.split()
    long = [number for number, word in enumerate(words) if len(word) > 4 and word.isalpha()]
    edits = [f"Hi, {text[:1].lower()}{text[1:]}", f"{text.rstrip('.?!')}, please.", f"{text.rstrip('?')}??"]
    edits.append(re.sub(r"[^\w\s]", "", text).lower())
    if long:
        chosen = rng.choice(long)
        at = rng.randrange(1, len(words[chosen]) - 2)
        word = words[chosen]
        words[chosen] = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
        edits.append(" ".join(words))
    edits.append(text.replace("I am", "I'm").replace("do not", "don't").replace("cannot", "can't"))
    edits = [edit for edit in edits if edit.split() != text.split()]
    return rng.choice(edits) if edits and len(text) > 15 else None


def copy(row: Row, _: random.Random, __: Corpus) -> Row:
    return row


def reworded(row: Row, rng: random.Random, _: Corpus) -> Row | None:
    text = reword(text_of(row), rng)
    return with_text(row, text) if text else None


def other_label(row: Row, rng: random.Random, corpus: Corpus) -> Row | None:
    others = [label for label in corpus.labels if label != text_of(row, "assistant")]
    return with_text(row, rng.choice(others), "assistant") if others else None


def spelled_label(row: Row, rng: random.Random, corpus: Corpus) -> Row | None:
    label = text_of(row, "assistant")
    at = rng.randrange(1, len(label) - 2) if len(label) > 6 else 0
    forms = [label.title(), label.upper(), label.replace("_", " "), label.replace("_", "-"), f" {label}", f"{label}."]
    forms += [f"Intent: {label}"]
    if label.replace("_", "").isalpha():  # a code with another letter is another code
        forms += [f"{label}s", label[:at] + label[at + 1 :]]
    forms = [form for form in forms if form not in corpus.labels]
    return with_text(row, rng.choice(forms), "assistant") if corpus.labels else None


def leaked(_: Row, rng: random.Random, corpus: Corpus) -> Row | None:
    """A test row, which no other row of this file is made of."""
    return corpus.test.pop(rng.randrange(len(corpus.test))) if corpus.test else None


def leaked_reworded(row: Row, rng: random.Random, corpus: Corpus) -> Row | None:
    test = leaked(row, rng, corpus)
    return reworded(test, rng, corpus) if test else None


def target_of(row: Row) -> dict[str, Any] | None:
    try:
        value = json.loads(text_of(row, "assistant"))
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def with_target(row: Row, target: object) -> Row:
    return with_text(row, json.dumps(target, ensure_ascii=False), "assistant")


def broken_target(row: Row, rng: random.Random, _: Corpus) -> Row | None:
    if not target_of(row):
        return None
    text = text_of(row, "assistant")
    forms = [text[:-1], text[:-1] + ",}", text.replace('"', "'"), text[: len(text) // 2], text.replace(":", "", 1)]
    return with_text(row, rng.choice([*forms, f"Here is the JSON: {text}"]), "assistant")


def _leaves(value: object, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], object]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, (*path, key))
    else:
        yield path, value


def _put(target: dict[str, Any], path: tuple[str, ...], value: object) -> dict[str, Any]:
    head, *rest = path
    return {**target, head: _put(target[head], tuple(rest), value) if rest else value}


def retyped_target(row: Row, rng: random.Random, _: Corpus) -> Row | None:
    target = target_of(row)
    texts = [(path, value) for path, value in _leaves(target) if isinstance(value, str)] if target else []
    if not target or not texts:
        return None
    path, value = rng.choice(texts)
    return with_target(row, _put(target, path, rng.choice([[value], {"value": value}, None, 7, True])))


def invented_value(row: Row, rng: random.Random, corpus: Corpus) -> Row | None:
    """A value of another row in the same field, where this row's own stood in its text."""
    target, text = target_of(row), text_of(row).casefold()
    copied = [path for path, value in _leaves(target) if isinstance(value, str) and value.casefold() in text]
    if not target or not copied:
        return None
    path = rng.choice(copied)
    pool = [value for other in corpus.rows for where, value in _leaves(target_of(other)) if where == path]
    foreign = [value for value in pool if isinstance(value, str) and value.casefold() not in text and len(value) > 3]
    return with_target(row, _put(target, path, rng.choice(foreign))) if foreign else None


def other_category(row: Row, rng: random.Random, corpus: Corpus) -> Row | None:
    """Another value in a field that has few of them, none of which stand in the text."""
    target = target_of(row)
    if not target or not isinstance(target.get("intent"), str):
        return None
    others = sorted({str((target_of(other) or {}).get("intent")) for other in corpus.rows} - {target["intent"], "None"})
    return with_target(row, {**target, "intent": rng.choice(others)})


# {a} and {b} are names, {n} and {d} numbers, {h} and {U} random letters and digits, {t} is the text.
SAMPLES = json.loads((ROOT / "benchmarks/data/text_faults.json").read_text(encoding="utf-8"))


def _filled(form: str, rng: random.Random) -> str:
    word = "".join(rng.choices("abcdefghijkmnopqrstuvwxyzABCDEFGHJK23456789", k=13)) + "a7Z"
    names = {
        "a": rng.choice(("ann", "bo", "chi")),
        "b": rng.choice(("lee", "ito", "roe")),
        "n": rng.randint(10, 99),
    }
    return form.format(**names, d=rng.randint(1, 28), h=word, U=word.upper()[:9].translate(str.maketrans("189", "ABC")))


def said_too(forms: Sequence[str]) -> Callable[[Row, random.Random, Corpus], Row]:
    """The question with one more sentence, before or after it."""

    def spoil(row: Row, rng: random.Random, _: Corpus) -> Row:
        more, text = _filled(rng.choice(forms), rng), text_of(row)
        return with_text(row, rng.choice((f"{more} {text}", f"{text} {more}")))

    return spoil


def mistyped(row: Row, rng: random.Random, _: Corpus) -> Row:
    """UTF-8 read as Windows-1252; bytes that have no character there stay as Latin-1 has them."""
    text = text_of(row) + rng.choice(SAMPLES["spoilt"])
    return with_text(row, "".join(bytes([byte]).decode("cp1252", "ignore") or chr(byte) for byte in text.encode()))


def invisible(row: Row, rng: random.Random, _: Corpus) -> Row:
    at = rng.randrange(1, len(text_of(row)))
    return with_text(row, text_of(row)[:at] + rng.choice(SAMPLES["invisible"]) + text_of(row)[at:])


def marked_up(row: Row, rng: random.Random, _: Corpus) -> Row:
    return with_text(row, rng.choice(SAMPLES["markup"]).format(t=text_of(row)))


def stock_answer(row: Row, rng: random.Random, _: Corpus) -> Row | None:
    return (
        None if target_of(row) else with_text(row, rng.choice(SAMPLES["stock"]), "assistant")
    )  # no JSON is another fault


def foreign(row: Row, rng: random.Random, _: Corpus) -> Row | None:
    """Another question with the old answer; the number keeps two of them from being one question with two answers."""
    return None if target_of(row) else with_text(row, f"{rng.choice(SAMPLES['foreign'])} ({rng.randrange(10**6)})")


TEXT_FAULTS = (
    Fault("mojibake", mistyped),
    Fault("control_chars", invisible),
    Fault("html", marked_up),
    Fault("boilerplate_answer", stock_answer),
    Fault("special_token_text", said_too(SAMPLES["tokens"])),
    Fault("mixed_language", foreign),
    Fault("pii", said_too(SAMPLES["personal"])),
    Fault("secret", said_too(SAMPLES["secrets"])),
)

FAULTS = (
    *TEXT_FAULTS,
    Fault("exact_duplicate", copy, adds=True),
    Fault("near_duplicate", reworded, adds=True),
    Fault("conflicting_label", other_label, adds=True),
    Fault("wrong_label", other_label),
    Fault("wrong_label", other_category),
    Fault("label_variant", spelled_label),
    Fault("leaked_test", leaked),
    Fault("leaked_test_near", leaked_reworded),
    Fault("target_json_invalid", broken_target),
    Fault("target_type_mismatch", retyped_target),
    Fault("value_not_in_text", invented_value),
)


def findings_of(rows: Sequence[SourceRow], against: Sequence[SourceRow]) -> list[Finding]:
    """Every check that is measured here."""
    checks = [near.exact_duplicates, near.near_duplicates, targets.target_findings]
    checks += [text.text_findings, language.language_findings, personal.personal_findings]
    own = [found for check in checks for found in check(rows)]
    return [*own, *labels.label_findings(rows, against), *leaks.leaks(rows, against)]


def damage(corpus: Corpus, rng: random.Random, share: float = 0.01) -> tuple[list[str], set[tuple[int, str]]]:
    """The lines of a damaged file and its key of (line, issue). Each fault takes `share` of the rows, five at least."""
    waiting = rng.sample(corpus.rows, len(corpus.rows))
    marked: list[tuple[float, str, str | None]] = []  # place, line, issue
    for fault in FAULTS:
        wanted, left = max(5, round(share * len(corpus.rows))), []
        while waiting and wanted:
            row = waiting.pop()
            spoiled = fault.spoil(row, rng, corpus)
            if spoiled is None:
                left.append(row)
                continue
            place, line = rng.random(), spoiled if isinstance(spoiled, str) else json.dumps(spoiled, ensure_ascii=False)
            if fault.adds:
                marked.append((place, json.dumps(row, ensure_ascii=False), None))
                place = rng.uniform(place, 1)
            marked.append((place, line, fault.issue))
            wanted -= 1
        waiting.extend(left)
    marked += [(rng.random(), json.dumps(row, ensure_ascii=False), None) for row in waiting]
    marked.sort(key=lambda item: item[0])
    key = {(number, issue) for number, (_, _, issue) in enumerate(marked, start=1) if issue}
    return [line for _, line, _ in marked], key


def read_rows(path: Path, limit: int) -> list[Row]:
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()[:limit]
    return [row for row in map(json.loads, lines) if "messages" in row]


def sound(rows: list[Row], test: list[Row]) -> list[Row]:
    """The rows that nothing is said about before the damage. What is left out is printed: it may be a false alarm."""
    found = findings_of(*_as_source(rows, test))
    for finding in found:
        print(f"  before: {finding.line} {finding.issue}: {finding.detail}")
    lines = {finding.line for finding in found}
    return [row for number, row in enumerate(rows, start=1) if number not in lines]


def _as_source(rows: list[Row], test: list[Row]) -> tuple[list[SourceRow], list[SourceRow]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        loaded = []
        for part in (rows, test):
            path.write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
            loaded.append(load(path).examples if part else [])
    return loaded[0], loaded[1]


def judge(folder: Path, *, seed: int, limit: int, verbose: bool) -> dict[str, Counter[str]]:
    """Damage the folder's train file and count right, false and missed findings by issue."""
    rng = random.Random(seed)
    test = read_rows(folder / "test.jsonl", limit)
    rows = sound(read_rows(folder / "train.jsonl", limit), test)
    answers = Counter(text_of(row, "assistant") for row in rows)
    classes = sorted(label for label, count in answers.items() if count > 1 and len(label) <= 64)
    is_labelled = len(answers) <= len(rows) // 2 and all(label[:1] not in "{[" for label in classes)
    lines, key = damage(Corpus(rows, list(test), classes if is_labelled else []), rng)
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "damaged.jsonl"
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        found = findings_of(load(path).examples, _as_source(test, [])[0])
    said = {(finding.line, finding.issue): finding for finding in found if finding.line}
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for name, pairs in (("right", key & said.keys()), ("false", said.keys() - key), ("missed", key - said.keys())):
        for line, issue in pairs:
            counts[issue][name] += 1
            if verbose and name != "right":
                detail = said[line, issue].detail if name == "false" else ""
                also = [other for number, other in key if number == line and other != issue]
                print(f"  {name} {issue} {line} {also}: {lines[line - 1][-330:]} {detail}")
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="*", type=Path, default=FOLDERS)
    parser.add_argument("--seeds", type=int, default=3, help="damaged files made of each folder")
    parser.add_argument("--limit", type=int, default=2000, help="rows taken of each file")
    parser.add_argument("--verbose", action="store_true", help="print each wrong and each missed line")
    options = parser.parse_args()
    for folder in options.folders:
        total: dict[str, Counter[str]] = defaultdict(Counter)
        print(folder.name)
        for seed in range(options.seeds):
            for issue, counts in judge(folder, seed=seed, limit=options.limit, verbose=options.verbose).items():
                total[issue] += counts
        for issue, count in sorted(total.items()):
            right, false, missed = count["right"], count["false"], count["missed"]
            precision, recall = right / max(1, right + false), right / max(1, right + missed)
            print(f"  {issue:22} precision {precision:.3f}  recall {recall:.3f}  ({right} of {right + missed})")


if __name__ == "__main__":
    main()
