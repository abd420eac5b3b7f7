"""One folder to hand on: a run or a compact student with what is needed to use it, and a card with its own figures.

The folder is a run's folder without what belongs to its maker: no data, no paths, no resume state. `Run.open`,
`CompactRun.open` and `Embedder.from_run` read it as they read any run.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd

from rgb2pc_lib.data.files.exclusions import Exclusions
from rgb2pc_lib.data.files.guarded import expect, first_line, read_object, read_text
from rgb2pc_lib.data.files.writing import write_atomic
from rgb2pc_lib.data.workspace import camera_of, encoder_of
from rgb2pc_lib.deploy.compact import CompactConfig, CompactRun, open_run
from rgb2pc_lib.deploy.export import KINDS, MODEL, TRACES
from rgb2pc_lib.deploy.hub import upload
from rgb2pc_lib.encoders.images import EXPERTS, STANDINS, describe
from rgb2pc_lib.encoders.rays import NAME as RAYS
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.learning.config import Config
from rgb2pc_lib.learning.runs import Run, look_ahead_words, window_words

_FRONT = """---
library_name: rgb2pc
license: other
license_name: see-licences-below
tags: [robotics, distillation, point-cloud, rgb]
---
"""
_EXPORT = "export it again with tools/judge_compact.py"
_COPIED = (
    "model.safetensors", "ledger.csv", "onnx.json", "exports.csv", *KINDS.values(), "infer.py", "torchvision.pth",
)  # fmt: skip
FILES = (*_COPIED, "config.json", "summary.json", "README.md")  # all that a shared folder may hold


def share(run: Run | CompactRun | str | Path, folder: Path) -> Path:
    """Write a finished run, or a compact student, into a new folder and return it.

    A run that was shared before keeps its card, to which somebody may have added.

    config.json (settings without paths), model.safetensors, summary.json, README.md (the card), and of a compact
    student also its ONNX file, the example, the ResNet under torchvision's names and the ledger where they were made.
    Raises InputError for an unfinished run, where the folder holds something already, and for ONNX files that name
    folders, as exports once did.

    >>> there = share(run, folder / "for a friend")
    >>> sorted(path.name for path in there.iterdir())
    ['README.md', 'config.json', 'model.safetensors', 'summary.json']
    >>> Run.open(there).config.vis_roots  # no paths
    {}
    """
    run = open_run(run)
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder}: holds files already; name a new folder")
    if not run.finished:
        raise InputError(f"{run.folder}: the run is unfinished, continue it with --resume before sharing it")
    if traced := [n for n in KINDS.values() if run.file(n).exists() and TRACES in run.file(n).read_bytes()]:
        raise InputError(
            f"{run.file(traced[0])}: names folders of the machine that exported it; export it again with "
            "tools/export.py, or delete it"
        )
    config = anonymous(run.config)
    card = read_text(run.file("README.md")) if run.file("README.md").exists() else model_card(run)
    folder.mkdir(parents=True, exist_ok=True)
    for name in _COPIED:
        if run.file(name).exists():
            shutil.copyfile(run.file(name), folder / name)
    summary = run.summary
    left_out = {table: dict.fromkeys(summary[table], "") for table in ("excluded", "unreadable")}  # reasons name files
    told = json.dumps(summary | left_out, indent=2)
    write_atomic(folder / "summary.json", lambda p: p.write_text(told, encoding="utf-8"))
    write_atomic(folder / "config.json", lambda p: p.write_text(config.to_json(), encoding="utf-8"))
    write_atomic(folder / "README.md", lambda p: p.write_text(card, encoding="utf-8"))
    return folder


def push(folder: Path, repository: str, private: bool = False) -> str:
    """Upload a folder that `share` made to a model hub, as `owner/name`; the address of what is there then.

    Its card then says the name under which it is had. Raises InputError where the hub does not take it, and for a
    folder that `share` did not make, which may hold what is nobody's business.
    """
    card, names = folder / "README.md", {path.name for path in folder.iterdir()}
    if strangers := sorted(names - set(FILES)) or sorted({"config.json", "README.md"} - names):
        raise InputError(
            f"{folder}: expected what tools/share.py writes, not so: {', '.join(strangers)}; share it anew"
        )
    text = re.sub(r'(?<=from_run\(")[^"]*', repository, read_text(card), count=1)
    write_atomic(card, lambda p: p.write_text(text, encoding="utf-8"))
    return upload(folder, repository, FILES, private)


def anonymous(config: Config | CompactConfig) -> Config | CompactConfig:
    """The settings without folders, which mean nothing elsewhere and may name people."""
    if isinstance(config, CompactConfig):
        return dataclasses.replace(config, run="", more_rgb=(), backbone_weights="", save_dir="")
    exclude = tuple(sorted(Exclusions.of(config.exclude).effect))  # without reasons
    return dataclasses.replace(
        config,
        pc_root="",
        vis_roots={},
        rgb_root="",
        camera_roots={},
        state_root="",
        cloud_root="",
        save_dir="",
        exclude=exclude,
    )


def model_card(run: Run | CompactRun) -> str:
    """Markdown with the front matter of model hubs; every figure is read from the run's folder."""
    summary = run.summary
    if isinstance(run, CompactRun):
        against, config = "the fused student it was distilled from", run.config
        title = f"Compact student: {config.backbone} at {config.size} x {config.size} pixels"
        lead = (
            "One RGB frame in, one embedding out, which stands in for a point-cloud feature. Distilled from a student "
            "of several visual experts, itself distilled from a point-cloud encoder. It needs no cloud and no expert."
        )
    else:
        against = "the point-cloud teacher"
        title = f"Student of {', '.join(summary['gates'])} ({run.config.fusion} fusion)"
        lead = (
            f"Features of visual experts that see only RGB{' and where the camera stands' * _is_told(run)} in, one "
            "embedding out, which stands in for a point-cloud feature. The experts' own weights are not in this folder "
            "and have their own licences."
        )
    lines = [_FRONT, f"# {title}", "", lead, "", *_use(run)]
    if run.file(MODEL).exists():
        lines += ["Without torch (onnxruntime, numpy, pillow): `python infer.py image.png`.", ""]
    lines += ["## Figures", "", f"{summary['n_held_out']} held-out {_frames(run)} against {against}; one training.", ""]
    lines += _table(pd.Series(summary["held-out"], name="held out").to_frame())
    if run.file("ledger.csv").exists():
        wide = _ledger(run.file("ledger.csv"))
        lines += ["", "Hop by hop on the same held-out frames (R2 within task, cm: median error):", "", *_table(wide)]
    if run.file("onnx.json").exists():
        onnx = read_object(run.file("onnx.json"), _EXPORT)
        for key in ("relative", "frames"):
            expect(onnx.get(key), (int, float), run.file("onnx.json"), key, _EXPORT)
        lines += ["", f"ONNX file and network differ by {onnx['relative']:.1e} relative on {onnx['frames']} frames."]
    for title, points in (("Limits", _limits(run)), ("Licences", _licences(summary))):
        lines += ["", f"## {title}", "", *(f"- {point}" for point in points)]
    return "\n".join([*lines, ""])


