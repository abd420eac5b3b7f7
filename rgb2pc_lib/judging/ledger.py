"""What each hop costs and keeps: teacher -> fused student -> compact student, on held-out episodes only.

The embedding and the spatial tokens are judged alike; what is said of the tokens is called "places: ...".
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from rgb2pc_lib.data.files.writing import write_atomic
from rgb2pc_lib.deploy.compact import CompactRun
from rgb2pc_lib.deploy.embed import Embedder
from rgb2pc_lib.deploy.export import MODEL, ThroughOnnx
from rgb2pc_lib.deploy.lookup import refuse_weights
from rgb2pc_lib.deploy.profile import alone, as_seen
from rgb2pc_lib.deploy.targets import own_targets
from rgb2pc_lib.encoders.extract import Frames, list_frames
from rgb2pc_lib.encoders.rays import SOMEWHERE
from rgb2pc_lib.errors import InputError, tell
from rgb2pc_lib.judging.evaluate import Judgement, Questions, judge_features, judge_run
from rgb2pc_lib.judging.rivals import components, pooled_blocks
from rgb2pc_lib.judging.verdicts import APART, ahead, difference, figures, share, told
from rgb2pc_lib.learning.models import SIDE
from rgb2pc_lib.learning.prepare import Data
from rgb2pc_lib.learning.runs import Run

TEACHER, FUSED = "teacher", "fused student"
PLACES = "places: "  # begins what is said of spatial tokens: "R2 places: tcp", "places: tcp cm"
_TOLD = [f"R2 {of}{probe}" for of in ("", PLACES) for probe in ("tcp", "object", "distance")]
COSTS = ("parameters, M", "CPU ms a frame", "memory, MB")


def judge(
    compacts: dict[str, CompactRun], repeats: int = 9, weights: Mapping[str, str | Path] | None = None
) -> Judgement:
    """The whole ledger of compact students of one run: quality and costs. Also left in each one's `ledger.csv`.

    Its `long` has the columns hop, measure, value; its `episodes` are what intervals are made from. `weights`: as in
    `costs`.

    Raises InputError when they are of different runs, or made from other embeddings than the run now holds.
    """
    sources = {run.config.run for run in compacts.values()}
    if len(sources) != 1:
        raise InputError(f"compact students of different runs: {', '.join(sorted(sources))}; judge them apart")
    fused = next(iter(compacts.values())).fused()
    refuse_weights(weights or {}, fused.config.vis_roots, str(fused.folder))
    root = fused.config.workspace.root("rgb")
    files = next(iter(list_frames(root, fused.config.tasks).values()))
    images = Frames(files)[:8]
    found = quality(compacts, fused)
    priced = costs({FUSED: fused, **compacts}, images, repeats, weights=weights)
    table = pd.concat([found.long, priced], ignore_index=True)
    for run in compacts.values():
        write_atomic(run.file("ledger.csv"), lambda p: table.to_csv(p, index=False))
    return Judgement(table, found.episodes)


def quality(compacts: dict[str, CompactRun], fused: Run) -> Judgement:
    """Every hop judged alike on held-out steps, long: hop, measure, value. Probes where the run names states.

    Hops: the teacher, each expert's pooled features, the fused student, and the compact students by name. Retrieval
    finds a step's own cloud among the held-out ones. Where compact students give spatial tokens, these are judged
    beside the fused student's and each expert's means over the same places, all by probes on as many principal
    components as the embedding has numbers; "spatial R2" is how much of the fused student's tokens they tell.
    """
    e, questions = fused.embeddings(), Questions.of(fused, fused.config.workspace.state)
    data = Data.open(fused.config)
    kept = ~np.isin(np.arange(len(data.samples)), data.validation)
    blocks = {
        side: {name: x[kept] for name, x in found.items()} for side, found in pooled_blocks(data, (1, SIDE)).items()
    }
    features = {TEACHER: e["teacher"], **blocks[1]}
    rows = {name: judge_features(x, e["teacher"], questions) for name, x in features.items()}
    rows[FUSED] = judge_run(fused, questions)
    for name, run in compacts.items():
        if not np.array_equal(run.embeddings()["fused"], e["student"]):
            raise InputError(
                f"{run.folder}: was distilled from other embeddings than {fused.folder} holds; train again"
            )
        rows[name] = judge_run(run, questions)
    spatial = {name: run.spatial() for name, run in compacts.items() if run.config.spatial}
    if spatial:
        wanted = own_targets(fused, spatial=True).spatial
        assert wanted is not None  # as they were asked for
        for name, tokens in {**blocks[SIDE], FUSED: wanted, **spatial}.items():
            row, episodes = judge_places(tokens, questions, e["student"].shape[1])
            rows[name] = rows[name][0] | row, pd.concat([rows[name][1], episodes], ignore_index=True)
        for name in spatial:
            rows[name][0]["spatial R2"] = compacts[name].summary["held-out"]["spatial R2"]
    parts = [episodes.assign(model=name, seed=0) for name, (_, episodes) in rows.items() if len(episodes)]
    long = _long({name: row for name, (row, _) in rows.items()})
    return Judgement(long, pd.concat(parts, ignore_index=True) if parts else pd.DataFrame())


def judge_places(tokens: np.ndarray, questions: Questions, width: int) -> tuple[dict[str, float], pd.DataFrame]:
    """Probes of spatial tokens `[n, ...]`, flattened, as `width` principal components of the steps for fitting."""
    flat = tokens.reshape(len(tokens), -1)
    found, episodes = questions.ask(components(flat, width, ~questions.held_out))
    row = {f"R2 {PLACES}{k[3:]}" if k.startswith("R2 ") else f"{PLACES}{k}": v for k, v in found.items()}
    return row, episodes.assign(probe=PLACES + episodes["probe"]) if len(episodes) else episodes


def advantage_kept(ledger: Judgement, compact: str) -> pd.DataFrame:
    """(compact - best expert) / (fused - best expert) for every probe, with a 95 % interval over held-out episodes.

    "advantage": whether the fused student is better than the best expert: yes, no, or not told apart; kept is NaN
    unless it is. Errors in cm go by their R2, and have no interval of their own.

    Columns: measure, best expert, best, fused, compact, advantage, kept, low, high.
    """
    wide = ledger.long.pivot_table(index="measure", columns="hop", values="value", sort=False)
    experts, lines = expert_hops(ledger.long), []
    for measure in wide.index:
        if not (measure.startswith("R2 ") or " cm" in measure):
            continue
        best = ((-1 if " cm" in measure else 1) * wide.loc[measure, experts]).idxmax()
        values = wide.loc[measure, [best, FUSED, compact]]
        if np.isnan(values[compact]):
            continue  # it gives no spatial tokens
        there = ahead(ledger.episodes, measure, FUSED, best)
        kept = (values[compact] - values[best]) / (values[FUSED] - values[best]) if there == "yes" else np.nan
        known = there == "yes" and measure.startswith("R2 ")
        within = share(ledger.episodes, measure, compact, best, FUSED) if known else (np.nan, np.nan)
        lines.append((measure, best, *values, there, kept, *within))
    columns = ["measure", "best expert", "best", "fused", "compact", "advantage", "kept", "low", "high"]
    return pd.DataFrame(lines, columns=columns)


def compact_hops(table: pd.DataFrame) -> list[str]:
    """Names of the compact students of a ledger."""
    return [h for h in _with(table, "R@1") if h != FUSED]


def expert_hops(table: pd.DataFrame) -> list[str]:
    """Names of the experts of a ledger."""
    return [h for h in _with(table, "CKA") if h not in (TEACHER, FUSED, *compact_hops(table))]


def _with(table, measure):
    return table.loc[table["measure"] == measure, "hop"].tolist()


def in_words(ledger: Judgement) -> list[str]:
    """What a ledger says of each compact student, computed from its figures: what it keeps, and what it saves."""
    times = ledger.long[ledger.long["measure"] == COSTS[1]].set_index("hop")["value"]
    said = []
    for name in compact_hops(ledger.long):
        lines = advantage_kept(ledger, name)
        for row in lines[lines["measure"].isin(_TOLD)].itertuples():
            change = difference(ledger.episodes, row.measure, name, FUSED)
            line = f"{name}: {row.measure} {row.compact:.2f}, {figures(*change)} from the fused student"
            line += "" if told(*change[1:]) == APART else f", {told(*change[1:])}"
            said.append(f"{line}; {_kept_words(row)}")
        for hop in (name, f"{name}, ONNX"):
            if hop in times:
                faster = f", {times[FUSED] / times[hop]:.0f} times faster" if FUSED in times else ""
                said.append(f"{hop}: {times[hop]:.0f} CPU ms a frame{faster}")
    return [*said, "One training each: what another seed changes is not in these figures."]


def _kept_words(row) -> str:
    if row.advantage != "yes":
        told_of = "no" if row.advantage == "no" else "whether there is one is not told apart"
        return f"advantage of fusion over {row[2]} that could be kept: {told_of}"
    return f"keeps {row.kept:.0%} [{row.low:.0%}, {row.high:.0%}] of what fusion gained over {row[2]}"


def costs(
    runs: Mapping[str, Run | CompactRun], images: np.ndarray, repeats: int = 5, threads: int = 1,
    weights: Mapping[str, str | Path] | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Time, parameters and memory of every way from RGB to embedding, long: hop, measure, value.

    Times are of one frame at a time, in seconds of the processor, which other programs disturb little, taken in this
    process in turns; the median counts. Parameters and memory are those of a fresh process that does nothing else: all
    tensors that it learned or loaded, and how much its peak grew over that of a process with the libraries alone.
    A compact student with an ONNX file has a second line, "<name>, ONNX". `weights`: expert -> its official file or
    folder, for experts that do not bring their own; a run whose experts cannot be opened has no line, and that is told.
    Frames `images` `[n, H, W, 3]` uint8 are seen by every camera of a run.
    """
    before = torch.get_num_threads()
    given = {name: weights if isinstance(run, Run) else None for name, run in runs.items()}
    torch.set_num_threads(threads)
    try:
        ways: dict[str, Callable[[np.ndarray], np.ndarray]] = {}
        for name, run in runs.items():
            try:
                embedder = Embedder.from_run(run, "cpu", given[name])
            except InputError as e:
                if isinstance(run, CompactRun):
                    raise
                tell(f"{name}: no costs, as its experts cannot be opened here: {e}")
                continue
            ways[name] = partial(_embedded, embedder)
            if run.file(MODEL).exists():
                ways[f"{name}, ONNX"] = partial(at_once, ThroughOnnx(run.file(MODEL), threads))
        rows = {name: {COSTS[1]: ms} for name, ms in in_turns(ways, images, repeats).items()}
    finally:
        torch.set_num_threads(before)
    for name, run in runs.items():
        if name in rows:
            found = alone(run.folder, "torch", "cpu", given[name], [images[0]], 1, 1)
            rows[name] |= {COSTS[0]: found.parameters / 1e6, COSTS[2]: found.memory}
    return _long(rows)


def in_turns(ways: Mapping[str, Callable[[np.ndarray], object]], images: np.ndarray, repeats: int) -> dict[str, float]:
    """Median of the processor's milliseconds that each way takes for one frame `[1, H, W, 3]`, the ways in turns."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for n in range(repeats + 1):
        for name, way in ways.items():
            frame = images[n % len(images)][None]
            start = time.process_time()
            way(frame)
            times[name].append(time.process_time() - start)
    return {name: 1000 * float(np.median(seconds[1:])) for name, seconds in times.items()}


def at_once(live: ThroughOnnx, images: np.ndarray) -> np.ndarray:
    """Embeddings `[n, E]` of frames `[n, H, W, 3]`, each as a camera's newest."""
    return live([[image] for image in images])[0].numpy()


def _embedded(embedder: Embedder, images: np.ndarray) -> np.ndarray:
    return embedder(as_seen(embedder.live, images), [SOMEWHERE])


def _long(rows: dict[str, dict[str, float]]) -> pd.DataFrame:
    lines = [(hop, measure, value) for hop, row in rows.items() for measure, value in row.items()]
    return pd.DataFrame(lines, columns=["hop", "measure", "value"])
