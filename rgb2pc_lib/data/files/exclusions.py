"""Exclusion lists: episodes and steps left out on purpose, and episodes whose clouds are filed some steps late.

A list is a small TOML file that people, notebooks and the doctor write:

    [exclude]                                    # "task/episode" or "task/episode/step" = why (may be empty)
    "push/ep_3" = "the camera was moved"
    "push/ep_4/step_0007" = ""

    [shift]                                      # RGB step k goes with cloud step k + n
    "push/ep_5" = 2

A run records the entries themselves, one text each: `push/ep_3 # the camera was moved`, `push/ep_5 shift +2`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from rgb2pc_lib.data.files.guarded import expect, read_toml
from rgb2pc_lib.data.files.writing import write_atomic
from rgb2pc_lib.errors import InputError

Value = TypeVar("Value")
_ENTRY = re.compile(r"(?P<name>[^/]+/[^/]+?(/[^/]+?)?)(?: shift (?P<shift>[+-]\d+))?(?: # (?P<why>.*))?", re.DOTALL)
_REMEDY = 'write "task/episode" or "task/episode/step"'


@dataclass(frozen=True)
class Exclusions:
    """What is left out, by name `task/episode` or `task/episode/step`, with its reason; and the shifts of episodes.

    >>> found = Exclusions.of(["push/ep_3 # the camera was moved", "push/ep_5 shift +2"])
    >>> found.out, found.shift
    ({'push/ep_3': 'the camera was moved'}, {'push/ep_5': 2})
    """

    out: dict[str, str] = field(default_factory=dict)
    shift: dict[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Exclusions:
        """A list on disk. Raises InputError naming the file, and the entry, for what is none."""
        raw = read_toml(path, "an exclusion list, TOML with the tables [exclude] and [shift]")
        if unknown := sorted(set(raw) - {"exclude", "shift"}):
            raise InputError(f"{path}: unknown key(s) {', '.join(unknown)}; expected the tables [exclude] and [shift]")
        out, shift = (expect(raw.get(k, {}), dict, path, k, f"{_REMEDY} = ...") for k in ("exclude", "shift"))
        for name, why in out.items():
            expect(why, str, path, f"exclude: {name}", 'write the reason in quotes, or ""')
        for name, by in shift.items():
            expect(by, int, path, f"shift: {name}", "write a number of steps")
        try:
            return cls.of(cls(out, shift).lines)
        except InputError as e:
            raise InputError(f"{path}: {e}") from None

    @classmethod
    def of(cls, entries: Iterable[str]) -> Exclusions:
        """What a run has recorded, and what stands on a command line: entries, and names of lists (`bad.toml`).

        Raises InputError for what is none.
        """
        out: dict[str, str] = {}
        shift: dict[str, int] = {}
        for entry in entries:
            if entry.endswith(".toml"):
                more = cls.read(Path(entry))
                out, shift = out | more.out, shift | more.shift
                continue
            found = _ENTRY.fullmatch(entry)
            if not found or (found["shift"] and found["name"].count("/") > 1):
                raise InputError(f"exclusion {entry!r}: is no episode or step; {_REMEDY}, or name a list, FILE.toml")
            if found["shift"]:
                shift[found["name"]] = int(found["shift"])
            else:
                out[found["name"]] = found["why"] or ""
        return cls(out, shift)

    @property
    def lines(self) -> tuple[str, ...]:
        """One text an entry, as a run records it."""
        left_out = [f"{name} # {why}" if why else name for name, why in self.out.items()]
        return *left_out, *(f"{name} shift {by:+d}" for name, by in self.shift.items())

    @property
    def effect(self) -> frozenset[str]:
        """The entries without their reasons: two lists of one effect leave out the same."""
        return frozenset(Exclusions(dict.fromkeys(self.out, ""), self.shift).lines)

    def without(self, *names: str) -> Exclusions:
        """The list without these entries.

        >>> Exclusions.of(["push/ep_3", "push/ep_5 shift +2"]).without("push/ep_5").lines
        ('push/ep_3',)
        """
        kept = {name: why for name, why in self.out.items() if name not in names}
        return Exclusions(kept, {name: by for name, by in self.shift.items() if name not in names})

    def write(self, path: Path) -> None:
        """Write the list where `read` reads it, whole or not at all."""
        write_atomic(path, lambda partial: partial.write_text(self.toml(), encoding="utf-8"))

    def toml(self) -> str:
        """The list as `read` reads it."""
        names = [f"{_quoted(name)} = {_quoted(why)}" for name, why in self.out.items()]
        shifts = [f"{_quoted(name)} = {by}" for name, by in self.shift.items()]
        return "\n".join(["[exclude]", *names, *(["", "[shift]", *shifts] if shifts else []), ""])

    def episodes(self, found: Mapping[tuple[str, str], Value]) -> dict[tuple[str, str], Value]:
        """Of what is known by (task, episode), that of episodes that are not left out.

        >>> Exclusions.of(["push/ep_3"]).episodes({("push", "ep_3"): 1, ("push", "ep_4"): 2})
        {('push', 'ep_4'): 2}
        """
        return {key: value for key, value in found.items() if "/".join(key) not in self.out}

    def steps(self, key: tuple[str, str], found: Mapping[str, Value]) -> dict[str, Value]:
        """Of what is known by the steps of one episode, that of steps that are not left out."""
        return {step: value for step, value in found.items() if "/".join((*key, step)) not in self.out}

    def shifted(self, key: tuple[str, str], steps: list[str], found: Mapping[str, Value]) -> dict[str, Value]:
        """What is known by the steps of an episode, from n steps later as its shift says; `steps` in the order of time.

        >>> Exclusions.of(["push/ep_5 shift +1"]).shifted(("push", "ep_5"), ["a", "b", "c"], {"a": 0, "b": 1, "c": 2})
        {'a': 1, 'b': 2}
        """
        by = self.shift.get("/".join(key), 0)
        pairs = [(step, steps[i + by]) for i, step in enumerate(steps) if 0 <= i + by < len(steps)]
        return {step: found[other] for step, other in pairs if other in found} if by else dict(found)

    def unknown(self, there: Collection[str], tasks: Collection[str] = ()) -> list[str]:
        """Names on the list, of these tasks (none named: all), that are not among those of episodes and steps `there`.

        >>> Exclusions.of(["push/ep_3", "pull/ep_0"]).unknown({"push/ep_0"}, ["push"])
        ['push/ep_3']
        """
        names = [*self.out, *self.shift]
        return [n for n in names if n not in there and (not tasks or n.split("/")[0] in tasks)]


NOTHING = Exclusions()


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
