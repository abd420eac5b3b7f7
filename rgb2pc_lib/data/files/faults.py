"""Faults of single items in work on many: the others go on, and at the end every fault is told with its remedy."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rgb2pc_lib.data.files.writing import write_atomic
from rgb2pc_lib.errors import CannotWriteError, InputError

SHOWN = 40  # lines on the screen; the report has all


def parted(said: str) -> tuple[str, str]:
    """What is wrong, and the remedy, which stands at the end of what is said.

    >>> parted("x.ply: expected points, found none; record it again")
    ('x.ply: expected points, found none', 'record it again')
    """
    what, told, remedy = said.rpartition("; ")
    return (what, remedy) if told else (said, "others")


class Faults:
    """What is wrong with which item. Bad input within `at` is a fault of that item alone, and put down.

    Without `collect` nothing is put down: the first fault is raised, as where no one asks for a list.

    >>> faults = Faults()
    >>> with faults.at("push/ep_0"):
    ...     raise InputError("ep_0.pt: expected tokens, found none; extract it again")
    >>> faults.found
    {'push/ep_0': 'ep_0.pt: expected tokens, found none; extract it again'}
    """

    def __init__(self, collect: bool = True):
        self.collect = collect
        self.found: dict[str, str] = {}  # item -> what is wrong with it, and what to do

    @contextmanager
    def at(self, *items: str) -> Iterator[None]:
        """Work on an item, or on several that can only fail together."""
        try:
            yield
        except CannotWriteError:  # no fault of theirs
            raise
        except InputError as e:
            for item in items:
                self.add(item, str(e))

    def add(self, item: str, said: str) -> None:
        """Put down a fault. Raises it as InputError where none are collected."""
        if not self.collect:
            raise InputError(said)
        self.found[item] = said

    def add_episodes(self, broken: Mapping[tuple[str, str], str]) -> None:
        """Put down faults that are known by (task, episode), as listings tell them."""
        for key, said in broken.items():
            self.add("/".join(key), said)

    def lines(self) -> list[str]:
        """One line a fault, those of one remedy together under it.

        >>> faults = Faults()
        >>> faults.add("push/ep_0", "push/ep_0.pt: expected tokens, found none; extract it again")
        >>> faults.lines()
        ['extract it again (1):', '  push/ep_0.pt: expected tokens, found none']
        """
        groups: dict[str, list[str]] = {}
        for item, said in self.found.items():
            what, remedy = parted(said)
            groups.setdefault(remedy, []).append(what if item in what else f"{item}: {what}")
        ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
        return [line for remedy, same in ordered for line in (f"{remedy} ({len(same)}):", *(f"  {s}" for s in same))]

    def tell(self, report: Path) -> int:
        """How work on many items ends: its faults are listed and written to `report`, a text file. The exit status: 0,
        or 2 where there are faults.

        Without faults, the report of an earlier attempt is removed.
        """
        if not self.found:
            report.unlink(missing_ok=True)
            return 0
        lines = self.lines()
        text = "\n".join([*lines, ""])
        write_atomic(report, lambda partial: partial.write_text(text, encoding="utf-8"))
        more = f"{len(lines) - SHOWN} more lines; " if len(lines) > SHOWN else ""
        said = f"{len(self.found)} left out, the others are done; once mended, the same command adds them"
        print(*lines[:SHOWN], f"{more}{said} ({report} lists them)", sep="\n", file=sys.stderr)
        return 2


AT_ONCE = Faults(collect=False)
