"""Rows in another language than the file's are found, whatever that language is; short and foreign names are not."""

import pytest

from tests.data.rows import rows_of
from tunesmith.data.checks.language import language_findings

ENGLISH = """
Why was my payment declined at the store?
How do I change my PIN?
I have not received my new card yet.
Can you tell me what this fee is for?
My transfer is still pending, what should I do?
Where is the nearest ATM?
I want to close my account.
How long does it take to get a refund?
Someone used my card without permission.
What is the exchange rate today?
I lost my phone and need help.
Is there a limit for top ups?
""".strip().splitlines()
GERMAN = """
Warum wurde meine Zahlung im Laden abgelehnt?
Wie kann ich meine PIN ändern?
Ich habe meine Karte noch nicht bekommen.
Wofür ist diese Gebühr?
Meine Überweisung ist noch offen, was soll ich tun?
Wo ist der nächste Geldautomat?
Ich möchte mein Konto schließen.
Wie lange dauert eine Erstattung?
Jemand hat meine Karte benutzt.
Wie ist der Wechselkurs heute?
Ich habe mein Handy verloren und brauche Hilfe.
Gibt es ein Limit?
""".strip().splitlines()
FOREIGN = {
    "French": "Pourquoi mon virement a-t-il été refusé ?",
    "Spanish": "Quiero cerrar mi cuenta lo antes posible.",
    "Portuguese": "Perdi meu cartão ontem, o que eu faço?",
    "Italian": "Ho perso il telefono, cosa devo fare?",
    "Polish": "Gdzie jest moja nowa karta?",
    "Turkish": "Telefonumu kaybettim, ne yapmalıyım?",
    "Russian": "Почему платёж в ожидании?",
    "Chinese": "我的卡什么时候能到？",
    "Japanese": "カードが盗まれました。",
    "Dutch": "Ik ben mijn telefoon kwijt, wat nu?",
}


def found(asked: list[str], answers: list[str] | None = None) -> list[tuple[int | None, str]]:
    pairs = zip(asked, answers or ["card", "fee"] * len(asked), strict=False)
    return [(finding.line, finding.detail) for finding in language_findings(rows_of(*pairs))]


@pytest.mark.parametrize(("main", "other"), [(ENGLISH, GERMAN[1]), (GERMAN, ENGLISH[2])], ids=["en", "de"])
def test_a_row_in_another_language_is_found(main: list[str], other: str) -> None:
    assert [line for line, _ in found([*main, other])] == [len(main) + 1]


@pytest.mark.parametrize("language", FOREIGN)
def test_the_language_is_named(language: str) -> None:
    [(line, detail)] = found([*ENGLISH, FOREIGN[language]])
    assert line == 13
    assert f"is {language}, the other questions are English" in detail


@pytest.mark.parametrize(
    "text",
    [
        "Bonjour",
        "Play Giovanni Battista Guadagnini",
        "½ tsp garam masala",
        "de Quervain syndrome",
        "SEPA IBAN 12345",
        "Add Sabor Latino to my playlist",
        "How do you say 'where is my card' in French: Où est ma carte ?",
        "https://de.wikipedia.org/wiki/Konto",
    ],
)
def test_names_short_texts_and_questions_about_a_language_are_not_judged(text: str) -> None:
    assert found([*ENGLISH, text]) == []


def test_a_translation_set_is_one_language_on_each_side() -> None:
    assert found(ENGLISH, GERMAN) == []


def test_a_file_in_two_languages_is_said_once() -> None:
    [(line, detail)] = found([*ENGLISH, *GERMAN])
    assert line is None
    assert "several languages" in detail


def test_a_foreign_answer_is_found_apart_from_the_question() -> None:
    answers = [f"You will find that in the app, under the settings of item {n}." for n in "abcdefghijkl"]
    [(line, detail)] = found(ENGLISH, [*answers[:-1], "Das finden Sie in der App unter den Einstellungen."])
    assert line == 12
    assert "(assistant)" in detail


def test_code_is_not_judged() -> None:
    assert found([*ENGLISH, "SELECT nombre, ciudad FROM cuentas WHERE ciudad = 'Madrid'"]) == []
