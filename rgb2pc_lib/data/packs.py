"""Expert packs: all features of one expert for one episode, opened without being loaded.

A `.pt` pack is parsed with `weights_only=True` and its tensor stays mapped where it lies in the file,
so a 5 GB pack opens in milliseconds and a batch reads only the tokens it asks for.
A `.zarr` pack (v2 or v3) is read chunk by chunk through zarr. Layouts: `data/README.md`.
"""

from __future__ import annotations

import functools
import os
import pickle
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from rgb2pc_lib.data import system
from rgb2pc_lib.data.files.guarded import DAMAGE, first_line, read_json_beside
from rgb2pc_lib.data.geometry import Box, Layout, box_doubt, token_box
from rgb2pc_lib.data.listing import PACKS, episodes, step_name
from rgb2pc_lib.data.mapped import Frames, Stored, bits, find
from rgb2pc_lib.errors import InputError, remedy

if TYPE_CHECKING:  # zarr is imported where a zarr pack is opened
    import zarr

    Source = Stored | np.ndarray | zarr.Array[Any]
Shape = tuple[int, int, int, int, int]

KEY = "per_frame_features"
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
COPIES = ("middle", "last", "random")  # which of the up to T copies of a frame is used
WINDOWED = ("vggt", "da3", "depth_anything_3", "depth-anything-3")  # experts known to see a window as a whole
SINGLE = ("croco", "dino", "efficientnet", "xfeat", "disk", "daisy", "simdepth")  # and those known to see one frame
_OLD_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how files of torch before 2020 begin

