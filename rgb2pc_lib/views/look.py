"""Everything there is to see of one step: image, points, points over the image, what every expert sees, the files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from rgb2pc_lib.checks.sources import pixels_under, rgb_file, step_cloud
from rgb2pc_lib.data.clouds import Cloud
from rgb2pc_lib.data.packs import FeaturePack
from rgb2pc_lib.data.pairing import OK, Pairing
from rgb2pc_lib.data.pictures import read_image
from rgb2pc_lib.data.workspace import Workspace
from rgb2pc_lib.errors import InputError

SIDE = 260  # pixels of a picture
MOST_POINTS = 8192  # drawn in a cloud
ALARM, CALM = "#d55e00", "#0072b2"  # Okabe and Ito's, told apart by colour-blind readers


def plain(text: str) -> str:
    """A user's name in a matplotlib label: dollars are no mathematics."""
    return str(text).replace("$", r"\$")


class TokenColours:
    """An expert's tokens as colours: three principal components, fitted once over frames of many episodes.

    The same token has the same colour at every step. The components are scaled so that 96 % of the tokens fit.

    >>> TokenColours.fit(pairing.packs["xfeat"])(pack.frame("step_0003")).shape  # doctest: +SKIP
    (28, 28, 3)
    """

    def __init__(self, mean: np.ndarray, axes: np.ndarray, low: np.ndarray, high: np.ndarray):
        self.mean, self.axes, self.low, self.high = mean, axes, low, high  # [C], [C, 3], [3], [3]

    @classmethod
    def fit(cls, packs: dict, frames: int = 24, tokens: int = 128, seed: int = 0) -> TokenColours:
        """From `tokens` random ones of each of `frames` frames, spread over the episodes."""
        rng = np.random.default_rng(seed)
        keys = list(packs)
        sample = []
        for i in np.linspace(0, len(keys) - 1, frames).round().astype(int):
            pack: FeaturePack = packs[keys[i]]
            positions = rng.random((tokens, 2)) * np.subtract(pack.box[2:], pack.box[:2]) + pack.box[:2]
            sample.append(pack.tokens(pack.steps[rng.integers(len(pack.steps))], positions)[0].float())
        x = torch.cat(sample).numpy().astype(np.float64)  # [frames * tokens, C]
        mean = x.mean(0)
        values, vectors = np.linalg.eigh((x - mean).T @ (x - mean))
        axes = np.zeros((x.shape[1], 3))
        axes[:, : min(3, len(values))] = vectors[:, ::-1][:, :3]
        axes *= np.where(axes[np.abs(axes).argmax(0), range(3)] < 0, -1, 1)  # the sign is arbitrary: fix it
        low, high = np.quantile((x - mean) @ axes, [0.02, 0.98], axis=0)
        return cls(mean, axes, low, high)

    def __call__(self, frame: torch.Tensor) -> np.ndarray:
        """`[H, W, C]` -> uint8 `[H, W, 3]`."""
        y = (frame.float().numpy() - self.mean) @ self.axes
        return (255 * ((y - self.low) / np.maximum(self.high - self.low, 1e-9)).clip(0, 1)).round().astype(np.uint8)


@dataclass(frozen=True)
class Look:
    """All there is to see of one step."""

    rgb: np.ndarray | None  # uint8 [H, W, 3]
    drawn_over: np.ndarray | None  # the points over the image
    cloud: Cloud | None
    grids: dict[str, np.ndarray | None]  # expert -> uint8 picture, None where the step is missing
    match: pd.DataFrame  # one row a source: step, status, file, place


