"""The scorer that is the user's own function: python:FILE.py:NAME, called as NAME(example, reply).

Not here: anything that guards against what the function does; it runs with the user's rights.
Listed in the package's __init__.
"""

from __future__ import annotations

import importlib.util
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunesmith.chat import Example
from tunesmith.contender import Reply
from tunesmith.errors import InputError
from tunesmith.evaluate.scorers.score import Given, Score, Scorer

TODO = "Write python:FILE.py:FUNCTION; FUNCTION(example, reply) returns 0 to 1, or that and a reason."


def python(argument: str, given: Given) -> Scorer:
    """`reply` has `.text`, `example` has `.answer`, `.prompt` and `.metadata`; it returns a number from 0 to 1, a
    truth value, or (either, reason)."""
    file, _, name = argument.rpartition(":")
    function = _load(file, name)

    def score(example: Example, reply: Reply) -> Score:
        try:
            result = function(example, reply)
        except Exception as error:
            text = "".join(traceback.format_exception(error.__class__, error, _own_part(error)))
            raise InputError(f"The function {name} of {file} fails:\n{text}", "Mend it; nothing was scored.") from error
        return _as_score(result, name=name, file=file)

    return Scorer(score)


def _load(file: str, name: str) -> Callable[..., Any]:
    path = Path(file)
    if not name.isidentifier() or path.suffix != ".py" or "://" in file:
        raise InputError(f"'python:{file}:{name}' names no function of a local Python file.", TODO)
    if not path.is_file():
        raise InputError(f"There is no file {file}.", TODO)
    spec = importlib.util.spec_from_file_location(f"tunesmith_scorer_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise InputError(f"{file} cannot be loaded as Python.", TODO)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        text = "".join(traceback.format_exception(error.__class__, error, _own_part(error)))
        raise InputError(f"{file} cannot be loaded:\n{text}", "Mend the file.") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise InputError(f"{file} has no function {name!r}.", TODO)
    return function


def _own_part(error: Exception) -> Any:
    """The traceback from the user's file on: the frames before it are ours or the import system's."""
    own = error.__traceback__
    while own and (
        own.tb_frame.f_code.co_filename.startswith("<frozen") or own.tb_frame.f_code.co_filename == __file__
    ):
        own = own.tb_next
    return own


def _as_score(result: Any, *, name: str, file: str) -> Score:
    value, why = result if isinstance(result, tuple) and len(result) == 2 else (result, f"as {name} says")
    if not isinstance(value, bool | int | float) or not 0 <= value <= 1:
        raise InputError(f"The function {name} of {file} returned {result!r}, not a number from 0 to 1.", TODO)
    return Score(float(value), str(why))
