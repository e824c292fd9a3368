"""What a check has to say about a row or a file, and the names it may use.

Not here: finding anything (one module per kind of check), printing (cli.check).
Called by every module of data that looks at rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

SEVERITIES = ("error", "warning", "info")
MAX_SHOWN_CHARS = 60


@dataclass(frozen=True, slots=True)
class Finding:
    """`severity`: 'error' (the row cannot or must not be trained on as it is), 'warning' (likely a mistake), 'info'.

    `line` is 1-based in the file, None for the file as a whole; `related` is the other line meant, if there is one
    (the first of two duplicates; the line of the test file that leaked).
    """

    line: int | None
    issue: str
    severity: str
    detail: str
    suggestion: str
    column: int | None = None
    related: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """A line of the report; `column` and `related` only where they are known."""
        body: dict[str, Any] = {"line": self.line, "issue": self.issue, "severity": self.severity}
        body |= {"detail": self.detail, "suggestion": self.suggestion}
        places = {"column": self.column, "related": self.related}
        return body | {name: value for name, value in places.items() if value is not None}


def shortened(text: str) -> str:
    """As much of a text from the data as a finding quotes."""
    return text if len(text) <= MAX_SHOWN_CHARS else text[: MAX_SHOWN_CHARS - 3] + "..."