def look(workspace: Workspace, pairing: Pairing, colours: dict[str, TokenColours], task, episode, step) -> Look:
    """Read one step from every source.

    >>> look(workspace, pairing, {}, "hammer", "episode_0001", "step_0003").match  # doctest: +SKIP
    """
    rows = pairing.table
    row = rows[(rows["task"] == task) & (rows["episode"] == episode) & (rows["step"] == step)]
    if row.empty:
        raise InputError(f"no step {task}/{episode}/{step} in the pairing table")
    row = row.iloc[0]
    file = rgb_file(workspace, task, episode, step)
    cloud, source = step_cloud(workspace, pairing, task, episode, step) or (None, None)
    teacher = pairing.teacher.get((task, episode), {}).get(step)
    in_array = f"row {teacher.row}" if teacher and teacher.row is not None else ""
    match: dict[str, tuple[str | None, str]] = {
        "RGB": (_short(file), ""),
        "points": (_short(source), "" if cloud is None else f"{len(cloud)} points"),
        "teacher": (_short(teacher.path if teacher else None), in_array),
    }
    rgb = read_image(file) if file else None
    grids: dict[str, np.ndarray | None] = {}
    for name, packs in pairing.packs.items():
        grids[name], match[name] = None, (None, "")
        if row[name] == OK:
            pack = packs[task, episode]
            window, frame = pack.where(step)
            if name in colours:
                shape = pack.grid if rgb is None else rgb.shape[:2]
                grids[name] = _placed(colours[name](pack.frame(step)), pack.box, shape)
            copies = f", one of {len(pack.copies[step])} copies" if len(pack.copies[step]) > 1 else ""
            match[name] = (_short(pack.path), f"window {window}, frame {frame}{copies}")
    table = pd.DataFrame.from_dict(match, orient="index", columns=["file", "place"])
    table.insert(0, "status", [row[s] if s in row else OK if f else "none" for s, f in table["file"].items()])
    return Look(rgb, None if rgb is None else overlay(rgb, cloud), cloud, grids, table.fillna("-"))


def _short(path: Path | None) -> str | None:
    """The last folders of a path: task, episode and file tell which one it is."""
    if path is None:
        return None
    return "/".join(path.parts[-3 if path.suffix in (".jpg", ".png", ".jpeg", ".ply", ".pt") else -2 :])


def _placed(grid: np.ndarray, box, shape: tuple[int, int]) -> np.ndarray:
    """A grid's picture where its box lies in an image of that height and width, scaled; white outside."""
    width, height = SIDE, round(SIDE * shape[0] / shape[1])
    x0, y0, x1, y1 = (round(v * side) for v, side in zip(box, (width, height) * 2, strict=True))
    canvas = np.full((height, width, 3), 255, np.uint8)
    canvas[y0:y1, x0:x1] = np.asarray(Image.fromarray(grid).resize((x1 - x0, y1 - y0), Image.Resampling.NEAREST))
    return canvas


def in_camera_frame(cloud: Cloud) -> bool:
    """Whether z points into the image (x right, y down): then x / z and y / z follow the pixels."""
    if cloud.uv is None or len(cloud) < 3 or (cloud.xyz[:, 2] <= 0).any() or not np.ptp(cloud.uv, axis=0).all():
        return False
    rays = cloud.xyz[:, :2] / cloud.xyz[:, 2:]
    return all(np.corrcoef(rays[:, i], cloud.uv[:, i])[0, 1] > 0.9 for i in (0, 1))


