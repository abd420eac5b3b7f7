"""A compact student's settings and its folder, which is a run's folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from safetensors.torch import save as save_tensors

from rgb2pc_lib.data.files.guarded import expect, read_npz
from rgb2pc_lib.data.files.weights import read_weights
from rgb2pc_lib.data.files.writing import write_atomic
from rgb2pc_lib.data.workspace import PROJECT
from rgb2pc_lib.deploy.backbones import BACKBONES, Compact
from rgb2pc_lib.deploy.hub import fetched, is_repository
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.learning.runs import ANEW, Run, RunFolder, is_compact
from rgb2pc_lib.learning.settings import Settings, option, shared


@dataclass(frozen=True)
class CompactConfig(Settings):
    """Every setting of a compact student's training. See `Config`.

    Raises InputError naming the setting when a value is out of range.

    >>> CompactConfig(run="runs/judge/weighted-seed0").backbone
    'resnet18'
    >>> CompactConfig(size=16)
    Traceback (most recent call last):
    rgb2pc_lib.errors.InputError: --size: expected at least 32, found 16
    """

    tool = "tools/train_compact.py"
    route = "distill"  # one embedding a frame, in the teacher's space; spatial tokens in the fused student's

    # what is distilled
    run: str = option("", "folder of the finished run to distil; its RGB frames and embeddings are used")
    more_rgb: tuple[str, ...] = option((), "folders of further frames <task>/<episode>/<step>.jpg, for training only")
    # network
    backbone: str = option("resnet18", "network, trained from its first layer on", BACKBONES)
    backbone_weights: str = option("", "folder written by transformers' save_pretrained to start from; none: at random")
    size: int = option(112, "height and width it sees, pixels", least=32)
    spatial: bool = option(True, "give spatial tokens, 4 x 4 places, beside the embedding", absent=False)
    # augmentation
    photometric: float = option(1.0, "strength of changes of brightness, contrast, colour, blur and noise", (), 0, 2)
    shift: float = option(0.01, "largest shift of the image, as a fraction of its side", least=0, most=0.1)
    # losses
    tau: float = shared("tau", 0.05)
    learn_tau: bool = shared("learn_tau", False)
    loss_mse: float = shared("loss_mse", 10.0)
    loss_relational: float = shared("loss_relational", 0.0)
    exclude_near: int = shared("exclude_near", 0)
    loss_spatial: float = option(1.0, "weight of the share of the spatial tokens' variance that is missed", least=0)
    # training
    steps: int = shared("steps", 400)
    batch_size: int = shared("batch_size", 64)
    lr: float = shared("lr", 1e-3)
    weight_decay: float = shared("weight_decay", 0.05)
    grad_clip: float = shared("grad_clip", 1.0)
    amp: str = shared("amp", "auto")
    seed: int = shared("seed", 0)
    device: str = shared("device", "auto")
    num_threads: int = shared("num_threads", 0)
    # the run's folder
    save_dir: str = option("", "folder of the compact student; none: runs/compact-<backbone>-seed<seed>")
    save_every: int = shared("save_every", 100)
    log_every: int = shared("log_every", 10)
    eval_every: int = shared("eval_every", 100)

    @property
    def folder(self) -> Path:
        """Where the compact student lies."""
        return PROJECT / (self.save_dir or f"runs/compact-{self.backbone}-seed{self.seed}")


class CompactRun(RunFolder):
    """A compact student's folder: the files of a run, with the settings and the weights of a small network.

    `embeddings()` holds the run's own steps: "student" (the compact one), "fused", "teacher", keys and held_out. Its
    `spatial()` are their spatial tokens.

    >>> compact = CompactRun.open(compact.folder)
    >>> compact.config.backbone, compact.summary["n_train"], compact.embeddings()["fused"].shape
    ('resnet18', 48, (72, 16))
    """

    is_compact = True

    @property
    def config(self) -> CompactConfig:
        """The settings it was trained with."""
        return CompactConfig.read(self.file("config.json"))

    def fused(self) -> Run:
        """The run that it was distilled from. Raises InputError where that is not here.

        >>> compact.fused().name
        'run'
        """
        if not (run := self.config.run):
            raise InputError(
                f"{self.folder}: was shared, without the run that it was distilled from, whose frames are needed; use "
                "the folder in which it was trained"
            )
        return Run.open(PROJECT / run)

    def compact(self) -> Compact:
        """The trained network in evaluation mode: frames `[B, S, S, 3]` (0 to 255, S its `size`) -> `[B, E]`.

        Its `look` gives the spatial tokens too. Raises InputError when the file is not one's.

        >>> compact.compact()(torch.zeros(2, 32, 32, 3)).shape
        torch.Size([2, 16])
        """
        path = self._finished_file("model.safetensors")
        about, tensors = read_weights(path, "compact", {"backbone": str, "size": int, "embed_dim": int}, ANEW)
        places = {k: expect(about.get(k, 0), int, path, k, ANEW) for k in ("places", "width")}  # of old ones: none
        build = partial(Compact, about["backbone"], about["size"], about["embed_dim"], seed=None, **places)
        return self.filled(build, tensors).eval()

    def spatial(self) -> np.ndarray:
        """Its spatial tokens of the run's own steps, row by row those of `embeddings`: `[n, P, D]` float32.

        Raises InputError where it gives none.

        >>> compact.spatial().shape
        (72, 16, 16)
        """
        if not self.config.spatial:
            raise InputError(f"{self.folder}: gives no spatial tokens; train one that does, without --no_spatial")
        return read_npz(self._finished_file("spatial.npz"), {"student": ("f", "nPD")}, ANEW)["student"]

    def save_compact(self, network: Compact, backbone: str) -> None:
        """Write what `compact` reads."""
        about = {"backbone": backbone, "size": network.size, "embed_dim": network.head.out_features}
        if network.spatial is not None:
            about |= {"places": network.places, "width": network.spatial.usual.shape[1]}
        tensors = {k: v.contiguous().cpu() for k, v in network.state_dict().items()}
        write_atomic(
            self.file("model.safetensors"),
            lambda p: p.write_bytes(save_tensors(tensors, {"compact": json.dumps(about)})),
        )


def open_run(
    folder: Run | CompactRun | str | Path, revision: str | None = None, cache: str | Path | None = None,
    offline: bool = False,
) -> Run | CompactRun:  # fmt: skip
    """The run in a folder, a CompactRun where it is one; where there is no such folder, here or in the project, and it
    is called `owner/name`, that of a model hub (`hub.fetched` tells the rest). Raises InputError when the folder holds
    none.
    """
    if isinstance(folder, Run | CompactRun):
        return folder
    folder = next((path for path in (Path(folder), PROJECT / folder) if path.exists()), folder)
    if is_repository(folder):
        folder = fetched(str(folder), revision, cache, offline)
    elif revision:
        raise InputError(f"{folder}: expected the name of a hub, owner/name, beside the revision {revision}, found a "
                         "name of this machine, which has none; leave the revision out")  # fmt: skip
    return (CompactRun if is_compact(folder) else Run)(Path(folder))
