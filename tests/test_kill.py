"""Work that is killed, out of disk, without rights or beside another of its kind: whole files or none, equal results.

The harness is `benchmarks/kill.py`; here it does a few of each. `docs/trust.md` tells what many gave.
"""

import subprocess
import sys

import pytest

from rgb2pc_lib.data.workspace import PROJECT

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="kills, limits and rights as Linux has them"
)


def harness(name, *words):
    command = [sys.executable, str(PROJECT / "benchmarks" / f"{name}.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


def test_disturbed_work_ends_in_the_same_bytes():
    done = harness("kill", "--kills", "8", "--others", "1", "--only", "training", "extraction", "packing", "importing")
    assert done.returncode == 0 and "FAULT" not in done.stdout, done.stdout + done.stderr
    for name in ("training", "extraction", "packing", "importing"):
        kills = next(line for line in done.stdout.splitlines() if line.startswith(f"| {name} |")).split("|")[2]
        assert int(kills.split("/")[0]) >= 2, done.stdout


def test_damaged_files_give_what_they_hold_or_one_line():
    done = harness("fuzz", "--files", "400")
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    total = done.stdout.splitlines()[-1].split("|")
    assert total[1].strip() == "all" and int(total[2]) >= 400 and int(total[4]) > 50  # some were refused
