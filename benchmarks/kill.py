"""Kills real work with SIGKILL and looks what is left: nothing half-written under a real name, equal results at last.

    python benchmarks/kill.py --kills 200 --record kills.jsonl     # goes on where it was stopped
    python benchmarks/kill.py --kills 12 --only packing importing

Each victim's work is done once undisturbed. Then it is begun in a process of its own and killed, at a random instant or
just before one of its changes to the disk (opening to write, renaming, removing, making a folder), three times in a
row; after each kill every file under a real name must be the undisturbed one's, or be read as a whole checkpoint.
Undisturbed at last, it must end in the same bytes (checkpoints and metrics: the same values, but for seconds), with
nothing left over. Besides: full disks (a small tmpfs, where it may be mounted), a limit on the size of files, folders
made read-only half way, and two processes at once: each is told in one line or done, and the same command then ends in
the same bytes.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from victims import BASE, CACHE, VICTIMS, Victim, without_simulator, write_sources  # isort: skip

import torch

from rgb2pc_lib.errors import InputError
from rgb2pc_lib.learning.runs import RunFolder, read_metrics

IN_A_ROW = 3
DONE, TOLD, FOREIGN = 0, 2, 3  # how a process ends
_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir")
_TRAINING = ("state.pt", "metrics.jsonl", "config.json")  # not yet the undisturbed run's while it trains
Fault = list[str]


# -- processes


def begin(victim: Victim, source: Path, folder: Path, before: Callable[[], object] = lambda: None) -> int:
    """Begin a victim's work in a process of its own: its number."""
    sys.stdout.flush()
    if child := os.fork():
        return child
    status = FOREIGN
    try:
        log = os.open(BASE / f"said.{os.getpid()}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(log, 1), os.dup2(log, 2)
        before()
        victim.work(source, folder)
        status = DONE
    except InputError as e:
        print(f"error: {e}", file=sys.stderr)
        status = TOLD
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def end(child: int) -> tuple[int, str]:
    """How it ended, a status or minus the signal's number, and what it said."""
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    log = BASE / f"said.{child}"
    said = log.read_text(errors="replace") if log.exists() else ""
    log.unlink(missing_ok=True)
    return status, said


def at_changes(act: Callable[[int], object]) -> Callable[[], None]:
    """What makes a process `act` just before each change of its work to the disk, with the change's number."""

    def install() -> None:
        count = 0

        def hook(event: str, args: tuple) -> None:
            nonlocal count
            writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
            if (writes or event in _CHANGES) and str(BASE) in str(args[0]):
                count += 1
                act(count)

        sys.addaudithook(hook)

    return install


def die(number: int, count: int) -> None:
    if count == number:
        os.kill(os.getpid(), signal.SIGKILL)


def bound_by_rights() -> None:
    """Read-only folders bind this process too, should it be root's: it gives up the right to pass them over."""
    header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None)
    assert libc.capget(header, data) == 0
    data[0] &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(header, data) == 0


# -- what is there


