"""Personal data and secrets: found, said without being repeated, and masked by placeholders.

Not here: how each is known (contact, identity, credentials). Names and user names in running text are not looked for.
Called by check; fix uses `mask`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, MutableMapping, Sequence
from functools import lru_cache

from tunesmith.data.checks.contact import contact_spans
from tunesmith.data.checks.credentials import credential_spans, is_own
from tunesmith.data.checks.identity import identity_spans
from tunesmith.data.checks.span import SEVEN_DIGITS, Span, mentions
from tunesmith.data.finding import Finding
from tunesmith.data.load import SourceRow

KINDS = {
    "email": "an e-mail address",
    "phone": "a phone number",
    "card": "a payment card number",
    "iban": "an IBAN",
    "ssn": "a US social security number",
    "national_id": "an identity number",
    "ip": "an IP address",
    "birth_date": "a date of birth",
    "address": "a street address",
    "name": "a name",
    "key": "a key",
    "password": "a password",
}
SECRET_KINDS = frozenset({"key", "password"})
PII_KINDS = frozenset(KINDS) - SECRET_KINDS
DIGIT = re.compile("[0-9]")
PLACEHOLDER = re.compile(r"\[[A-Z_]{2,20}_\d+\]")
MAX_ROUNDS = 4
"""Masking may bring two texts together that look like a number again; each round takes such a rest."""


def personal_findings(rows: Sequence[SourceRow]) -> Iterator[Finding]:
    """One finding for each message with personal data, one for each with secrets.

    Of system prompts only secrets are told: an address in them is the operator's own. A password or key that the
    writer calls theirs ("my password is ...") is personal data; every other one is a secret.
    """
    spans_of = lru_cache(maxsize=1000)(private_spans)  # system prompts and labels: many rows share one
    for row in rows:
        for number, message in enumerate(row.example.messages, start=1):
            text = message.content
            if not text:
                continue
            spans = spans_of(text)
            if spans and message.role in ("system", "developer"):
                spans = [span for span in spans if span.kind in SECRET_KINDS]
            if spans:
                yield from _told(row.line, f"message {number} ({message.role})", text, spans)


def private_spans(text: str) -> list[Span]:
    """Where private things stand in a text, in order. Of two that overlap the earlier is kept, else the secret, else
    the longer."""
    lower = text.lower()
    if not DIGIT.search(text) and not mentions(lower, ("@", "pass", "akia")):
        return []  # nothing below can be found: most texts end here
    numbers = SEVEN_DIGITS.search(text) is not None
    found = [*credential_spans(text, lower), *contact_spans(text, lower, numbers=numbers)]
    found += identity_spans(text, lower, numbers=numbers)
    if len(found) < 2:
        return found
    kept: list[Span] = []
    for span in sorted(found, key=lambda span: (span.start, span.kind not in SECRET_KINDS, -span.end, span.kind)):
        if not kept or span.start >= kept[-1].end:
            kept.append(span)
    return kept


def mask(text: str, placeholders: MutableMapping[str, str], *, kinds: Collection[str] = frozenset(KINDS)) -> str:
    """The text with a placeholder such as [EMAIL_1] for each private value.

    `placeholders` is filled as it goes: with one mapping for a file a value has one placeholder everywhere. Masking
    again changes nothing.
    """
    for _ in range(MAX_ROUNDS):
        spans = [span for span in private_spans(text) if span.kind in kinds]
        if not spans:
            break
        taken = {*placeholders.values(), *PLACEHOLDER.findall(text)}
        parts, at = [], 0
        for span in spans:
            parts += [text[at : span.start], _placeholder(text[span.start : span.end], span.kind, placeholders, taken)]
            at = span.end
        text = "".join(parts) + text[at:]
    return text


def _placeholder(value: str, kind: str, placeholders: MutableMapping[str, str], taken: set[str]) -> str:
    plain = value.casefold() if kind in ("email", "address", "name") else re.sub(r"[\s().-]+", "", value)
    key = f"{kind}:{value if kind in SECRET_KINDS else plain}"
    if key not in placeholders:
        name, number = "SECRET" if kind in SECRET_KINDS else kind.upper(), 1
        while f"[{name}_{number}]" in taken:
            number += 1
        placeholders[key] = f"[{name}_{number}]"
        taken.add(placeholders[key])
    return placeholders[key]


def _told(line: int, where: str, text: str, spans: Sequence[Span]) -> Iterator[Finding]:
    by_issue: dict[str, list[str]] = defaultdict(list)
    for span in spans:
        value = text[span.start : span.end]
        own = span.kind in SECRET_KINDS and is_own(text, span.start)
        issue = "secret" if span.kind in SECRET_KINDS and not own else "pii"
        by_issue[issue].append(f"{KINDS[span.kind]} ({_shown(value, span.kind)})")
    for issue, found in by_issue.items():
        listed = ", ".join(dict.fromkeys(found))
        if issue == "secret":
            suggestion = "Take it out and have it revoked: what a model is trained on it can repeat."
        else:
            suggestion = "Take it out, or put a placeholder for it; a model can repeat it."
        yield Finding(line, issue, "error" if issue == "secret" else "warning", f"{where} holds {listed}.", suggestion)


def _shown(value: str, kind: str) -> str:
    """Enough to find it by, never the whole: its ends, or of an e-mail address the domain."""
    value = " ".join(value.split())
    if kind == "email":
        return value[0] + "..." + value[value.index("@") :]
    ends = 4 if len(value) >= 20 else 2
    return f"{value[:ends]}...{value[-ends:]}" if len(value) > 2 * ends else "..."
