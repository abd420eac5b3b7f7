"""Files that are whole or not there, and folders with one writer at a time."""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from rgb2pc_lib.errors import InputError

if sys.platform == "win32":  # there only the threads of one process know of each other

    def _hold(file: TextIO) -> None:
        pass
else:
    import fcntl

    def _hold(file: TextIO) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # let go when the process ends, however it does


_lock = threading.Lock()
_claimed: set[Path] = set()


@contextmanager
def claim(folder: Path) -> Iterator[None]:
    """A run's folder has one writer at a time, over all threads and processes of this machine.

    Raises InputError while another one writes.
    """
    taken = f"{folder}: is being trained by another panel, notebook or tool; wait for that one or stop it"
    with _lock:
        if folder in _claimed:
            raise InputError(taken)
        _claimed.add(folder)
    try:
        name = f"rgb2pc-{hashlib.sha256(str(folder).encode()).hexdigest()[:16]}.lock"
        with open(Path(tempfile.gettempdir()) / name, "w") as file:
            try:
                _hold(file)
            except BlockingIOError:
                raise InputError(taken) from None
            yield
    finally:
        with _lock:
            _claimed.discard(folder)


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """`write(temporary path)`, flushed to disk, then renamed: the file is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.partial{path.suffix}")
    try:
        write(partial)
        with open(partial, "rb+") as f:
            os.fsync(f.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
