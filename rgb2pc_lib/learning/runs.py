"""A run: one training, as a folder. Everything that shows or judges a run reads this folder.

config.json        every setting (the frozen dataclass `Config`, round trip)
metrics.jsonl      one line per logged step
summary.json       final figures on held-out samples
model.safetensors  weights and the teacher's mean
state.pt           what --resume needs (tensors and plain values only)
embeddings.npz     student and teacher embeddings, mean gates and keys of all samples
tensorboard/       the same curves for TensorBoard
"""

from __future__ import annotations

import dataclasses
import json
import math
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save as save_tensors

from rgb2pc_lib.data.files.exclusions import Exclusions
from rgb2pc_lib.data.files.guarded import (
    check_archive,
    expect,
    read_lines,
    read_npz,
    read_object,
)
from rgb2pc_lib.data.files.weights import Network, fill, read_weights
from rgb2pc_lib.data.files.writing import write_atomic
from rgb2pc_lib.data.packs import COPIES, LookAhead, load_torch, sees_single_frames
from rgb2pc_lib.data.pairing import FALLBACKS, UNITS, UNREADABLE
from rgb2pc_lib.data.step_points import KINDS
from rgb2pc_lib.data.teacher import POOLINGS as TEACHER_POOLINGS
from rgb2pc_lib.data.workspace import PROJECT, Workspace, camera_of, portable
from rgb2pc_lib.errors import InputError, tell
from rgb2pc_lib.learning.models import FUSIONS, POOLINGS, Student
from rgb2pc_lib.learning.point_models import PlaceStudent, PointHead
from rgb2pc_lib.learning.settings import SEEDS, Settings, option, shared

ROUTES = ("distill", "geometric")
ANCHORS = ("first", "middle", "last", "random")

ANEW = "restore it from a copy, or make it anew with --resume"
OVER = "delete it, and with --resume the training starts over"
_CURVE = "delete it; only the curve of what was trained so far is lost"
_OTHER_KIND = {  # whether a compact student was found -> what to do
    True: "expected a run of experts, found a compact student, which tools/embed.py, tools/export.py, "
    "tools/judge_compact.py and tools/share.py take; name the run that it was distilled from",
    False: "expected a compact student, found a run that needs its experts; distil it into one with "
    "tools/train_compact.py --run {folder}",
}
_EMBEDDINGS = {
    "student": ("f", "nE"), "teacher": ("f", "nT"), "task": ("U", "n"), "episode": ("U", "n"), "step": ("U", "n"),
    "time": ("iuf", "n"), "held_out": ("b", "n"), "validation?": ("b", "n"), "gates?": ("f", "nM"),
    "experts?": ("U", "M"), "fused?": ("f", "nF"),
}  # fmt: skip
_SIGHT: dict[str, Any] = {  # a `LookAhead` as it stands in the summary
    "mean": (int, float), "most": int, "told": bool, "window": int, "stride": int, "causal": bool,
}  # fmt: skip


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


def is_compact(folder: str | Path) -> bool:
    """Whether the run in a folder is a compact student, by its settings. Raises InputError when it holds no run.

    >>> is_compact(run.folder), is_compact(compact.folder)
    (False, True)
    """
    path = Path(folder) / "config.json"
    if not path.exists():
        raise InputError(f"{folder}: holds no run (no config.json); train one with tools/train_rgb2pc_distill.py")
    return "backbone" in read_object(path)


