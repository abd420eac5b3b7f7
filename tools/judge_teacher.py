"""Is the teacher good at geometry? Linear probes on held-out episodes, an untrained encoder beside it.

    python tools/judge_teacher.py --workspace data/sample.toml

Four folds over episodes; R2 is within task, positions are in the camera frame. Needs clouds and state, no features.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.model_selection import GroupKFold
from tqdm import tqdm

from rgb2pc_lib import InputError, Workspace
from rgb2pc_lib.data.files.guarded import read_npz
from rgb2pc_lib.data.listing import step_name
from rgb2pc_lib.data.workspace import SAMPLE
from rgb2pc_lib.encoders.clouds.extract_clouds import list_clouds, read_cloud
from rgb2pc_lib.encoders.clouds.points import PointEncoder, load_point_encoder
from rgb2pc_lib.judging.probes import load_targets, probe


def parse(argv=None) -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--workspace", type=Path, default=SAMPLE, help="names clouds and state (default: the sample)")
    p.add_argument("--clouds", type=Path, help="clouds, instead of the workspace's")
    p.add_argument("--state", type=Path, help="state, instead of the workspace's")
    p.add_argument("--weights", type=Path, help="point encoder (default: data/teacher/pointnet.safetensors)")
    p.add_argument(
        "--only",
        choices=["all", "fixed", "random"],
        default="all",
        help="episodes with the fixed camera, with a random one, or all (default: %(default)s)",
    )
    p.add_argument("--num_threads", type=int, default=1, help="processor threads (default: %(default)s)")
    return p.parse_args(argv)


def spread(z: np.ndarray) -> dict[str, float]:
    """Effective rank (Roy and Vetterli 2007) and mean cosine of two different embeddings, before and after centring."""
    share = np.linalg.svd(z - z.mean(0), compute_uv=False) ** 2
    share = share[share > 0] / share.sum()
    out = {"effective rank": np.exp(-(share * np.log(share)).sum())}
    for name, v in (("cosine", z), ("cosine, centred", z - z.mean(0))):
        unit = v / np.linalg.norm(v, axis=1, keepdims=True)
        out[name] = (np.square(unit.sum(0)).sum() - len(z)) / (len(z) * (len(z) - 1))
    return out


def randomised(path: Path) -> bool:
    return bool(read_npz(path, {"randomised": ("b", "")})["randomised"])


@torch.inference_mode()
def main(argv=None) -> None:
    args = parse(argv)
    torch.set_num_threads(args.num_threads)
    workspace = Workspace.load(args.workspace)
    state = args.state or workspace.root("state")
    paths = [
        (task, episode, path)
        for (task, episode), steps in list_clouds(args.clouds or workspace.root("clouds")).items()
        if args.only == "all" or randomised(state / task / f"{episode}.npz") == (args.only == "random")
        for path in steps
    ]
    keys = pd.DataFrame([(t, e, step_name(path.name)) for t, e, path in paths], columns=["task", "episode", "step"])
    targets = load_targets(state, keys)
    encoders = {"trained": load_point_encoder(args.weights), "untrained": PointEncoder()}
    z: dict[str, list[np.ndarray]] = {name: [] for name in encoders}
    for _, _, path in tqdm(paths, unit="cloud"):
        points = torch.from_numpy(read_cloud(path)[0])[None]
        for name, encoder in encoders.items():
            z[name].append(encoder.embed(points)[0].numpy())
    rows = {}
    for name, rows_of in z.items():
        embeddings = np.stack(rows_of)
        folds = []
        for _, test in GroupKFold(4).split(embeddings, groups=keys["task"] + keys["episode"]):
            held_out = np.isin(np.arange(len(keys)), test)
            folds.append(probe(embeddings, targets, keys, held_out))
        rows[name] = pd.DataFrame(folds).mean().to_dict() | spread(embeddings)
    print(pd.DataFrame(rows).round(2).to_string())


if __name__ == "__main__":
    try:
        main()
    except (InputError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(2)
