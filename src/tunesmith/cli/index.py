"""`tunesmith index`: documents or training examples as an index of passages on disk; only what changed is done again.

Not here: reading, splitting, the store (retrieve). Listed in cli.main.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunesmith.cli.output import JsonFlag, Output

if TYPE_CHECKING:
    from tunesmith.retrieve.index import Indexed

MAX_NAMED = 10


def index(
    docs: Annotated[
        Path,
        typer.Argument(
            help="A folder or file: Markdown, text, HTML, PDF, or JSONL of documents (id, text) or training examples."
        ),
    ],
    *,
    out: Annotated[Path, typer.Option(help="The folder of the index. One that is there is brought up to date.")],
    dense: Annotated[
        str, typer.Option(help="auto (the shipped all-MiniLM-L6-v2), off (words only), or a model's folder.")
    ] = "auto",
    language: Annotated[
        str, typer.Option(help="For stems and function words: auto, none, english, german, french, ...")
    ] = "auto",
    words: Annotated[int, typer.Option(help="Longest passage, in words.", min=10)] = 180,
    overlap: Annotated[
        int, typer.Option(help="Words of whole sentences that a passage repeats of the one before.", min=0)
    ] = 30,
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="Leave files out that cannot be read; it is said which.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Index documents, for `search` and for contenders that answer with passages."""
    import time

    from tunesmith.errors import InputError
    from tunesmith.retrieve.encoder import find_encoder
    from tunesmith.retrieve.index import build_index
    from tunesmith.retrieve.shelf import Settings

    if overlap >= words:
        raise InputError(f"--overlap {overlap} is not below --words {words}.", "Give a smaller overlap.")
    output = Output(as_json=as_json)
    encoder, why = find_encoder(dense)
    output.say(f"dense vectors: {f'{encoder.name}, ' if encoder else ''}{why}")
    start = time.perf_counter()
    with output.progress() as bar:
        task = bar.add_task("encoding", total=None, visible=False)
        indexed = build_index(
            docs,
            out,
            encoder=encoder,
            settings=Settings(words=words, overlap=overlap, language=language),
            skip_unreadable=skip_unreadable,
            on_progress=lambda done, total: bar.update(task, completed=done, total=total, visible=True),
        )
    document = _document(indexed, out, time.perf_counter() - start)
    _say(output, indexed, document)
    output.result(document)


def _document(indexed: Indexed, out: Path, seconds: float) -> dict[str, Any]:
    manifest = indexed.manifest
    return {
        "index": str(out),
        "documents": manifest.documents,
        "passages": manifest.passages,
        "language": manifest.language,
        "dense": manifest.dense.name if manifest.dense else None,
        "added": indexed.added,
        "changed": indexed.changed,
        "removed": indexed.removed,
        "unchanged": indexed.unchanged,
        "skipped": manifest.skipped,
        "other_files": dict(indexed.others),
        "encoded": indexed.encoded,
        "seconds": round(seconds, 2),
    }


def _say(output: Output, indexed: Indexed, document: dict[str, Any]) -> None:
    for what in ("added", "changed", "removed"):
        if names := document[what]:
            shown = ", ".join(names[:MAX_NAMED]) + (", ..." if len(names) > MAX_NAMED else "")
            output.say(f"{what}: {len(names):,} ({shown})")
    if indexed.unchanged:
        output.say(f"unchanged: {indexed.unchanged:,}, not read again")
    for name, why in document["skipped"].items():
        output.say(f"skipped: {name}: {why}", style="yellow")
    if others := indexed.others:
        kinds = ", ".join(f"{ending} {count:,}" for ending, count in others.most_common(MAX_NAMED))
        output.say(f"not of a kind that is read: {others.total():,} files ({kinds})")
    language, dense = document["language"], indexed.manifest.dense
    words = "no stems, no function words" if language == "none" else f"stems and function words of {language}"
    asked = "as asked" if indexed.manifest.settings.language != "auto" else "found by the function words in the texts"
    output.say(f"language: {language}, {asked}; {words}")
    if dense and dense.name == "all-MiniLM-L6-v2" and language != "english":
        output.say(
            "all-MiniLM-L6-v2 learned from English and is weaker here. `search --questions` measures each leg; if "
            "words alone are better, index with --dense off, or give --dense the folder of a multilingual model.",
            style="yellow",
        )
    counts = f"{document['documents']:,} documents, {document['passages']:,} passages"
    output.say(f"{document['index']}: {counts}, {document['encoded']:,} encoded now, {document['seconds']:.1f} s")
