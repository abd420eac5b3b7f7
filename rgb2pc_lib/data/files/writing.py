"""Files and folders that are whole or not there, and folders with one writer at a time.

What is being written lies in a hidden folder, `.<name>.<random>.partial`, until it is whole. Its writer holds a lock on
that folder, which the system lets go of when the process ends, however it does: so the next writer beside it knows
which leftovers are nobody's, and removes them.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from rgb2pc_lib.errors import CannotWriteError, InputError, tell

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TORCH = "inline_container", "iostream error"  # what torch.save says, in a RuntimeError without a number

if sys.platform == "win32":  # there only the threads of one process know of each other
    _held: set[Path] = set()
    _lock = threading.Lock()

    @contextmanager
    def _locked(path: Path) -> Iterator[None]:
        real = path.resolve()
        with _lock:
            if real in _held:
                raise BlockingIOError
            _held.add(real)
        try:
            yield
        finally:
            with _lock:
                _held.discard(real)
else:
    import fcntl

    @contextmanager
    def _locked(path: Path) -> Iterator[None]:
        """Hold the folder itself, whatever path or link leads to it. Raises BlockingIOError while another does, other
        errors where there is none, or no such lock on that file system.
        """
        descriptor = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        finally:
            os.close(descriptor)


@contextmanager
def claim(folder: Path) -> Iterator[None]:
    """A run's folder has one writer at a time, over all threads and processes; what killed ones left half is removed.

    Raises InputError while another one writes, and for a file of that name.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; choose another --save_dir")
    new = not folder.exists()
    with told(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        if new:
            held.callback(_remove_empty, folder)
        try:
            held.enter_context(_locked(folder))
        except BlockingIOError:
            raise InputError(
                f"{folder}: is being trained by another panel, notebook or tool; wait for that one or stop it"
            ) from None
        except OSError as e:
            tell(f"{folder}: nothing keeps two trainings apart here ({e.strerror}); see to it that one alone writes")
        for leftover in folder.glob(".*.partial"):
            _remove_if_free(leftover)
        yield


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):  # something was written into it
        folder.rmdir()


@contextmanager
def new_file(path: Path, needs: int = 0, alone: bool = False) -> Iterator[Path]:
    """Where to write a file, a temporary path of the same name; flushed and moved at the end: it is whole or not there.

    Args:
        needs: bytes it will take, as far as that is known.
        alone: whether two writers at once are one too many; else both write, and the later one's stays.

    Raises CannotWriteError, an InputError, where it cannot be written.

    >>> with new_file(path) as partial:  # doctest: +SKIP
    ...     partial.write_bytes(content)
    """
    with _unfinished(path, alone) as partial, told(path, needs, partial):
        yield partial
        with open(partial, "rb+") as f:
            os.fsync(f.fileno())
        os.replace(partial, path)


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """`write(temporary path)`, in a `new_file`."""
    with new_file(path) as partial:
        write(partial)


@contextmanager
def new_folder(path: Path, ours: str = "*") -> Iterator[Path]:
    """The same for a folder: what is written into the temporary one appears under its name at once, when it is whole.

    A folder that is there is replaced. Raises InputError where anything lies in it that is not called like `ours`, and
    while another process writes it.
    """
    if path.is_dir() and (other := [p.name for p in path.iterdir() if not p.match(ours)]):
        raise InputError(f"{path}: is to be written anew, but holds {min(other)} too; move that, or the folder")
    with _unfinished(path, alone=True) as partial, told(path, 0, partial):
        partial.mkdir()
        yield partial
        if path.is_dir():
            path.rename(partial.with_name("before"))
        partial.rename(path)


@contextmanager
def _unfinished(path: Path, alone: bool) -> Iterator[Path]:
    """A path of the same name in a hidden folder beside it, held, and removed at the end as leftovers are before."""
    with ExitStack() as held:
        with told(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            for leftover in path.parent.glob(".*.partial"):  # of any name: nobody may write this one's again
                held_by_another = not _remove_if_free(leftover)
                if held_by_another and alone and leftover.name.startswith(f".{path.name}."):
                    raise InputError(f"{path}: is being written by another process; wait for it, then run again")
            while True:
                folder = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
                folder.mkdir()
                held.callback(shutil.rmtree, folder, ignore_errors=True)
                try:
                    held.enter_context(_locked(folder))
                except (BlockingIOError, FileNotFoundError):  # another writer takes it for a leftover
                    continue
                except OSError:  # no locks on this file system
                    break
                if folder.exists():
                    break
        yield folder / path.name


def _remove_if_free(leftover: Path) -> bool:
    """Whether a leftover was nobody's, and is gone. One that cannot be locked may be somebody's, and stays."""
    try:
        with _locked(leftover):
            shutil.rmtree(leftover, ignore_errors=True)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


@contextmanager
def told(path: Path, needs: int = 0, partial: Path | None = None) -> Iterator[None]:
    """What keeps a file from being written, as CannotWriteError: its name, what it takes, what is free, and the way on.

    Errors of other files pass.
    """
    try:
        yield
    except OSError as e:
        here = (path, partial, *(partial or path).parents)
        if e.filename is not None and Path(os.fsdecode(e.filename)).parent not in here:
            raise
        raise CannotWriteError(_cannot_write(path, e.errno or 0, e.strerror or str(e), needs, partial)) from None
    except RuntimeError as e:
        if not any(words in str(e) for words in _TORCH):
            raise
        raise CannotWriteError(_cannot_write(path, errno.ENOSPC, "not all of it fits", needs, partial)) from None


def _cannot_write(path: Path, number: int, why: str, needs: int, partial: Path | None) -> str:
    again = "and run the same command again, which goes on where this one stopped"
    if number in _FULL:
        takes = max(needs, partial.stat().st_size if partial and partial.is_file() else 0)
        room = f"it takes {gigabytes(takes)} or more and {gigabytes(free_bytes(path))} are free"
        remedy = "raise the limit (ulimit -f)" if number == errno.EFBIG else "free some"
        return f"{path}: cannot be written ({why}): {room}; {remedy} {again}"
    return f"{path}: cannot be written ({why}); make its folder one that you may write to {again}"


def free_bytes(path: Path) -> int:
    """Free disk where a file or folder is or will be."""
    return shutil.disk_usage(next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())).free


def gigabytes(size: int) -> str:
    """A number of bytes for people.

    >>> gigabytes(5_000_000_000), gigabytes(1_250_000)
    ('5.0 GB', '1.2 MB')
    """
    return f"{size / 1e9:.1f} GB" if size >= 1e9 or not size else f"{size / 1e6:.1f} MB"
