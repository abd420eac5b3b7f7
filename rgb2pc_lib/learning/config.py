"""Every setting of a training, in one frozen dataclass."""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rgb2pc_lib.data.files.exclusions import Exclusions
from rgb2pc_lib.data.packs import COPIES
from rgb2pc_lib.data.pairing import FALLBACKS, UNITS, UNREADABLE
from rgb2pc_lib.data.step_points import KINDS
from rgb2pc_lib.data.teacher import POOLINGS as TEACHER_POOLINGS
from rgb2pc_lib.data.workspace import PROJECT, Workspace, camera_of, portable
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.learning.models import FUSIONS, POOLINGS
from rgb2pc_lib.learning.settings import SEEDS, Settings, option, shared

ROUTES = ("distill", "geometric")
ANCHORS = ("first", "middle", "last", "random")


@dataclass(frozen=True)
class Config(Settings):
    """Every setting of a training. The command line, the notebooks and the widgets all make this object.

    Relative folders count from the project's folder, so that a run means the same wherever it is opened.

    Raises InputError naming the setting when a value is out of range.

    >>> Config(fusion="moe").batch_size
    64
    >>> Config(fusion="mean")
    Traceback (most recent call last):
    rgb2pc_lib.errors.InputError: --fusion: expected one of weighted, moe, uniform, found 'mean'
    """

    route: str = option("distill", "one embedding a step, or one a place, aligned with the cloud's points", ROUTES)
    # data
    pc_root: str = option("", "folder of teacher features: <task>/<episode>/step_0042.ply.ulip_<tag>.pt")
    vis_roots: dict[str, str] = option({}, "expert packs, NAME=FOLDER, several allowed")
    rgb_root: str = option("", "folder of RGB frames (places grids that crop; shown in notebooks)")
    camera_roots: dict[str, str] = option({}, "frames by camera, where experts are of several; the first is --rgb_root")
    state_root: str = option("", "folder of state files: what probes ask; training does not read it")
    cloud_root: str = option("", "folder of PLY clouds (shown in notebooks)")
    teacher_tag: str = option("", "which ulip_<tag> to use where a step has several")
    tasks: tuple[str, ...] = option((), "tasks to use; none named: all")
    exclude: tuple[str, ...] = option((), "left out on purpose: an exclusion list, FILE.toml, or TASK/EPISODE[/STEP]")
    unreadable: str = option("refuse", "what settles an episode of which a file cannot be read", UNREADABLE)
    # pairing
    strict_pairing: bool = option(True, "teacher and student see the same step, by name; otherwise any of the episode")
    pairing_fallback: str = option("skip", "what settles a step that a source lacks", FALLBACKS)
    sample_unit: str = option("step", "a sample is one step, or a window of steps pooled", UNITS)
    window: int = option(8, "length of a window, steps", least=1)
    shuffle_pairs: bool = option(False, "the control: every sample gets the teacher of another one")
    split_by: str = option("episode", "what is held out", ("episode", "task"))
    held_out: float = option(0.25, "share that is held out, of every task's episodes or of the tasks", least=0, most=1)
    validation: float = option(
        0.125, "share for validation: curves and choices, never trained on", least=0, most=0.5, absent=0.0
    )
    split_seed: int = option(
        0, "seed of the split, kept apart so that runs of all seeds are judged alike", (), 0, SEEDS
    )
    train_only: tuple[str, ...] = option((), "episodes that are for training alone, TASK/EPISODE or */PATTERN*")
    train_episodes: int = option(0, "training episodes a task, drawn at random; 0: all that are left", least=0)
    # sampling
    batch_size: int = shared("batch_size", 64)
    student_tokens: int = option(64, "positions per sample, shared by all experts; at the grid's size: all", least=1)
    teacher_points: int = option(0, "random points averaged per step as augmentation; 0: all, from a table", least=0)
    teacher_pooling: str = option("mean", "how a step's point features become one vector", TEACHER_POOLINGS)
    centre: bool = option(True, "take the teacher's mean over the training samples away")
    frame_copy: str = option("middle", "which of a frame's copies in overlapping windows", COPIES)
    expert_drop: float = option(
        0.3, "chance to leave an expert out of a sample, in the first 70 % of the steps", least=0, most=0.9
    )
    # student
    fusion: str = option("weighted", "one learned weight per expert, a gate per place (moe), or all equal", FUSIONS)
    fuse_dim: int = option(256, "width D of adapters and fusion", least=1)
    pooling: str = option("mean", "how places become one vector: mean, blocks of the image, or attention", POOLINGS)
    moe_hidden: int = option(128, "width of the gate network", least=1)
    moe_top_k: int = option(0, "experts a place may use; 0: all", least=0)
    gate_noise: float = option(0.0, "noise on the gate's logits while training, standard deviation", least=0)
    load_balance: float = option(0.0, "weight of the term that spreads the gates over experts", least=0)
    # losses
    tau: float = shared("tau", 0.05)
    learn_tau: bool = shared("learn_tau", False)
    loss_mse: float = shared("loss_mse", 0.0)
    loss_relational: float = shared("loss_relational", 0.0)
    exclude_near: int = shared("exclude_near", 0)
    # alignment with points (route geometric, or beside distillation)
    loss_geometric: float = option(0.0, "weight of point-to-patch InfoNCE beside distillation", least=0)
    loss_consistency: float = option(
        0.0, "weight of the distance of a point's embeddings in two steps (route geometric)", least=0
    )
    point_target: str = option("teacher", "what is known of a point: the teacher's feature, or its xyz", KINDS)
    anchor: str = option("middle", "the frame of a window that is used (route geometric, windows)", ANCHORS)
    # training
    steps: int = shared("steps", 400)
    lr: float = shared("lr", 3e-3)
    weight_decay: float = shared("weight_decay", 0.05)
    grad_clip: float = shared("grad_clip", 1.0)
    amp: str = shared("amp", "auto")
    seed: int = shared("seed", 0)
    device: str = shared("device", "auto")
    micro_batch: int = option(
        0, "samples read and forwarded at once, to save memory; 0: all. The loss is that of the whole batch", least=0
    )
    num_threads: int = shared("num_threads", 0)
    # the run's folder
    save_dir: str = option("", "folder of the run; none: runs/<fusion>-seed<seed>")
    save_every: int = shared("save_every", 200)
    log_every: int = shared("log_every", 10)
    eval_every: int = shared("eval_every", 100)

    def refuse(self) -> None:
        super().refuse()
        if files := [entry for entry in self.exclude if entry.endswith(".toml")]:
            raise InputError(f"--exclude {files[0]}: a run records the entries of a list, not its name; read it first")
        Exclusions.of(self.exclude)
        if not 0 < self.held_out < 1:
            raise InputError(f"--held_out {self.held_out:g}: that leaves nothing on one side; 0.25 is usual")
        if self.fuse_dim < 3:
            raise InputError(f"--fuse_dim {self.fuse_dim}: normalising so few values leaves nothing of them; take more")
        if self.fusion == "moe" and self.moe_top_k == 1:
            raise InputError(
                "--moe_top_k 1: the one expert of a place has the weight 1 whatever the gate says, so the gate never "
                "learns; use 0 (all experts), 2 or more"
            )
        clouds_from = next(iter(self.camera_roots), "")
        if self.aligns and (others := [name for name in self.vis_roots if camera_of(name) != clouds_from]):
            raise InputError(
                f"points are aligned with places of the camera that saw them, '{clouds_from}'; leave out the experts "
                f"of others: {', '.join(others)}"
            )
        if self.aligns and not self.strict_pairing:
            raise InputError("--no_strict_pairing: points and places of the same step are aligned; leave it out")
        if self.loss_geometric and self.route == "distill" and self.sample_unit == "window":
            raise InputError("--loss_geometric: points belong to one step; use --sample_unit step")
        if self.aligns and self.teacher_pooling != "mean" and self.point_target == "teacher":
            raise InputError(
                f"--teacher_pooling {self.teacher_pooling}: points are aligned by features of their own, as wide as "
                "their mean; leave it out"
            )
        if self.loss_consistency and self.route == "distill":
            raise InputError("--loss_consistency: expected --route geometric, which can draw two steps of an episode")
        if self.loss_consistency and self.student_tokens < 2:
            raise InputError("--student_tokens 1: half of them are pairs for --loss_consistency; use 2 or more")

    def with_settings(self, texts: list[str]) -> Config:
        """The same settings but for some, each a text `name=value`. Raises InputError for what is no setting.

        >>> Config().with_settings(["pooling=attention", "lr=0.01"]).lr
        0.01
        """
        kinds = typing.get_type_hints(Config)
        found: dict[str, Any] = {}
        for text in texts:
            name, equals, value = text.partition("=")
            if not equals or kinds.get(name) not in (str, int, float):
                known = ", ".join(sorted(k for k, kind in kinds.items() if kind in (str, int, float)))
                raise InputError(f"setting {text!r}: expected NAME=VALUE with one of {known}")
            try:
                found[name] = kinds[name](value)
            except ValueError:
                raise InputError(f"setting {text!r}: expected {kinds[name].__name__}, found {value!r}") from None
        return dataclasses.replace(self, **found)

    @property
    def aligns(self) -> bool:
        """Whether places are aligned with points, alone or beside distillation."""
        return self.route == "geometric" or self.loss_geometric > 0

    @property
    def pooled_unit(self) -> str:
        """What one sample pools: of a window that is aligned, one frame is used."""
        return "step" if self.route == "geometric" else self.sample_unit

    @property
    def folder(self) -> Path:
        """Where the run lies."""
        return PROJECT / (self.save_dir or f"runs/{self.fusion}-seed{self.seed}")

    @property
    def workspace(self) -> Workspace:
        """The data that the settings name."""
        named = (self.pc_root, self.rgb_root, self.state_root, self.cloud_root)
        teacher, rgb, state, clouds = (PROJECT / root if root else None for root in named)
        return Workspace(
            teacher=teacher,
            rgb=rgb,
            state=state,
            clouds=clouds,
            experts={k: PROJECT / v for k, v in self.vis_roots.items()},
            cameras={k: PROJECT / v for k, v in self.camera_roots.items()},
            teacher_tag=self.teacher_tag or None,
            exclude=Exclusions.of(self.exclude),
        )

    def changes(self, other: Settings) -> dict[str, tuple[Any, Any]]:
        """Settings that differ, name -> (here, there), without those that cannot change a run's numbers, nor do the
        reasons and the order on an exclusion list.

        >>> Config(exclude=("push/ep_3 # moved",)).changes(Config(exclude=("push/ep_3",), lr=0.1))
        {'lr': (0.003, 0.1)}
        """
        found = super().changes(other)
        if "exclude" in found and len({Exclusions.of(entries).effect for entries in found["exclude"]}) == 1:
            del found["exclude"]  # reasons and order change nothing
        return found

    def with_workspace(self, workspace: Workspace) -> Config:
        """The same settings on other data.

        >>> config = Config(fusion="moe").with_workspace(workspace)
        >>> list(config.vis_roots), config.workspace.teacher == workspace.teacher
        (['dinov3', 'vggt'], True)
        """
        return dataclasses.replace(
            self,
            pc_root=portable(workspace.teacher),
            rgb_root=portable(workspace.rgb),
            camera_roots={k: portable(v) for k, v in workspace.cameras.items()},
            state_root=portable(workspace.state),
            cloud_root=portable(workspace.clouds),
            vis_roots={k: portable(v) for k, v in workspace.experts.items()},
            teacher_tag=workspace.teacher_tag or "",
            exclude=workspace.exclude.lines,
        )