def contents(folder: Path) -> dict[str, str]:
    """Every file under a real name -> what it holds, where seconds do not count."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and "tensorboard" not in name.parts and not any(p.startswith(".") for p in name.parts):
            data = path.read_bytes()
            if path.name == "metrics.jsonl":
                rows = [{k: v for k, v in row.items() if k != "seconds"} for row in read_metrics(path)]
                data = json.dumps(rows).encode()
            elif path.name == "state.pt":  # how a pickle is laid out depends on what its objects shared
                data = repr(plain(torch.load(path, weights_only=True))).encode()
            found[name.as_posix()] = hashlib.sha256(data).hexdigest()
    return found


def plain(value: object) -> object:
    if isinstance(value, torch.Tensor):
        return hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest(), value.shape
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, list | tuple) else value


def half_way(folder: Path, whole: dict[str, str]) -> Fault:
    """What is wrong with what a disturbed process left: files that are not those of undisturbed work."""
    wrong = []
    for path in folder.rglob("state.pt"):
        if path.parent.name.startswith("."):
            continue
        try:
            RunFolder(path.parent).state()
        except InputError as e:
            return [str(e)]
    for name, digest in contents(folder).items():
        path = folder / name
        if path.name not in _TRAINING and whole.get(name) != digest:
            wrong.append(f"{name}: half-written under its real name")
    return wrong


# -- trials


class Trials:
    """One victim: its undisturbed result, and what is done to it. A trial gives how often it hit, and what is wrong."""

    def __init__(self, victim: Victim, source: Path, draw: random.Random):
        self.victim, self.source, self.draw = victim, source, draw
        self.folder = BASE / "work"
        self.fresh()
        with (BASE / "changes").open("wb", 0) as counted:
            counts = at_changes(lambda _: os.write(counted.fileno(), b"."))
            status, said = self.run(counts)
            assert status == DONE, said
        self.changes = (BASE / "changes").stat().st_size
        self.fresh()
        begun = time.monotonic()
        status, said = self.run()
        assert status == DONE, said
        self.seconds = time.monotonic() - begun
        self.whole = contents(self.folder)
        self.sizes = [p.stat().st_size for p in self.folder.rglob("*") if p.is_file()]

    def fresh(self) -> None:
        for folder in (self.folder, CACHE):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)

    def begin(self, before: Callable[[], object] = lambda: None) -> int:
        return begin(self.victim, self.source, self.folder, before)

    def run(self, before: Callable[[], object] = lambda: None) -> tuple[int, str]:
        return end(self.begin(before))

    def finish(self) -> Fault:
        """Undisturbed at last: it ends, in the same bytes, and leaves nothing behind."""
        status, said = self.run()
        if status != DONE:
            return [f"does not go on ({status}): {said[-1500:]}"]
        found, whole = contents(self.folder), self.whole
        left = [p.name for p in self.folder.rglob(".*.partial") if any(p.iterdir())]
        other = [n for n in sorted(found.keys() | whole) if found.get(n) != whole.get(n)]
        return [f"{n}: other bytes at the end" for n in other] + [f"{n} is left over" for n in left]

    def after(self, status: int, said: str, *words: str) -> tuple[int, Fault]:
        """A disturbance that is told in one line with these words, or came too late."""
        wrong = half_way(self.folder, self.whole)
        if status == TOLD and not all(word in said for word in words):
            wrong.append(f"told otherwise: {said[-1500:]}")
        if status not in (DONE, TOLD):
            wrong.append(f"ended with {status}: {said[-3000:]}")
        return int(status == TOLD), wrong

    def kill(self) -> tuple[int, Fault]:
        """Several kills in a row, then to the end."""
        self.fresh()
        hits, wrong = 0, []
        for _ in range(IN_A_ROW):
            if self.draw.random() < 0.5:
                child = self.begin()
                time.sleep(self.draw.uniform(0, self.seconds))
                os.kill(child, signal.SIGKILL)
                status, said = end(child)
            else:
                number = self.draw.randint(1, self.changes)
                status, said = self.run(at_changes(functools.partial(die, number)))
            if status == -signal.SIGKILL:
                hits += 1
                wrong += half_way(self.folder, self.whole)
            elif status == DONE:  # too late
                self.fresh()
            else:
                wrong.append(f"does not go on ({status}): {said[-1500:]}")
        return hits, wrong + self.finish()

    def limit(self) -> tuple[int, Fault]:
        """No file may be longer than so many bytes."""
        self.fresh()
        most = self.draw.randint(1000, max(self.sizes) - 1)  # what it says needs some room too
        status, said = self.run(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most)))
        hits, wrong = self.after(status, said, "cannot be written", str(self.folder.parent))
        return hits, wrong + self.finish()

    def full(self) -> tuple[int, Fault]:
        """A disk that has not room for all of it; then one that has."""
        self.fresh()
        room = self.draw.randint(sum(self.sizes) // 4, sum(self.sizes)) // 4096 * 4096 + 4096
        mount = ["mount", "-t", "tmpfs", "-o", f"size={room}", "tmpfs", str(self.folder)]
        if subprocess.run(mount, capture_output=True).returncode:
            return 0, []  # not allowed here
        try:
            hits, wrong = self.after(*self.run(), "cannot be written", "are free; free some")
            subprocess.run(["mount", "-o", "remount,size=64m", str(self.folder)], check=True)
            return hits, wrong + self.finish()
        finally:
            subprocess.run(["umount", "-l", str(self.folder)], check=True)

    def read_only(self) -> tuple[int, Fault]:
        """Its folders are made read-only half way; then they are not."""
        self.fresh()
        child = self.begin(bound_by_rights)
        time.sleep(self.draw.uniform(0, self.seconds))
        closed = [self.folder, *(p for p in self.folder.rglob("*") if p.is_dir())]
        for folder in closed:
            folder.chmod(0o555) if folder.exists() else None
        hits, wrong = self.after(*end(child), "cannot be written", "you may write to")
        for folder in closed:
            folder.chmod(0o755) if folder.exists() else None
        return hits, wrong + self.finish()

    def two(self) -> tuple[int, Fault]:
        """Two processes at once, with one cache: both are done, or one is told that the other is at work."""
        self.fresh()
        first, second = self.begin(), self.begin()
        ended = [end(first), end(second)]
        wrong = half_way(self.folder, self.whole)
        for status, said in ended:
            if status == TOLD and not ("another" in said or "holds a run" in said):
                wrong.append(f"told otherwise: {said[-1500:]}")
            if status not in (DONE, TOLD):
                wrong.append(f"ended with {status}: {said[-3000:]}")
        if all(status == TOLD for status, _ in ended) and self.victim.alone:
            wrong.append("both were refused")
        return 1, wrong + self.finish()


TRIALS = {"kill": Trials.kill, "full disk": Trials.full, "file limit": Trials.limit, "read-only": Trials.read_only,
          "two at once": Trials.two}  # fmt: skip


# -- the whole


def parse(argv=None) -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--kills", type=int, default=200, metavar="N", help="kills that hit, over all victims")
    p.add_argument("--others", type=int, default=5, metavar="N", help="of each other trial, per victim")
    p.add_argument("--only", nargs="+", choices=VICTIMS, default=[*VICTIMS], metavar="VICTIM", help=", ".join(VICTIMS))
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--record", type=Path, help="a file of what was seen, one line a trial; a rerun goes on after it")
    return p.parse_args(argv)


def table(rows: list[dict]) -> str:
    hits, trials, faults = Counter(), Counter(), Counter()
    for row in rows:
        key = row["victim"], row["trial"]
        hits[key] += row["hits"]
        trials[key] += 1
        faults[key] += len(row["wrong"])
    victims = [v for v in VICTIMS if any(key[0] == v for key in trials)]
    lines = ["| victim | " + " | ".join(f"{t}: hits / rounds" for t in TRIALS) + " | faults |",
             "|---|" + "---|" * (len(TRIALS) + 1)]  # fmt: skip
    for name, some in [*((v, [v]) for v in victims), ("all", victims)]:
        cells = [f"{sum(hits[v, t] for v in some)} / {sum(trials[v, t] for v in some)}" for t in TRIALS]
        lines.append(f"| {name} | {' | '.join(cells)} | {sum(faults[v, t] for v in some for t in TRIALS)} |")
    return "\n".join(lines)


def main(argv=None) -> int:
    args = parse(argv)
    victims = [VICTIMS[n] for n in args.only if n != "recording" or not without_simulator()]
    text = args.record.read_text() if args.record and args.record.exists() else ""
    rows = [json.loads(line) for line in text.splitlines()]
    try:
        source = BASE / "source"
        builder = os.fork()
        if not builder:  # so that nothing was computed in this process when it forks
            write_sources(source)
            os._exit(0)
        assert os.waitpid(builder, 0)[1] == 0, "the sources could not be made"
        for victim in victims:
            mine = [r for r in rows if r["victim"] == victim.name]
            hits = sum(r["hits"] for r in mine if r["trial"] == "kill")
            left = {t: args.others - sum(r["trial"] == t for r in mine) for t in TRIALS if t != "kill"}
            if hits >= args.kills / len(victims) and max(left.values()) <= 0:
                continue
            draw = random.Random(f"{args.seed} {victim.name} {len(mine)}")
            trials = Trials(victim, source, draw)
            print(f"{victim.name}: {trials.seconds:.1f} s and {trials.changes} changes undisturbed", flush=True)
            while hits < args.kills / len(victims) or max(left.values()) > 0:
                kind = "kill" if hits < args.kills / len(victims) else max(left, key=left.__getitem__)
                hit, wrong = TRIALS[kind](trials)
                hits, left = hits + hit * (kind == "kill"), left | ({} if kind == "kill" else {kind: left[kind] - 1})
                rows.append({"victim": victim.name, "trial": kind, "hits": hit, "wrong": wrong})
                if args.record:
                    with args.record.open("a") as f:
                        f.write(json.dumps(rows[-1]) + "\n")
                for fault in wrong:
                    print(f"FAULT {victim.name}, {kind}: {fault}", flush=True)
    finally:
        shutil.rmtree(BASE, ignore_errors=True)
    print(table(rows))
    return int(any(r["wrong"] for r in rows))


if __name__ == "__main__":
    sys.exit(main())
