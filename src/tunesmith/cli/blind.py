"""`tunesmith blind`: two contenders answer, people judge their replies without knowing whose they are.

Not here: votes and result (evaluate.blind, evaluate.tally), the pages (blind_app). Listed in cli.main.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunesmith.cli.output import JsonFlag, Output

if TYPE_CHECKING:
    from tunesmith.chat import Example
    from tunesmith.contender import Contender
    from tunesmith.data.load import Loaded
    from tunesmith.evaluate.blind import Comparison

RESULT = "blind.json"


def blind(
    a: Annotated[
        str, typer.Argument(help="A contender, as in evaluate; or replies:FILE#NAME of an earlier evaluation.")
    ],
    b: Annotated[str, typer.Argument(help="The other contender.")],
    *,
    prompts: Annotated[Path, typer.Option(help="Rows to ask; an answer in them is not shown.")],
    rater: Annotated[list[str] | None, typer.Option(help="A rater's name, for a link of their own. Repeat it.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first rows.", min=1)] = None,
    out: Annotated[Path | None, typer.Option(help="Where the comparison is kept; in the home folder if unset.")] = None,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0 takes a free one.")] = 0,
    max_tokens: Annotated[int, typer.Option(help="Longest reply, in tokens.", min=1)] = 512,
    seed: Annotated[int, typer.Option(help="Of the order of rows and sides.", min=0)] = 0,
    export: Annotated[
        Path | None, typer.Option(help="Write the votes as preference data in OpenAI's form; no page is opened.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Let people judge two contenders' replies blind. The same command goes on, or shows the result."""
    from tunesmith.errors import InputError
    from tunesmith.evaluate.blind import check_rater, open_comparison

    if a == b:
        raise InputError("Both contenders are the same.", "Name two different ones.")
    output = Output(as_json=as_json)
    loaded = _load(prompts)
    asked: dict[str, Any] = {"a": a, "b": b, "prompts_sha256": loaded.sha256, "limit": limit, "seed": seed}
    asked["max_tokens"] = max_tokens
    asked["adapters"] = [_adapter_sha256(spec) for spec in (a, b)]  # one trained again is another one
    directory = out or _place(asked)
    comparison = open_comparison(directory, asked)
    if comparison is None:
        if export:
            raise InputError("There is nothing to export yet.", "Give the command without --export first.")
        facts = {**asked, "prompts": str(prompts), "raters": sorted(set(map(check_rater, rater or [])))}
        examples = [source.example for source in loaded.examples][:limit]
        comparison = _begin(output, examples, specs=(a, b), directory=directory, facts=facts)
    if export:
        output.result(_export(output, comparison, export))
    elif comparison.votes().ended:
        output.result(_show(output, comparison))
    else:
        _judge(output, comparison, port=port, raters=rater or [])


def _adapter_sha256(spec: str) -> str:
    """Of the weights that an `adapter:` line names; "" for other lines."""
    from tunesmith.adapter import adapter_folder
    from tunesmith.evaluate.saved import PREFIX
    from tunesmith.facts import weights_sha256
    from tunesmith.specs import parse_spec
    from tunesmith.store import find_folder

    if spec.startswith(PREFIX) or (named := parse_spec(spec)).kind != "adapter":
        return ""
    return weights_sha256(adapter_folder(find_folder(Path(named.target))))


def _load(prompts: Path) -> Loaded:
    """Rows with answers or, where no row has one, without."""
    from tunesmith.data.drafts.inputs import OPEN_ISSUES
    from tunesmith.data.load import load_examples
    from tunesmith.errors import DataError

    try:
        return load_examples(prompts)
    except DataError as error:
        if {problem.issue for problem in error.problems} <= OPEN_ISSUES:
            return load_examples(prompts, format="rl")
        raise


def _begin(
    output: Output, examples: Sequence[Example], *, specs: tuple[str, str], directory: Path, facts: dict[str, Any]
) -> Comparison:
    """Both contenders answer, and the comparison is written."""
    from tunesmith.errors import InputError
    from tunesmith.evaluate.blind import create
    from tunesmith.evaluate.weights import weights_of

    for number, example in enumerate(examples, start=1):
        if example.tools or example.kind == "text":
            what = "offers tools" if example.tools else "is a plain text"
            raise InputError(f"Row {number} of {facts['prompts']} {what}.", "Take such rows out of the file.")
    contenders = _contenders(output, specs, examples)
    texts = []
    with output.progress() as bar:
        for contender in contenders:
            task = bar.add_task(contender.name, total=len(examples))
            replies = contender.answer(
                [example.prompt for example in examples],
                max_new_tokens=facts["max_tokens"],
                progress=lambda rows, task=task: bar.advance(task, rows),  # type: ignore[misc]
            )
            texts.append([reply.text for reply in replies])
    weights = {side: weights_of(contender) for side, contender in zip("ab", contenders, strict=True)}
    return create(directory, examples, replies=(texts[0], texts[1]), facts={**facts, "weights": weights})


