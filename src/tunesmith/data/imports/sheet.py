"""The account of an import: what became of each key of another trainer's config. Every key ends in exactly one list.

Not here: what the keys of a certain trainer mean (axolotl, llamafactory).
Called by the translators; `config.import_config` reads the finished sheet.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tunesmith.errors import InputError
from tunesmith.recipe import recipe_from

NOT_SET: tuple[Any, ...] = (None, "", [], {})


@dataclass(frozen=True, slots=True)
class Setting:
    """One key of the config. `text`: where it went, or why it cannot; `instead`: what is done in its place.
    `matters`: without an equal, the trained model may be another one."""

    key: str
    value: Any
    text: str
    instead: str = ""
    matters: bool = True

    def as_dict(self) -> dict[str, Any]:
        body = {"key": self.key, "value": self.value, "text": self.text}
        return body | ({"instead": self.instead, "matters": self.matters} if self.instead else {})


@dataclass(frozen=True, slots=True)
class Foreign:
    """A pattern of keys that have no equal, with the reason; a false or 0 asks for nothing. `matters`: as Setting."""

    pattern: str
    why: str
    instead: str
    matters: bool = True


class Sheet:
    """Keys go in with `use`, `same` or `lacks`; a key that is settled twice keeps its first place."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config
        self.recipe: dict[str, Any] = {}
        self.used: dict[str, Setting] = {}
        self.default_equal: dict[str, Setting] = {}
        self.no_equal: dict[str, Setting] = {}
        self.assumed: dict[str, str] = {}  # recipe key -> the other trainer's default, which the config leaves unsaid
        self._values: dict[str, Any] = dict(config)

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key that says something, else `default`."""
        value = self.config.get(key)
        return default if value in NOT_SET else value

    def open(self, key: str, inner: Mapping[str, Mapping[str, Any]]) -> None:
        """Account for what is inside a nested value instead of the value: `prefix.key` for each key of each part."""
        self._values.pop(key, None)
        self._values |= {f"{prefix}.{name}": value for prefix, part in inner.items() for name, value in part.items()}

    def use(self, key: str, text: str = "", **values: Any) -> bool:
        """Put `values` into the recipe; a value it refuses makes the key one without an equal. Whether it went in."""
        try:
            recipe_from({"data": "-"} | values, source=key)
        except InputError as error:
            self.lacks(key, error.message.removeprefix(f"{key}: "), instead="the recipe's default")
            return False
        if self._settle(self.used, key, text or ", ".join(f"{name}: {value}" for name, value in values.items())):
            self.recipe |= values
        return True

    def same(self, key: str, text: str) -> None:
        self._settle(self.default_equal, key, text)

    def lacks(self, key: str, why: str, *, instead: str, matters: bool = True) -> None:
        self._settle(self.no_equal, key, why, instead, matters)

    def assume(self, name: str, value: Any, *, text: str) -> None:
        """The other trainer's default, where ours differs and the config does not say."""
        if name not in self.recipe:
            self.recipe[name] = value
            self.assumed[name] = text

    def settle_rest(self, foreign: tuple[Foreign, ...], *, tool: str) -> None:
        """Every key that no translator has settled: not set, known to have no equal, or unknown here."""
        for key, value in self._values.items():
            if value in NOT_SET:
                self.same(key, "not set")
                continue
            known = next((one for one in foreign if re.fullmatch(one.pattern, key)), None)
            if known is None:
                self.lacks(key, f"a key of {tool} that the import does not know", instead="nothing")
            elif value in (False, 0, "none", "no", "off"):
                self.same(key, "off")
            else:
                self.lacks(key, known.why, instead=known.instead, matters=known.matters)

    def _settle(self, place: dict[str, Setting], key: str, *words: Any) -> bool:
        if key not in self._values or any(key in taken for taken in (self.used, self.default_equal, self.no_equal)):
            return False
        place[key] = Setting(key, self._values[key], *words)
        return True


def number(value: Any) -> Any:
    """A number written as text (YAML reads 2e-5 as one) as a number; anything else as it is."""
    if isinstance(value, str) and re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", value.strip()):
        value = float(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value
