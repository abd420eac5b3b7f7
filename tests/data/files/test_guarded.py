"""Files at the border: whole and as expected, or one line that names the file and the key, and nothing else."""

import io
import json
import pickle
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from rgb2pc_lib.data.files.guarded import (
    check_archive,
    expect,
    read_json,
    read_lines,
    read_npz,
    read_object,
    read_toml,
)
from rgb2pc_lib.errors import InputError

BROKEN_TEXTS = {
    "empty": b"", "cut": b'{"a": 1, "b', "not UTF-8": b'{"a": "\xff\xfe"}', "UTF-16": '{"a": 1}'.encode("utf-16"),
    "brackets": b"[" * 100_000, "digits": b"1" * 10_000, "no text": bytes(range(256)),
}  # fmt: skip


def says(found: pytest.ExceptionInfo, *words: str) -> None:
    message = str(found.value)
    assert "\n" not in message and all(w in message for w in words), message


@pytest.mark.parametrize("content", BROKEN_TEXTS.values(), ids=BROKEN_TEXTS)
def test_texts_that_are_none_are_named(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    for read in (read_json, read_object):
        with pytest.raises(InputError) as found:
            read(path, "copy it again")
        says(found, f"{path}: ", "copy it again")
    if content:  # an empty TOML file is a whole one
        with pytest.raises(InputError) as found:
            read_toml(path, "a workspace")
        says(found, f"{path}: expected a workspace, found: ")


def test_a_byte_order_mark_is_no_damage(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"\xef\xbb\xbf" + b'{"a": 1}')
    assert read_object(path) == {"a": 1}
    path.write_bytes(b"\xef\xbb\xbf" + b'name = "a"')
    assert read_toml(path, "a workspace") == {"name": "a"}


def test_files_that_are_not_there_and_folders(tmp_path):
    for path in (tmp_path / "nowhere.json", tmp_path):
        for read in (read_json, lambda p: read_toml(p, "a workspace"), read_npz, read_lines, check_archive):
            with pytest.raises(InputError) as found:
                read(path)
            says(found, f"{path}: ")


def test_lines_end_where_a_killed_writer_stopped_and_nowhere_else(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert read_lines(path) == [{"step": 1}, {"step": 2}]
    for middle in ("", "{", "[1]", "7"):
        path.write_text(f'{{"step": 1}}\n{middle}\n{{"step": 3}}\n')
        with pytest.raises(InputError) as found:
            read_lines(path)
        says(found, f"{path}: line 2 ")


@pytest.mark.parametrize(
    ("value", "kind", "wanted"),
    [("1", int, "a whole number"), (True, int, "a whole number"), (1.0, int, "a whole number"), (None, str, "text"),
     (True, (int, float), "a whole number or a number"), ([], dict, "a table")],
)  # fmt: skip
def test_values_of_another_type_name_file_and_key(tmp_path, value, kind, wanted):
    with pytest.raises(InputError) as found:
        expect(value, kind, tmp_path / "a.json", "steps")
    says(found, f"{tmp_path / 'a.json'}: steps: expected {wanted}, found {value!r}")
    assert expect(True, bool, tmp_path, "x") is True


# -- npz

ARRAYS = {
    "student": np.arange(12, dtype=np.float32).reshape(3, 4),
    "step": np.array(["step_0", "step_1", "ü"]),
    "held_out": np.array([True, False, True]),
    "pose": np.eye(4, order="F"),
    "none": np.zeros((0, 4)),
    "frame": np.array("camera"),
}
WANTED = {
    "student": ("f", "nE"), "step": ("U", "n"), "held_out": ("b", "n"), "pose": ("f", "44"), "gates?": ("f", "nM"),
    "frame": ("U", ""),
}  # fmt: skip


def write(path, save=np.savez, **arrays):
    save(path, **arrays)
    return path


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_are_read_as_they_were_written(tmp_path, save):
    found = read_npz(write(tmp_path / "a.npz", save, **ARRAYS), WANTED)
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype and found[name].flags.writeable
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"student": np.zeros(3, np.float32)}, ["student: expected [n, E], found [3]"]),
        ({"student": np.zeros((3, 4), int)}, ["student: expected floating point, found int64"]),
        ({"held_out": np.zeros(2, bool)}, ["held_out: expected ['n'] with n = 3 as in student", "[2]"]),
        ({"pose": np.eye(3)}, ["pose: expected ['4', '4'] with 4 = 4", "[3, 3]"]),
        ({"gates": np.zeros((2, 5))}, ["gates", "n = 3"]),
        ({"step": np.arange(3)}, ["step: expected text, found int64"]),
    ],
)
def test_arrays_of_another_kind_name_file_and_array(tmp_path, change, words):
    path = write(tmp_path / "a.npz", **ARRAYS | change)
    with pytest.raises(InputError) as found:
        read_npz(path, WANTED, "make it anew")
    says(found, f"{path}: ", "make it anew", *words)


