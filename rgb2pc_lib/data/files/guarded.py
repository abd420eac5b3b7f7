"""JSON, JSON lines, npz and TOML that come over the border are read here: whole and as expected, or one line says why.

Every error is an InputError that names the file and, where there is one, the key. Nothing is ever unpickled, and no
more memory is taken than the file's own bytes give.
"""

from __future__ import annotations

import json
import math
import struct
import sys
import tokenize
import tomllib
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rgb2pc_lib import errors
from rgb2pc_lib.errors import InputError

# what damaged bytes can raise in the readers of zip archives, numpy's headers and compressed chunks
DAMAGE = (
    OSError, ValueError, KeyError, EOFError, RuntimeError, NotImplementedError, SyntaxError, TypeError, OverflowError,
    MemoryError, IndexError, AttributeError, struct.error, zlib.error, zipfile.BadZipFile, tokenize.TokenError,
    SystemError,
)  # fmt: skip
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_KINDS = {"f": "floating point", "iuf": "numbers", "iu": "whole numbers", "b": "true or false", "U": "text"}


def read_text(path: Path, remedy: str = "restore it from a copy") -> str:
    """A text file in UTF-8, with or without a byte order mark. Raises InputError naming a file that is none."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as e:
        raise InputError(f"{path}: cannot be read ({e.strerror or e}); {_helps(path, remedy)}") from None
    except UnicodeDecodeError as e:
        raise InputError(f"{path}: not text in UTF-8 (byte {e.start}); {_helps(path, remedy)}") from None


def parse_json(text: str, path: Path, remedy: str = "restore it from a copy") -> Any:
    """The value of a JSON text, which stands in `path`. Raises InputError naming the file."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as e:
        why = f"{e.msg}, line {e.lineno}" if text.strip() else "it is empty"
    except (ValueError, RecursionError) as e:  # a number of thousands of digits; thousands of brackets
        why = first_line(e)
    raise InputError(f"{path}: not readable as JSON ({why}); {_helps(path, remedy)}")


def read_json(path: Path, remedy: str = "restore it from a copy") -> Any:
    """The value in a JSON file. Raises InputError naming a file that is missing, cut, or not UTF-8."""
    return parse_json(read_text(path, remedy), path, remedy)


def read_json_beside(folder: Path, name: str) -> Any:
    """The value in a JSON file that belongs to a folder of arrays; None where there is no such file."""
    return read_json(folder / name, "write it again") if (folder / name).exists() else None


def read_object(path: Path, remedy: str = "restore it from a copy") -> dict[str, Any]:
    """The same for a file that must hold an object, name -> value."""
    value = read_json(path, remedy)
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected names with values, found a {type(value).__name__}; {remedy}")
    return value


def read_lines(path: Path, remedy: str = "restore it from a copy") -> list[dict[str, Any]]:
    """The objects in a file of one JSON object a line; a last line that is not whole, as a killed writer leaves it, is
    left out. Raises InputError naming the file and the line for any other damage.
    """
    lines, rows = read_text(path, remedy).splitlines(), []
    for number, line in enumerate(lines, 1):
        try:
            row = parse_json(line, path)
        except InputError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        elif number < len(lines):
            raise InputError(f"{path}: line {number} is not a whole JSON object; {remedy}")
    return rows


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """The tables of a TOML file. Raises InputError naming the file, and `what` was expected."""
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as e:
        found = e.strerror
    except (ValueError, RecursionError) as e:  # not UTF-8, not TOML, thousands of brackets
        found = first_line(e)
    raise InputError(f"{path}: expected {what}, found: {found}; {_helps(path, 'write it so')}")


def expect(
    value: Any, kind: type | tuple[type, ...], path: Path, key: str, remedy: str = "restore it from a copy"
) -> Any:
    """The value under a key, if it is of that kind (a bool is no number). Raises InputError naming file and key."""
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        wanted = " or ".join(_NAMES.get(k, k.__name__) for k in kinds)
        raise InputError(f"{path}: {key}: expected {wanted}, found {shown(value)}; {remedy}")
    return value


_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false", dict: "a table", list: "a list"}


