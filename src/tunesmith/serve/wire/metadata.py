"""Metadata: up to 16 short pairs of text that a caller hangs on an object, and finds it by.

Not here: where it is kept (serve.records). Called by the bodies of evals, runs and stored completions.
"""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import Request
from pydantic import Field

from tunesmith.serve.wire.errors import RequestError

Key = Annotated[str, Field(min_length=1, max_length=64)]
Value = Annotated[str, Field(max_length=512)]
Metadata = Annotated[dict[Key, Value], Field(max_length=16)]

_FILTER = re.compile(r"metadata\[(.*)\]", re.DOTALL)
FILTER_DOCS = {
    "name": "metadata",
    "in": "query",
    "style": "deepObject",
    "explode": True,
    "description": "metadata[key]=value, once per pair that must be there.",
    "schema": {"type": "object", "additionalProperties": {"type": "string"}},
}


def metadata_filter(request: Request) -> dict[str, str]:
    """The pairs of `?metadata[k]=v`. Raises RequestError for another form."""
    wanted = {}
    for name, value in request.query_params.multi_items():
        if name == "metadata" and value in ("null", ""):  # what a client sends for None
            continue
        if match := _FILTER.fullmatch(name):
            wanted[match[1]] = value
        elif name.startswith("metadata"):
            raise RequestError(f"{name!r} is no filter: write metadata[key]=value.", param="metadata")
    return wanted