# Numpy arrays and numbers inside a torch file are data, not code: the names their pickles need, old and new.
_numpy = np._core.multiarray  # type: ignore[attr-defined]  # private, so numpy's types leave it out
torch.serialization.add_safe_globals(
    [(_numpy._reconstruct, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")]
    + [(_numpy.scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    + [bytes, np.ndarray, np.dtype, *{type(np.dtype(t)) for t in "?efdU" + np.typecodes["AllInteger"]}]
)


def list_packs(root: Path, faults: dict[tuple[str, str], str] | None = None) -> dict[tuple[str, str], Path]:
    """(task, episode) -> pack file, for everything of the form `<root>/<task>/<episode>.pt|.zarr`.

    Raises InputError where an episode has both: with `faults`, it is put there instead, and left out.
    """
    found: dict[tuple[str, str], Path] = {}
    for task, path in episodes(root):
        if path.suffix.lower() in PACKS:
            key = (task, path.stem)
            if key in found:
                said = f"{path}: this episode also exists as {found[key].name}; keep one of the two"
                if faults is None:
                    raise InputError(said)
                faults[key] = said
            found[key] = path
    return {key: path for key, path in found.items() if key not in (faults or {})}


@dataclass(eq=False)
class FeaturePack:
    """One expert, one episode. Frames stand in W windows of T; `features[w, t]` is a grid `[H, W, C]`.

    Opening reads no token; what is asked for is read then. Which of a frame's copies is used is said by `copy`:
    "middle" (nearest its window's middle), "last" (latest in its window) or "random".

    >>> pack = FeaturePack.open(workspace.experts["dinov3"] / "push" / "ep_0.pt")
    >>> pack.grid, pack.channels, pack.box, pack.steps[:2]  # H and W, C, fractions of the image, names
    ((4, 4), 12, (0.0, 0.0, 1.0, 1.0), ['step_0000', 'step_0001'])
    """

    path: Path
    source: Source  # where its bytes lie; or the features themselves, a map or zarr
    shape: Shape  # W, T, H, W, C
    dtype: torch.dtype
    copies: dict[str, list[tuple[int, int]]]  # step -> where it stands: (window, frame)
    box: Box  # x0, y0, x1, y1: part of the image the grid covers, as fractions
    meta: dict[str, Any]
    doubt: str = ""  # why the box is only assumed, where it is
    ahead: np.ndarray = field(default_factory=lambda: np.zeros((1, 1), int))  # [W, T] frames seen after a copy's own
    ahead_told: bool = True  # else assumed, by `frames_ahead`

    @classmethod
    def open(cls, path: str | Path, expert: str = "", raw_size: tuple[int, int] | None = None) -> FeaturePack:
        """Open a pack. `raw_size` (height, width) of the RGB frame, in pixels, is needed only to place grids that crop.

        Raises InputError naming the file when it is unreadable, unsafe, or not a pack.

        >>> FeaturePack.open(workspace.experts["vggt"] / "push" / "ep_0.pt", "vggt").shape  # W, T, H, W, C
        (9, 4, 4, 4, 10)
        """
        path = Path(path)
        zarr = path.suffix.lower() == ".zarr"
        source, frame_paths, meta, dtype = (open_zarr if zarr else _open_pt)(path)
        if len(source.shape) != 5 or 0 in source.shape:
            raise InputError(
                f"{path}: expected '{KEY}' of shape [W, T, H, W, C], found {list(source.shape)}, which is no pack's "
                "layout; write windows, frames, rows, columns and channels as axes of their own (data/README.md)"
            )
        if not isinstance(meta, dict):
            raise InputError(
                f"{path}: expected 'meta' to be a dict, found a {type(meta).__name__}; write it as one, or leave it out"
            )
        if dtype not in DTYPES:
            raise InputError(
                f"{path}: expected fp16, bf16 or fp32 features, found {dtype}; convert it once with: "
                f"{conversion(path)} --dtype fp32"
            )
        shape = tuple(source.shape)
        return cls.known(path, source, shape, dtype, locate(path, frame_paths, shape[:2]), meta, expert, raw_size)

    @classmethod
    def known(
        cls, path: Path, source: Source, shape: Shape, dtype: torch.dtype, copies: dict[str, list[tuple[int, int]]],
        meta: dict[str, Any], expert: str = "", raw_size: tuple[int, int] | None = None,
    ) -> FeaturePack:  # fmt: skip
        """The pack of a file of which everything is known. Raises InputError where its grid cannot be placed."""
        try:
            box, doubt = token_box(meta, shape[2:4], expert, raw_size), box_doubt(meta, shape[2:4], expert, raw_size)
            _same_shape(meta, shape)
            ahead, told = frames_ahead(meta, shape[:2], expert)
        except InputError as e:
            raise InputError(f"{path}: {e}") from None
        return cls(path, source, shape, dtype, copies, box, meta, doubt, ahead, told)

    @property
    def steps(self) -> list[str]:
        """Names of the frames, in the order in which they were first met."""
        return list(self.copies)

    @property
    def grid(self) -> tuple[int, int]:
        """(H, W), tokens of a frame."""
        return self.shape[2:4]

    @functools.cached_property
    def layout(self) -> Layout:
        """Its grid and box, which say what lies under a position."""
        return Layout(self.grid, self.box)

    @property
    def channels(self) -> int:
        """C, of a token."""
        return self.shape[4]

    @property
    def nbytes(self) -> int:
        """Bytes of all tokens, each copy of a frame counted."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    @functools.cached_property
    def features(self) -> np.ndarray | zarr.Array[Any]:
        """`[W, T, H, W, C]`: a read-only map of the file, made on first use, or zarr. bf16 stands as int16 bits."""
        if not isinstance(self.source, Stored):
            return self.source
        array = bits(self.source.map(self.path))
        if array.flags.c_contiguous:
            system.read_as_asked(array.ctypes.data, array.nbytes)
        return array

    def where(self, step: str, copy: str = "middle", draw: float = 0.0) -> tuple[int, int]:
        """(window, frame) of one copy of a step: nearest its window's middle, the latest in its window, or random.

        `draw` in [0, 1) chooses among the copies for "random".
        """
        if copy == "random":
            places = self.copies[step]
            return places[int(draw * len(places))]
        return choose(self.copies[step], copy, self.shape[1])

    def cells(self, positions: np.ndarray) -> np.ndarray:
        """Cell index (row-major) under each position `[..., 2]` = (x, y) of the original image; -1 outside the box."""
        return self.layout.cells(positions)

    def number(self, place: tuple[int, int]) -> int:
        """Of the frame at (window, frame), among the `frames`."""
        return place[0] * self.shape[1] + place[1]

    def read(self, place: tuple[int, int], cells: np.ndarray, out: np.ndarray) -> None:
        """Copy the tokens of `cells [K]` at (window, frame) into `out [K, C]`; cells of -1 get an arbitrary token."""
        self.frames.read(self.number(place), cells, out)

    def tokens(self, step: str, positions: np.ndarray, copy: str = "middle") -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens `[K, C]` under positions `[K, 2]` and whether the grid covers them `[K]`.

        Positions are (x, y) as fractions of the original image. A token that is not covered is an arbitrary one.
        Raises KeyError for a step that the pack does not hold.

        >>> tokens, covered = pack.tokens("step_0003", np.array([[0.5, 0.5], [0.1, 0.9]]))
        >>> tokens.shape, tokens.dtype, covered
        (torch.Size([2, 12]), torch.float16, tensor([True, True]))
        """
        cells = self.cells(np.asarray(positions, float))
        rows = np.take(self._frame(self.where(step, copy)), cells, axis=0, mode="clip")
        return torch.from_numpy(rows).view(self.dtype), torch.from_numpy(cells >= 0)

    def frame(self, step: str, copy: str = "middle") -> torch.Tensor:
        """All tokens of a step, `[H, W, C]`. Raises KeyError for a step that the pack does not hold.

        >>> pack.frame("step_0003").shape
        torch.Size([4, 4, 12])
        """
        return self.grid_at(self.where(step, copy))

    def grid_at(self, place: tuple[int, int]) -> torch.Tensor:
        """All tokens at (window, frame), `[H, W, C]`, copied."""
        rows = np.empty((self.grid[0] * self.grid[1], self.channels), self.features.dtype)
        self.read(place, np.arange(len(rows)), rows)
        return torch.from_numpy(rows).view(self.dtype).view(*self.grid, self.channels)

    @functools.cached_property
    def frames(self) -> Frames | Unmapped:
        """All frames by number; advised about where they are a plain map of the file."""
        array = self.features
        if os.name != "posix" or not isinstance(array, np.ndarray) or not array.flags.c_contiguous:
            return Unmapped(self)
        return Frames(array.reshape(-1, self.grid[0] * self.grid[1], self.channels), os.access(self.path, os.W_OK))

    def _frame(self, place: tuple[int, int]) -> np.ndarray:  # [H*W, C]
        w, t = place
        frame: np.ndarray = self.features[w, t] if isinstance(self.features, np.ndarray) else _zarr_window(self, w)[t]
        return frame.reshape(-1, frame.shape[-1])


class Unmapped:
    """Frames of zarr, or of features that are no plain map of a file: the system is told nothing about them."""

    def __init__(self, pack: FeaturePack):
        self.pack = pack

    def read(self, number: int, rows: np.ndarray, out: np.ndarray) -> None:
        np.take(self.pack._frame(divmod(number, self.pack.shape[1])), rows, axis=0, out=out, mode="clip")

    def will_need(self, number: int) -> None:
        pass


def choose(places: list[tuple[int, int]], copy: str, frames: int) -> tuple[int, int]:
    """The place whose frame is nearest the middle of its window of T `frames`, or the last in its window."""
    middle = (frames - 1) / 2
    return min(places, key=lambda p: -p[1] if copy == "last" else abs(p[1] - middle))


# -- what a robot could not have seen


class LookAhead(NamedTuple):
    """How an expert's packs were cut, and how many frames after its own a frame's features have seen: 0 is causal."""

    mean: float  # over all frames
    most: int
    told: bool  # whether every pack says it; else it is what `frames_ahead` assumes
    window: int  # frames seen at once
    stride: int  # frames from one window to the next, 0 where the packs do not say it
    causal: bool  # whether every window ends at its frame


def look_ahead(packs: Collection[FeaturePack], copy: str = "middle") -> LookAhead:
    """That of one expert's packs, at the copies that a policy chooses ("random": over all of them).

    >>> look_ahead([pack], "last")  # windows of 4 frames, one frame apart, of an expert that sees single frames
    LookAhead(mean=0.0, most=0, told=True, window=4, stride=0, causal=False)
    """
    seen: dict[tuple[int, bytes], list[int]] = {}  # packs whose frames have the same names share their copies
    for pack in packs:
        if (key := (id(pack.copies), pack.ahead.tobytes())) not in seen:
            seen[key] = _seen_ahead(pack, copy)
    every = [n for pack in packs for n in seen[id(pack.copies), pack.ahead.tobytes()]]
    windows = [_whole(p.meta, "windows_of") or _whole(p.meta, "window_size") or p.shape[1] for p in packs]
    strides = {_whole(pack.meta, "stride") or 0 for pack in packs}
    return LookAhead(
        float(np.mean(every)), max(every), all(pack.ahead_told for pack in packs), max(windows),
        strides.pop() if len(strides) == 1 else 0, all(pack.meta.get("causal") is True for pack in packs),
    )  # fmt: skip


def _seen_ahead(pack: FeaturePack, copy: str) -> list[int]:
    if not pack.ahead.any():
        return [0] * len(pack.copies)
    if copy == "random":
        return [int(pack.ahead[place]) for places in pack.copies.values() for place in places]
    return [int(pack.ahead[choose(places, copy, pack.shape[1])]) for places in pack.copies.values()]


def frames_ahead(meta: dict[str, Any], shape: tuple[int, int], expert: str = "") -> tuple[np.ndarray, bool]:
    """How many frames after its own each copy of a frame has seen, `[W, T]`, and whether that is known.

    `look_ahead` in meta says it: a whole number, T numbers (by the place in a window), or W lists of T. Without it
    experts are taken at their name: `SINGLE` ones see no frame but their own, `WINDOWED` ones their window as a whole.
    Of any other the latter is assumed, and of packs with one copy of each frame the worst, `windows_of` - 1.
    Raises InputError for other numbers.

    >>> frames_ahead({"model_name": "VGGT"}, (1, 3))
    (array([[2, 1, 0]]), True)
    """
    if "look_ahead" in meta:
        try:
            told = np.array(meta["look_ahead"])
            if told.dtype.kind not in "iu" or (told < 0).any():
                raise ValueError
            return np.broadcast_to(told, shape), True
        except ValueError:
            raise InputError(
                f"expected 'look_ahead' in meta as a whole number, {shape[1]} of them or {shape[0]} lists of "
                f"{shape[1]}, found {str(meta['look_ahead'])[:40]}; correct it, or leave it out"
            ) from None
    name = f"{meta.get('model_name', '')} {expert}"
    if sees_single_frames(name):
        return np.zeros(shape, int), True
    if shape[1] == 1:
        kept_of = _whole(meta, "windows_of") or 1
        return np.full(shape, kept_of - 1), kept_of == 1
    return np.broadcast_to(np.arange(shape[1])[::-1], shape), _windowed(name)


def sees_single_frames(name: str) -> bool:
    """Whether an expert is known, by its name, to look at every frame by itself."""
    return not _windowed(name) and any(known in name.lower() for known in SINGLE)


def _windowed(name: str) -> bool:
    return any(known in name.lower() for known in WINDOWED)


def _whole(meta: dict[str, Any], name: str) -> int | None:
    value = meta.get(name)
    return value if isinstance(value, int) and value > 0 else None


# -- reading files


def conversion(path: Path) -> str:
    """The command that converts the root of a pack."""
    return f"python tools/pack_features.py --from {path.parent.parent} --out NEW_ROOT"


def load_torch(path: Path, refused: str, mmap: bool = False, again: str = "re-extract it") -> Any:
    """What a torch file holds. Never runs code that is stored in it.

    Raises InputError naming the file when it is unreadable (a damaged one is to be made `again`), or needs code
    (`refused` says what to do then).
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as e:  # a damaged pickle fails in any way
        code = re.search(r"GLOBAL (\S+)", str(e))  # the class or function that the file asks for
        if isinstance(e, pickle.UnpicklingError) and code:
            raise InputError(
                f"{path}: reading it would run code, {code[1]}, that the file asks for, so it is refused; {refused}"
            ) from None
        reason = first_line(str(e).split("WeightsUnpickler error: ")[-1] or e)
        reason = "no zip archive" if "mmap can only be used" in reason else reason
        what = remedy(path, again, "write it with torch.save, tensors and plain values only", reason)
        raise InputError(f"{path}: not a readable torch file ({reason}); {what}") from None


def _open_pt(path: Path) -> tuple[Stored | np.ndarray, Any, Any, torch.dtype]:
    """The features or where they lie, the file's frame_paths and meta as they are, and the features' type."""
    convert = conversion(path)
    if _begins(path, _OLD_TORCH):
        raise InputError(
            f"{path}: in the torch format of before 2020, which cannot be mapped; convert it once with: {convert}"
        )
    raw = load_torch(path, f"convert it once with: {convert}", mmap=True)
    if isinstance(raw, torch.Tensor):
        raise InputError(
            f"{path}: a bare tensor {list(raw.shape)} without frame names, so it cannot be paired; convert it with: "
            f"{convert} --rgb_root FRAMES"
        )
    if not isinstance(raw, dict) or not isinstance(raw.get(KEY), torch.Tensor):
        found = f"a dict with {sorted(map(str, raw))}" if isinstance(raw, dict) else f"a {type(raw).__name__}"
        raise InputError(
            f"{path}: expected a dict with the tensor '{KEY}', found {found}, which is no pack of features; "
            "give the folder that holds them (data/README.md tells the layout)"
        )
    features = raw[KEY].detach()
    if features.layout != torch.strided or features.is_quantized:
        raise InputError(f"{path}: expected '{KEY}' as a plain tensor, found {features.layout}; write it dense")
    source = find(path, features) or bits(features) if features.dtype in DTYPES else np.empty(features.shape, bool)
    return source, raw.get("frame_paths"), raw.get("meta") or {}, features.dtype


def _begins(path: Path, with_bytes: bytes) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(with_bytes)) == with_bytes
    except OSError:  # the reading itself will tell
        return False


def zarr_array(path: Path) -> zarr.Array[Any]:
    """The array `KEY` of a zarr group. Raises what zarr raises, and ValueError where that is no array."""
    import zarr

    found = zarr.open_group(str(path), mode="r", use_consolidated=False)[KEY]  # a consolidated copy may be older
    if not isinstance(found, zarr.Array):
        raise ValueError(f"'{KEY}' is a group")
    return found


def open_zarr(path: Path) -> tuple[zarr.Array[Any], Any, Any, torch.dtype | str]:
    """The features, the frame_paths and meta beside them as they are, and the features' type (a name: not torch's).

    Raises InputError where there is no such array, or a part of it is missing.
    """
    import zarr

    try:
        features = zarr_array(path)
        chunks = features.nchunks_initialized, features.nchunks
    except (*DAMAGE, zarr.errors.BaseZarrError) as e:
        what = remedy(path, "re-extract it", "data/README.md tells the layout", str(e))
        raise InputError(
            f"{path}: expected a zarr group with the array '{KEY}', found: {first_line(e)}; {what}"
        ) from None
    whole_zarr(path, features, chunks)
    shape = read_json_beside(path, "shape.json")
    if isinstance(shape, list) and shape and isinstance(shape[0], int) and tuple(shape) != tuple(features.shape):
        raise InputError(
            f"{path}: shape.json says {shape}, the array has {list(features.shape)}: they are of two extractions, or "
            "one was interrupted; re-extract it, or remove shape.json if the array is the right one"
        )
    dtype = {"float16": torch.float16, "float32": torch.float32}.get(str(features.dtype), str(features.dtype))
    return features, read_json_beside(path, "frame_paths.json"), read_json_beside(path, "meta.json") or {}, dtype


def whole_zarr(path: Path, array: zarr.Array[Any], chunks: tuple[int, int] | None = None) -> None:
    """Raises InputError where a zarr array lacks chunks, which zarr would read as its fill value without a word."""
    there, all_of_them = chunks or (array.nchunks_initialized, array.nchunks)
    if there < all_of_them:
        raise InputError(
            f"{path}: unfinished, only {there} of {all_of_them} chunks are there, and the others would read as "
            f"{array.fill_value}; re-extract it (if these chunks hold nothing else, write them with write_empty_chunks)"
        )


@functools.lru_cache(maxsize=2)  # one chunk is one window; reading in order meets it T times
def _zarr_window(pack: FeaturePack, window: int) -> np.ndarray:
    try:
        found = np.asarray(pack.features[window])
    except DAMAGE as e:
        raise InputError(f"{pack.path}: window {window} is unreadable ({first_line(e)}); re-extract it") from None
    array: Any = pack.features
    if array.shards and (found == array.fill_value).all(axis=(1, 2, 3)).any():  # holes in shards are not counted
        raise InputError(f"{pack.path}: window {window} has frames that were never written; re-extract it")
    return found


def locate(path: Path, frame_paths: object, shape: tuple[int, int]) -> dict[str, list[tuple[int, int]]]:
    """Step -> its places (window, frame), of W windows of T names. Raises InputError where they are not that."""
    windows = frame_paths if isinstance(frame_paths, list | tuple) else []
    if not windows:
        what = "frame_paths.json beside the array" if path.suffix == ".zarr" else "list 'frame_paths'"
        raise InputError(f"{path}: no {what}, so its frames have no step names and cannot be paired by name")
    names = [len(w) if isinstance(w, list | tuple) and all(isinstance(n, str) for n in w) else 0 for w in windows]
    if names != [shape[1]] * shape[0]:
        raise InputError(
            f"{path}: expected frame_paths as {shape[0]} lists of {shape[1]} names, "
            f"found {len(names)} lists with {sorted(set(names))} names; name every frame of every window, or "
            "re-extract this episode if features and names are of two extractions"
        )
    copies: dict[str, list[tuple[int, int]]] = {}
    behind: dict[str, str] = {}  # step -> its file
    for w, window in enumerate(windows):
        for t, name in enumerate(window):
            step = step_name(name)
            if behind.setdefault(step, name) != name:
                raise InputError(
                    f"{path}: two frames, {behind[step]} and {name}, would both be the step {step!r}; give frames of "
                    "one episode names of their own, and those of two cameras an episode each"
                )
            copies.setdefault(step, []).append((w, t))
    return copies


def _same_shape(meta: dict[str, Any], shape: Shape) -> None:
    """Raises InputError where a pack says another grid than its features have."""
    told = meta.get("grid")
    if isinstance(told, list | tuple) and len(told) == 2 and tuple(told) != tuple(shape[2:4]):
        raise InputError(
            f"its meta says a grid of {told[0]} x {told[1]} tokens, its features have {shape[2]} x {shape[3]}, so it "
            "is not known where they lie; correct 'grid' and 'box' in meta, or re-extract this episode"
        )
