"""Memory and disk: what there is, and hints to the operating system, left out where it has no such call."""

from __future__ import annotations

import ctypes
import functools
import os
import sys

PAGE = os.sysconf("SC_PAGE_SIZE") if os.name == "posix" else 4096
_RANDOM, _WILLNEED, _DONTNEED = 1, 3, 4  # of madvise: the same numbers on Linux and macOS
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of glibc's mallopt


def memory() -> int:
    """Bytes of this machine's memory; 8 GB where it does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * PAGE
    except (AttributeError, ValueError):
        return 8 * 2**30


@functools.cache
def libc() -> ctypes.CDLL:
    found = ctypes.CDLL(None)
    found.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    found.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    return found


def read_as_asked(address: int, size: int) -> None:
    """Of these mapped bytes nothing is read that was not asked for."""
    _advise(address, size, _RANDOM)


def will_need(address: int, size: int) -> None:
    """These mapped bytes are read soon: start fetching them."""
    _advise(address, size, _WILLNEED)


def unmap(address: int, size: int) -> None:
    """These mapped bytes need not stay in this process; they stay in the system's cache."""
    _advise(address, size, _DONTNEED)


def in_memory(address: int) -> bool:
    """Whether the mapped page under an address is in the system's cache."""
    told = ctypes.c_char()
    return libc().mincore(address // PAGE * PAGE, 1, ctypes.byref(told)) == 0 and told.value > b"\0"


def keep_freed_memory() -> None:
    """From now on this process keeps what it frees, for its next use, instead of giving it back and asking anew.

    A training frees and asks for the same tens of megabytes in every step; cleared pages cost it a tenth of its time.
    """
    if sys.platform == "linux" and hasattr(libc(), "mallopt"):
        libc().mallopt(_MMAP_MAX, 0)
        libc().mallopt(_TRIM_THRESHOLD, 2**31 - 1)


def _advise(address: int, size: int, advice: int) -> None:
    if os.name == "posix":
        start = address // PAGE * PAGE
        libc().madvise(start, address + size - start, advice)
