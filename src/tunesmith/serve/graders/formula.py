"""The formula of a multi grader: `0.5 * accuracy + min(1, style) ^ 2` over the scores of its parts.

Not here: scores. A formula is read by a parser of its own, by recursive descent, into a tree of floats and names;
nothing of it is ever run as code. Called by graders.grade.

    sum := product (("+" | "-") product)*        product := sign (("*" | "/") sign)*
    sign := "-" sign | "+" sign | power          power := atom ["^" sign]        (2 ^ 3 ^ 2 is 2 ^ 9, -2 ^ 2 is -4)
    atom := number | name | function "(" sum ("," sum)* ")" | "(" sum ")"
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

MAX_CHARACTERS = 2_000
MAX_DEPTH = 40
FUNCTIONS: dict[
    str, tuple[Callable[..., float], int | None]
] = {  # with how many arguments they take; None: one or more
    "min": (lambda *values: min(values), None),
    "max": (lambda *values: max(values), None),
    "abs": (abs, 1),
    "floor": (math.floor, 1),
    "ceil": (math.ceil, 1),
    "exp": (math.exp, 1),
    "sqrt": (math.sqrt, 1),
    "log": (math.log, 1),
}
OPERATORS: dict[str, Callable[[float, float], float]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}
_TOKEN = re.compile(r"\s*(?:((?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)|([^\W\d]\w*)|([-+*/^(),]))")


class FormulaError(Exception):
    """A formula that cannot be read, or that has no value for these scores."""


@dataclass(frozen=True, slots=True)
class Formula:
    """`value` computes it; `names` are the scores that it needs."""

    names: frozenset[str]
    _tree: Tree

    def value(self, scores: Mapping[str, float]) -> float:
        """Raises FormulaError for a missing score, a division by zero, or anything else without a finite value."""
        try:
            value = self._tree(scores)
        except KeyError as error:
            raise FormulaError(f"There is no score {error.args[0]!r}.") from error
        except (ArithmeticError, ValueError) as error:
            raise FormulaError(f"The formula has no value for these scores: {error}.") from error
        if not math.isfinite(value):
            raise FormulaError("The formula has no finite value for these scores.")
        return value


Tree = Callable[[Mapping[str, float]], float]


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str  # "number", "name", or the sign itself
    text: str
    column: int  # 1-based


def parse_formula(text: str) -> Formula:
    """Raises FormulaError with the column of what cannot be read."""
    if len(text) > MAX_CHARACTERS:
        raise FormulaError(f"The formula has {len(text)} characters, more than {MAX_CHARACTERS}.")
    reader = _Reader(_tokens(text))
    tree = reader.sum(0)
    reader.expect("end")
    return Formula(frozenset(reader.names), tree)


def _tokens(text: str) -> list[_Token]:
    tokens, position = [], 0
    end = len(text.rstrip())
    while position < end:
        match = _TOKEN.match(text, position)
        if match is None:
            at = position + len(text[position:]) - len(text[position:].lstrip())
            raise FormulaError(f"{text[at]!r} at character {at + 1} is not understood.")
        kind = "number" if match[1] else "name" if match[2] else match[3]
        tokens.append(_Token(kind, match[0].strip(), match.end() - len(match[0].strip()) + 1))
        position = match.end()
    return [*tokens, _Token("end", "the end", end + 1)]


class _Reader:
    def __init__(self, tokens: list[_Token]) -> None:
        self.tokens = tokens
        self.names: set[str] = set()

    def take(self, *kinds: str) -> _Token | None:
        return self.tokens.pop(0) if self.tokens[0].kind in kinds else None

    def expect(self, *kinds: str) -> _Token:
        found = self.take(*kinds)
        if found is None:
            token = self.tokens[0]
            wanted = " or ".join(kinds)
            raise FormulaError(f"At character {token.column} stands {token.text!r}, where {wanted} is needed.")
        return found

    def sum(self, depth: int) -> Tree:
        if depth > MAX_DEPTH:
            raise FormulaError(f"The formula is nested more than {MAX_DEPTH} deep.")
        return self.chain(self.product, ("+", "-"), depth=depth)

    def product(self, depth: int) -> Tree:
        return self.chain(self.sign, ("*", "/"), depth=depth)

    def chain(self, part: Callable[[int], Tree], signs: tuple[str, str], *, depth: int) -> Tree:
        """Parts joined from left to right; a list, for a tree of a thousand terms would be a thousand calls deep."""
        first, rest = part(depth), []
        while found := self.take(*signs):
            rest.append((OPERATORS[found.kind], part(depth)))
        if not rest:
            return first

        def value(scores: Mapping[str, float]) -> float:
            total = first(scores)
            for combine, tree in rest:
                total = combine(total, tree(scores))
            return total

        return value

    def sign(self, depth: int) -> Tree:
        if depth > MAX_DEPTH:
            raise FormulaError(f"The formula is nested more than {MAX_DEPTH} deep.")
        if found := self.take("-", "+"):
            inner = self.sign(depth + 1)
            return (lambda scores: -inner(scores)) if found.kind == "-" else inner
        return self.power(depth)

    def power(self, depth: int) -> Tree:
        tree = self.atom(depth)
        if not self.take("^"):
            return tree
        exponent = self.sign(depth + 1)
        return lambda scores: math.pow(tree(scores), exponent(scores))

    def atom(self, depth: int) -> Tree:
        found = self.expect("number", "name", "(")
        if found.kind == "number":
            number = float(found.text)
            return lambda scores: number
        if found.kind == "(":
            tree = self.sum(depth + 1)
            self.expect(")")
            return tree
        if found.text in FUNCTIONS and self.take("("):
            return self.call(found, depth + 1)
        self.names.add(found.text)
        return lambda scores: scores[found.text]

    def call(self, name: _Token, depth: int) -> Tree:
        function, count = FUNCTIONS[name.text]
        arguments = [self.sum(depth)]
        while self.expect(",", ")").kind == ",":
            arguments.append(self.sum(depth))
        if count is not None and len(arguments) != count:
            raise FormulaError(f"{name.text} at character {name.column} takes {count} value, {len(arguments)} given.")
        return lambda scores: float(function(*(argument(scores) for argument in arguments)))
