"""The fast decoder and the careful one accept the same lines and give the same values, to the type."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tunesmith.data.read.decode import UNSURE, decode_fast, decode_line

ODD = [
    '{"a":1,"a":2}', '{"a" :1, "a" : 2}', '{"a":{"b":1,"b":1}}', r'{"\u0061":1,"a":2}', r'{"a\\":1,"a\\":2}', "NaN",
    '{"a":NaN}', "-Infinity", "1e400", '{"a":[1e400]}', "18446744073709551615", "18446744073709551616",
    "-9223372036854775808", "-9223372036854775809", "9" * 30, "9" * 5000, "1E5", "-0", "-0.0", "1e-400", "1.0",
    r'"\ud800"', r'"\ud83d\ude00"', r'{"\udc00":1}', r'"\u0000"', '"\x7f"', '"\t"', "[" * 99 + "]" * 99,
    "[" * 100 + "]" * 100, "[" * 101 + "]" * 101, "[" * 100_000, '{"a":' * 101 + "1" + "}" * 101, r'"\\"', r'"\\\""',
    r'{"a":"\":","b":":)"}', "{}\x0b", "\u00a0{}", " {} ", "{},", "{} {}", "01", "1.", "+1", '"', "", "'a'",
]  # fmt: skip
PIECES = st.lists(
    st.sampled_from([*'{}[]:,"\\ 019.-eE', '"a"', '"a":', '"b":', "\\u", "d800", "null", "1e999", "é"]), max_size=12
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=10,
)
LINES = PIECES.map("".join) | st.builds(
    json.dumps, VALUES, ensure_ascii=st.booleans(), indent=st.sampled_from([None, 1])
)


def assert_same(text: str) -> None:
    raw = text.encode("utf-8", "surrogatepass")
    fast = decode_fast(raw)
    if fast is UNSURE:
        return
    careful, fault = decode_line(raw.decode())
    assert fault is None
    assert repr(fast) == repr(careful)  # repr: 1 is not 1.0, -0.0 is not 0.0


@pytest.mark.parametrize("text", ODD, ids=range(len(ODD)))
def test_the_fast_decoder_takes_no_odd_line_otherwise_than_the_careful_one(text: str) -> None:
    assert_same(text)


@settings(max_examples=200, deadline=None)
@given(LINES)
@example('{"a":"\\"","a":1}')
def test_what_the_fast_decoder_takes_the_careful_one_takes_with_the_same_value(text: str) -> None:
    assert_same(text)


def test_ordinary_rows_take_the_fast_way() -> None:
    for row in (
        {"messages": [{"role": "user", "content": 'He said "so: \\ {x}":\n'}], "score": 0.5, "id": 12, "tags": ["a"]},
        {"prompt": ":)", "completion": "é\t\u2028", "weight": 1.5},
    ):
        assert decode_fast(json.dumps(row, ensure_ascii=False).encode()) == row