def test_an_array_that_is_missing_is_named(tmp_path):
    path = write(tmp_path / "a.npz", **{k: v for k, v in ARRAYS.items() if k != "step"})
    with pytest.raises(InputError) as found:
        read_npz(path, WANTED)
    says(found, f"{path}: expected the array step, found student, held_out")


class Spy:
    """Unpickling it would leave a mark."""

    def __reduce__(self):
        return (open, ("/tmp/rgb2pc-was-here", "w"))


def npz_of(**entries: bytes) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, content in entries.items():
            archive.writestr(f"{name}.npy", content)
    return made.getvalue()


def npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode("latin1")
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


LIES = {
    "objects": npz_of(a=npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", pickle.dumps([Spy()]))),
    "a terabyte": npz_of(a=npy("{'descr': '<f8', 'fortran_order': False, 'shape': (400000, 400000)}", b"0" * 64)),
    "too short": npz_of(a=npy("{'descr': '<f8', 'fortran_order': False, 'shape': (9,)}", b"0" * 8)),
    "too long": npz_of(a=npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1,)}", b"0" * 64)),
    "a negative shape": npz_of(a=npy("{'descr': '<f8', 'fortran_order': False, 'shape': (-1,)}", b"0" * 8)),
    "no header": npz_of(a=npy("{'descr': ", b"0" * 8)),
    "an odd header": npz_of(a=npy("{'descr': 5L, 'fortran_order': False, 'shape': (((", b"0")),
    "code for a header": npz_of(a=npy("__import__('os').getcwd()", b"0")),
    "no letters": npz_of(a=npy("{'descr': '<U1', 'fortran_order': False, 'shape': (1,)}", b"\xff" * 4)),
    "a third truth": npz_of(a=npy("{'descr': '|b1', 'fortran_order': False, 'shape': (1,)}", b"\x07")),
    "no array": npz_of(a=b"hello"),
    "no archive": b"PK\x03\x04" + b"0" * 80,
    "a pickle": pickle.dumps({"a": Spy()}),
    "nothing": b"",
}


@pytest.mark.parametrize("content", LIES.values(), ids=LIES)
def test_archives_that_lie_run_nothing_and_take_nothing(tmp_path, content):
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    with pytest.raises(InputError) as found:
        read_npz(path)
    says(found, f"{path}: ")


def test_a_flipped_bit_is_seen_by_the_checksum(tmp_path):
    path = write(tmp_path / "a.npz", student=np.ones(1000))
    whole = path.read_bytes()
    path.write_bytes(whole[:2000] + bytes([whole[2000] ^ 1]) + whole[2001:])
    for read in (read_npz, check_archive):
        with pytest.raises(InputError) as found:
            read(path)
        says(found, f"{path}: ")


# -- anything at all

WHOLE = {
    "a.json": json.dumps({"steps": 3, "names": ["a", "ü"], "rate": 1e-3}).encode(),
    "a.jsonl": b'{"step": 1, "loss": 0.5}\n{"step": 2, "loss": NaN}\n',
    "a.toml": b'name = "x"\n[roots]\nrgb = "rgb"\n[[exclude]]\ntask = "push"\nsteps = ["a"]\n',
}
READERS = {
    "a.json": read_object, "a.jsonl": read_lines, "a.toml": lambda p: read_toml(p, "tables"),
    "a.npz": lambda p: read_npz(p, WANTED), "b.npz": check_archive,
}  # fmt: skip


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=some.data())
def test_mutated_files_give_what_they_hold_or_one_line(tmp_path, data):
    name = data.draw(some.sampled_from([*WHOLE, "a.npz", "b.npz"]))
    path = tmp_path / name
    if name in WHOLE:
        path.write_bytes(WHOLE[name])
    else:
        write(path, **ARRAYS)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(some.integers(1, 6))):
        at = data.draw(some.integers(0, len(content)))
        kind = data.draw(some.sampled_from(["flip", "cut", "insert", "repeat"]))
        if kind == "flip" and at < len(content):
            content[at] ^= 1 << data.draw(some.integers(0, 7))
        elif kind == "cut":
            del content[at : at + data.draw(some.integers(1, 40))]
        elif kind == "insert":
            content[at:at] = data.draw(some.binary(max_size=20))
        else:
            content[at:at] = content[at : at + 30] * 2
    path.write_bytes(content)
    try:
        READERS[name](path)
    except InputError as e:
        assert str(path) in str(e) and "\n" not in str(e)