def _contenders(output: Output, specs: tuple[str, str], examples: Sequence[Example]) -> list[Contender]:
    from tunesmith.evaluate.saved import PREFIX, SavedReplies

    made: dict[str, Contender] = {spec: SavedReplies(spec, examples) for spec in specs if spec.startswith(PREFIX)}
    if rest := [spec for spec in specs if spec not in made]:
        from tunesmith.cli.contenders import make_builder

        made.update(zip(rest, make_builder(output).build_all(rest), strict=True))
    return [made[spec] for spec in specs]


def _judge(output: Output, comparison: Comparison, *, port: int, raters: Sequence[str]) -> None:
    """Serve the pages until Ctrl-C."""
    from urllib.parse import quote

    from tunesmith.cli.blind_app import create_app
    from tunesmith.evaluate.blind import check_rater
    from tunesmith.serve.run import LOOPBACK, answer

    links = {check_rater(name): "" for name in (*comparison.facts["raters"], *raters)}

    def end() -> None:
        comparison.end()
        _write(comparison)

    def ready(url: str) -> None:
        start = f"{url}/{comparison.facts['token']}/"
        links.update({name: f"{start}rate/{quote(name)}" for name in links})
        output.say(f"{len(comparison.rows)} rows to judge ({comparison.same} more have the same reply twice).")
        output.say(f"Open {start}")
        for name, link in links.items():
            output.say(f"  {name}: {link}")
        output.say(f"Every answer is kept in {comparison.directory}. Ctrl-C stops; the same command goes on.")
        output.result({"url": start, "raters": links, "directory": str(comparison.directory)})

    answer(create_app(comparison, end=end), host=LOOPBACK, port=port, ready=ready)
    if comparison.votes().ended:
        _show(output, comparison)
    else:
        output.say("Stopped. The same command goes on.")


def _show(output: Output, comparison: Comparison) -> dict[str, Any]:
    """The result in words, and its files."""
    result = _write(comparison)
    output.say(result["sentence"], "bold")
    rows = result["rows"]
    output.table(
        ("", "rows won"),
        [(result["contenders"]["a"], rows["a"]), (result["contenders"]["b"], rows["b"]), ("even", rows["even"])],
        title=f"{rows['judged']} of {rows['prompts']} rows judged; {rows['same']} have the same reply twice",
    )
    for sentence in (result["visible"], result["agreement"]["sentence"], result["position"]["sentence"]):
        if sentence:
            output.say(sentence)
    output.say(f"Result: {comparison.directory / RESULT} and blind.html beside it")
    return {**result, "directory": str(comparison.directory)}


def _write(comparison: Comparison) -> dict[str, Any]:
    """blind.json and blind.html, as they follow from the votes."""
    from tunesmith.data.files import write_new_files
    from tunesmith.evaluate.blind_page import result_page
    from tunesmith.evaluate.tally import tally

    result = tally(comparison)
    document = json.dumps(result, ensure_ascii=False, indent=2)
    files = {comparison.directory / RESULT: [document], comparison.directory / "blind.html": [result_page(comparison)]}
    write_new_files(files, force=True)
    return result


def _export(output: Output, comparison: Comparison, path: Path) -> dict[str, Any]:
    from tunesmith.data.files import write_new_files
    from tunesmith.errors import InputError
    from tunesmith.evaluate.blind import preferences

    rows, left_out = preferences(comparison)
    if not rows:
        raise InputError("No row has a preferred reply yet.", "Judge some first; ties and 'both bad' teach nothing.")
    write_new_files({path: [json.dumps(row, ensure_ascii=False) for row in rows]})
    output.say(
        f"wrote {path}: {len(rows)} preferences; {left_out} rows are left out (not judged, tied, both bad, or as many "
        "raters for one as for the other)"
    )
    return {"out": str(path), "rows": len(rows), "left_out": left_out}


def _place(asked: dict[str, Any]) -> Path:
    """A folder of this very comparison's own, so that the same command finds it again."""
    from tunesmith.folders import home

    return home() / "blind" / hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]
