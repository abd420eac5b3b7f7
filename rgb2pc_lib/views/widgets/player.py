"""A player of episodes: frame, points, tokens, gates and the verdict of the shift checks run in step.

All of an episode travels to the page at once; which step is shown, whether it plays and by how many steps the teacher
is shifted are Python's, so that a reloaded page goes on where it was.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets as widgets
import numpy as np
import traitlets
from matplotlib.figure import Figure
from PIL import Image

from rgb2pc_lib.checks.shift import ShiftCheck
from rgb2pc_lib.checks.sources import rgb_file, step_cloud
from rgb2pc_lib.data.clouds import Cloud
from rgb2pc_lib.data.pairing import OK, Pairing
from rgb2pc_lib.data.pictures import encoded, read_image
from rgb2pc_lib.data.workspace import Workspace
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.judging.gates import GateReader
from rgb2pc_lib.learning.runs import Run
from rgb2pc_lib.views.gates import LEADING, OPACITY, gate_colours
from rgb2pc_lib.views.look import TokenColours, depth_colours, in_camera_frame, overlay, plain
from rgb2pc_lib.views.plots import colour
from rgb2pc_lib.views.widgets.rrd import export_rrd
from rgb2pc_lib.views.widgets.steps import StepBrowser

REACH = 8  # steps, either way, by which the teacher can be shifted
WIDE = 320  # pixels of a frame that travels
POINTS = 400_000  # of an episode that travel, at most; and of a step:
STEP_POINTS = 4096


class Reel(anywidget.AnyWidget):
    """An episode in the page. `at`, `playing`, `shift` and `opacity` are what a person changes there."""

    _esm, _css = (Path(__file__).parent / f"player.{kind}" for kind in ("js", "css"))
    steps = traitlets.List(traitlets.Unicode()).tag(sync=True)
    at = traitlets.Int(0).tag(sync=True)
    playing = traitlets.Bool(False).tag(sync=True)
    speed = traitlets.Float(5.0).tag(sync=True)  # steps a second
    shift = traitlets.Int(0).tag(sync=True)  # the points shown are those of so many steps later
    reach = traitlets.Int(REACH).tag(sync=True)
    opacity = traitlets.Float(OPACITY).tag(sync=True)
    shape = traitlets.List([1, 1]).tag(sync=True)  # height and width of a frame
    frames = traitlets.Bytes().tag(sync=True)  # JPEGs, one after the other; each ends at
    frame_ends = traitlets.List(traitlets.Int()).tag(sync=True)
    xyz = traitlets.Bytes().tag(sync=True)  # float32 [points, 3]: right, down, away; far ones of a step first
    uv = traitlets.Bytes().tag(sync=True)  # float32 [points, 2], fractions of the frame; NaN where unknown
    tint = traitlets.Bytes().tag(sync=True)  # uint8 [points, 3]
    point_ends = traitlets.List(traitlets.Int()).tag(sync=True)  # of each step
    layers = traitlets.Dict().tag(sync=True)  # "tokens", "gates": {title, grid [h, w], box, there [of each step]}
    tokens = traitlets.Bytes().tag(sync=True)  # uint8 [steps, h, w, 3]
    gates = traitlets.Bytes().tag(sync=True)
    trust = traitlets.Dict().tag(sync=True)  # {experts, colours, means [steps][experts]}; empty without a run
    checks: Any = traitlets.List().tag(sync=True)  # {name, unit, said, alarm, shifts, fits} of each check
    said = traitlets.Unicode().tag(sync=True)


class Player(StepBrowser):
    """Plays an episode: arrow keys step, space plays, and the slider below shifts the teacher against the frames.

    With a `run`, its gates are shown; with `checks` (of `shift_checks`), how well each shift fits. `export` writes the
    episode for Rerun.

    >>> Player(workspace, pairing, checks=checks)  # in a notebook  # doctest: +SKIP
    >>> Player.of(Run.open("runs/judge/moe-seed0")).export(Path("hammer.rrd"))  # doctest: +SKIP
    """

    def __init__(
        self, workspace: Workspace, pairing: Pairing, run: Run | None = None, checks: Iterable[ShiftCheck] = (),
        start: tuple[str, str] | None = None,
    ):  # fmt: skip
        self.workspace, self.pairing, self.run, self.checks = workspace, pairing, run, list(checks)
        self.reader = GateReader.open(run) if run else None
        self.colours: dict[str, TokenColours] = {}  # fitted when an expert is first looked at
        self._loaded: dict[str, Any] = {}
        table = pairing.table[pairing.table["step"] != ""]
        if table.empty:
            raise InputError(f"the workspace '{workspace.name}' holds no step to play")
        super().__init__(table, start)
        there = [name for name, packs in pairing.packs.items() if packs]
        self.tokens = widgets.Dropdown(options=there, description="tokens of")
        self.gates = widgets.Dropdown(options=[LEADING, *self.reader.experts] if self.reader else ["no run"],
                                      description="gate of", disabled=not self.reader)  # fmt: skip
        for control in (self.tokens, self.gates):
            control.observe(self.repaint, "value")
        self.reel = Reel()
        self._draw()
        traitlets.link((self.step, "value"), (self.reel, "at"))
        wrap = widgets.Layout(flex_flow="row wrap")
        self.view = widgets.VBox([
            widgets.HBox([self.task, self.episode, self.tokens, self.gates], layout=wrap), self.reel,
        ])  # fmt: skip
        self.view.add_class("rgb2pc-player-panel")

    @classmethod
    def of(cls, run: Run, checks: Iterable[ShiftCheck] = ()) -> Player:
        """A player of the data that a run was trained on, with its gates. Raises InputError for an unfinished run."""
        reader = GateReader.open(run)
        return cls(run.config.workspace, reader.data.samples.pairing, run, checks)

    def export(self, out: Path) -> Path:
        """Write the episode shown as `.rrd`, for Rerun. See `export_rrd`."""
        return export_rrd(self.workspace, self.pairing, *self.chosen[:2], out, self.run)

    # -- what is shown

    def _draw(self) -> None:
        key = self.chosen[:2]
        wanted = {"film": key, "tokens": (*key, self.tokens.value), "gates": (*key, self.gates.value)}
        loads = {"film": self._load_film, "tokens": self._load_tokens, "gates": self._load_gates}
        try:
            with self.reel.hold_sync():
                for name, value in wanted.items():
                    if self._loaded.get(name) != value:
                        loads[name](*key)
                        self._loaded[name] = value
                self.reel.said = ""
        except InputError as e:  # a file that cannot be read: say so, keep the panel alive
            self._loaded = {}
            self.reel.said = str(e)

    def _load_film(self, task: str, episode: str) -> None:
        steps, pictures, points = self.steps[task, episode], [], []
        most = max(min(STEP_POINTS, POINTS // len(steps)), 1)
        shape: tuple[int, int] | None = None
        for step in steps:  # one at a time: an episode of large frames fits no memory
            frame, cloud = self._seen(task, episode, step)
            pictures.append(b"" if frame is None else encoded(_smaller(frame), "jpeg", quality=88))
            if shape is None and frame is not None:
                shape = frame.shape[0], frame.shape[1]
            points.append(_fewer(cloud, most))
        height, width = shape or (224, 224)
        drawn = [_drawn(cloud, height, width) for cloud in points]
        self.reel.steps, self.reel.shape, self.reel.shift = steps, [height, width], 0
        self.reel.reach = min(REACH, len(steps) - 1)
        self.reel.frame_ends, self.reel.frames = np.cumsum([len(p) for p in pictures]).tolist(), b"".join(pictures)
        self.reel.point_ends = np.cumsum([len(xyz) for xyz, _, _ in drawn]).tolist()
        for name, parts in zip(("xyz", "uv", "tint"), zip(*drawn, strict=True), strict=True):
            setattr(self.reel, name, np.concatenate(parts).tobytes())
        self.reel.checks = [_fits(check, task, episode) for check in self.checks if (task, episode) in check.episodes]

    def _seen(self, task: str, episode: str, step: str) -> tuple[np.ndarray | None, Cloud | None]:
        """Frame and cloud of a step, where there are such."""
        file = rgb_file(self.workspace, task, episode, step)
        found = step_cloud(self.workspace, self.pairing, task, episode, step)
        return (read_image(file) if file else None), (found[0] if found else None)

    def _load_tokens(self, task: str, episode: str) -> None:
        name, packs = self.tokens.value, self.pairing.packs[self.tokens.value]
        if name not in self.colours:
            self.colours[name] = TokenColours.fit(packs)
        pack = packs.get((task, episode))
        pictures = [self.colours[name](pack.frame(s)) if pack and self._has(s) else None
                    for s in self.steps[task, episode]]  # fmt: skip
        title = f"tokens of {name}, three components"
        self._layer("tokens", title, pictures, list(pack.box) if pack else [0, 0, 1, 1])

    def _has(self, step: str) -> bool:
        rows, (task, episode) = self.pairing.table, self.chosen[:2]
        row = rows[(rows["task"] == task) & (rows["episode"] == episode) & (rows["step"] == step)]
        return bool((row[self.tokens.value] == OK).all())

    def _load_gates(self, task: str, episode: str) -> None:
        if not self.reader:
            return
        keys, experts, steps = self.reader.keys, self.reader.experts, self.steps[task, episode]
        rows = keys[(keys["task"] == task) & (keys["episode"] == episode)]
        maps = dict(zip(rows["step"], self.reader.maps(rows.index.to_numpy()), strict=True)) if len(rows) else {}
        view = self.gates.value
        pictures = [(255 * gate_colours(maps[s], experts, view)).round().astype(np.uint8) if s in maps else None
                    for s in steps]  # fmt: skip
        self._layer("gates", view if view == LEADING else f"gate of {view}, 0 dark to 1 bright", pictures, [0, 0, 1, 1])
        means = [maps[s].mean((0, 1)).round(4).tolist() if s in maps else None for s in steps]
        self.reel.trust = {"experts": experts, "colours": [colour(e, experts) for e in experts], "means": means}

    def _layer(self, kind: str, title: str, pictures: list[np.ndarray | None], box: list[float]) -> None:
        """Pictures `[h, w, 3]` of each step, to be laid over its frame."""
        shape = next((p.shape for p in pictures if p is not None), (1, 1, 3))
        whole = np.stack([np.zeros(shape, np.uint8) if p is None else p for p in pictures])
        layer = {"title": title, "grid": list(shape[:2]), "box": box, "there": [p is not None for p in pictures]}
        self.reel.layers = {**self.reel.layers, kind: layer}
        setattr(self.reel, kind, whole.tobytes())

    # -- on paper

    def static(self, columns: int = 6) -> Figure:
        """The episode as a strip: frames, and the teacher's points over them, shifted as the slider stands."""
        (task, episode, _), by = self.chosen, self.reel.shift
        steps = self.steps[task, episode]
        chosen = np.unique(np.linspace(0, len(steps) - 1, columns).round().astype(int))
        figure = Figure(figsize=(2.1 * len(chosen), 5), layout="constrained")
        grid = figure.subplots(2, len(chosen), squeeze=False)
        for column, i in zip(grid.T, chosen, strict=True):
            frame = self._seen(task, episode, steps[i])[0]
            cloud = self._seen(task, episode, steps[i + by])[1] if 0 <= i + by < len(steps) else None
            column[0].set_title(plain(steps[i]), fontsize=9)
            for axes, picture in zip(column, (frame, None if frame is None else overlay(frame, cloud)), strict=True):
                axes.axis("off")
                axes.imshow(np.full((8, 8, 3), 225, np.uint8) if picture is None else picture)
        shifted = f", those of {by:+d} steps" if by else ""
        figure.suptitle(plain(f"{' / '.join(self.chosen[:2])}: frames, and the teacher's points over them{shifted}"))
        return figure


