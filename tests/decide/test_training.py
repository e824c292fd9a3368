from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tunesmith.decide.training import CUT_WATCHED, SLACK, Extent, Pace, extent_within

WHOLE = Extent(900, 3, 100)


def test_a_training_that_fits_is_left_as_it_is() -> None:
    pace = Pace(10.0, 0.1)
    assert extent_within(WHOLE.seconds(pace), WHOLE, pace=pace) == WHOLE


def test_epochs_are_given_up_before_rows_and_the_watched_rows_first() -> None:
    assert extent_within(200, WHOLE, pace=Pace(10.0, 0.1)) == Extent(900, 2, CUT_WATCHED, is_cut=True)
    assert extent_within(110, WHOLE, pace=Pace(10.0, 0.1)) == Extent(900, 1, CUT_WATCHED, is_cut=True)


def test_long_rows_leave_a_training_and_not_only_its_watching() -> None:
    """Rows that take a second each: looking at a hundred of them four times would take the two hundred seconds."""
    extent = extent_within(200, WHOLE, pace=Pace(20.0, 1.0))
    assert extent.rows > 150


@given(
    st.floats(0, 1e4),
    st.builds(Extent, st.integers(1, 5000), st.integers(1, 4), st.integers(0, 200)),
    st.builds(Pace, st.floats(0, 100), st.floats(1e-3, 10)),
)
def test_what_is_cut_fits_and_is_no_more_than_the_whole(seconds: float, whole: Extent, pace: Pace) -> None:
    extent = extent_within(seconds, whole, pace=pace)
    assert 0 <= extent.rows <= whole.rows
    assert extent.epochs <= whole.epochs
    assert extent.watched <= whole.watched
    assert extent.rows == 0 or extent.seconds(pace) <= SLACK * seconds * (1 + 1e-9)
