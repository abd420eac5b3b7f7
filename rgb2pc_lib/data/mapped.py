"""Tensors mapped where they lie in their files, and how much of them stays mapped.

Reading a mapped page for the first time costs several times what copying it costs. So frames stay mapped once they
were read, up to a share of the machine's memory; then the longest mapped are given back. What is mapped is the
system's cache of the files, not memory of this process: the system takes it back when it needs it.
"""

from __future__ import annotations

import itertools
import os
import threading
import weakref
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from rgb2pc_lib.data import system
from rgb2pc_lib.data.files.guarded import DAMAGE
from rgb2pc_lib.errors import InputError

KEPT = system.memory() // 4  # bytes of frames that stay mapped


class Stored(NamedTuple):
    """Where a tensor lies in a `.pt` file, and the file's state at that time."""

    offset: int  # of its first byte
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    size: int  # of the file, bytes
    changed: int  # time of its last change, ns

    def map(self, path: Path) -> torch.Tensor:
        """The tensor, mapped where it lies. Raises InputError when the file is not the one that was looked at."""
        try:
            state = os.stat(path)
            if (state.st_size, state.st_mtime_ns) != (self.size, self.changed):
                raise InputError(f"{path}: has changed since it was opened; start again")
            whole = torch.UntypedStorage.from_file(os.fspath(path), False, self.size)
        except (OSError, RuntimeError) as e:
            raise InputError(f"{path}: cannot be mapped ({e}); is it still there?") from None
        empty = torch.empty(0, dtype=self.dtype)
        first = self.offset // self.dtype.itemsize
        return empty.set_(whole, first, self.shape, self.stride)  # type: ignore[arg-type]  # torch: it is untyped storage


def bits(features: torch.Tensor) -> np.ndarray:
    """A tensor as an array; bf16, which numpy lacks, as int16."""
    return (features.view(torch.int16) if features.dtype == torch.bfloat16 else features).numpy()


def find(path: Path, features: torch.Tensor) -> Stored | None:
    """Where a tensor of a torch file lies in it, if the zip archive's directory leaves no doubt."""
    state, size = os.stat(path), features.untyped_storage().nbytes()
    try:
        with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
            found = [i for i in archive.infolist() if "/data/" in i.filename and i.file_size == i.compress_size == size]
            if len(found) != 1:
                return None
            file.seek(found[0].header_offset)
            header = file.read(30)  # whose last four bytes are the lengths of the name and of what follows it
    except DAMAGE:  # torch is more patient
        return None
    lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:], "little")
    start = found[0].header_offset + 30 + lengths
    offset = start + int(features.storage_offset()) * features.dtype.itemsize
    if offset % features.dtype.itemsize or start + size > state.st_size:
        return None
    shape, stride = tuple(features.shape), tuple(features.stride())
    return Stored(offset, shape, stride, features.dtype, state.st_size, state.st_mtime_ns)


class Frames:
    """Frames `[F, H*W, C]` in a map of a file: read by number, and fetched ahead."""

    _kept: dict[tuple[weakref.ref[Frames], int], int] = {}  # (Frames, number) -> bytes, the longest mapped first
    _bytes = 0  # of those
    _asked = itertools.count()  # how often a mapped frame was asked for
    _lock = threading.Lock()

    def __init__(self, array: np.ndarray, tells_cache: bool):
        """`tells_cache`: the system tells what is in its cache only of files that one may write."""
        self.array, self.tells_cache = array, tells_cache
        self.start, self.size = array.ctypes.data, array[0].nbytes
        self.mapped = bytearray(len(array))  # 1 where a frame is mapped
        self.itself = weakref.ref(self)

    def read(self, number: int, rows: np.ndarray, out: np.ndarray) -> None:
        """Copy rows `[K]` of a frame into `out [K, C]`; rows beyond it are taken from its ends."""
        self.array[number].take(rows, 0, out, "clip")
        if not self.mapped[number]:
            self._keep(number)

    def will_need(self, number: int) -> None:
        """Tell the system that a frame is read soon, unless it is in memory already.

        Asking the system costs as much as copying some tokens, so of the frames that are mapped one in 32 is asked for;
        when that one is gone, the system is short of memory and all have to be asked for again.
        """
        mapped = self.mapped[number]
        if mapped and next(Frames._asked) % 32:
            return
        start = self.start + number * self.size
        if self.tells_cache and system.in_memory(start + self.size // 2):
            return
        system.will_need(start, self.size)
        if mapped and self.tells_cache:
            Frames.give_back(0)

    def _keep(self, number: int) -> None:
        with Frames._lock:
            Frames._bytes += self.size - Frames._kept.get((self.itself, number), 0)
            Frames._kept[self.itself, number] = self.size
            self.mapped[number] = 1
        if Frames._bytes > KEPT:
            Frames.give_back(KEPT)

    @classmethod
    def give_back(cls, limit: int) -> None:
        """Unmap the longest mapped frames until at most `limit` bytes are mapped."""
        with cls._lock:
            while cls._bytes > limit:
                reference, number = next(iter(cls._kept))
                cls._bytes -= cls._kept.pop((reference, number))
                if frames := reference():  # a map that is gone is never advised about: others may lie there now
                    frames.mapped[number] = 0
                    system.unmap(frames.start + number * frames.size, frames.size)
