"""Keys, tokens and passwords: by the form their provider gives them, or by the words before them.

Not here: what is personal (contact, identity).
Called by personal.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator

from tunesmith.data.checks.span import Span, mentions

KEY = re.compile(
    r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----"
    r"(?:.*?-----END (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----|[A-Za-z0-9+/=\s\\]*)"
    r"|(?<![\w-])(?:(?:AKIA|ASIA)[0-9A-Z]{16}"  # AWS
    r"|gh[opsur]_[A-Za-z0-9]{36,255}|github_pat_\w{22,255}|glpat-[\w-]{20,}"  # GitHub, GitLab
    r"|sk-(?=[\w-]{0,60}\d)(?=[\w-]{0,60}[A-Z])[\w-]{20,}|gsk_[A-Za-z0-9]{40,}"  # OpenAI, Anthropic, OpenRouter; Groq
    r"|hf_[A-Za-z0-9]{30,}|r8_[A-Za-z0-9]{37,}"  # Hugging Face, Replicate
    r"|AIza[\w-]{35}|ya29\.[\w-]{20,}"  # Google
    r"|[rs]k_(?:live|test)_[A-Za-z0-9]{16,}|whsec_[A-Za-z0-9+/=]{24,}"  # Stripe
    r"|xox[abeoprs]-[\w-]{10,}|xapp-\d-[\w-]{10,}|\d{8,10}:AA[\w-]{33}"  # Slack, Telegram
    r"|SG\.[\w-]{16,}\.[\w-]{16,}|SK[0-9a-f]{32}|key-[0-9a-f]{32}"  # SendGrid, Twilio, Mailgun
    r"|npm_[A-Za-z0-9]{36}|pypi-[\w-]{50,}|dop_v1_[0-9a-f]{64}|shp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}"
    r"|eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,})(?![\w-])",  # JWT (RFC 7519)
    re.DOTALL,
)
URL_PASSWORD = re.compile(r"\b[a-z][a-z+.-]{1,20}://[^\s:/@]{1,64}:(?P<value>[^\s:/@{}<>\[\]$*]{4,128})@[\w.-]+")
PASSWORD = r"passw(?:or)?d|passwort|pass ?phrase|passcode|pwd|mot de passe|contraseña|senha|wachtwoord|hasło"
NAMED = re.compile(
    r"\b(?:[\w-]{0,30}[_-])?(?:api[ _-]?key|access[ _-]?key|secret(?:[ _-]?key)?|auth[ _-]?token|access[ _-]?token"
    rf"|bearer|token|client[ _-]?secret|(?P<password>{PASSWORD})|credentials?)"
    r"[\"']?(?P<link> ?(?:=>|:=|=|:) ?| (?:is|was|ist|es|est|è|é)(?: now)?:? )"
    r"(?P<quote>[\"'`]?)(?P<value>[^\s\"'`]{6,200})",
    re.IGNORECASE,
)
MIN_KEY_CHARS = 20
MIN_BITS = 2.5  # a character, by the frequencies in the value itself
KEY_CUES = ("pass", "key", "token", "secret", "pwd", "bearer", "credential", "contrase", "senha", "wachtwoord", "hasło")
NOT_A_VALUE = re.compile(  # code, a stand-in, a word, an address, an attribute
    r".*[\[\]<>{}()].*|.*(?:\*{3}|[xX]{4}|\.{3}).*|(?i:your|my|the)[_-].*|https?:.*|[\w.]+\.[a-z_]\w*|[$%].*|[^\W\d_]+"
    r"|[\d.,:/-]+",
    re.DOTALL,
)
VARIABLE = re.compile(r"[A-Za-z_]+\d{0,2}")
OWN = re.compile(
    r"\b(?:my|our|mein\w*|mon|mi|mio|mia|meu|minha)\b[^.!?\n]{0,30}?(?:"
    + "|".join(KEY_CUES)
    + r"|mot de)[^.!?/\n]{0,30}$",
    re.IGNORECASE,
)


def credential_spans(text: str, lower: str) -> Iterator[Span]:
    """Every key and password in a text; `lower` is the text in lower case."""
    if max(map(len, text.split()), default=0) >= MIN_KEY_CHARS or "PRIVATE KEY" in text:
        yield from (Span(*hit.span(), "key") for hit in KEY.finditer(text))
    if "://" in text and "@" in text:
        yield from (Span(*hit.span("value"), "password") for hit in URL_PASSWORD.finditer(text))
    if mentions(lower, KEY_CUES):
        for hit in NAMED.finditer(text):
            value = hit["value"].rstrip(".,;:?)")
            in_code = "=" in hit["link"] and not hit["quote"]
            is_pin = hit["password"] and hit["link"].strip(" :").isalpha() and len(value) >= 6 and value.isdecimal()
            if is_pin or (_is_secret(value) and not (in_code and VARIABLE.fullmatch(value))):
                start = hit.start("value")
                yield Span(start, start + len(value), "password" if hit["password"] else "key")


def is_own(text: str, at: int) -> bool:
    """Whether a credential is one that the speaker calls theirs; a key in a provider's form is a secret anyway."""
    return OWN.search(text[max(0, at - 80) : at]) is not None and KEY.match(text, at) is None


def _is_secret(value: str) -> bool:
    """No word, name, number, call or stand-in: letters with digits, or with signs in both cases, hardly repeated."""
    if len(value) < 6 or NOT_A_VALUE.fullmatch(value):
        return False
    if not any(char.isdecimal() for char in value):
        mixed = value != value.lower() and value != value.upper() and not value.isalnum()
        if not mixed or "-" in value or "_" in value:  # "Case-Sensitive"
            return False
    counts = Counter(value).values()
    return -sum(count / len(value) * math.log2(count / len(value)) for count in counts) >= MIN_BITS
