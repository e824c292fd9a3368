"""`tunesmith keys`: make, list and revoke the API keys of `tunesmith server`.

Not here: how keys are kept and what their scopes mean (serve.records.keys). Listed in cli.main.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Annotated

import typer

from tunesmith.cli.output import JsonFlag, Output

if TYPE_CHECKING:
    from tunesmith.serve.records.keys import StoredKey

keys = typer.Typer(name="keys", help="Make, list and revoke the API keys of `tunesmith server`.")

UNITS_S = {"m": 60, "h": 3600, "d": 86_400}
UNITS_BYTES = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


@keys.command()
def create(
    name: Annotated[str, typer.Argument(help="What the key is for, such as ci or anna's laptop.")],
    *,
    owner: Annotated[
        str, typer.Option(help="Whose files, jobs and models it reaches; keys of one owner share them.")
    ] = "local",
    scope: Annotated[
        list[str] | None,
        typer.Option("--scope", help="all, read, or a permission such as files.write. Once per scope; all if unset."),
    ] = None,
    expires: Annotated[str | None, typer.Option(help="How long it is good: 12h, 30d; until revoked if unset.")] = None,
    requests_per_minute: Annotated[int | None, typer.Option(min=1, help="Requests in a minute.")] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(min=1, help="Tokens of prompts and replies.")] = None,
    storage: Annotated[str | None, typer.Option(help="Bytes its owner may keep, such as 10GB.")] = None,
    jobs: Annotated[int | None, typer.Option(min=0, help="Jobs of its owner that have not ended.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a key and show it, once. With the first key the server asks everyone for one."""
    from tunesmith.serve.access import KeyLimits
    from tunesmith.serve.records.keys import create_key

    output = Output(as_json=as_json)
    limits = KeyLimits(requests_per_minute, tokens_per_minute, parse_size(storage) if storage else None, jobs)
    life_s = parse_time(expires) if expires else None
    key, kept = create_key(owner=owner, name=name, scopes=scope or ["all"], life_s=life_s, limits=limits)
    output.say(key, "bold")
    output.say(f"This is key {kept.id} of {owner}. It is shown this once; only its sha256 is kept.")
    output.say("Clients send it as their API key: OpenAI(base_url=..., api_key=...), or OPENAI_API_KEY.")
    output.result({"key": key, **_document(kept)})


@keys.command("list")
def list_(*, as_json: JsonFlag = False) -> None:
    """List the keys, newest first, also those that are expired or revoked."""
    from tunesmith.serve.records.keys import list_keys

    output = Output(as_json=as_json)
    found = list_keys()
    if not found:
        output.say("No keys yet: the server answers this machine only. `tunesmith keys create NAME` makes one.")
    else:
        rows = [(key.id, key.name, key.owner, " ".join(key.scopes), key.state, _limits(key)) for key in found]
        output.table(("id", "name", "owner", "scopes", "state", "limits"), rows)
    output.result({"keys": [_document(key) for key in found]})


@keys.command()
def revoke(
    id: Annotated[str, typer.Argument(help="The key's id, as `tunesmith keys list` shows it.")],
    *,
    as_json: JsonFlag = False,
) -> None:
    """Make a key worthless. A running server refuses it within a second."""
    from tunesmith.serve.records.keys import revoke_key

    output = Output(as_json=as_json)
    key = revoke_key(id)
    output.say(f"Key {key.id} ({key.name}) is revoked.")
    output.result(_document(key))


def parse_time(text: str) -> int:
    """30d -> seconds. Raises InputError."""
    return _parse(text, UNITS_S, what="time", example="90m, 12h or 30d")


def parse_size(text: str) -> int:
    """10GB -> bytes. Raises InputError."""
    return _parse(text, UNITS_BYTES, what="size", example="500MB or 10GB")


def _parse(text: str, units: dict[str, int], *, what: str, example: str) -> int:
    from tunesmith.errors import InputError

    match = re.fullmatch(r"([0-9]{1,9})\s*([A-Za-z]*)", text.strip())
    if not match or match[2] not in units or int(match[1]) == 0:
        raise InputError(f"{text!r} is no {what}.", f"Write it as {example}.")
    return int(match[1]) * units[match[2]]


def _limits(key: StoredKey) -> str:
    limits = key.limits
    words = {
        "requests/min": limits.requests_per_minute, "tokens/min": limits.tokens_per_minute,
        "bytes": limits.storage_bytes, "jobs": limits.jobs,
    }  # fmt: skip
    shown = [f"{value:,} {unit}" for unit, value in words.items() if value is not None]
    if key.expires is not None:
        shown.append(f"until {time.strftime('%Y-%m-%d %H:%M', time.localtime(key.expires))}")
    return ", ".join(shown) or "none"


def _document(key: StoredKey) -> dict[str, object]:
    """What is known of a key; never the key, nor its sha256."""
    from dataclasses import asdict

    return {
        "id": key.id, "name": key.name, "owner": key.owner, "scopes": list(key.scopes), "state": key.state,
        "created": key.created, "expires": key.expires, "revoked": key.revoked, "limits": asdict(key.limits),
    }  # fmt: skip
