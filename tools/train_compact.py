"""Distil a finished run into one small network that sees nothing but RGB frames, and export it to ONNX.

    python tools/train_compact.py --run runs/judge/weighted-seed0 --more_rgb data/cache/compact_frames/rgb

Every setting has its flag; --resume continues a killed training to the same numbers.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import typing

from jsonargparse import ActionYesNo, ArgumentError, ArgumentParser
from tqdm import tqdm

from rgb2pc_lib import CompactConfig, CompactRun, InputError, export_run, train_compact
from rgb2pc_lib.command_line import add_flag, named
from rgb2pc_lib.data.workspace import portable
from rgb2pc_lib.encoders.images import EXPERTS

FOLDERS = ("run", "backbone_weights", "save_dir")


def parser() -> ArgumentParser:
    """One flag per field of CompactConfig, with its help, default and choices."""
    p = ArgumentParser(description=__doc__.split("\n\n")[0], prog="train_compact.py", exit_on_error=False)
    p.add_argument("--config", action="config", help="YAML file with any of these settings")
    p.add_argument("--resume", action="store_true", help="continue the training in --save_dir from its last checkpoint")
    p.add_argument("--onnx", action=ActionYesNo(no_prefix="no_"), default=True, help="export to ONNX at the end")
    p.add_argument("--weights", nargs="+", default=[], metavar="NAME=PATH",
                   help="official weights of experts that do not bring their own, for --more_rgb")  # fmt: skip
    types = typing.get_type_hints(CompactConfig)
    for f in dataclasses.fields(CompactConfig):
        text, default = f.metadata["help"], f.default
        if f.name == "more_rgb":
            p.add_argument("--more_rgb", nargs="+", default=[], metavar="FOLDER", help=text)
        else:
            add_flag(p, f, types[f.name], default)
    return p


def main(argv: list[str] | None = None) -> int:
    try:
        given = parser().parse_args(argv).as_dict()
        resume, onnx, _ = given.pop("resume"), given.pop("onnx"), given.pop("config")
        weights = named(given.pop("weights"), EXPERTS)
        given |= {name: portable(given[name]) for name in FOLDERS}
        config = CompactConfig(**{**given, "more_rgb": tuple(map(portable, given["more_rgb"]))})
        loop = train_compact(config, resume, weights)
        stop = []
        signal.signal(signal.SIGINT, lambda *_: stop.append(1))
        bar = None  # not before the input has proved good
        for progress in loop:
            bar = tqdm(total=config.steps, unit="step", desc=config.folder.name) if bar is None else bar
            bar.update(progress.step - bar.n)
            bar.set_postfix(loss=f"{progress.loss:.3f}")
            if progress.curve:
                shown = "  ".join(f"{k} {v:.3g}" for k, v in progress.curve.items())
                bar.write(f"step {progress.step}: against the fused student: {shown}")
            if stop:
                loop.close()
                bar.close()
                print(f"stopped at step {progress.step}; continue with the same command and --resume")
                return 130
        if bar is not None:
            bar.close()
        run = CompactRun.open(config.folder)
        summary, here = run.summary, os.path.relpath(run.folder)
        print(f"{here}: {summary['n_train']} training frames ({summary['n_more']} without a cloud), "
              f"{summary['n_held_out']} held out")  # fmt: skip
        print("held-out, against the fused student  "
              + "  ".join(f"{k} {v:.3f}" for k, v in summary["held-out"].items()))  # fmt: skip
        if onnx:
            found = export_run(run)
            print(f"{here}/model.onnx: {found['relative']:.1e} relative from the network on {found['frames']} frames")
    except (InputError, ArgumentError) as e:
        print("train_compact:", " ".join(str(e).split()), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
