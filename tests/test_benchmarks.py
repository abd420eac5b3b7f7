"""The benchmarks' own logic: when a target is kept, what stands in the JSON, and that the rival reads the same."""

import json
import sys

import numpy as np
import pytest
import tiny

from rgb2pc_lib.data.packs import FeaturePack
from rgb2pc_lib.data.workspace import PROJECT

sys.path.insert(0, str(PROJECT / "benchmarks"))

import bench_rivals  # noqa: E402
import picture  # noqa: E402
from common import Row, in_turns  # noqa: E402


@pytest.mark.parametrize(
    "figure, target, at_least, kept",
    [
        (1.9, 2, False, True),
        (2.1, 2, False, False),
        (0.66, 0.65, True, True),
        (0.6, 0.65, True, False),
        (1, None, 0, None),
    ],
)
def test_kept(figure, target, at_least, kept):
    row = Row("train", "what", "K=64", figure, target, at_least)
    assert row.kept is kept
    assert ("MISSED" in str(row)) == (kept is False) and ("kept" in str(row)) == (kept is True)


def test_what_is_written_holds_every_row(tmp_path):
    rows = [Row("gather", "gather / memcpy, packed", f"K={k}, 3 ep.", 2.0, 2.5) for k in (64, 256)]
    rows.append(Row("open", "opening, s", "1000 episodes", 3.0, 2.0))
    assert picture.save(rows, tmp_path, episodes=30).exists()
    content = json.loads((tmp_path / "benchmarks.json").read_text())
    assert [r["kept"] for r in content["rows"]] == [True, True, False] and content["episodes"] == 30
    assert [Row(**{k: v for k, v in r.items() if k != "kept"}) for r in content["rows"]] == rows


def test_turns_are_lower_quartiles_of_each_work():
    a, b = [3, 90, 1, 2, 70], [30, 10, 20, 900, 800]  # seconds
    ends = np.cumsum(np.ravel([[0, x, 0, y] for x, y in zip(a, b, strict=True)]))
    clock, order = iter(ends.tolist()), []
    works = {"a": lambda n: order.append(("a", n)), "b": lambda n: order.append(("b", n))}
    assert in_turns(works, 5, lambda: next(clock)) == {"a": 2, "b": 20}
    assert order == [(name, n) for n in range(5) for name in "ab"]


def test_the_rival_reads_the_frame_that_we_read(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_rivals, "EXPERTS", {"a": (2, 3, 5)})
    names = [f"step_{i:04d}" for i in range(12)]
    tokens = np.random.default_rng(0).normal(size=(12, 2, 3, 5))
    tiny.write_pack(tmp_path / "pt" / "a", "task", "episode_0000", names, tokens, window=8)

    class Data:
        frames = 12

        def path(self, form, expert, episode):
            return tmp_path / form / expert / "task" / f"episode_{episode:04d}.{'zarr' if form == 'zarr' else 'pt'}"

    bench_rivals.write_zarr(Data(), 1)
    pack = FeaturePack.open(Data().path("pt", "a", 0))
    for form in ("zarr", "load", "mapped"):
        steps = bench_rivals.Steps(Data(), form, 1, 4, 12)
        for i in range(12):
            at = np.random.default_rng(i).random((4, 2))
            assert np.array_equal(steps[i]["a"], pack.tokens(names[i], at)[0].numpy()), form
