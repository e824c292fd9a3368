"""UTF-8 that was read as Windows-1252 is undone; text that was right stays as it is."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.checks.mojibake import repair


def spoil(text: str, *, times: int = 1, codec: str = "cp1252") -> str:
    for _ in range(times):
        text = text.encode().decode(codec)
    return text


@pytest.mark.parametrize(
    "text",
    [
        "don’t – thanks",
        "café für Ł€",
        "10 £ or 5 €",
        "naïve façade",
        "Żółć łódź",
        "Привет мир",
        "我的卡",
        "🙂 ok",
        "½ tsp",
    ],
)
@pytest.mark.parametrize("times", [1, 2])
def test_what_was_read_wrongly_is_read_rightly_again(text: str, times: int) -> None:
    try:
        spoilt = spoil(text, times=times)
    except UnicodeDecodeError:  # five bytes are no character in Windows-1252; Latin-1 has all of them
        spoilt = spoil(text, times=times, codec="latin-1")
    assert spoilt != text
    assert repair(spoilt) == text


@pytest.mark.parametrize(
    ("spoilt", "meant"),
    [("the â€œrightâ€ one", "the “right” one"), ("la cittÃ è bella", "la città è bella"), ("5Â kg", "5 kg")],
)
def test_a_lost_byte_is_guessed(spoilt: str, meant: str) -> None:
    assert repair(spoilt) == meant


@pytest.mark.parametrize(
    "text",
    [
        "El niño comió piñata",
        "MAÇÃ” e “IRMÔ",
        "« Le café » d’été…",
        "Ärger mit Öl – „groß“",
        "São João, não é?",
        "Âge d’or",
        "Tiếng Việt: Ân, Đằng, thế",
        "Île-de-France",
        "Æsir og Ørsted",
        "GÅ… på",
        "x² ≤ 5 ± ½",
        "Ñandú ¿qué?",
        "ça… »",
        "привет",
        "日本語",
    ],
)
def test_real_words_of_many_languages_are_left_alone(text: str) -> None:
    assert repair(text) == text


@settings(max_examples=150, deadline=None)
@given(st.text(st.characters(max_codepoint=0x17F, exclude_categories=("Cc",)), max_size=40))
def test_repairing_twice_is_repairing_once(text: str) -> None:
    assert repair(repair(text)) == repair(text)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.sampled_from(["don’t", "“so”", "–", "café", "5€", "niño", "™", "façade", "œuvre", "Zürich", "«là»"]),
        min_size=1,
    ).map(" ".join)
)
def test_any_sentence_comes_back(text: str) -> None:
    assert repair(spoil(text, codec="latin-1")) == text
