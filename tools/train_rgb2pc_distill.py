"""Train a student that gives point-cloud-quality embeddings from RGB features alone.

Without flags it trains on the bundled sample (run `make features` once before). Settings come from
--config FILE (YAML, the same names) and from flags; flags win. On one's own data:

    python tools/train_rgb2pc_distill.py --workspace data/mine.toml --fusion moe --save_dir runs/first
    python tools/train_rgb2pc_distill.py --pc_root PC --vis_roots vggt=A dinov3=B --tasks door-open

On several GPUs, with the same settings and the same numbers (--batch_size is that of all of them together):

    torchrun --nproc_per_node=4 tools/train_rgb2pc_distill.py --workspace data/mine.toml
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import typing

from jsonargparse import ArgumentError, ArgumentParser, Namespace
from tqdm import tqdm

from rgb2pc_lib import Config, InputError, Run, Workspace, train
from rgb2pc_lib.command_line import add_flag
from rgb2pc_lib.data.files.exclusions import Exclusions
from rgb2pc_lib.data.workspace import SAMPLE, parse_expert_root, portable
from rgb2pc_lib.learning import ranks
from rgb2pc_lib.learning.runs import left_out_words

ROOTS = ("pc_root", "vis_roots", "rgb_root", "camera_roots", "state_root", "cloud_root", "teacher_tag")


def parser() -> ArgumentParser:
    """One flag per field of Config, with its help, default and choices."""
    p = ArgumentParser(description=__doc__.split("\n\n")[0], prog="train_rgb2pc_distill.py", exit_on_error=False)
    p.add_argument("--config", action="config", help="YAML file with any of these settings")
    p.add_argument("--workspace", type=str, help=f"TOML file that names all roots at once (default: {SAMPLE.name})")
    p.add_argument("--resume", action="store_true", help="continue the run in --save_dir from its last checkpoint")
    types = typing.get_type_hints(Config)
    for f in dataclasses.fields(Config):
        text, default = f.metadata["help"], None if f.name in ROOTS else f.default
        if f.name == "vis_roots":
            p.add_argument("--vis_roots", nargs="+", metavar="NAME=FOLDER", help=f"{text}; a bare features_NAME too")
        elif f.name == "camera_roots":
            p.add_argument("--camera_roots", nargs="+", metavar="CAMERA=FOLDER", help=text)
        elif f.name == "tasks":
            p.add_argument("--tasks", nargs="+", default=[], metavar="TASK", help=text)
        elif f.name == "train_only":
            p.add_argument("--train_only", nargs="+", default=[], metavar="PATTERN", help=text)
        elif f.name == "exclude":
            p.add_argument("--exclude", nargs="+", metavar="FILE", help=f"{text}; instead of the workspace's")
        elif f.name == "loss_mse":
            p.add_argument("--loss_mse", nargs="?", const=1.0, default=default, type=float, metavar="WEIGHT",
                           help=f"{text}; the bare flag means 1")  # fmt: skip
        else:
            add_flag(p, f, types[f.name], default)
    return p


def read_config(arguments: Namespace) -> Config:
    """Defaults, then the workspace, then single roots."""
    given = {k: v for k, v in arguments.as_dict().items() if v is not None}
    for name in ("config", "resume"):
        given.pop(name, None)
    named = {k: given.pop(k) for k in ROOTS if k in given}
    exclude = given.pop("exclude", None)
    if isinstance(named.get("vis_roots"), list):
        pairs = [parse_expert_root(text) for text in named["vis_roots"]]
        if len({name for name, _ in pairs}) < len(pairs):
            raise InputError(f"--vis_roots names an expert twice: {', '.join(named['vis_roots'])}; write NAME=FOLDER")
        named["vis_roots"] = {name: portable(path) for name, path in pairs}
    if isinstance(named.get("camera_roots"), list):
        given_as = [text.partition("=") for text in named["camera_roots"]]
        if bad := [text for text, (camera, _, folder) in zip(named["camera_roots"], given_as, strict=True)
                   if not (camera and folder)]:  # fmt: skip
            raise InputError(f"--camera_roots: expected CAMERA=FOLDER, found {bad[0]}")
        named["camera_roots"] = {camera: portable(folder) for camera, _, folder in given_as}
    for name in ("pc_root", "rgb_root", "state_root", "cloud_root"):
        if name in named:
            named[name] = portable(named[name])
    workspace = given.pop("workspace", None)
    given["save_dir"] = portable(given.get("save_dir"))
    config = Config(**{**given, **{name: tuple(given.pop(name, ())) for name in ("tasks", "train_only")}})
    if workspace or not named:
        config = config.with_workspace(Workspace.load(workspace or SAMPLE))
    if exclude is not None:
        named["exclude"] = Exclusions.of(exclude).lines
    return dataclasses.replace(config, **named)


def parse(argv: list[str] | None) -> tuple[Config, bool]:
    """The settings, and whether to resume."""
    try:
        arguments = parser().parse_args(argv)
    except ArgumentError as e:
        raise InputError(str(e)) from None
    return read_config(arguments), arguments.resume


def main(argv: list[str] | None = None) -> int:
    speaks, bar = ranks.rank() == 0, None
    try:
        with ranks.agreed():
            config, resume = parse(argv)
        loop = train(config, resume)
        stop = []
        signal.signal(signal.SIGINT, lambda *_: stop.append(1))
        for progress in loop:
            if bar is None:  # not before the input has proved good
                bar = tqdm(total=config.steps, unit="step", desc=config.folder.name, disable=not speaks)
            bar.update(progress.step - bar.n)
            figures = {"loss": f"{progress.loss:.3f}", **{k: f"{v:.2f}" for k, v in progress.gates.items()}}
            bar.set_postfix(dict(sorted(figures.items())))
            if progress.curve and speaks:
                shown = "  ".join(f"{k} {v:.3g}" for k, v in progress.curve.items())
                bar.write(f"step {progress.step}: {shown}")
            if ranks.any_of(bool(stop)):
                loop.close()
                bar.close()
                if speaks:
                    print(f"stopped at step {progress.step}; continue with the same command and --resume")
                ranks.wait()  # torchrun ends all as soon as one ends
                return 130
        if bar is not None:
            bar.close()
    except InputError as e:
        if bar is not None:
            bar.close()
        if speaks:
            print("train_rgb2pc_distill:", " ".join(str(e).split()), file=sys.stderr, flush=True)
        ranks.wait()
        return 2
    if not speaks:
        return 0
    summary = Run(config.folder).summary
    here = os.path.relpath(config.folder)
    print(f"{here}: {summary['n_train']} training and {summary['n_held_out']} held-out samples")
    print(left_out_words(summary), end="\n" * bool(left_out_words(summary)))
    print("held-out  " + "  ".join(f"{k} {v:.3f}" for k, v in summary["held-out"].items()))
    for title in ("gates", "cameras"):
        if title in summary:
            print(f"{title:<10}" + "  ".join(f"{k} {v:.3f}" for k, v in summary[title].items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