@dataclass(frozen=True)
class RunFolder:
    """What the folders of all trainings have in common, whatever is trained: a `Run`'s, and a compact student's."""

    folder: Path

    is_compact: ClassVar[bool] = False  # whether it is a compact student's

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """An existing run, finished or not. Raises InputError when the folder holds none, or one of the other kind.

        >>> Run.open(run.folder) == run
        True
        >>> Run.open(folder)
        Traceback (most recent call last):
        rgb2pc_lib.errors.InputError: ...: holds no run (no config.json); train one with tools/train_rgb2pc_distill.py
        """
        if (found := is_compact(folder)) != cls.is_compact:
            raise InputError(f"{folder}: {_OTHER_KIND[found].format(folder=folder)}")
        return cls(Path(folder))

    def file(self, name: str) -> Path:
        """The path of one of its files, there or not."""
        return self.folder / name

    @property
    def name(self) -> str:
        """Of the folder."""
        return self.folder.name

    @property
    def config(self) -> Settings:
        """The settings it was trained with."""
        raise NotImplementedError

    @property
    def finished(self) -> bool:
        """Whether its final figures are there."""
        return self.file("summary.json").exists()

    def holds(self, config: Settings) -> bool:
        """Whether this is a finished run with these settings, but for those that cannot change its numbers.

        >>> run.holds(run.config), run.holds(dataclasses.replace(run.config, lr=1.0))
        (True, False)
        """
        return self.finished and not self.config.changes(config)

    @property
    def summary(self) -> dict[str, Any]:
        """Final figures: n_train, n_held_out, "held-out" (measure -> value), gates (expert -> mean), data_hash; of
        several "cameras" the sum of their experts' gates.

        And what its data were: "excluded", "unreadable", "look_ahead" (expert -> see `LookAhead`), "licences" (of the
        experts' weights, "" where their packs do not say) and "teacher_frame", "world" or "camera", in which its
        teacher saw the clouds (None where that is not known).
        """
        path = self._finished_file("summary.json")
        found = read_object(path, ANEW)
        for key, kind in {"n_train": int, "n_held_out": int, "held-out": dict}.items():
            expect(found.get(key), kind, path, key, ANEW)
        expect(found.setdefault("teacher_frame", None), (str, type(None)), path, "teacher_frame", ANEW)
        for table in ("excluded", "unreadable", "licences"):
            for name, why in expect(found.setdefault(table, {}), dict, path, table, ANEW).items():
                expect(why, str, path, f"{table}: {name}", ANEW)
        for table in ("held-out", "gates", "cameras"):
            for name, value in expect(found.get(table, {}), dict, path, table, ANEW).items():
                expect(value, (int, float), path, f"{table}: {name}", ANEW)
        for name, sight in expect(found.setdefault("look_ahead", {}), dict, path, "look_ahead", ANEW).items():
            expect(sight, dict, path, f"look_ahead: {name}", ANEW)
            for key, kinds in _SIGHT.items():
                expect(sight.get(key), kinds, path, f"look_ahead: {name}: {key}", ANEW)
        return found

    def metrics(self) -> pd.DataFrame:
        """One row per logged step; a half-written last line, from a killed run, is left out.

        >>> run.metrics()["step"].tolist()
        [1, 10, 20]
        """
        return pd.DataFrame(read_metrics(self.file("metrics.jsonl")))

    def filled(self, build: Callable[[], Network], tensors: dict[str, torch.Tensor]) -> Network:
        """A network, built without weights, with those of this run. Raises InputError where they do not fit."""
        missing = type(self.config).missing(self.file("config.json"))
        told = ", ".join(f"{k} = {v!r}" for k, v in missing.items())
        told = told and f"config.json does not say all settings; those it leaves out are taken to be {told}"
        network = fill(build, tensors, self.file("model.safetensors"), "config.json describes", told, ANEW)
        if told:
            tell(f"{self.folder}: {told}")
        return network

    def embeddings(self, judged: str = "held_out") -> dict[str, np.ndarray]:
        """Student `[n, E]`, teacher `[n, E]`, mean gates `[n, M]`, and per sample task, episode, step, time, held_out.

        The student's lie in the space of the teacher's less its mean over the training samples. `experts` `[M]` names
        the gates. The samples are those of training and those that are judged, which "held_out" marks: the held-out
        ones (of the tables), or with `judged="validation"` those for choices. A run without such has none of them.

        >>> e = run.embeddings()
        >>> e["student"].shape, e["teacher"].shape, e["gates"].shape, e["held_out"].sum()
        ((72, 16), (72, 16), (72, 2), np.int64(24))
        >>> np.allclose(e["gates"].sum(1), 1)
        True
        """
        found = self.embeddings_of_all()
        sides = {"held_out": found.pop("held_out"), "validation": found.pop("validation")}
        here = sides.pop(judged)
        (other,) = sides.values()
        found = {"held_out": here} | found
        return {k: v if k == "experts" else v[~other] for k, v in found.items()}

    def embeddings_of_all(self) -> dict[str, np.ndarray]:
        """As `embeddings`, of all samples; "held_out" and "validation" mark theirs."""
        found = read_npz(self._finished_file("embeddings.npz"), _EMBEDDINGS, ANEW)
        return {"validation": np.zeros_like(found["held_out"])} | found

    def centred(self, embeddings: dict[str, np.ndarray]) -> np.ndarray:
        """The teacher `[n, E]` of `embeddings`, in the space in which the student lies."""
        teacher: np.ndarray = embeddings["teacher"]
        return teacher - teacher[~embeddings["held_out"]].mean(0) if self.config.centre else teacher

    def state(self) -> dict[str, Any]:
        """The resume state. Raises InputError when it is damaged or of another training."""
        path = self.file("state.pt")
        check_archive(path, OVER)
        state = load_torch(path, OVER)
        if not isinstance(state, dict) or not {"step", "student", "optimiser", "log_tau"} <= state.keys():
            raise InputError(f"{path}: not the checkpoint of a training; {OVER}")
        expect(state["step"], int, path, "step", OVER)
        return state

    def _finished_file(self, name: str) -> Path:
        if not self.file(name).exists():
            raise InputError(f"{self.file(name)}: not there yet; the run is unfinished, continue it with --resume")
        return self.file(name)


