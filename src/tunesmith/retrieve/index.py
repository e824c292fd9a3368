"""Documents to an index on disk: read, split, count terms, encode, and only what changed since the last time.

Not here: the files of an index (shelf), searching (search).
Called by the command `index`. An index made step by step equals one made at once.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.errors import DataError, InputError, Problem
from tunesmith.retrieve import shelf
from tunesmith.retrieve.chunks import split_document
from tunesmith.retrieve.documents import Listing, list_files, read_documents
from tunesmith.retrieve.encoder import INSTALL, Encoder, Vectors
from tunesmith.retrieve.section import Document
from tunesmith.retrieve.shelf import Dense, Manifest, Settings
from tunesmith.retrieve.terms import detect_language, make_terms

K1, B = 0.6, 0.6  # chosen with search.RRF_K, on the same sets
ENCODED_AT_ONCE = 256  # passages, after which their vectors are on disk and survive a kill

Progress = Callable[[int, int], None]  # passages encoded, of how many


@dataclass(frozen=True, slots=True)
class Row:
    """A passage as it is stored. `question` is of a training example, and searched instead of the text."""

    file: str
    document: str
    part: int  # of its document, from 0
    titles: list[str]
    page: int | None
    text: str
    question: str

    @property
    def searched(self) -> str:
        return self.question or "\n".join((*self.titles, self.text))

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.searched.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Indexed:
    """What an indexing did."""

    manifest: Manifest
    added: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    unchanged: int = 0
    encoded: int = 0
    others: Counter[str] = field(default_factory=Counter)  # files of kinds that are not read, by ending


def build_index(
    docs: Path,
    out: Path,
    *,
    encoder: Encoder | None,
    settings: Settings | None = None,
    skip_unreadable: bool = False,
    on_progress: Progress | None = None,
) -> Indexed:
    """Bring the index in `out` to what `docs` (a file or folder) holds now; without an encoder, of words only.

    Raises:
        DataError: files that cannot be read, all of them, unless `skip_unreadable`; the index stays as it was.
        InputError: nothing to index, or `out` is something else than an index.
    """
    settings = settings or Settings()
    if settings.language != "auto":
        make_terms(settings.language)  # refused now, not after the encoding
    listing = list_files(docs, leave_out=out)
    with shelf.locked(out):
        before = shelf.read_manifest(out) if (out / shelf.MANIFEST).exists() else None
        plan = _Plan(listing, before, settings, _dense(encoder))
        if plan.nothing_to_do and before:
            return Indexed(before, unchanged=len(before.files), others=listing.others)
        rows, skipped = _rows(out, plan, skip_unreadable)
        known = _known_vectors(out, before, encoder) if encoder else {}
        generation = shelf.new_generation(out)
        encoded = _encode(generation, rows, encoder, known=known, progress=on_progress) if encoder else 0
        language = settings.language if settings.language != "auto" else detect_language([row.text for row in rows])
        _write(generation, rows, language, vectors=known)
        manifest = Manifest(
            generation=generation.name,
            docs=str(docs.resolve()),
            settings=settings,
            language=language,
            dense=plan.dense,
            files={name: sha for name, sha in plan.files.items() if name not in skipped},
            documents=len({(row.file, row.document) for row in rows}),
            passages=len(rows),
            skipped=skipped,
            previous=before.generation if before else "",
        )
        shelf.commit(out, manifest)
        _forget_vectors(generation)
    return plan.result(manifest, encoded)


class _Plan:
    """Which files are to be read, from their sha256 now and in the index before."""

    def __init__(self, listing: Listing, before: Manifest | None, settings: Settings, dense: Dense | None) -> None:
        self.listing, self.before, self.settings, self.dense = listing, before, settings, dense
        self.files = {name: _sha256(path) for name, path in listing.files.items()}
        self.old = before.files if before else {}
        same_split = before is not None and before.settings == settings
        self.kept = {name for name, sha in self.files.items() if same_split and self.old.get(name) == sha}

    @property
    def nothing_to_do(self) -> bool:
        before = self.before
        same_model = before is not None and _identity(before.dense) == _identity(self.dense)
        return same_model and self.kept == set(self.files) == set(self.old)

    def result(self, manifest: Manifest, encoded: int) -> Indexed:
        new = manifest.files
        return Indexed(
            manifest,
            added=[name for name in new if name not in self.old],
            changed=[name for name in new if name in self.old and self.old[name] != new[name]],
            removed=[name for name in self.old if name not in new],
            unchanged=sum(self.old.get(name) == sha for name, sha in new.items()),
            encoded=encoded,
            others=self.listing.others,
        )


def _dense(encoder: Encoder | None) -> Dense | None:
    return Dense(encoder.name, str(getattr(encoder, "folder", "")), encoder.identity) if encoder else None


def _identity(dense: Dense | None) -> str:
    return dense.identity if dense else ""


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# -- passages ----------------------------------------------------------------------------------------------------


def _rows(out: Path, plan: _Plan, skip_unreadable: bool) -> tuple[list[Row], dict[str, str]]:
    """Passages in the order of their files, of unchanged files from the index; and files skipped, with why."""
    old = _old_rows(out, plan) if plan.kept else {}
    rows: list[Row] = []
    problems: list[Problem] = []
    skipped: dict[str, str] = {}
    for name, path in plan.listing.files.items():
        if name in plan.kept:
            rows += old.get(name, [])
            continue
        try:
            for document in read_documents(path, name):
                rows += _split(name, document, plan.settings)
        except DataError as error:
            problems += error.problems
            skipped[name] = str(error.problems[0].what)
    if problems and not skip_unreadable:
        raise DataError(problems)
    _refuse_twice(rows)
    if not rows:
        raise InputError("None of the files could be read.", "Mend one of them, or give others.")
    return rows, skipped


def _split(name: str, document: Document, settings: Settings) -> Iterable[Row]:
    if document.question:
        yield Row(name, document.id, 0, [], None, document.sections[0].text, document.question)
        return
    for chunk in split_document(document, words=settings.words, overlap=settings.overlap):
        yield Row(name, document.id, chunk.number, list(chunk.titles), chunk.page, chunk.text, "")


def _refuse_twice(rows: Sequence[Row]) -> None:
    files: dict[str, str] = {}
    for row in rows:
        if files.setdefault(row.document, row.file) != row.file:
            what = f"the id {row.document!r} stands in {files[row.document]}, too."
            raise DataError([Problem(row.file, None, None, what, "Give each document its own id.", "same_id")])


def _old_rows(out: Path, plan: _Plan) -> dict[str, list[Row]]:
    assert plan.before
    columns = list(Row.__dataclass_fields__)
    table = shelf.open_table(out / plan.before.generation, shelf.PASSAGES)
    rows: dict[str, list[Row]] = {}
    for fields in table.search().select(columns).limit(None).to_arrow().to_pylist():
        rows.setdefault(fields["file"], []).append(Row(**fields))
    return rows


# -- vectors -----------------------------------------------------------------------------------------------------


def _known_vectors(out: Path, before: Manifest | None, encoder: Encoder) -> dict[str, Vectors]:
    """Vectors by the sha256 of their text: of the index before, and of indexings that were killed."""
    tables = []
    if before and _identity(before.dense) == encoder.identity:
        tables.append((out / before.generation, shelf.PASSAGES))
    tables += [(path, f"{shelf.VECTORS}-{encoder.identity[:16]}") for path in shelf.unfinished(out, before)]
    known: dict[str, Vectors] = {}
    for generation, name in tables:
        if not (generation / f"{name}.lance").exists():
            continue
        table = shelf.open_table(generation, name).search().select(["sha256", "vector"]).limit(None).to_arrow()
        vectors_ND = np.stack(table["vector"].to_numpy(zero_copy_only=False)).astype(np.float32)
        known.update(zip(table["sha256"].to_pylist(), vectors_ND, strict=True))
    return known


def _encode(
    generation: Path, rows: Sequence[Row], encoder: Encoder, *, known: dict[str, Vectors], progress: Progress | None
) -> int:
    """Put the missing vectors into `known`, and on disk as they come; returns how many were missing."""
    missing = list({sha: row.searched for row in rows if (sha := row.sha256) not in known}.items())
    name, table = f"{shelf.VECTORS}-{encoder.identity[:16]}", None
    for start in range(0, len(missing), ENCODED_AT_ONCE):
        batch = dict(missing[start : start + ENCODED_AT_ONCE])
        vectors_ND = encoder.encode(list(batch.values()))
        known.update(zip(batch, vectors_ND, strict=True))
        columns = _columns({"sha256": list(batch)}, vectors_ND)
        if table is None:
            table = shelf.connect(generation).create_table(name, columns)
        else:
            table.add(columns)
        if progress:
            progress(start + len(batch), len(missing))
    return len(missing)


def _forget_vectors(generation: Path) -> None:
    """What was kept against a kill stands in the passages now."""
    database = shelf.connect(generation)
    for name in database.list_tables().tables:
        if name != shelf.PASSAGES:
            database.drop_table(name)


def _columns(fields: dict[str, Any], vectors_ND: Vectors | None) -> Any:
    import pyarrow as pa

    columns = {name: pa.array(values) for name, values in fields.items()}
    if vectors_ND is not None:
        flat = pa.array(np.ascontiguousarray(vectors_ND, dtype=np.float32).ravel())
        columns["vector"] = pa.FixedSizeListArray.from_arrays(flat, vectors_ND.shape[1])
    return pa.table(columns)


# -- what is written ---------------------------------------------------------------------------------------------


def _write(generation: Path, rows: Sequence[Row], language: str, *, vectors: dict[str, Vectors]) -> None:
    """The table of passages, with vectors where there are any, and the counts of BM25, in the same order."""
    database = shelf.connect(generation)
    fields: dict[str, Any] = {name: [getattr(row, name) for row in rows] for name in Row.__dataclass_fields__}
    fields["number"] = list(range(len(rows)))
    fields["sha256"] = [row.sha256 for row in rows]
    vectors_ND = np.stack([vectors[sha] for sha in fields["sha256"]]) if vectors else None
    database.create_table(shelf.PASSAGES, _columns(fields, vectors_ND))
    terms = make_terms(language)
    counts = count_terms([terms(row.searched) for row in rows])
    counts.save(generation / shelf.BM25, show_progress=False)


def count_terms(rows: Sequence[Sequence[str]]) -> Any:
    """bm25s's index of rows of terms, in the form of BM25 that Lucene uses."""
    try:
        import bm25s
    except ImportError as error:
        raise InputError("Searching by words needs bm25s.", INSTALL) from error
    counts = bm25s.BM25(k1=K1, b=B, method="lucene")
    counts.index([list(row) or [""] for row in rows], show_progress=False)  # a row of no terms has no length
    return counts
