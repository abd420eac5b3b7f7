"""A table that is sorted, searched and ticked; Python holds what is shown, so that every page shows the same."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import anywidget
import pandas as pd
import traitlets

from rgb2pc_lib.errors import InputError

MOST = 200  # rows that are drawn; a search finds the others
_CONDITION = re.compile(r"(?P<column>.+?)(?P<how>>=|<=|!=|=|>|<)(?P<value>.*)")


class Table(anywidget.AnyWidget):
    """Rows of a DataFrame, known by the text in its column `key`; `acted(key)` is told of a click on a row.

    A search is words that a row must contain, and conditions on its columns without blanks: `moe seed=0 R@1>0.3`.
    With `most`, so many rows can be ticked: one more lets go of the one that was ticked first. `ticked` may be
    observed and set.

    >>> table = Table(pd.DataFrame({"run": ["a", "b"], "R@1": [0.2, 0.4]}), "run")
    >>> table.sort("R@1", descending=True)
    >>> table.search("R@1>0.1")
    >>> table.found["run"].tolist()
    ['b', 'a']
    """

    _esm, _css = (Path(__file__).parent / f"table.{kind}" for kind in ("js", "css"))
    columns = traitlets.List(traitlets.Unicode()).tag(sync=True)
    numeric = traitlets.List(traitlets.Bool()).tag(sync=True)  # of each column
    rows = traitlets.Unicode("[]").tag(sync=True)  # JSON: [key, [texts]] of each row that is shown
    ticked = traitlets.List(traitlets.Unicode()).tag(sync=True)  # keys, in the order in which they were ticked
    opened = traitlets.Unicode().tag(sync=True)  # key of the row that is marked
    order: Any = traitlets.List([]).tag(sync=True)  # [column, descending]; none: as given
    find = traitlets.Unicode().tag(sync=True)
    said = traitlets.Unicode().tag(sync=True)  # how many there are, or what is wrong with the search
    letters = traitlets.Bool(False).tag(sync=True)  # the ticked ones are called A, B
    ticks = traitlets.Bool(True).tag(sync=True)  # whether there are boxes to tick

    def __init__(
        self, frame: pd.DataFrame, key: str, acted: Callable[[str], None] = lambda _: None, most: int | None = None,
        letters: bool = False, ticks: bool = True, hidden: Iterable[str] = (),
    ):  # fmt: skip
        self._key, self._acted, self._most, self._hidden = key, acted, most, set(hidden)
        self._frame = self.found = frame.iloc[:0]
        super().__init__(letters=letters, ticks=ticks)
        self.fill(frame)
        self.on_msg(self._told)

    # -- what people do; the same without a mouse

    def fill(self, frame: pd.DataFrame) -> None:
        """Show other rows; what was ticked stays so where it is still there."""
        keys = set(frame[self._key].astype(str))
        self._frame = frame
        shown = [c for c in frame if c not in self._hidden]
        with self.hold_sync():
            self.columns = [str(c) for c in shown]
            self.numeric = [pd.api.types.is_numeric_dtype(frame[c]) for c in shown]
            self.order = self.order if self.order and self.order[0] in self.columns else []
            self.ticked = [k for k in self.ticked if k in keys]
            self._draw()

    def sort(self, column: str, descending: bool = False) -> None:
        """Order by a column; what is unknown stands last."""
        self.order = [column, descending]
        self._draw()

    def search(self, text: str) -> None:
        """Show the rows that match."""
        self.find = text
        self._draw()

    def tick(self, *keys: str, on: bool = True) -> None:
        """Tick rows, or untick them. Raises InputError for one that is not there."""
        there = set(self._frame[self._key].astype(str))
        if unknown := [k for k in keys if k not in there]:
            raise InputError(f"{unknown[0]}: no such row; there are {', '.join(sorted(there)[:5])} ...")
        kept = [k for k in self.ticked if k not in keys] + [*dict.fromkeys(keys)] * on
        self.ticked = kept[-self._most :] if self._most else kept

    def html(self) -> str:
        """The rows that are found, for a page without a kernel."""
        return self._shown.map(_text).to_html(border=0, index=False)

    # -- what happens then

    def _told(self, _: Any, told: dict[str, Any], __: Any) -> None:
        """What a person did in a browser."""
        if "tick" in told:
            self.tick(told["tick"], on=told["on"])
        elif "all" in told:
            self.tick(*self.found[self._key].astype(str)) if told["all"] else self.tick(*self.ticked, on=False)
        elif "sort" in told:
            again = self.order[:1] == [told["sort"]]
            self.sort(
                told["sort"], not self.order[1] if again else bool(self.numeric[self.columns.index(told["sort"])])
            )
        elif "find" in told:
            self.search(told["find"])
        else:
            self._acted(told["open"])

    def _draw(self) -> None:
        try:
            found, wrong = self._frame[matching(self._frame, self.find)], ""
        except InputError as e:
            found, wrong = self._frame, str(e)
        if self.order:
            column, descending = self.order
            names = {str(c): c for c in found}
            found = found.sort_values(names[column], ascending=not descending, kind="stable", na_position="last")
        self.found = found
        keys = found[self._key].head(MOST).astype(str)
        texts = self._shown.map(_text).to_numpy().tolist()
        more = f", the first {MOST} are shown" if len(found) > MOST else ""
        with self.hold_sync():
            self.said = wrong or f"{len(found)} of {len(self._frame)}{more}"
            self.rows = json.dumps([*zip(keys, texts, strict=True)])

    @property
    def _shown(self) -> pd.DataFrame:
        return self.found.head(MOST)[[c for c in self.found if c not in self._hidden]]


def matching(frame: pd.DataFrame, text: str) -> pd.Series:
    """Which rows have all words of a search, and meet its conditions. Raises InputError for a column that is not there.

    >>> matching(pd.DataFrame({"run": ["a", "b"], "R@1": [0.2, 0.4]}), "b R@1>0.3").tolist()
    [False, True]
    """
    whole = frame.map(_text).agg(" ".join, axis=1).str.lower() if len(frame) else pd.Series([], dtype=str)
    kept = pd.Series(True, index=frame.index)
    names = {str(c).replace(" ", "").lower(): c for c in frame}
    for word in text.split():
        found = _CONDITION.fullmatch(word)
        if not found:
            kept &= whole.str.contains(word.lower(), regex=False)
            continue
        column = names.get(found["column"].lower())
        if column is None:
            raise InputError(f"no column {found['column']}; there are {', '.join(names)}")
        kept &= _meets(frame[column], found["how"], found["value"])
    return kept


def _meets(values: pd.Series, how: str, value: str) -> pd.Series:
    try:
        number: float | None = float(value)
    except ValueError:
        number = None
    if number is None or not pd.api.types.is_numeric_dtype(values):
        same = values.map(_text).str.lower() == value.lower()
        return ~same if how == "!=" else same
    compare = {">": values.gt, "<": values.lt, ">=": values.ge, "<=": values.le, "=": values.eq, "!=": values.ne}
    return compare[how](number)


def _text(value: Any) -> str:
    """A cell as it is shown.

    >>> _text(0.12345), _text(float("nan")), _text(True), _text(12.0)
    ('0.123', '', 'yes', '12')
    """
    if isinstance(value, float):
        return "" if pd.isna(value) else f"{value:.3g}"
    return ("yes" if value else "") if isinstance(value, bool) else str(value)