def _smaller(frame: np.ndarray) -> np.ndarray:
    height, width = frame.shape[:2]
    if width <= WIDE:
        return frame
    return np.asarray(Image.fromarray(frame).resize((WIDE, max(round(height * WIDE / width), 1))))


def _fewer(cloud: Cloud | None, most: int) -> Cloud | None:
    """A cloud of at most so many points, evenly taken."""
    if cloud is None or len(cloud) <= most:
        return cloud
    keep = slice(None, None, -(-len(cloud) // most))
    return Cloud(cloud.xyz[keep], *(None if v is None else v[keep] for v in (cloud.rgb, cloud.uv)))


def _drawn(cloud: Cloud | None, height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points as the page draws them: places `[n, 3]` right, down, away; `[n, 2]` in the frame; colours `[n, 3]`."""
    if cloud is None or not len(cloud):
        return np.zeros((0, 3), np.float32), np.zeros((0, 2), np.float32), np.zeros((0, 3), np.uint8)
    x, y, z = cloud.xyz.T
    places = cloud.xyz if in_camera_frame(cloud) else np.stack([x, -z, y], 1)  # others have z upwards
    order = np.argsort(-places[:, 2])  # far ones first
    uv = np.full((len(cloud), 2), np.nan) if cloud.uv is None else (np.floor(cloud.uv) + 0.5) / [width, height]
    tint = depth_colours(cloud.xyz) if cloud.rgb is None else cloud.rgb
    return places[order].astype(np.float32), uv[order].astype(np.float32), tint[order].astype(np.uint8)


def _fits(check: ShiftCheck, task: str, episode: str) -> dict[str, Any]:
    """How well an episode fits at every shift that a check tried."""
    said, alarm = check.verdict(task, episode)
    curve = check.curves[check.episodes.index((task, episode))]
    half = len(curve) // 2
    fits = [None if np.isnan(v) else round(float(v), 4) for v in curve]
    return {"name": check.name, "unit": check.unit, "said": said, "alarm": alarm,
            "shifts": list(range(-half, half + 1)), "fits": fits}  # fmt: skip
