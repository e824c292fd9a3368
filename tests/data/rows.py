"""Rows for the tests of checks, from (asked, answered) pairs."""

from tunesmith.chat import Example, Message
from tunesmith.data.load import SourceRow


def rows_of(*pairs: tuple[str, str], system: str | None = None) -> list[SourceRow]:
    start = (Message("system", system),) if system else ()
    return [
        SourceRow(line, Example((*start, Message("user", asked), Message("assistant", answered, trained=True))))
        for line, (asked, answered) in enumerate(pairs, start=1)
    ]