def _frames(run: Run | CompactRun) -> str:
    """What its samples are."""
    if isinstance(run, Run) and run.config.pooled_unit == "window":
        return f"windows of {run.config.window} steps"
    return "frames"


def _experts(run: Run | CompactRun) -> list[str]:
    """Those that it sees through; a compact student needs none."""
    return list(run.summary["gates"]) if isinstance(run, Run) else []


def _unknown(run: Run | CompactRun) -> list[str]:
    """Those whose features come from elsewhere."""
    return [name for name in _experts(run) if encoder_of(name) not in {*EXPERTS, RAYS}]


def _cameras(run: Run | CompactRun) -> list[str]:
    """Those by whose names it is given frames, if any."""
    return [camera for camera in dict.fromkeys(map(camera_of, _experts(run))) if camera]


def _is_told(run: Run | CompactRun) -> bool:
    """Whether it is told where its camera stands."""
    return RAYS in map(encoder_of, _experts(run))


def _use(run: Run | CompactRun) -> list[str]:
    """How it is called: with frames, by camera where cameras have names, and with their places where it needs them.

    Experts that do not bring their weights are given theirs; with one that has no encoder, packs are embedded.
    """
    if _unknown(run):
        return [
            "## Use", "", "```python", "from rgb2pc_lib import Run, Workspace, embed_packs", "",
            "# a workspace names the packs of its experts; a row a step",
            'keys, embeddings = embed_packs(Run.open("this/folder"), Workspace.load("data/mine.toml"))', "```", "",
        ]  # fmt: skip
    cameras, told = _cameras(run), _is_told(run)
    official = [name for name in dict.fromkeys(map(encoder_of, _experts(run))) if name not in {*STANDINS, RAYS}]
    weights = ", ".join(f'"{name}": "its/official/weights"' for name in official)
    first = "images_1" if cameras else "images"
    named = ", ".join(f'"{camera}": images_{number}' for number, camera in enumerate(cameras, 1))
    given = [f"{{{named}}}" if cameras else first] + [f"[Camera(K, world_to_camera)] * len({first})"] * told
    shape = "uint8 [B, H, W, 3]" + " each" * bool(cameras)
    return [
        "## Use", "", "```python", f"from rgb2pc_lib import {'Camera, ' * told}Embedder", "",
        f'embedder = Embedder.from_run("this/folder"{f", weights={{{weights}}}" * bool(weights)})',
        f"embeddings = embedder({', '.join(given)})  # {shape} -> [B, E]", "```", "",
    ]  # fmt: skip


