"""One small file of every kind that the product reads, as other people's writers make them, and how it is read."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from victims import BASE, CACHE, write_sources  # isort: skip (before the library)

import av
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tiny
import torch
from PIL import Image
from safetensors.torch import save_file

from rgb2pc_lib.data.clouds import count_points, read_ply
from rgb2pc_lib.data.files.exclusions import Exclusions
from rgb2pc_lib.data.pack_index import PackIndex
from rgb2pc_lib.data.packs import FeaturePack, list_packs
from rgb2pc_lib.data.pictures import image_size, read_image, read_video
from rgb2pc_lib.data.states import read_state
from rgb2pc_lib.data.teacher import TeacherFile, list_teacher, read_points, teacher_table
from rgb2pc_lib.data.workspace import Workspace
from rgb2pc_lib.deploy.compact import CompactRun
from rgb2pc_lib.deploy.frames import frame_cache
from rgb2pc_lib.encoders.clouds.points import WEIGHTS, load_point_encoder
from rgb2pc_lib.encoders.weights import read_shapes
from rgb2pc_lib.encoders.weights import read_state as read_official
from rgb2pc_lib.learning.runs import Run
from rgb2pc_lib.recordings.convert import as_pack, convert
from rgb2pc_lib.recordings.lerobot import list_lerobot
from rgb2pc_lib.recordings.robotwin import list_robotwin

STEPS = 6
WORKSPACE = """name = "mine"
teacher_tag = "x"
[roots]
rgb = "rgb"
teacher = "teacher"
[experts]
vggt = "features_vggt"
"""
EXCLUDED = """[exclude]
"push/ep_3" = "moved"
"push/ep_4/step_1" = ""
[shift]
"a/b" = 2
"""


@dataclass(frozen=True)
class Specimen:
    """A kind of file: where whole ones lie, and what the product does with one of them."""

    files: list[Path]
    read: Callable[[Path], object]
    folder: Path  # everything that belongs together


def read_pack(path: Path) -> None:
    pack = FeaturePack.open(path)
    for step in pack.steps:
        pack.tokens(step, np.array([[0.3, 0.6]]))
        pack.frame(step)


def read_recordings(recordings: list) -> None:
    for one in recordings[:3]:
        wanted = range(0, min(one.frames, 20), 2)
        for _ in one.read(wanted):
            pass
        one.state(wanted)


def read_images(path: Path) -> None:
    image_size(path), read_image(path)


def read_clouds(path: Path) -> None:
    count_points(path), read_ply(path)


def read_movie(path: Path) -> None:
    for _ in read_video(path):
        pass


def read_cached(_: Path) -> None:
    """Caches, which are made anew where they are damaged: then what is made must be right."""
    root = BASE / "source"
    files = [f for steps in list_teacher(root / "teacher").values() for f in steps.values()]
    assert np.isfinite(teacher_table(files, CACHE, progress=False)).all()
    index = PackIndex(root / "features_left", CACHE)
    for path in list_packs(root / "features_left").values():
        index.open(path, "left")
    frame_cache(sorted((root / "rgb").rglob("*.png"))[:4], 32, CACHE, progress=False)


def write_lerobot(root: Path, kind: str) -> None:
    camera = "observation.images.top"
    features = {camera: {"dtype": kind, "shape": [16, 32, 3]}, "observation.state": {"dtype": "float32", "shape": [2]}}
    info = {"codebase_version": "v3.0", "fps": 10, "features": features}
    (root / "meta/episodes/chunk-000").mkdir(parents=True)
    (root / "data/chunk-000").mkdir(parents=True)
    (root / "meta/info.json").write_text(json.dumps(info))
    rows, frames, images = [], [], []
    for e in range(2):
        place = {f"videos/{camera}/{n}": 0 for n in ("chunk_index", "file_index")}
        place |= {"data/chunk_index": 0, "data/file_index": 0, f"videos/{camera}/from_timestamp": e * STEPS / 10}
        rows.append({"episode_index": e, "tasks": ["lift it"], "length": STEPS} | place)
        for i in range(STEPS):
            images.append(np.full((16, 32, 3), 20 * e + 9 * i, np.uint8))
            png = io.BytesIO()
            Image.fromarray(images[-1]).save(png, "PNG")
            frames.append(
                {"episode_index": e, "frame_index": i, "timestamp": i / 10, "observation.state": [1.0 * i, e]}
            )
            frames[-1] |= {camera: {"bytes": png.getvalue(), "path": ""}} if kind == "image" else {}
    pq.write_table(pa.Table.from_pylist(rows), root / "meta/episodes/chunk-000/file-000.parquet")
    pq.write_table(pa.Table.from_pylist(frames), root / "data/chunk-000/file-000.parquet")
    if kind == "video":
        write_movie(root / f"videos/{camera}/chunk-000/file-000.mp4", images)


def write_movie(path: Path, images: list[np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = *images[0].shape[:2], "yuv420p"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def write_robotwin(path: Path) -> None:
    path.parent.mkdir(parents=True)
    jpeg = io.BytesIO()
    Image.fromarray(np.full((16, 24, 3), 90, np.uint8)).save(jpeg, "JPEG")
    with h5py.File(path, "w") as f:
        f["observation/head/rgb"] = np.array([jpeg.getvalue()] * STEPS, dtype=f"S{len(jpeg.getvalue())}")
        f["observation/head/intrinsic_cv"] = np.tile(np.array([[20.0, 0, 12], [0, 20, 8], [0, 0, 1]]), (STEPS, 1, 1))
        f["observation/head/extrinsic_cv"] = np.tile(np.eye(4)[:3], (STEPS, 1, 1))
        f["pointcloud"] = np.random.default_rng(0).uniform(0.1, 0.9, (STEPS, 30, 6))
        f["joint_action/vector"] = np.zeros((STEPS, 7))


def write_clouds(folder: Path) -> None:
    rng = np.random.default_rng(0)
    table = np.c_[rng.uniform(0, 1, (20, 3)), rng.integers(0, 256, (20, 3))]
    kind = [(n, "f4") for n in "xyz"] + [(n, "u1") for n in ("red", "green", "blue")]
    types = ["property float x", "property float y", "property float z"]
    types += [f"property uchar {n}" for n in ("red", "green", "blue")]
    for name, order in (("ascii", ""), ("binary_little_endian", "<"), ("binary_big_endian", ">")):
        head = ["ply", f"format {name} 1.0", "element vertex 20", *types, "element face 1",
                "property list uchar int vertex_indices", "end_header", ""]  # fmt: skip
        if order:
            rows = np.array([tuple(r) for r in table], [(n, order + t) for n, t in kind]).tobytes()
            rows += np.array([3], "u1").tobytes() + np.arange(3, dtype=order + "i4").tobytes()
        else:
            rows = "\n".join([*(" ".join(f"{v:g}" for v in r) for r in table), "3 0 1 2", ""]).encode()
        (folder / f"{name}.ply").write_bytes("\n".join(head).encode() + rows)


def write_images(folder: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (24, 32, 4), dtype=np.uint8)
    Image.fromarray(pixels[..., :3]).save(folder / "rgb.png")
    Image.fromarray(pixels).save(folder / "alpha.png")
    Image.fromarray(pixels[..., :3]).quantize(16).save(folder / "palette.png")
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 256).save(folder / "deep.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels[..., :3]).save(folder / "turned.jpg", exif=exif)
    Image.fromarray(pixels).convert("CMYK").save(folder / "cmyk.jpg", progressive=True)


def write_old_pack(path: Path) -> None:
    """An object instead of a dict, as older extractions left it: read only on request, without running it."""

    class Pack:
        pass

    old = Pack()
    old.per_frame_features, old.frame_paths = torch.zeros(2, 3, 2, 2, 4), [["a.png", "b.png", "c.png"]] * 2
    Pack.__module__, Pack.__qualname__ = "__main__", "Pack"
    import __main__

    __main__.Pack = Pack
    torch.save(old, path)


def write_all() -> None:
    """Whole specimens below `BASE`: slow, and so done once, in a process of its own."""
    write_sources(BASE / "source")
    root, source = BASE / "kinds", BASE / "source"
    for name in ("images", "clouds", "state", "text", "video", "weights"):
        (root / name).mkdir(parents=True)
    shutil.copytree(source / "fused", root / "run")
    shutil.copytree(source / "compact" / "run", root / "compact")
    write_images(root / "images")
    write_clouds(root / "clouds")
    names = [f"step_{i:04d}" for i in range(STEPS)]
    tokens = np.random.default_rng(0).normal(size=(STEPS, 2, 3, 4))
    tiny.write_pack(root / "pack", "push", "ep_0", names, tokens)
    tiny.write_pack(root / "pack", "push", "ep_1", names, tokens, dtype=torch.bfloat16)
    convert(root / "pack", root / "packed", frame_copy="middle", progress=False)
    for version in (2, 3):
        tiny.write_zarr(root / f"zarr{version}", "push", "ep_0", names, tokens, version=version)
    write_old_pack(root / "weights" / "old.pt")
    tiny.write_teacher(root / "teacher", "push", "ep_0", names[:1], np.zeros((1, 8)), np.random.default_rng(0))
    np.savez(root / "state" / "plain.npz", steps=np.array(names), tcp=np.zeros((STEPS, 3)), frame=np.array("camera"))
    np.savez_compressed(root / "state" / "packed.npz", steps=np.array(names), world_to_camera=np.eye(4))
    (root / "text" / "mine.toml").write_text(WORKSPACE)
    (root / "text" / "bad.toml").write_text(EXCLUDED)
    for kind in ("image", "video"):
        write_lerobot(root / f"lerobot_{kind}", kind)
    write_robotwin(root / "robotwin" / "push" / "demo" / "data" / "episode0.hdf5")
    write_movie(root / "video" / "a.mp4", [np.full((32, 48, 3), 20 * i, np.uint8) for i in range(STEPS)])
    shutil.copy(WEIGHTS, root / "weights" / "points.safetensors")
    state = {"a.weight": torch.zeros(3, 4), "a.bias": torch.zeros(3)}
    save_file(state, root / "weights" / "official.safetensors")
    torch.save(state, root / "weights" / "official.pt")
    read_cached(CACHE)
    shutil.copytree(CACHE, root / "cache")


def specimens() -> dict[str, Specimen]:
    root = BASE / "kinds"

    def of(folder: str, pattern: str, read: Callable[[Path], object]) -> Specimen:
        files = sorted(p for p in (root / folder).glob(pattern) if p.is_file())
        assert files, (folder, pattern)
        return Specimen(files, read, root / folder)

    def in_run(read: Callable[[Run], object]) -> Callable[[Path], object]:
        return lambda path: read(Run.open(path.parent))

    return {
        "packs (.pt)": of("pack", "*/*.pt", read_pack),
        "packs, flat": of("packed", "*/*.pt", read_pack),
        "packs, zarr v2": of("zarr2", "**/*", lambda _: read_pack(root / "zarr2/push/ep_0.zarr")),
        "packs, zarr v3": of("zarr3", "**/*", lambda _: read_pack(root / "zarr3/push/ep_0.zarr")),
        "packs, old objects": of("weights", "old.pt", as_pack),
        "teacher files": of("teacher", "*/*/*.pt", lambda path: read_points(TeacherFile(path))),
        "clouds (PLY)": of("clouds", "*.ply", read_clouds),
        "images": of("images", "*", read_images),
        "videos": of("video", "*.mp4", read_movie),
        "state files": of("state", "*.npz", read_state),
        "workspace": of("text", "mine.toml", Workspace.load),
        "exclusion list": of("text", "bad.toml", Exclusions.read),
        "config.json": of("run", "config.json", in_run(lambda run: run.config)),
        "summary.json": of("run", "summary.json", in_run(lambda run: run.summary)),
        "metrics.jsonl": of("run", "metrics.jsonl", in_run(lambda run: run.metrics())),
        "embeddings.npz": of("run", "embeddings.npz", in_run(lambda run: run.embeddings())),
        "model.safetensors": of("run", "model.safetensors", in_run(lambda run: run.student())),
        "state.pt": of("run", "state.pt", in_run(lambda run: run.state())),
        "compact student": of("compact", "*.json*", lambda path: (CompactRun.open(path.parent).config,
                                                                  CompactRun.open(path.parent).summary)),
        "point encoder": of("weights", "points.safetensors", load_point_encoder),
        "official weights": of("weights", "official.*", lambda path: (read_official(path), read_shapes(path))),
        "LeRobot, images": of("lerobot_image", "**/*", lambda _: read_recordings(list_lerobot(root / "lerobot_image"))),
        "LeRobot, videos": of("lerobot_video", "**/*", lambda _: read_recordings(list_lerobot(root / "lerobot_video"))),
        "RoboTwin": of("robotwin", "**/*.hdf5", lambda path: read_recordings(list_robotwin(path))),
        "caches": Specimen(sorted(p for p in CACHE.rglob("*") if p.is_file()), read_cached, CACHE),
    }  # fmt: skip
