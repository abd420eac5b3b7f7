"""The one exception that means: the input is at fault, and here is what to do about it. What to do about a file that
cannot be read. And what stops nothing.
"""

from __future__ import annotations

import functools
import logging
import os
import re
from pathlib import Path
from typing import BinaryIO


class InputError(ValueError):
    """Bad input: the message names the file, what was expected, what was found and what to do next.

    Command-line tools print the message and exit with status 2; notebooks show it as it is.

    >>> raise InputError("x.pt: expected a dict with 'per_frame_features', found a list; re-extract this episode")
    Traceback (most recent call last):
    rgb2pc_lib.errors.InputError: x.pt: expected a dict with 'per_frame_features', found a list; re-extract this episode
    """

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows: the sentence, not the way to it."""
        return [f"{type(self).__name__}: {self}"]


class CannotWriteError(InputError):
    """Nothing more can be written, as on a full disk: work on many items stops here, rather than fail with each."""


@functools.cache  # once a process, however often the file is read
def tell(message: str) -> None:
    """Say something that a person should know and that stops nothing, as one line on stderr."""
    logging.getLogger("rgb2pc_lib").warning(message)


_DAMAGE = re.compile(
    r"truncat|crc|checksum|corrupt|decompress|unexpected end|end of (file|stream)|moov atom|broken|inflate"
    r"|invalid (distance|block|stored|code)|not enough data",
    re.IGNORECASE,
)
_ENDS = {  # how files of a kind begin -> what stands near their end when they are whole
    b"PK\x03\x04": b"PK\x05\x06",  # zip: torch and npz
    b"\x89PNG": b"IEND",
    b"\xff\xd8\xff": b"\xff\xd9",  # JPEG
    b"PAR1": b"PAR1",  # parquet
}
_TAIL = 66_000  # bytes, a zip's longest comment among them


def remedy(path: str | Path, again: str, otherwise: str, said: str = "") -> str:
    """What to do about a file that cannot be read: make it `again` only where something shows that it is damaged.

    Args:
        again: how to get a whole one, such as "re-extract this episode".
        otherwise: what helps when the file is whole, but of a kind or a version that is not read here.
        said: what the reader of the file complained about, which may tell of damage.

    >>> remedy("nowhere.pt", "re-extract it", "convert it")
    'there is no such file; check its path'
    """
    path = Path(path)
    if path.is_symlink() and not path.exists():
        return f"it is a link to {os.readlink(path)}, which is not there; fetch that file too"
    if not path.exists():
        return "there is no such file; check its path"
    if path.is_dir():
        return f"damage shows ({said}); {again}" if _DAMAGE.search(said) else otherwise
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as e:
        return f"it cannot be opened ({e.strerror}); see to it that you may read it"
    if not head:
        return f"it is empty; {again}"
    if head.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS in place of the file; run: git lfs pull"
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "it is a web page, as a download without a login gives; download the file itself"
    if cut_short(path):
        return f"it is cut short; {again}"
    return f"it is damaged; {again}" if _DAMAGE.search(said) else otherwise


def cut_short(path: str | Path) -> bool:
    """Whether a file of a known kind lacks its end, as an interrupted copy leaves it."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        head = file.read(8)
        if head[4:] == b"ftyp":  # mp4: boxes, one after the other, each beginning with its size
            return _boxes_end(file, size) > size
        end = next((end for start, end in _ENDS.items() if head.startswith(start)), b"")
        file.seek(max(size - _TAIL, 4))
        return end not in file.read()


def _boxes_end(file: BinaryIO, size: int) -> int:
    at = 0
    while at + 8 <= size:
        file.seek(at)
        header = file.read(16)
        length = int.from_bytes(header[:4])
        if length == 1:  # a large one: its size follows
            length = int.from_bytes(header[8:])
        if length < 8:  # 0: up to the end of the file; else no box
            return size
        at += length
    return at