class Run(RunFolder):
    """A run's folder, read (and, while it is trained, written). It holds nothing but the folder's path.

    What is read raises InputError naming the file when the run is unfinished or the file is not a run's.

    >>> run.finished, run.config.fusion, run.summary["n_train"], run.summary["n_held_out"]
    (True, 'moe', 48, 24)
    >>> sorted(run.summary["held-out"])
    ['CKA', 'R@1', 'R@10', 'R@5', 'cosine', 'kNN overlap', 'median rank']
    """

    @property
    def config(self) -> Config:
        """The settings it was trained with."""
        return Config.read(self.file("config.json"))

    def student(self) -> tuple[Student, torch.Tensor]:
        """The trained student in evaluation mode, and the teacher's mean `[E]` over the training samples.

        Raises InputError for weights that are damaged, or that config.json does not describe.

        >>> student, mean = run.student()
        >>> student.experts, mean.shape
        (['dinov3', 'vggt'], torch.Size([16]))
        """
        path, config = self._finished_file("model.safetensors"), self.config
        about, tensors = read_weights(path, "student", {"channels": dict, "embed_dim": int}, ANEW)
        mean = tensors.pop("teacher_mean", None)
        if mean is None or mean.shape != (about["embed_dim"],):
            raise InputError(f"{path}: expected 'teacher_mean' [{about['embed_dim']}]; {ANEW}")
        student = self.filled(lambda: build_student(config, about["channels"], len(mean), blank=True), tensors)
        return student.eval(), mean

    def save_student(self, student: Student, channels: dict[str, int], teacher_mean: torch.Tensor) -> None:
        """Write what `student` reads."""
        about = json.dumps({"channels": channels, "embed_dim": len(teacher_mean)})
        tensors = {k: v.contiguous().cpu() for k, v in student.state_dict().items()}
        write_atomic(
            self.file("model.safetensors"),
            lambda p: p.write_bytes(save_tensors({**tensors, "teacher_mean": teacher_mean.cpu()}, {"student": about})),
        )


def left_out_words(summary: dict[str, Any]) -> str:
    """What a run's data lacked on purpose, in a sentence; nothing where that is nothing.

    >>> left_out_words({"excluded": {"push/ep_3": "", "push/ep_4/step_0007": ""}, "unreadable": {"push/ep_5": "cut"}})
    'Left out: 1 episode and 1 step by the exclusion list, 1 episode that cannot be read.'
    """
    kinds = [name.count("/") for name in summary["excluded"]]
    counts = [(kinds.count(1), "episode"), (kinds.count(2), "step")]
    listed = " and ".join(f"{n} {what}{'s' * (n > 1)}" for n, what in counts if n)
    bad = len(summary["unreadable"])
    parts = [f"{listed} by the exclusion list"] * bool(listed)
    parts += [f"{bad} episode{'s' * (bad > 1)} that cannot be read"] * bool(bad)
    return f"Left out: {', '.join(parts)}." if parts else ""


