"""What the packs below a root were found to be, kept in the project's cache: the second opening reads no pack.

An entry counts only while its file has the same size and time of change. Zarr packs, which are many files, are opened
anew every time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import torch

from rgb2pc_lib.data.files.writing import write_atomic
from rgb2pc_lib.data.mapped import Stored
from rgb2pc_lib.data.packs import FeaturePack
from rgb2pc_lib.data.workspace import CACHE
from rgb2pc_lib.errors import InputError

_VERSION = 3  # of what is written; how steps are named from paths is part of it
_SETTLED = 2.0  # seconds; a file younger than that could change again within the same tick of its clock


class PackIndex:
    """Opens the packs of one expert's root, those that it knows without reading them.

    >>> index = PackIndex(Path("features_vggt"))  # doctest: +SKIP
    >>> packs = [index.open(path, "vggt") for path in list_packs(Path("features_vggt")).values()]  # doctest: +SKIP
    >>> index.save()  # doctest: +SKIP
    """

    def __init__(self, root: Path, cache: Path | None = None):
        self.root = os.path.abspath(root)
        self.file = (cache or CACHE) / "pack_index" / f"{hashlib.sha256(self.root.encode()).hexdigest()[:16]}.json"
        self.copies: list[dict[str, list[tuple[int, int]]]] = []  # packs whose frames have the same names share one
        self.packs: dict[str, list[Any]] = {}  # path below the root -> Stored's values, number in copies, meta
        self.changed = False
        self._load()
        self._numbers = {json.dumps(c): n for n, c in enumerate(self.copies)}

    def open(self, path: Path, expert: str = "", raw_size: tuple[int, int] | None = None) -> FeaturePack:
        """Like FeaturePack.open, with the same errors."""
        name = os.path.relpath(path, self.root)
        entry = self.packs.get(name)
        if entry:
            offset, shape, stride, dtype, size, changed, number, meta = entry
            if _state(path) == (size, changed):
                shape = tuple(shape)
                stored = Stored(offset, shape, tuple(stride), getattr(torch, dtype), size, changed)
                copies = self.copies[number]
                return FeaturePack.known(path, stored, shape, stored.dtype, copies, meta, expert, raw_size)
        pack = FeaturePack.open(path, expert, raw_size)
        if isinstance(pack.source, Stored):
            self._remember(name, pack, pack.source)
        return pack

    def save(self) -> None:
        """Write what was learned, if anything was. Where the cache cannot be written, nothing is kept."""
        if not self.changed:
            return
        there = {k: v for k, v in self.packs.items() if os.path.exists(os.path.join(self.root, k))}
        used = sorted({entry[6] for entry in there.values()})
        content = {
            "copies": [self.copies[n] for n in used],
            "packs": {k: [*v[:6], used.index(v[6]), v[7]] for k, v in there.items()},
        }
        text = json.dumps(content).encode()
        with contextlib.suppress(InputError):
            write_atomic(self.file, lambda p: p.write_bytes(self._digest(text) + b"\n" + text))
        self.changed = False

    def _load(self) -> None:
        try:
            digest, _, text = self.file.read_bytes().partition(b"\n")
        except OSError:  # not there yet
            return
        if digest == self._digest(text):  # else damaged, or of another version: it is made anew
            content = json.loads(text)
            self.copies = [{k: [tuple(p) for p in places] for k, places in c.items()} for c in content["copies"]]
            self.packs = content["packs"]

    def _digest(self, text: bytes) -> bytes:
        """What stands before the text, so that damage is seen."""
        return f"{_VERSION} {hashlib.sha256(self.root.encode() + text).hexdigest()}".encode()

    def _remember(self, name: str, pack: FeaturePack, stored: Stored) -> None:
        try:
            plain = json.loads(json.dumps(pack.meta)) == pack.meta
        except (TypeError, ValueError):
            plain = False
        if not plain or time.time() - stored.changed / 1e9 < _SETTLED:
            return
        number = self._numbers.setdefault(json.dumps(pack.copies), len(self.copies))
        if number == len(self.copies):
            self.copies.append(pack.copies)
        dtype = str(stored.dtype).removeprefix("torch.")
        self.packs[name] = [*stored[:3], dtype, *stored[4:], number, pack.meta]
        self.changed = True


def _state(path: Path) -> tuple[int, int] | None:
    try:
        state = os.stat(path)
    except OSError:
        return None
    return state.st_size, state.st_mtime_ns