def cloud_trace(cloud: Cloud | None) -> dict:
    """Marker properties of a plotly Scatter3d: metres, the points' own colours (by depth where they have none)."""
    if cloud is None or not len(cloud):
        return {"x": [], "y": [], "z": [], "marker.color": []}
    keep = slice(None, None, -(-len(cloud) // MOST_POINTS))
    colours = (cloud.rgb if cloud.rgb is not None else depth_colours(cloud.xyz))[keep]
    x, y, z = cloud.xyz[keep].round(4).T
    return {"x": x, "y": y, "z": z, "marker.color": [f"#{c.tobytes().hex()}" for c in colours]}


def cloud_scene(cloud: Cloud | None) -> dict:
    """Equal axes in metres, seen from the camera where the cloud is in its frame."""
    camera = {"up": (0, -1, 0), "eye": (0.62, -0.9, -1.9), "center": (0, 0.12, 0)}
    upright = {"up": (0, 0, 1), "eye": (1.5, -1.75, 1.1)}
    seen = camera if cloud is not None and in_camera_frame(cloud) else upright
    view = {k: dict(zip("xyz", v, strict=True)) for k, v in seen.items()}
    titles = {f"{a}axis": {"title": f"{a} (m)", "nticks": 5} for a in "xyz"}
    return {"aspectmode": "data", "camera": view, **titles}


def overlay(image: np.ndarray, cloud: Cloud | None, scale: int = 2) -> np.ndarray:
    """Points over the grey image through uv, in their own colours (by depth where they have none), `[sH, sW, 3]`.

    Where all is well the colours complete the picture; where not, a coloured arm stands beside a grey one.
    """
    grey = image.astype(float) @ [0.299, 0.587, 0.114]
    canvas = np.repeat((0.45 * grey + 130)[..., None], 3, 2).clip(0, 255).astype(np.uint8)
    canvas = canvas.repeat(scale, 0).repeat(scale, 1)
    if cloud is None or cloud.uv is None or not len(cloud):
        return canvas
    _, inside = pixels_under(cloud, image)
    column, row = np.floor(cloud.uv[inside]).astype(int).T * scale
    colours = (cloud.rgb if cloud.rgb is not None else depth_colours(cloud.xyz))[inside]
    far_first = np.argsort(-cloud.xyz[inside, 2])
    column, row, colours = column[far_first], row[far_first], colours[far_first]
    for du in range(-1, scale + 1):
        for dv in range(-1, scale + 1):
            v, u = (row + dv).clip(0, len(canvas) - 1), (column + du).clip(0, canvas.shape[1] - 1)
            canvas[v, u] = colours
    return canvas


def depth_colours(xyz: np.ndarray) -> np.ndarray:
    """uint8 `[N, 3]`: the third axis from near (bright) to far (dark)."""
    z = xyz[:, 2]
    share = (z - z.min()) / max(np.ptp(z), 1e-9) if len(z) else z
    return (matplotlib.colormaps["cividis"](1 - share)[:, :3] * 255).astype(np.uint8)


def look_figure(seen: Look, title: str, alarm: bool = False) -> Figure:
    """A `Look` on paper."""
    columns = max(4, len(seen.grids))
    figure = Figure(figsize=(3.1 * columns, 8.2), layout="constrained")
    grid = figure.add_gridspec(3, columns, height_ratios=[1, 1, 0.1 + 0.055 * len(seen.match)])
    figure.suptitle(plain(title), color=ALARM if alarm else "black")
    pictures = {"RGB": (0, 0, seen.rgb), "points over the image": (0, 1, seen.drawn_over)}
    pictures |= {name: (1, i, picture) for i, (name, picture) in enumerate(seen.grids.items())}
    for name, (i, j, picture) in pictures.items():
        axes = figure.add_subplot(grid[i, j])
        axes.axis("off")
        axes.set_title(plain(name))
        if picture is None:
            status = seen.match["status"].get(name, "none")
            axes.text(0.5, 0.5, plain(status), ha="center", va="center", color=ALARM, wrap=True)
        else:
            axes.imshow(picture, interpolation="nearest")
    _cloud_axes(figure.add_subplot(grid[0, 2:4], projection="3d"), seen.cloud)
    text = figure.add_subplot(grid[2, :])
    text.axis("off")
    text.text(0, 1, plain(_aligned(seen.match)), va="top", fontsize=9, family="monospace", transform=text.transAxes)
    return figure


def _aligned(table: pd.DataFrame) -> str:
    """A table of texts in left-aligned columns."""
    rows = [["source", *table.columns], *([i, *r] for i, r in zip(table.index, table.to_numpy(), strict=True))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)) for r in rows)


def draw_cloud(axes: Axes, cloud: Cloud | None) -> None:
    """Points as the camera sees them, or from the front where they are not in its frame, in their own colours."""
    if cloud is None or not len(cloud):
        axes.text(0.5, 0.5, "no points", ha="center", va="center", transform=axes.transAxes, color="0.4")
        return
    x, y, z = cloud.xyz.T
    colours = (cloud.rgb if cloud.rgb is not None else depth_colours(cloud.xyz)) / 255
    seen = in_camera_frame(cloud)
    order = np.argsort(-z if seen else y)  # far ones first
    right, up = (x / z, -y / z) if seen else (x, z)
    axes.scatter(right[order], up[order], c=colours[order], s=3, lw=0)
    axes.set_aspect("equal")


def _cloud_axes(axes, cloud: Cloud | None) -> None:
    axes.set_title("the points in space")
    if cloud is None or not len(cloud):
        axes.set_axis_off()
        return
    colours = (cloud.rgb if cloud.rgb is not None else depth_colours(cloud.xyz)) / 255
    x, y, z = cloud.xyz.T
    labels = ("x (m)", "y (m)", "z (m)")
    if in_camera_frame(cloud):  # matplotlib's third axis is up
        x, y, z, labels = x, z, -y, ("x (m)", "depth z (m)", "up -y (m)")
        axes.view_init(elev=25, azim=-75)
    axes.scatter(x, y, z, c=colours, s=2, depthshade=False)
    axes.set_box_aspect([max(np.ptp(v), 1e-6) for v in (x, y, z)], zoom=1.15)
    axes.set(xlabel=labels[0], ylabel=labels[1], zlabel=labels[2])
    axes.tick_params(labelsize=6)
    axes.locator_params(nbins=4)