def _ledger(path: Path) -> pd.DataFrame:
    """Measures by hops. Raises InputError for a file that is no ledger."""
    try:
        return pd.read_csv(path).pivot_table(index="measure", columns="hop", values="value", sort=False)
    except (ValueError, KeyError, TypeError, OSError) as e:  # pandas' own are among them
        raise InputError(f"{path}: no ledger ({first_line(e)}); make it anew with tools/judge_compact.py") from None


def _limits(run: Run | CompactRun) -> list[str]:
    summary = run.summary
    more = summary.get("n_more", 0)
    ahead = look_ahead_words(summary)
    if ahead and isinstance(run, CompactRun):
        ahead = f"It sees one frame, but the fused student that it learned from was not live: {ahead}"
    lines = [ahead] * bool(ahead)
    lines += [
        f"Trained on {summary['n_train']} {_frames(run)}" + (f", {more} of them without a cloud." if more else ".")
    ]
    if isinstance(run, Run) and (windows := window_words(run.config)):
        lines.append(windows)
    what = "tasks" if isinstance(run, Run) and run.config.split_by == "task" else "episodes"
    lines += [
        f"Held out were {what} of the same recordings; other cameras, robots and scenes were not tried.",
        "It knows what its teacher knows: where the figures above are low, so is its use.",
        "One training; figures of other seeds will differ.",
    ]
    if unknown := _unknown(run):
        lines.append(
            f"No encoder is called {', '.join(unknown)}, so it takes no frames: give `embed_packs` their features."
        )
    if cameras := _cameras(run):
        lines.append(
            f"It sees through {', '.join(cameras)}: frames are given by camera, and one that fails is left out."
        )
    if _is_told(run):
        lines.append(
            "It is told where the calibrated camera of each frame stands: K, in pixels of the frames, and "
            "world_to_camera, m, axes of OpenCV, from a world that lies as in training. Where they are wrong, so is it."
        )
    if isinstance(run, CompactRun):
        lines.append("It sees one frame at a time, resized as a whole: things that are small in the image are lost.")
    return lines


def _licences(summary: dict[str, Any]) -> list[str]:
    """What passes on to whoever uses these weights, as far as the run knows it."""
    lines = []
    for name in summary.get("gates") or summary["licences"]:
        encoder = encoder_of(name)
        said, usual = summary["licences"].get(name), describe(encoder).licence if encoder in EXPERTS else ""
        if said:
            lines.append(f"Expert {name}: {said}, as its features say.")
        elif usual:
            lines.append(f"Expert {name}: {usual}, if it had its usual weights; its features do not say.")
        else:
            lines.append(f"Expert {name}: not known to this card; ask whoever made its features.")
    if not lines:
        lines.append("Experts behind it: not known to this card; ask whoever trained it.")
    return [
        *lines,
        "Teacher and recordings: not known to this card, as their files do not say it.",
        "These weights were learned from all of them. What their licences ask passes on: one that excludes commercial "
        "use does so here too. The card states no further licence; who publishes the weights may add one above.",
    ]


def _table(frame: pd.DataFrame) -> list[str]:
    head = ["| " + " | ".join(["", *map(str, frame.columns)]) + " |", "|" + "---|" * (len(frame.columns) + 1)]
    rows = [
        "| " + " | ".join([str(name), *("–" if pd.isna(v) else f"{v:.4g}" for v in row)]) + " |"
        for name, row in zip(frame.index, frame.to_numpy(), strict=True)
    ]
    return head + rows
