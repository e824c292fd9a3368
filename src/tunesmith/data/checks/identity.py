"""Numbers that stand for a person or their money and can be checked: cards, IBANs, national ids, IP addresses.

Not here: phone numbers (contact), keys and passwords (credentials), account numbers without a check digit.
Called by personal.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator

from tunesmith.data.checks.span import Span, before, digits_of, is_of_a_thing, mentions

CARD = re.compile(r"(?<![\w.,+-])\d(?:[ -]?\d){12,18}(?![\w-])(?!\.\d)")
CARD_FORM = re.compile(r"\d{13,19}|\d{4}([ -])\d{4}\1\d{4}\1\d{1,7}|\d{4}([ -])\d{6}\2\d{4,5}")
ISSUER = re.compile(  # Visa, Mastercard, American Express, Discover, JCB, Diners Club
    r"4(?:\d{12}|\d{15}|\d{18})|(?:5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}|3[47]\d{13}"
    r"|(?:6011|65\d\d|64[4-9]\d)\d{12}|35(?:2[89]|[3-8]\d)\d{12}|3(?:0[0-5]|[68]\d)\d{11}"
)
IBAN = re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?:[A-Z0-9]{11,30}|(?: [A-Z0-9]{4}){2,7}(?: [A-Z0-9]{1,3})?)(?!\w)")
# Lengths from the SWIFT IBAN registry.
IBAN_LENGTHS = {
    country: length
    for length, countries in {
        15: "NO", 16: "BE", 18: "DK FI FO GL NL", 19: "MK SI", 20: "AT BA EE KZ LT LU XK", 21: "CH HR LI LV",
        22: "BG BH CR DE GB GE IE ME RS VA", 23: "AE GI IL IQ TL", 24: "AD CZ ES MD PK RO SA SE SK TN VG",
        25: "PT", 26: "IS TR", 27: "FR GR IT MC MR SM", 28: "AL AZ BY CY DO GT HU LB PL SV", 29: "BR EG PS QA UA",
        30: "JO KW MU", 31: "MT SC", 32: "LC",
    }.items()
    for country in countries.split()
}  # fmt: skip
IPV4 = re.compile(r"(?<![\w.:/-])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)(?![\w/-])(?!\.\d)")
FOUR_PARTS = re.compile(r"\d\.\d{1,3}\.\d{1,3}\.\d")
IPV6 = re.compile(r"(?<![\w:.])(?:[0-9a-fA-F]{1,4}:){2,7}(?::?[0-9a-fA-F]{1,4}){1,6}(?![\w:])")
IP_CUE = re.compile(r"\b(?:ip|address|host|log\w* in|connect\w*|from)\b", re.IGNORECASE)
VERSION_CUE = re.compile(
    r"(?:\bv(?:er(?:sion)?)?|\brelease|\bbuild|\bfirmware|\bsection|\bchapter|[=<>~^])[ .:]*$", re.IGNORECASE
)
NOBODYS = [  # private, local and reserved networks, and resolvers that everybody uses
    ipaddress.ip_network(block)
    for block in (
        *("0.0.0.0/8", "10.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16", "224.0.0.0/3"),
        *("8.8.8.8/32", "8.8.4.4/32", "1.1.1.1/32", "1.0.0.1/32", "9.9.9.9/32"),
        *("::/127", "fe80::/10", "fc00::/7", "ff00::/8"),
    )
]

SSN = re.compile(r"(?<![\w.-])(?!000|666|9)\d{3}([- ]?)(?!00)\d{2}\1(?!0000)\d{4}(?![\w-])(?!\.\d)")
SSN_CUE = re.compile(r"\b(?:ssn|social security)\b", re.IGNORECASE)
NAMED_ID = re.compile(  # ids without a check digit count where they are named
    r"\b(?:passport|driver'?s licen[cs]e|driving licen[cs]e|mrn|medical record|patient id|national id"
    r"|identity card|nino|national insurance|nhs|aadhaar|tax id|steuer-?id|personalausweis|reisepass|nif|pesel|bsn)\b"
    r"(?: (?:number|no\.?|nr\.?|#|card|id|is))*\W{0,3}"
    r"(?P<id>(?=(?:[A-Z ]*\d){5})[A-Z]{0,3} ?\d[A-Z0-9]*(?:[ -][A-Z0-9]{2,6}){0,4})(?!\w)",
    re.IGNORECASE,
)
ID_CUES = (
    *("passport", "licen", "mrn", "medical", "national", "nino", "nhs", "aadhaar", "identity", "patient"),
    *("steuer", "ausweis", "reisepass", "nif", "pesel", "bsn", "tax"),
)


def identity_spans(text: str, lower: str, *, numbers: bool) -> Iterator[Span]:
    """Every number in a text that is a person's by its form and check digits.

    `lower` is the text in lower case, `numbers` whether it has SEVEN_DIGITS.
    """
    if numbers:
        yield from _checked(text)
    if FOUR_PARTS.search(text):
        yield from _ips(text)
    if "::" in text or text.count(":") >= 7:
        yield from (Span(*hit.span(), "ip") for hit in IPV6.finditer(text) if _is_somebodys(hit.group()))
    if mentions(lower, ID_CUES):
        yield from (Span(*hit.span("id"), "national_id") for hit in NAMED_ID.finditer(text))


def _checked(text: str) -> Iterator[Span]:
    for hit in CARD.finditer(text):
        if is_card(hit.group()) and not is_of_a_thing(text, hit.start()):
            yield Span(*hit.span(), "card")
    for hit in IBAN.finditer(text):
        if end := _iban_end(hit.group()):
            yield Span(hit.start(), hit.start() + end, "iban")
    for hit in SSN.finditer(text):
        named = SSN_CUE.search(before(text, hit.start()))
        if named or (hit[1] == "-" and not is_of_a_thing(text, hit.start())):
            yield Span(*hit.span(), "ssn")
    for form, checks in NATIONAL_IDS:
        yield from (Span(*hit.span(), "national_id") for hit in form.finditer(text) if checks(hit.group()))


def is_card(text: str) -> bool:
    """Grouped as cards are, from an issuer's range, and right by Luhn's check (ISO/IEC 7812-1, annex B)."""
    digits = digits_of(text)
    if not CARD_FORM.fullmatch(text) or not ISSUER.fullmatch(digits):
        return False
    doubled = sum(sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return (doubled + sum(map(int, digits[-1::-2]))) % 10 == 0


def is_iban(text: str) -> bool:
    """Of the length of its country and 1 modulo 97 (ISO 13616)."""
    iban = text.replace(" ", "")
    if IBAN_LENGTHS.get(iban[:2]) != len(iban):
        return False
    return int("".join(str(int(char, 36)) for char in iban[4:] + iban[:4])) % 97 == 1


def _iban_end(found: str) -> int | None:
    """Where the IBAN ends in what was found: a word in capitals may follow it."""
    ends = [len(found), *(at for at in range(len(found) - 1, 14, -1) if found[at] == " ")]
    return next((end for end in ends if is_iban(found[:end])), None)


def _ips(text: str) -> Iterator[Span]:
    for hit in IPV4.finditer(text):
        parts = [int(part) for part in hit.group().split(".")]
        words = before(text, hit.start())
        small = max(parts) < 32 and not IP_CUE.search(words)  # 4.18.2.1 is a version
        if not small and parts[3] and not VERSION_CUE.search(words) and _is_somebodys(hit.group()):
            yield Span(*hit.span(), "ip")


def _is_somebodys(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return not any(address in network for network in NOBODYS if network.version == address.version)


def _spanish(text: str) -> bool:
    number = digits_of(text[:-1].translate(str.maketrans("XYZ", "012")))
    return "TRWAGMYFPDXBNJZSQVHLCKE"[int(number) % 23] == text[-1]


def _brazilian(text: str) -> bool:
    digits = [int(digit) for digit in digits_of(text)]
    if len(set(digits)) == 1:
        return False
    for end in (9, 10):
        rest = 10 * sum(weight * digit for weight, digit in zip(range(end + 1, 1, -1), digits, strict=False)) % 11
        if rest % 10 != digits[end]:
            return False
    return True


def _italian(text: str) -> bool:
    odd = dict(zip("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ", ODD_VALUES, strict=True))
    total = sum(
        odd[char] if at % 2 == 0 else int(char, 36) - (10 if char.isalpha() else 0) for at, char in enumerate(text[:15])
    )
    return chr(ord("A") + total % 26) == text[15]


def _french(text: str) -> bool:
    digits = digits_of(text)
    return 97 - int(digits[:13]) % 97 == int(digits[13:])


def _chinese(text: str) -> bool:
    weighted = sum(int(digit) * pow(2, 17 - at, 11) for at, digit in enumerate(text[:17]))
    return "10X98765432"[weighted % 11] == text[17].upper()


ODD_VALUES = (1, 0, 5, 7, 9, 13, 15, 17, 19, 21, *(1, 0, 5, 7, 9, 13, 15, 17, 19, 21),
              2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23)  # fmt: skip
NATIONAL_IDS: tuple[tuple[re.Pattern[str], Callable[[str], bool]], ...] = (
    (re.compile(r"(?<![\w-])[0-9XYZ]\d{7}-?[A-Z](?!\w)"), _spanish),  # DNI, NIE
    (re.compile(r"(?<!\w)\d{3}\.\d{3}\.\d{3}-\d{2}(?!\w)"), _brazilian),  # CPF
    (re.compile(r"(?<!\w)[12] ?\d\d ?(?:0[1-9]|1[0-2]) ?\d{2} ?\d{3} ?\d{3} ?\d{2}(?!\w)"), _french),  # NIR
    (re.compile(r"(?<!\w)[A-Z]{6}\d{2}[A-EHLMPR-T]\d{2}[A-Z]\d{3}[A-Z](?!\w)"), _italian),  # codice fiscale
    (re.compile(r"(?<!\w)[1-8]\d{5}(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[\dXx](?!\w)"), _chinese),
)
