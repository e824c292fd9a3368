"""Lists on OpenAI's wire: the query parameters `after` and `order`, and the body of one page.

Not here: reading a page (serve.records.paging). Called by serve.routes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import Depends, Query

from tunesmith.serve.records.paging import Cursor

After = Annotated[str | None, Query(description="The id of the last object of the page before.")]
Order = Annotated[Literal["asc", "desc"], Query(description="By the time they were made.")]


async def _cursor(after: After = None, limit: Annotated[int, Query(ge=1, le=100)] = 20, order: Order = "asc") -> Cursor:
    return Cursor(limit, after, newest_first=order == "desc")


Page = Annotated[Cursor, Depends(_cursor)]  # of the lists whose pages are as OpenAI's evals have them


def list_body(items: Sequence[dict[str, Any]], *, has_more: bool) -> dict[str, Any]:
    """A page. OpenAI's clients ask for the next one with the id of its last item, and stop when `has_more` is false."""
    first, last = (items[0]["id"], items[-1]["id"]) if items else (None, None)
    return {"object": "list", "data": list(items), "first_id": first, "last_id": last, "has_more": has_more}
