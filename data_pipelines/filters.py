"""Filters of samples as text, on what an index knows: `cloud < 20 and scene in (crops, built) and lat > -60`.

A filter is comparisons joined by `and`: a column, one of `< <= > >= == !=` with a value, or `in` / `not in` with values
in brackets. Values are numbers, words (quoted where they hold spaces or brackets) or dates; scenes go by name. What is
unknown of a sample (no cloud fraction, no scene, no place) fulfils no comparison.
"""

import difflib
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.modalities import SCENE_CLASSES
from data_pipelines.sources import Index

_TOKEN = re.compile(
    r"""\s*(?:(?P<sign><=|>=|==|!=|[<>=(),])|"(?P<double>[^"]*)"|'(?P<single>[^']*)'|(?P<word>[^\s<>=!(),"']+))"""
)
_COMPARISONS: Mapping[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
    "==": operator.eq, "=": operator.eq, "!=": operator.ne,
}  # fmt: skip
_SIGNS = (*_COMPARISONS, "in", "not")
_EXAMPLE = "cloud < 20 and scene in (crops, built)"


@dataclass(frozen=True)
class Comparison:
    """One comparison: the sign is of `_COMPARISONS`, "in" or "not in"."""

    column: str
    sign: str
    values: tuple[str, ...]


def parse_filter(text: str) -> tuple[Comparison, ...]:
    """The comparisons of a filter; none of an empty text.

    Raises:
        DataError: quoting the text and what is expected where it cannot be read.
    """
    tokens = _Tokens(text)
    found: list[Comparison] = []
    if tokens.done:
        return ()
    while True:
        column, sign = tokens.take("a column"), tokens.take(f"one of {' '.join(_SIGNS)}", _SIGNS)
        if sign == "not":
            sign = "not " + tokens.take("in", ["in"])
        values = tokens.values() if sign.endswith("in") else (tokens.take("a value"),)
        found.append(Comparison(column, sign, values))
        if tokens.done:
            return tuple(found)
        tokens.take("and", ["and"])


def matching(index: Index, text: str) -> np.ndarray:
    """Which samples a filter keeps.

    Args:
        index: of the samples.
        text: the filter; empty keeps all.

    Returns:
        (n,) bool.

    Raises:
        DataError: if the text cannot be read, a column is unknown (naming those that there are), or a value is not
            one of its column's.
    """
    kept = np.ones(len(index), bool)
    for comparison in parse_filter(text):
        kept &= _fulfilled(index, comparison, text)
    return kept


def _fulfilled(index: Index, comparison: Comparison, text: str) -> np.ndarray:
    name = comparison.column
    if name not in index.columns:
        near = difflib.get_close_matches(name, index.columns, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise DataError(f"filter {text!r}: unknown column {name!r}{hint}; there are {', '.join(index.columns)}")
    column = index.column(name)
    try:
        values = [_as_in(name, column, value) for value in comparison.values]
        if comparison.sign in ("in", "not in"):
            held = np.isin(column, np.asarray(values)) ^ (comparison.sign == "not in")
        else:
            if column.dtype.kind in "Ub" and comparison.sign not in ("==", "=", "!="):
                raise ValueError(f"{name} has no order; use == or !=")
            held = _COMPARISONS[comparison.sign](column, values[0])
    except ValueError as error:
        raise DataError(f"filter {text!r}: {error}") from error
    return held & ~unknown(name, column)


def unknown(name: str, column: np.ndarray) -> np.ndarray:
    """Where a column says nothing: NaN, no time, no scene or region."""
    if column.dtype.kind == "f":
        return np.isnan(column)
    if column.dtype.kind == "M":
        return np.isnat(column)
    return column < 0 if name in ("scene", "region") else np.zeros(len(column), bool)


def _as_in(name: str, column: np.ndarray, value: str) -> Any:
    """A value as the column holds it."""
    if name == "scene" and not value.lstrip("-").isdecimal():
        if value not in SCENE_CLASSES:
            raise ValueError(f"{value!r} is no scene; there are {', '.join(SCENE_CLASSES)}")
        return SCENE_CLASSES.index(value)
    kind = column.dtype.kind
    if kind == "U":
        return value
    try:
        if kind == "M":
            return np.datetime64(value)
        return {"true": True, "false": False}[value.lower()] if kind == "b" else float(value)
    except (KeyError, ValueError):
        wanted = {"M": "a date (2020-01-31)", "b": "true or false"}.get(kind, "a number")
        raise ValueError(f"{name} is compared with {wanted}, not {value!r}") from None


class _Tokens:
    """The words and signs of a text, one after the other."""

    def __init__(self, text: str):
        self._text, self._place = text, 0
        self._found: list[tuple[str, bool]] = []  # and whether it is a sign
        start, end = 0, len(text.rstrip())
        while start < end:
            match = _TOKEN.match(text, start)
            if match is None:
                raise DataError(f"filter {text!r} cannot be read at {text[start:].strip()!r}; close what is quoted")
            kind = match.lastgroup or ""
            self._found.append((match[kind], kind == "sign"))
            start = match.end()

    @property
    def done(self) -> bool:
        return self._place == len(self._found)

    def take(self, expected: str, among: Sequence[str] = ()) -> str:
        """The next one: a word, or one of those that are named."""
        found, is_sign = (None, True) if self.done else self._found[self._place]
        if found is None or (found not in among if among else is_sign):
            held = "its end" if found is None else repr(found)
            raise DataError(f"filter {self._text!r}: expected {expected}, not {held}; write for example {_EXAMPLE}")
        self._place += 1
        return found

    def values(self) -> tuple[str, ...]:
        """A list in brackets."""
        self.take("(", ["("])
        found = [self.take("a value")]
        while self.take(", or )", [",", ")"]) == ",":
            found.append(self.take("a value"))
        return tuple(found)
