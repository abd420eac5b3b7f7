"""Damages files of every kind that the product reads, and looks what reading them gives: what they hold, or one line.

    python benchmarks/fuzz.py --files 20000 --record fuzz.jsonl    # goes on where it was stopped
    python benchmarks/fuzz.py --files 300 --only "clouds (PLY)" images

Each damaged file is read in a process with a limit on its memory. It may give what it holds, or an InputError in one
line; anything else is counted: another exception, more than 10 s of processor time (or 2 minutes of waiting), more
than 1 GB, a crash, or code of the file run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import select
import shutil
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

from specimens import BASE, Specimen, specimens, write_all  # isort: skip (sets the cache's folder)

from rgb2pc_lib.errors import InputError

HANG, MEMORY = 10, 2**30  # s, bytes
OUTCOMES = ("as it is", "InputError", "foreign", "hang", "memory", "crash", "code run")
_RUNS = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork", "pickle.find_class")
_HARMLESS = ("numpy", "collections", "_codecs")  # classes that unpickling plain values may name
WORDS = [b"", b"null", b"[]", b"{}", b"-1", b"1e999", b"NaN", b'"x"', b"true", b"99999999999999999999", b"[" * 3000]


# -- damage


def damaged(data: bytes, draw: random.Random, others: list[bytes]) -> bytes:
    """A file after one to three mishaps. The draw tells all: the same one damages in the same way."""
    out = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 3))):
        at, length = draw.randint(0, len(out)), draw.choice((1, 2, 8, 64, 1000))
        mishap = draw.randrange(11)
        if mishap == 0:  # cut
            del out[at:]
        elif mishap == 1 and out:  # bits
            for _ in range(draw.choice((1, 1, 4, 30))):
                out[draw.randrange(len(out))] ^= 1 << draw.randrange(8)
        elif mishap == 2:  # inserted
            out[at:at] = draw.randbytes(length)
        elif mishap == 3:  # taken out
            del out[at : at + length]
        elif mishap == 4:  # exchanged
            other = draw.randint(0, len(out))
            out[at : at + length], out[other : other + length] = out[other : other + length], out[at : at + length]
        elif mishap == 5:  # zeros, as of a hole in the file
            out[at : at + length] = bytes(len(out[at : at + length]))
        elif mishap == 6 and len(out) > 8:  # a number made huge, small or negative
            where, size = draw.randrange(min(len(out), 4096)), draw.choice((1, 2, 4, 8))
            number = draw.choice((2**63 - 1, 2**31, 2**31 - 1, 2**64 - 1, 0, 1, 2**40))
            raw = (number % 2 ** (8 * size)).to_bytes(size, draw.choice(("little", "big")))
            out[where : where + size] = raw[: len(out) - where]
        elif mishap == 7:  # a value of another type, where the file is text
            places = [i for i, b in enumerate(out[:20000]) if b in b'0123456789"[{:=']
            if places:
                place = draw.choice(places)
                out[place : place + draw.choice((0, 1, 3, 8))] = draw.choice(WORDS)
        elif mishap == 8:  # repeated
            out[at:at] = out[at : at + length] * draw.choice((1, 50))
        elif mishap == 9 and draw.random() < 0.3:
            out = bytearray(draw.choice((b"", b"\0" * 100, b"<!doctype html><html>", b"version https://git-lfs\n")))
        elif mishap == 10 and draw.random() < 0.5:  # the content of another kind
            out = bytearray(draw.choice(others))
    return bytes(out)


# -- one process that reads


def status(name: str) -> int:
    """Bytes of `VmHWM`, `VmData` ... of this process."""
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) * 1024 for line in f if line.startswith(name))


def seconds(process: int) -> float:
    """Processor time of a process: on a busy machine, waiting is no hanging."""
    words = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def reader(kind: str, one: Specimen, others: list[bytes], numbers: range, seed: int, pipe: int) -> None:
    """Damage and read files of these numbers: a line of JSON each, before and after."""
    ran: list[str] = []

    def hook(event: str, args: tuple) -> None:
        if event in _RUNS and not (event == "pickle.find_class" and str(args[0]).split(".")[0] in _HARMLESS):
            ran.append(f"{event} {args[:2]}")

    whole = {path: path.read_bytes() for path in one.folder.rglob("*") if path.is_file()}
    limit = status("VmData") + 4 * MEMORY
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    one.read(one.files[0])  # what a first reading imports is not counted
    sys.addaudithook(hook)
    for number in numbers:
        draw = random.Random(f"{seed} {kind} {number}")
        path = draw.choice(one.files)
        os.write(pipe, f"{number}\n".encode())
        path.write_bytes(damaged(whole[path], draw, others))
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts here
        before, outcome, said = status("VmHWM"), "as it is", ""
        ran.clear()
        try:
            one.read(path)
        except InputError as e:
            outcome, said = "InputError", str(e)
            if "\n" in said.strip():
                outcome = "foreign"
        except BaseException as e:
            last = traceback.extract_tb(e.__traceback__)
            ours = next((f for f in reversed(last) if "rgb2pc_lib" in f.filename), last[-1])
            outcome = "foreign"
            said = f"{type(e).__name__}: {str(e)[:200]} ({Path(ours.filename).name}:{ours.lineno} {ours.name})"
        if status("VmHWM") - before > MEMORY:
            outcome, said = "memory", f"{(status('VmHWM') - before) / 2**30:.1f} GB; {said}"
        if ran:
            outcome, said = "code run", "; ".join(ran[:3])
        for other, content in whole.items():  # caches are made anew: they too are put back
            if other == path or not other.exists():
                other.parent.mkdir(parents=True, exist_ok=True)
                other.write_bytes(content)
        line = {"kind": kind, "number": number, "file": path.name, "outcome": outcome, "said": said[:400]}
        os.write(pipe, (json.dumps(line) + "\n").encode())


def watched(kind: str, one: Specimen, others: list[bytes], numbers: range, seed: int):
    """The lines of readers of these files; one that hangs or crashes is told so, and another goes on behind it."""
    whole = {path: path.read_bytes() for path in one.folder.rglob("*") if path.is_file()}
    following = numbers.start
    while following < numbers.stop:
        from_child, to_parent = os.pipe()
        if not (child := os.fork()):
            try:
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, 1), os.dup2(null, 2)
                reader(kind, one, others, range(following, numbers.stop), seed, to_parent)
            finally:
                os._exit(0)
        os.close(to_parent)
        buffer, at, ended, spent, since = b"", None, "", 0.0, 0.0
        while True:
            ready, _, _ = select.select([from_child], [], [], HANG / 2)
            if not ready and at is not None and (seconds(child) - spent > HANG or time.monotonic() - since > 12 * HANG):
                ended = "hang"
                os.kill(child, 9)
                break
            data = os.read(from_child, 65536)
            if not data:
                break
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                if line.startswith(b"{"):
                    yield json.loads(line)
                    following, at = following + 1, None
                else:
                    at, spent, since = int(line), seconds(child), time.monotonic()
        os.close(from_child)
        how = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if at is not None:
            for path, content in whole.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            yield {"kind": kind, "number": at, "file": "", "outcome": ended or "crash", "said": f"exit {how}"}
            following = at + 1
        elif following < numbers.stop and how:
            raise RuntimeError(f"{kind}: the reader ended with {how}")


# -- the whole


def parse(argv=None) -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--files", type=int, default=20_000, metavar="N", help="damaged files, over all kinds")
    p.add_argument("--only", nargs="+", metavar="KIND", help="of these kinds")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--record", type=Path, help="a file of what was seen, one line a file; a rerun goes on after it")
    return p.parse_args(argv)


def table(rows: list[dict]) -> str:
    counts = Counter((r["kind"], r["outcome"]) for r in rows)
    kinds = list(dict.fromkeys(r["kind"] for r in rows))
    lines = ["| kind | files | " + " | ".join(OUTCOMES) + " |", "|---|" + "---|" * (len(OUTCOMES) + 1)]
    for name, some in [*((k, [k]) for k in kinds), ("all", kinds)]:
        cells = [sum(counts[k, o] for k in some) for o in OUTCOMES]
        lines.append(f"| {name} | {sum(cells)} | {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main(argv=None) -> int:
    args = parse(argv)
    text = args.record.read_text() if args.record and args.record.exists() else ""
    rows = [json.loads(line) for line in text.splitlines()]
    try:
        if not (builder := os.fork()):  # so that this process has computed nothing when it forks
            write_all()
            for one in specimens().values():  # whole ones are read, or nothing else says much
                for path in one.files:
                    one.read(path)
            os._exit(0)
        assert os.waitpid(builder, 0)[1] == 0, "the specimens could not be written"
        every = specimens()
        kinds = args.only or [*every]
        others = [one.files[0].read_bytes()[:50_000] for one in every.values()]
        each = -(-args.files // len(kinds))
        for kind in kinds:
            done = 1 + max((r["number"] for r in rows if r["kind"] == kind), default=-1)
            begun = time.monotonic()
            for row in watched(kind, every[kind], others, range(done, each), args.seed):
                rows.append(row)
                if args.record:
                    with args.record.open("a") as f:
                        f.write(json.dumps(row) + "\n")
            print(f"{kind}: {each - done} files in {time.monotonic() - begun:.0f} s", flush=True)
    finally:
        shutil.rmtree(BASE, ignore_errors=True)
    bad = [r for r in rows if r["outcome"] not in ("as it is", "InputError")]
    for (kind, outcome, said), n in Counter((r["kind"], r["outcome"], r["said"][-160:]) for r in bad).most_common(60):
        print(f"{n:5} {outcome} in {kind}: {said}")
    print(table(rows))
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
