"""The JSON schema of an eval's items: what is refused as a schema, and what an item lacks by it.

Not here: rows (serve.eval_rows). jsonschema is imported when an eval has a schema. A schema is a stranger's: it fetches
nothing, and patterns, whose cost nobody can bound, are not taken.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tunesmith.serve.wire.errors import RequestError

PARAM = "data_source_config.item_schema"
REBASING = ("$id", "$dynamicRef", "$recursiveRef")  # by these a reference within can become one without
SHOWN = 200  # characters of what does not fit

Check = Callable[[Any], str | None]  # item -> why it does not fit, or None


def schema_check(schema: dict[str, Any]) -> Check:
    """Raises RequestError for a schema that is none, or has patterns."""
    if not schema:
        return lambda item: None
    _refuse_dangers(schema)
    try:
        import jsonschema
    except ImportError as error:
        raise RequestError(
            "This server cannot check items against a schema: pip install 'tunesmith[scorers]', or send an empty one.",
            param=PARAM,
        ) from error
    try:
        jsonschema.Draft202012Validator.check_schema(schema)
    except (jsonschema.SchemaError, RecursionError) as error:
        why = getattr(error, "message", "it is nested too deep")
        raise RequestError(f"item_schema is no JSON schema: {why[:SHOWN]}.", param=PARAM) from error
    validator = jsonschema.Draft202012Validator(schema)

    def check(item: Any) -> str | None:
        try:
            found = next(iter(validator.iter_errors(item)), None)
        except Exception as error:  # a $ref that leads nowhere or back to itself has many names
            return f"the schema cannot be followed ({type(error).__name__})"
        return f"{found.json_path.removeprefix('$.')}: {found.message[:SHOWN]}" if found else None

    return check


def _refuse_dangers(schema: Any) -> None:
    """What is looked for is a keyword with a value that only the keyword has: a property may be called so too."""
    stack = [schema]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            if isinstance(value.get("pattern"), str) or isinstance(value.get("patternProperties"), dict):
                raise _unsupported("pattern and patternProperties, which this server does not run")
            reference = value.get("$ref")
            outside = isinstance(reference, str) and not reference.startswith("#")
            if outside or any(isinstance(value.get(name), str) for name in REBASING):
                raise _unsupported("a reference beyond itself, which this server does not follow")
            stack.extend(value.values())
        elif isinstance(value, list):
            stack.extend(value)


def _unsupported(what: str) -> RequestError:
    return RequestError(f"item_schema uses {what}: leave it out.", param=PARAM, code="unsupported_parameter")
