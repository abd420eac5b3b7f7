"""Files and folders that are whole or not there, one writer at a time, and what is said where none can be written."""

import errno
import os
import subprocess
import sys
import threading

import pytest
import torch

from rgb2pc_lib.data.files.faults import Faults
from rgb2pc_lib.data.files.writing import claim, new_file, new_folder, write_atomic
from rgb2pc_lib.errors import CannotWriteError, InputError

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="locks and limits as Linux has them")


def in_another_process(code, *paths):
    """What a process says that runs some lines with `writing`'s names and these paths."""
    head = "import sys; from pathlib import Path; from rgb2pc_lib.data.files.writing import *"
    lines = f"{head}\npaths = [*map(Path, sys.argv[1:])]\n{code}"
    return subprocess.run([sys.executable, "-c", lines, *map(str, paths)], capture_output=True, text=True)


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "a" / "b.txt"
    with new_file(path) as partial:
        partial.write_text("half")
        assert partial.name == "b.txt" and not path.exists()  # its name is its own, whatever a writer makes of it
    assert path.read_text() == "half" and os.listdir(path.parent) == ["b.txt"]
    with pytest.raises(RuntimeError, match="mine"), new_file(path) as partial:
        partial.write_text("other")
        raise RuntimeError("mine")
    assert path.read_text() == "half" and os.listdir(path.parent) == ["b.txt"]


def test_a_folder_appears_when_it_is_whole_and_replaces_only_its_own_kind(tmp_path):
    folder = tmp_path / "ep"
    for content in ("one", "two"):
        with new_folder(folder, "step_*") as partial:
            (partial / f"step_{content}").write_text(content)
            assert not (folder / f"step_{content}").exists()
        assert [p.name for p in folder.iterdir()] == [f"step_{content}"]
    (folder / "notes").write_text("mine")
    with (
        pytest.raises(InputError, match="ep: is to be written anew, but holds notes too"),
        new_folder(folder, "step_*"),
    ):
        pass
    assert os.listdir(tmp_path) == ["ep"] and (folder / "notes").read_text() == "mine"


@linux
@pytest.mark.parametrize("make", ["new_file", "new_folder"])
def test_leftovers_of_the_dead_are_removed_and_those_of_the_living_are_not(tmp_path, make):
    die = f"import os, signal\nwith {make}(paths[0]) as p:\n    os.kill(os.getpid(), signal.SIGKILL)"
    path = tmp_path / "a"
    assert in_another_process(die, path).returncode == -9
    (left,) = os.listdir(tmp_path)
    assert left.startswith(".a.") and left.endswith(".partial")
    with new_file(path) as mine:
        assert not (tmp_path / left).exists()
        with new_file(path) as other:  # both may write a cache, and the later one's stays
            other.write_text("second")
        mine.write_text("first")
        with (
            pytest.raises(InputError, match="a: is being written by another process; wait"),
            new_file(path, alone=True),
        ):
            pass
    assert path.read_text() == "first" and os.listdir(tmp_path) == ["a"]


def test_a_claimed_folder_is_claimed_by_every_path_that_leads_there(tmp_path):
    run, link = tmp_path / "run", tmp_path / "link"
    with claim(run):
        link.symlink_to(run, target_is_directory=True)
        for path in (run, link, tmp_path / "link" / ".." / "run"):
            with pytest.raises(InputError, match="is being trained by another"), claim(path):
                pass
        if sys.platform.startswith("linux"):
            said = in_another_process("with claim(paths[0]): pass", link).stderr
            assert "is being trained by another" in said
        (run / "config.json").write_text("{}")
    with claim(link):
        pass
    with claim(tmp_path / "unused"):
        pass
    assert not (tmp_path / "unused").exists()  # nothing was written
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file: is a file; choose another --save_dir"), claim(tmp_path / "file"):
        pass


def test_threads_keep_apart_too(tmp_path):
    said = []

    def work():
        try:
            with claim(tmp_path / "run"):
                pass
        except InputError as e:
            said.append(str(e))

    with claim(tmp_path / "run"):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert len(said) == 1


@linux
def test_a_file_that_does_not_fit_is_told_with_what_it_takes(tmp_path):
    code = "import resource, torch\nresource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
    for write in ("p.write_bytes(bytes(20000))", "torch.save(torch.zeros(9000), p)"):
        done = in_another_process(f"{code}write_atomic(paths[0], lambda p: {write})", tmp_path / "state.pt")
        last = done.stderr.splitlines()[-1]
        assert "CannotWriteError" in last and f"{tmp_path / 'state.pt'}: cannot be written" in last, done.stderr
        assert "or more and" in last and "are free; " in last and "run the same command again" in last
        assert not os.listdir(tmp_path)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_what_keeps_from_writing_is_told_and_no_fault_of_an_item(tmp_path, number):
    remedy = "free some" if number in (errno.ENOSPC, errno.EDQUOT) else "you may write to"

    def fail(partial):
        raise OSError(number, os.strerror(number))

    faults = Faults()
    with pytest.raises(CannotWriteError, match=f"b.pt: cannot be written .*{remedy}"), faults.at("item"):
        write_atomic(tmp_path / "b.pt", fail)
    assert not faults.found and not os.listdir(tmp_path)


def test_a_file_in_place_of_a_folder_is_told(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(CannotWriteError, match="b.pt: cannot be written"):
        write_atomic(tmp_path / "a" / "b.pt", lambda p: torch.save({}, p))
    with pytest.raises(FileNotFoundError):  # of what is read while something is written: no fault of the disk
        write_atomic(tmp_path / "b.pt", lambda p: open("/nowhere/else"))
