"""Which files something in the cache was made from, so that it is made again when one of them changes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path


def stamp(paths: Iterable[Path], *made: str) -> str:
    """16 hex digits of the files' paths, sizes and times of change, in their order, and of how it was `made`.

    A folder stands for all that it holds. Raises FileNotFoundError where a file is missing.
    """
    files = (file for path in paths for file in [path, *(sorted(path.rglob("*")) if path.is_dir() else [])])
    stats = ((file.absolute(), file.stat()) for file in files)
    told = [*made, *(f"{file}|{s.st_size}|{s.st_mtime_ns}" for file, s in stats)]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]