def shown(value: Any) -> str:
    """A value in a message, short.

    >>> shown("wide"), shown({"a": 1})
    ("'wide'", "{'a': 1}")
    """
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def read_npz(
    path: Path, wanted: Mapping[str, tuple[str, str]] | None = None, remedy: str = "restore it from a copy",
    otherwise: str = "",
) -> dict[str, np.ndarray]:  # fmt: skip
    """The arrays of an `.npz`, every one checked against its checksum.

    `wanted` says what must be there: name -> (kinds, axes). Kinds are letters of numpy's `dtype.kind`, "" for any; axes
    are letters, one an axis and the same letter the same length, or digits, lengths. A name that ends in "?" may be
    missing. Where nothing shows that a file is damaged, `otherwise` helps (none: the same `remedy`).
    Raises InputError naming the file and the array.

    >>> read_npz(path, {"student": ("f", "nE"), "time": ("iu", "n"), "pose": ("f", "44")})  # doctest: +SKIP
    """
    found = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                name = entry.filename.removesuffix(".npy")
                found[name] = _array(archive, entry)
    except DAMAGE as e:
        what = errors.remedy(path, remedy, otherwise or remedy, str(e))
        if isinstance(e, OSError) and e.errno is not None:
            raise InputError(f"{path}: cannot be read ({e.strerror}); {what}") from None
        raise InputError(f"{path}: not a whole .npz of plain arrays ({first_line(e)}); {what}") from None
    check_npz(path, found, wanted or {}, remedy)
    return found


def check_npz(
    path: Path, found: Mapping[str, np.ndarray], wanted: Mapping[str, tuple[str, str]],
    remedy: str = "restore it from a copy",
) -> None:  # fmt: skip
    """Whether the arrays of an `.npz` are those that are `wanted`, as `read_npz` says."""
    lengths: dict[str, tuple[int, str]] = {}
    for name, (kinds, axes) in wanted.items():
        optional, name = name.endswith("?"), name.removesuffix("?")
        if name in found:
            _check_array(path, name, found[name], kinds, axes, lengths, remedy)
        elif not optional:
            raise InputError(f"{path}: expected the array {name}, found {', '.join(found) or 'none'}; {remedy}")


def _check_array(
    path: Path, name: str, array: np.ndarray, kinds: str, axes: str, lengths: dict[str, tuple[int, str]], remedy: str
) -> None:
    if kinds and array.dtype.kind not in kinds:
        expected = _KINDS.get(kinds, f"kind {kinds}")
        raise InputError(f"{path}: {name}: expected {expected}, found {array.dtype}; {remedy}")
    if array.ndim != len(axes):
        raise InputError(f"{path}: {name}: expected [{', '.join(axes)}], found {list(array.shape)}; {remedy}")
    for axis, length in zip(axes, array.shape, strict=True):
        wanted, of = (int(axis), axis) if axis.isdigit() else lengths.setdefault(axis, (length, name))
        if length != wanted:
            raise InputError(
                f"{path}: {name}: expected {list(axes)} with {axis} = {wanted} as in {of}, "
                f"found {list(array.shape)}; {remedy}"
            )


def check_archive(path: Path, remedy: str = "restore it from a copy") -> None:
    """Compare a zip archive (a torch file, an .npz) with its checksums, where it has them: that of the tokens is zero
    in a pack of ours, which was filled after it was laid out. Raises InputError naming the file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            bad = next((e.filename for e in archive.infolist() if e.CRC and not _whole(archive, e)), None)
    except DAMAGE as e:
        raise InputError(f"{path}: not a whole archive ({first_line(e)}); {_helps(path, remedy)}") from None
    if bad:
        raise InputError(f"{path}: {bad} is not what was written, by its checksum; {remedy}")


def _whole(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bool:
    """Whether an entry has the checksum that was written with it."""
    try:
        with archive.open(entry) as file:
            while file.read(2**20):
                pass
    except zipfile.BadZipFile:
        return False
    return True


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    """One entry of an archive as numpy writes it. Whatever its header says, only bytes that are there are kept."""
    name = entry.filename
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name} is compressed in an unknown way")
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        if version not in _HEADERS:
            raise ValueError(f"{name} of numpy format {version}")
        shape, by_column, dtype = _HEADERS[version](file)
        if dtype.hasobject:
            raise ValueError(f"{name} holds objects, which would run code")
        size = math.prod(shape) * dtype.itemsize
        data = file.read(size) if size > 0 else b""
        if len(data) != size or file.read(1):  # to the end, where the checksum is compared
            raise ValueError(f"{name} does not hold {list(shape)} of {dtype}")
    if not size:
        return np.zeros(shape, dtype)
    if dtype.kind == "U" and np.frombuffer(data, dtype.byteorder.replace("|", "=") + "u4").max() > sys.maxunicode:
        raise ValueError(f"{name} holds no text")
    if dtype.kind == "b" and max(data) > 1:
        raise ValueError(f"{name} holds more than true and false")
    return np.frombuffer(bytearray(data), dtype).reshape(shape, order="F" if by_column else "C")


def _helps(path: Path, remedy: str) -> str:
    """The remedy for a file of known kind that is not as it was written, or what helps where it is no such file."""
    return errors.remedy(path, remedy, remedy)


def first_line(e: Exception | str) -> str:
    """What an exception says, in one short line."""
    return (str(e).strip().splitlines() or [type(e).__name__])[0][:160]
