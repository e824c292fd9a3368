"""Personal data and secrets are found without being repeated; numbers of things are not; masks are consistent."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.rows import rows_of
from tunesmith.data.checks.personal import KINDS, PII_KINDS, SECRET_KINDS, mask, personal_findings, private_spans

PRIVATE = {
    "Call me on +1 (202) 555-0143.": "phone",
    "call me on (415) 555-0112": "phone",
    "Call me on 555-0178. How long?": "phone",
    "call me on +44 20 7946 0018": "phone",
    "ruf mich an: 0171 1234567": "phone",
    "mon téléphone est 06 12 34 56 78": "phone",
    "The card number is 4111 1111 1111 1111.": "card",
    "the card number is 5555-5555-5555-4444": "card",
    "it is 378282246310005 then": "card",
    "My email is priya.n@mail.example.com. Why": "email",
    "schreib an jürgen@müller.de bitte": "email",
    "my SSN is 078-05-1120": "ssn",
    "social security 219 09 9999": "ssn",
    "my IBAN is NL91ABNA0417164300": "iban",
    "My IBAN is DE89 3704 0044 0532 0130 00. I am sure": "iban",
    "I log in from 198.51.100.7": "ip",
    "from 2001:db8:85a3::8a2e:370:7334 today": "ip",
    "I am Margaret, born 14 March 1967. I need": "birth_date",
    "patient, DOB 02/11/1990": "birth_date",
    "Ich bin am 3. Mai 1980 geboren, Geburtsdatum: 03.05.1980": "birth_date",
    "I live at 10 Sample Lane, Leeds LS1 4AB": "address",
    "I live at 742 Example Street, Springfield, IL 62704. how": "address",
    "Bahnhofstraße 12, 10115 Berlin": "address",
    "12 rue de la Paix, 75002 Paris": "address",
    "mi DNI es 12345678Z": "national_id",
    "meu CPF: 529.982.247-25": "national_id",
    "codice fiscale RSSMRA85T10A562S": "national_id",
    "my passport number is X1234567": "national_id",
    "aws AKIAIOSFODNN7EXAMPLE here": "key",
    "export OPENAI_API_KEY=sk-proj-aB3dE5fG7hJ9kL1mN3pQ": "key",
    "here is my key: api_key=EXAMPLEKEY0123456789abcdefFAKE": "key",
    "token eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmN": "key",
    "password is Fake-Passw0rd!": "password",
    "my password is hunter2": "password",
    'password = "s3cr3t-V4lue"': "password",
    "postgres://app:pA55word@db.example.com/x": "password",
}
HARMLESS = """
where can i cancel order 113542617735902
track order number 3707955617
invoice #85632-4471
error code 40404-2 shows up
I was charged $1,234.56 on 12/05/2021
my app is version 10.0.19045
build 4.18.2.1 of the tool
the limit says 10,000.00
at 09:15 and 17:30
2021-05-12 10:30:00 to 2022-06-13
ticket 415-555-0112-99
ISBN 978-3-16-148410-0
pi is 3.14159265358979
your {{Order Number}} at {{Email}}
write to [EMAIL_1] or [PHONE_2]
localhost 127.0.0.1 and 192.168.0.10/24
DNS 8.8.8.8
mail support@company.com or noreply@company.com
my password is incorrect
I forgot my password: what now
password=getpass()
token = tokenizer.encode(text)
api_key=os.environ['OPENAI_API_KEY']
password is case-sensitive
api_key: YOUR_API_KEY_12
Einstein (born 14 March 1879) was
He worked at 10 Downing Street
2 cups flour, 1 Street taco
icon@2x.png and user@
5 to 7 days
react@18.2.0
order 4111 1111 1111 1112
the years 1990-1995 2000-2005
std::vector<int>::iterator
MAC 00:1B:44:11:3A:B7
S62.521A to T84.010D
x = 1234567890
+1234567890 lines
room 1203 Main
1 600 000 000 people
Born in 1990.
1-800-555-0199
""".strip().splitlines()


@pytest.mark.parametrize(("text", "kind"), PRIVATE.items())
def test_each_kind_is_found_alone(text: str, kind: str) -> None:
    assert [span.kind for span in private_spans(text)] == [kind]


@pytest.mark.parametrize("text", HARMLESS)
def test_numbers_of_things_and_placeholders_are_not_personal(text: str) -> None:
    assert private_spans(text) == []


@pytest.mark.parametrize("text", PRIVATE)
def test_the_report_never_repeats_what_it_found(text: str) -> None:
    [finding] = personal_findings(rows_of((text, "ok then")))
    for span in private_spans(text):
        assert text[span.start : span.end] not in finding.detail + finding.suggestion


def test_a_key_is_a_secret_and_a_password_that_somebody_calls_theirs_is_personal() -> None:
    rows = rows_of(("AKIAIOSFODNN7EXAMPLE", "ok"), ("my password is hunter2", "ok"), ("a@b.example.com", "ok"))
    assert [(finding.line, finding.issue) for finding in personal_findings(rows)] == [
        (1, "secret"),
        (2, "pii"),
        (3, "pii"),
    ]


def test_of_system_prompts_only_secrets_are_told() -> None:
    assert not list(personal_findings(rows_of(("q", "a"), system="Write to jane@firm.example.com")))
    [finding] = personal_findings(rows_of(("q", "a"), system="token: ghp_" + "a1B2" * 9))
    assert (finding.issue, finding.severity) == ("secret", "error")


def test_a_value_has_one_placeholder_in_the_whole_file() -> None:
    placeholders: dict[str, str] = {}
    assert mask("a@x.example.com, b@x.example.com", placeholders) == "[EMAIL_1], [EMAIL_2]"
    assert mask("again B@x.example.com", placeholders) == "again [EMAIL_2]"
    assert mask("card 4111 1111 1111 1111 or 4111111111111111", placeholders) == "card [CARD_1] or [CARD_1]"


def test_a_placeholder_that_stands_in_the_text_is_not_given_again() -> None:
    assert mask("[EMAIL_1] and a@x.example.com", {}) == "[EMAIL_1] and [EMAIL_2]"


def test_only_the_chosen_kinds_are_masked() -> None:
    text = "a@x.example.com, password is Fake-Passw0rd!"
    assert mask(text, {}, kinds=SECRET_KINDS) == "a@x.example.com, password is [SECRET_1]"
    assert mask(text, {}, kinds=PII_KINDS) == "[EMAIL_1], password is Fake-Passw0rd!"
    assert set(KINDS) == SECRET_KINDS | PII_KINDS


@pytest.mark.parametrize("text", PRIVATE)
def test_nothing_private_is_left_after_masking(text: str) -> None:
    masked = mask(text, {})
    assert masked != text
    assert private_spans(masked) == []


PIECES = [*PRIVATE, *HARMLESS, "\n", " my ", "+", "@", "0171", "call 5551234 ", "[EMAIL_1]", "password: "]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(PIECES) | st.text("0123456789-. @aZ:/[]", max_size=12), max_size=5).map("".join))
def test_masking_a_masked_text_changes_nothing(text: str) -> None:
    masked = mask(text, {})
    assert mask(masked, {}) == masked
