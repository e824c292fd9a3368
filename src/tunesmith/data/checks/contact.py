"""E-mail addresses, phone numbers, street addresses, dates of birth and names that somebody gives as their own.

Not here: numbers with check digits (identity), keys and passwords (credentials), names in running text.
Called by personal.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from tunesmith.data.checks.span import Span, before, digits_of, is_of_a_thing, mentions

EMAIL = re.compile(r"(?<![\w.+/@-])[\w.%+'-]{0,63}[\w%+]@(?:[\w-]{1,63}\.){1,6}[^\W\d_]{2,24}(?![\w@])(?!\.\w)")
MAILBOX = re.compile(  # nobody's own: a desk, a machine, or a stand-in for an address
    r"(?:support|help(?:desk)?|info|contact(?:us)?|customer[._-]?(?:service|care|support)|service|sales|billing"
    r"|accounts?|admin|hello|office|team|press|media|jobs|careers|hr|legal|privacy|security|abuse|webmaster|postmaster|root|git|noreply"
    r"|no[._-]?reply|do[._-]?not[._-]?reply|feedback|returns?|refunds?|orders?|your[._-]?\w*|example|user(?:name)?|name"
    r"|e?mail|someone|somebody|you|first(?:name)?[._-]?last(?:name)?|x{2,})@",
    re.IGNORECASE,
)
FILE_ENDING = re.compile(r"\.(?:png|jpe?g|gif|svg|webp|js|ts|css|py|html?|json|md)$", re.IGNORECASE)

NUMBER = re.compile(r"(?<![\w.,+$€£¥/=-])(?:\+|00)?\(?\d(?:[ \t\xa0./-]{0,2}[()]?[ ]?\d){6,16}(?![\w%])(?![.,/-]\d)")
NORTH_AMERICAN = re.compile(r"(?:1[ .-])?(?:\([2-9]\d\d\) ?|[2-9]\d\d[.-])[2-9]\d\d[ .-]\d{4}")
BRITISH = re.compile(r"0(?:20 \d{4} \d{4}|7\d{3} \d{3} ?\d{3}|1\d{2} \d{3} \d{4}|1\d{3} \d{5,6})")
FRENCH = re.compile(r"0[1-9](?:[ .]\d\d){4}")
NATIONAL = (("US", NORTH_AMERICAN), ("GB", BRITISH), ("FR", FRENCH))
DATE_LIKE = re.compile(
    r"(?:(?:19|20)\d\d([-./ ])\d{1,2}\1\d{1,2}|\d{1,2}([-./ ])\d{1,2}\2(?:19|20)\d\d)\b.*"
    r"|(?:(?:19|20)\d\d[ /-]+)+(?:19|20)\d\d"
)
CALL = re.compile(
    r"\b(?:call|phone|telephone|tel|mobile|cell(?:phone)?|text|whatsapp|sms|ring|reach|dial|fax|contact"
    r"|my (?:new )?number"
    r"|anrufen|ruf\w*|telefon\w*|handy\w*|tél\w*|appel\w*|portable|tel[eé]fono|ll[aá]m\w*|m[oó]vil|chiam\w*"
    r"|cellulare|telefone|celular|lig(?:ue|ar)|bel(?:len)?|zadzwo\w*|numer telefonu)\b[^\d\n]{0,36}$",
    re.IGNORECASE,
)
NOT_A_PHONE = re.compile(
    r"\b(?:order|invoice|reference|ticket|case|tracking|account|card|policy|code|id|pin|zip|amount|serial|model)\b",
    re.IGNORECASE,
)

NUMBER_THEN_NAME = re.compile(
    r"\d[a-zA-Z]?,? (?:[^\W\d_a-zß-ÿ]|bis|rue|avenue|boulevard|place|chemin|allée|impasse|quai)"
)
NAME = r"[^\W\d_a-zß-ÿ][\w'’.-]*"
STREET = (
    r"street|st|avenue|ave|road|rd|lane|ln|drive|dr|boulevard|blvd|court|ct|way|place|pl|square|sq|terrace|close"
    r"|crescent|highway|hwy|parkway|pkwy|gardens|grove|mews|row|hill|walk|trail|circle|cir"
)
POSTCODE = (  # United States, United Kingdom, Canada, Australia
    r"(?:[A-Z]{2},? {1,2}\d{5}(?:-\d{4})?|[A-Z]{1,2}\d[A-Z\d]? ?\d[A-Z]{2}"
    r"|[ABCEGHJ-NPRSTVXY]\d[A-Z] ?\d[A-Z]\d|[A-Z]{2,3} \d{4})\b"
)
ADDRESS = re.compile(
    rf"(?<![\w.,$€£/-])\d{{1,5}}[A-Za-z]?,? (?:{NAME} ){{1,4}}(?:(?i:{STREET})\b\.?)"
    rf"(?P<place>(?:,? (?:(?i:apt|apartment|unit|suite|flat|#)\.? ?\w{{1,5}}))?(?:,? {NAME}){{0,4}},? {POSTCODE})?"
)
LIVES_AT = re.compile(
    r"\b(?:live[sd]?|living|reside[sd]?|residing|home is|house is|staying|moved|address(?: is| to|:)"
    r"|deliver\w*|ship\w*|sen[dt])\b\W{0,3}"
    r"(?:(?:it|is|to|at|on|in|my|new|home|me|now|the|package|order|card)\b\W{0,3}){0,5}$",
    re.IGNORECASE,
)
# Street, number and postcode as they are written in German, Dutch, French, Spanish, Italian and Portuguese.
OTHER_ADDRESS = re.compile(
    rf"\b{NAME}(?i:stra(?:ß|ss)e|str\.|weg|platz|allee|gasse|ring|straat|laan|plein) \d{{1,4}} ?[a-z]?,?"
    rf" (?:\d{{5}}|\d{{4}} ?[A-Z]{{2}}) {NAME}"
    r"|(?<![\w.,])\d{1,4}(?: ?bis)?,? (?i:rue|avenue|boulevard|place|chemin|allée|impasse|quai) [^,\d\n]{3,40}"
    rf",? \d{{5}} {NAME}"
    r"|\b(?i:calle|avenida|avda\.?|plaza|paseo|via|viale|piazza|corso|rua|praça) [^,\d\n]{3,40}"
    rf",? (?:n[.º°]* ?)?\d{{1,4}},? (?:\d{{5}}|\d{{4}}-\d{{3}}) {NAME}"
)

MONTH = r"(?:jan|feb|mar|mär|apr|may|mai|jun|jul|aug|sep|oct|okt|nov|dec|dez)[^\W\d_]{0,6}\.?"
DATE = (
    rf"(?:\d{{1,2}}(?:st|nd|rd|th|\.)? (?:of )?{MONTH},? \d{{4}}|{MONTH} \d{{1,2}}(?:st|nd|rd|th)?,? \d{{4}}"
    r"|\d{1,2}(?P<mark>[./-])\d{1,2}(?P=mark)(?:\d{4}|\d\d)|(?:19|20)\d\d[./-]\d{1,2}[./-]\d{1,2}"
    r"|\d{1,2} de [a-zç]+ de \d{4})"
)
BIRTH_DATE = re.compile(
    r"\b(?P<cue>d\.?o\.?b\b\.?|date of birth|birth ?date|birthday|geburtsdatum|fecha de nacimiento|data di nascita"
    r"|data de nascimento|date de naissance|geboortedatum|(?:was )?born|geboren|née?|nacid[oa]|nat[oa]|nascid[oa])"
    rf"(?: (?:is|was|on|am|le|el|il|em|op|ist|es|est|è|é))*[ :=(-]{{1,3}}(?P<date>{DATE})(?!\d)",
    re.IGNORECASE,
)
BORN = re.compile(r"born|geboren|né|née|nacid|nat[oa]|nascid", re.IGNORECASE)
OWN = re.compile(
    r"\b(?:I|I'm|I’m|[Mm]y|[Mm]e|[Ii]ch|[Jj]e|[Yy]o|[Mm]i|[Ss]ono|[Ii]o|[Ee]u|[Ii]k|[Pp]atient|[Cc]ustomer)\b"
)
BIRTH_CUES = (
    *("born", "birth", "dob", "d.o.b", "gebor", "geburt", "né le", "née le", "naissance", "naci", "nasc"),
    *("nato il", "nata il"),
)
OWN_NAME = re.compile(
    rf"\b(?:[Mm]y (?:full |legal )?name is|I am|I'm|I’m) (?P<name>{NAME}(?: {NAME}){{1,2}})"
    r"(?=,? (?:and )?(?i:born|dob|d\.o\.b|date of birth|ssn|my (?:ssn|dob|date)))"
)


def contact_spans(text: str, lower: str, *, numbers: bool) -> Iterator[Span]:
    """Everything in a text by which a person is reached or known.

    `lower` is the text in lower case, `numbers` whether it has SEVEN_DIGITS.
    """
    if "@" in text:
        yield from _emails(text)
    if numbers:
        yield from _phones(text)
    if NUMBER_THEN_NAME.search(text):
        yield from _addresses(text)
    if mentions(lower, BIRTH_CUES):
        yield from _birth_dates(text)
        yield from (Span(*hit.span("name"), "name") for hit in OWN_NAME.finditer(text))


def _emails(text: str) -> Iterator[Span]:
    for hit in EMAIL.finditer(text):
        if not MAILBOX.match(hit.group()) and not FILE_ENDING.search(hit.group()):
            yield Span(*hit.span(), "email")


def _phones(text: str) -> Iterator[Span]:
    for hit in NUMBER.finditer(text):
        number = hit.group().rstrip(" (-./")
        if DATE_LIKE.match(number) or is_of_a_thing(text, hit.start()):
            continue
        words = before(text, hit.start())
        called = CALL.search(words) is not None and not NOT_A_PHONE.search(words)
        if _is_phone(number, called=called):
            yield Span(hit.start(), hit.start() + len(number), "phone")


def _is_phone(number: str, *, called: bool) -> bool:
    """Valid by the numbering plan and written as a phone number, or named as one by the words before it."""
    import phonenumbers

    if called and 7 <= len(digits_of(number)) <= 15:
        return True
    regions = [region for region, form in NATIONAL if form.fullmatch(number)]
    if number.startswith(("+", "00")):
        regions = ["ZZ"]
        number = "+" + number.removeprefix("+").removeprefix("00")
    for region in regions:
        try:
            parsed = phonenumbers.parse(number, region)
        except phonenumbers.NumberParseException:
            continue
        toll_free = phonenumbers.number_type(parsed) == phonenumbers.PhoneNumberType.TOLL_FREE
        grouped = number.startswith("+") and not number[1:].isdecimal() and phonenumbers.is_possible_number(parsed)
        if not toll_free and (grouped or phonenumbers.is_valid_number(parsed)):
            return True
    return False


def _addresses(text: str) -> Iterator[Span]:
    for hit in ADDRESS.finditer(text):
        if hit["place"] or LIVES_AT.search(before(text, hit.start())):
            yield Span(*hit.span(), "address")
    yield from (Span(*hit.span(), "address") for hit in OTHER_ADDRESS.finditer(text))


def _birth_dates(text: str) -> Iterator[Span]:
    """A named date of birth; "born" alone only of the one who speaks: "Einstein (born 14 March 1879)" is history."""
    for hit in BIRTH_DATE.finditer(text):
        if not BORN.search(hit["cue"]) or OWN.search(before(text, hit.start())):
            yield Span(*hit.span("date"), "birth_date")
