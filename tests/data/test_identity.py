"""Check digits: the published examples pass, and one wrong digit fails."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.checks.identity import is_card, is_iban


@pytest.mark.parametrize(
    "number",
    [
        "4111111111111111",
        "5555 5555 5555 4444",
        "3782 822463 10005",
        "6011111111111117",
        "3530111333300000",
        "2223003122003222",
    ],
)
def test_test_cards_of_every_issuer_pass(number: str) -> None:
    assert is_card(number)


@given(st.integers(0, 15), st.integers(1, 9))
def test_luhn_sees_every_single_wrong_digit(at: int, shift: int) -> None:
    digits = list("4111111111111111")
    digits[at] = str((int(digits[at]) + shift) % 10)
    assert not is_card("".join(digits))


@pytest.mark.parametrize(
    "iban",
    ["GB82 WEST 1234 5698 7654 32", "NL91ABNA0417164300", "FR14 2004 1010 0505 0001 3M02 606", "NO9386011117947"],
)
def test_the_registrys_examples_pass_and_a_wrong_check_digit_fails(iban: str) -> None:
    assert is_iban(iban)
    assert not is_iban(iban[:3] + str((int(iban[3]) + 1) % 10) + iban[4:])
    assert not is_iban(iban[:-1])
