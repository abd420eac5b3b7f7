"""What each kind of ONNX file keeps of a compact student, and what it saves: one table, on held-out episodes."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch

from rgb2pc_lib.data.files.writing import write_atomic
from rgb2pc_lib.data.pictures import read_image
from rgb2pc_lib.deploy.compact import CompactRun
from rgb2pc_lib.deploy.embed import Embedder
from rgb2pc_lib.deploy.export import KINDS, ThroughOnnx, export_run
from rgb2pc_lib.deploy.frames import frame_cache
from rgb2pc_lib.deploy.targets import own_targets
from rgb2pc_lib.judging.evaluate import Questions, judge_embeddings
from rgb2pc_lib.judging.ledger import at_once, in_turns, judge_places
from rgb2pc_lib.judging.probes import PROBES

TORCH = "torch"
_BATCH = 32
_TOLD = [f"R2 {of}{probe}" for of in ("", "places: ") for probe in PROBES]
_ROWS = ["MB", "CPU ms a frame", "relative", "cosine", "spatial cosine", "R@1", "R@5", "R@10", *_TOLD]


def judge_exports(run: CompactRun, opset: int = 20, repeats: int = 9, threads: int = 1) -> pd.DataFrame:
    """Export every kind of file (see `export_run`) and judge each like the network itself. Left in `exports.csv`.

    Columns: torch and the kinds. Rows: size, the processor's time for one frame of one camera, how far the outputs are
    from the network's on held-out frames (see `parity`), retrieval of the step's own cloud, and probes of the embedding
    and of the spatial tokens, where there are any. Probes are fitted for each way anew.

    Raises InputError as `export_run` does.
    """
    told = export_run(run, tuple(KINDS), opset)
    fused = run.fused()
    e, data, network = run.embeddings(), own_targets(fused), run.compact()
    questions = Questions.of(fused, fused.config.workspace.state)
    pixels, images = frame_cache(data.files, network.size), np.stack([read_image(file) for file in data.files[:4]])
    live = {kind: ThroughOnnx(run.file(name), threads) for kind, name in KINDS.items()}
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ways: dict[str, Any] = {TORCH: Embedder.from_run(run, "cpu")}
        ways |= {kind: partial(at_once, one) for kind, one in live.items()}
        times = in_turns(ways, images, repeats)
    finally:
        torch.set_num_threads(before)
    looks = {TORCH: (e["student"], run.spatial() if run.config.spatial else None)}
    looks |= {kind: _looks(one, pixels) for kind, one in live.items()}
    rows: dict[str, dict[str, float]] = {TORCH: {"MB": run.file("model.safetensors").stat().st_size / 1e6}}
    rows |= {kind: _parity(told if kind == "fp32" else told["lighter"][kind]) for kind in KINDS}
    for way, (embedding, spatial) in looks.items():
        found, _ = judge_embeddings(embedding, run.centred(e), questions)
        if spatial is not None:
            found |= judge_places(spatial, questions, embedding.shape[1])[0]
        rows[way] |= {"CPU ms a frame": times[way]} | found
    table = pd.DataFrame(rows)
    table = table.loc[[row for row in _ROWS if row in table.index]]
    write_atomic(run.file("exports.csv"), lambda p: table.to_csv(p))
    return table


def lost(table: pd.DataFrame) -> pd.DataFrame:
    """What each file misses of the network's retrieval and probes; below 0 where it finds more.

    >>> lost(pd.DataFrame({"torch": [0.5, 46.0], "int8": [0.4, 12.0]}, index=["R@1", "MB"])).round(2)
         int8
    R@1   0.1
    """
    quality = table.loc[[row for row in table.index if row.startswith(("R@", "R2 "))]]
    return -quality.drop(columns=TORCH).sub(quality[TORCH], axis=0)


def _parity(told: dict[str, Any]) -> dict[str, float]:
    kept = {k: told[k] for k in ("relative", "cosine", "spatial cosine") if k in told}
    return kept | {"MB": told["bytes"] / 1e6}


def _looks(live: ThroughOnnx, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Embeddings and spatial tokens of frames `[n, S, S, 3]` that have the network's size."""
    parts = [live([[image] for image in pixels[i : i + _BATCH]]) for i in range(0, len(pixels), _BATCH)]
    embedding, spatial = zip(*parts, strict=True)
    return torch.cat(embedding).numpy(), None if spatial[0] is None else torch.cat(spatial).numpy()
