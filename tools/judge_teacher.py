"""Is a teacher good at geometry? Linear probes on episodes it was not fitted on, rivals and ways of pooling beside it.

    python tools/judge_teacher.py --workspace data/proof.toml --judged validation
    python tools/judge_teacher.py --workspace data/proof.toml --weights supervised=upper_bound.safetensors

Probes are fitted on the workspace's training episodes; R2 is within task. Every encoder sees clouds in its own frame.
Needs clouds and state, no features.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from rgb2pc_lib import InputError, Workspace
from rgb2pc_lib.data.listing import step_name
from rgb2pc_lib.data.pairing import split
from rgb2pc_lib.data.teacher import POOLINGS, pooled
from rgb2pc_lib.data.workspace import SAMPLE
from rgb2pc_lib.encoders.clouds.extract_clouds import in_frame, list_clouds, read_cloud, turn
from rgb2pc_lib.encoders.clouds.points import WEIGHTS, PointEncoder, load_point_encoder
from rgb2pc_lib.judging.evaluate import Questions
from rgb2pc_lib.learning.config import Config


def parse(argv=None) -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--workspace", type=Path, default=SAMPLE, help="names clouds and state (default: the sample)")
    p.add_argument("--weights", nargs="+", default=[], type=_named, metavar="NAME=FILE",
                   help="point encoders of tools/train_teacher.py, beside the shipped one")  # fmt: skip
    p.add_argument("--frame", choices=["world", "camera"], default="world",
                   help="in which positions are asked for (default: %(default)s)")  # fmt: skip
    p.add_argument("--pooling", nargs="+", choices=POOLINGS, default=["mean"], help="of point features (default: mean)")
    p.add_argument("--judged", choices=["validation", "held_out"], default="held_out",
                   help="which episodes are scored: for choices, or for tables (default: %(default)s)")  # fmt: skip
    p.add_argument("--out", type=Path, help="a CSV of the table")
    p.add_argument("--num_threads", type=int, default=1, help="processor threads (default: %(default)s)")
    return p.parse_args(argv)


def _named(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise argparse.ArgumentTypeError(f"expected NAME=FILE, found {text}")
    return name, Path(path)


def spread(z: np.ndarray) -> dict[str, float]:
    """Effective rank (Roy and Vetterli 2007) and mean cosine of two different embeddings, before and after centring."""
    share = np.linalg.svd(z - z.mean(0), compute_uv=False) ** 2
    share = share[share > 0] / share.sum()
    out = {"effective rank": np.exp(-(share * np.log(share)).sum())}
    for name, v in (("cosine", z), ("cosine, centred", z - z.mean(0))):
        unit = v / np.linalg.norm(v, axis=1, keepdims=True)
        out[name] = (np.square(unit.sum(0)).sum() - len(z)) / (len(z) * (len(z) - 1))
    return out


@torch.inference_mode()
def main(argv=None) -> None:
    args = parse(argv)
    torch.set_num_threads(args.num_threads)
    workspace = Workspace.load(args.workspace)
    episodes = list_clouds(workspace.root("clouds"))
    steps = [(*key, path) for key, paths in episodes.items() for path in paths]
    keys = pd.DataFrame([(t, e, step_name(path.name)) for t, e, path in steps], columns=["task", "episode", "step"])
    config = Config()
    _, validation, held_out = split(keys, config.split_by, config.held_out, config.split_seed, config.validation)
    judged, other = (validation, held_out) if args.judged == "validation" else (held_out, validation)
    kept = np.setdiff1d(np.arange(len(keys)), other)
    state = workspace.root("state")
    questions = Questions.about(keys.loc[kept].reset_index(drop=True), np.isin(kept, judged), state, args.frame)
    named = {"untrained": None, "shipped": WEIGHTS, **dict(args.weights)}
    encoders = {name: load_point_encoder(path) if path else PointEncoder() for name, path in named.items()}
    z: dict[str, list[np.ndarray]] = {f"{name}, {how}": [] for name in encoders for how in args.pooling}
    for n in tqdm(kept, unit="cloud"):
        path = steps[n][2]
        cloud = read_cloud(path)[0]
        for name, encoder in encoders.items():
            seen = in_frame(cloud, turn(path, encoder.config.frame, state))
            features = encoder(torch.from_numpy(seen)[None])[0].numpy()
            for how in args.pooling:
                z[f"{name}, {how}"].append(pooled(features, how))
    rows = {}
    for name, embeddings in z.items():
        x = np.stack(embeddings)
        rows[name] = questions.ask(x)[0] | spread(x) | {"width": x.shape[1]}
    table = pd.DataFrame(rows)
    if args.out:
        table.to_csv(args.out)
    print(f"{len(judged)} steps of {args.judged} episodes, probes fitted on {len(kept) - len(judged)} others:\n")
    print(table.round(3).to_string())


if __name__ == "__main__":
    try:
        main()
    except (InputError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(2)