def sights(summary: dict[str, Any]) -> dict[str, LookAhead | None]:
    """Expert -> what its features saw of the frames after their own, of a run's summary.

    None where that is not known: in runs trained before it was recorded, of experts that are not known by name to see
    single frames.

    >>> sights({"gates": {"dinov3": 0.5, "vggt": 0.5}})
    {'dinov3': LookAhead(mean=0, most=0, told=True, window=1, stride=0, causal=False), 'vggt': None}
    """
    told = {name: LookAhead(**{k: s[k] for k in _SIGHT}) for name, s in summary.get("look_ahead", {}).items()}
    alone = LookAhead(0, 0, True, 1, 0, False)
    return {name: told.get(name, alone if sees_single_frames(name) else None) for name in summary.get("gates", told)}


def most_ahead(summary: dict[str, Any]) -> float:
    """The most frames after its own that an expert of a run saw: 0 is causal, NaN where that is not known."""
    seen = sights(summary).values()
    return math.nan if None in seen else max((sight.most for sight in seen if sight), default=0)


def look_ahead_words(summary: dict[str, Any]) -> str:
    """What a run saw of the future and no robot has, in a sentence; nothing where it saw nothing of it.

    >>> vggt = {"mean": 3.5, "most": 7, "told": True, "window": 8, "stride": 8, "causal": False}
    >>> look_ahead_words({"gates": {"vggt": 1.0}, "look_ahead": {"vggt": vggt}})
    'Trained with a view of the future: vggt sees 3.5 later frames on average, at most 7. A robot has none of them.'
    """
    seen = []
    for name, sight in sights(summary).items():
        if sight is None:
            seen.append(f"{name} may see later frames, which was not recorded")
        elif sight.most:
            sees = "sees" if sight.told else "is taken to see, as its packs do not say,"
            seen.append(f"{name} {sees} {sight.mean:.1f} later frames on average, at most {sight.most}")
    return f"Trained with a view of the future: {'; '.join(seen)}. A robot has none of them." if seen else ""


def window_words(config: Config) -> str:
    """What a run was fitted to, in a sentence, where its samples are windows of steps; nothing where they are steps.

    >>> window_words(Config(sample_unit="window", window=4))
    'Trained and judged on windows of 4 steps, pooled: its figures say nothing of single frames.'
    """
    if config.pooled_unit != "window":
        return ""
    return f"Trained and judged on windows of {config.window} steps, pooled: its figures say nothing of single frames."


def build_student(config: Config, channels: dict[str, int], embed_dim: int, blank: bool = False) -> Student:
    """The student that a config describes; a `blank` one takes no memory and waits for its weights."""
    settings: dict[str, Any] = dict(
        fusion=config.fusion, width=config.fuse_dim, moe_hidden=config.moe_hidden, top_k=config.moe_top_k,
        gate_noise=config.gate_noise, seed=None if blank else config.seed, pooling=config.pooling,
    )  # fmt: skip
    if not config.aligns:
        return Student(channels, embed_dim, **settings)
    inputs = 3 if config.point_target == "xyz" else embed_dim
    with torch.device("meta" if blank else "cpu"):
        head = PointHead(config.point_target, inputs, embed_dim, config.fuse_dim)
    return PlaceStudent(channels, embed_dim, head=head, knows_place=config.route == "distill", **settings)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Lines of a metrics file; a last one that is not whole is left out. Raises InputError for other damage."""
    if not path.exists():
        return []
    rows = read_lines(path, _CURVE)
    for number, row in enumerate(rows, 1):
        expect(row.get("step"), int, path, f"line {number}: step", _CURVE)
        for name, value in row.items():
            expect(value, (int, float), path, f"line {number}: {name}", _CURVE)
    return rows
