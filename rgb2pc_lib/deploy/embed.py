"""Use a run: packs -> one embedding per step, or RGB frames straight to embeddings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from rgb2pc_lib.data.files.faults import AT_ONCE, Faults
from rgb2pc_lib.data.files.writing import write_atomic
from rgb2pc_lib.data.packs import LookAhead, choose
from rgb2pc_lib.data.pairing import OK, Pairing, Samples, pair, refuse_broken
from rgb2pc_lib.data.sampling import Gatherer, embedding_lattice
from rgb2pc_lib.data.workspace import Workspace, encoder_of
from rgb2pc_lib.deploy.backbones import Compact
from rgb2pc_lib.deploy.compact import CompactRun, open_run
from rgb2pc_lib.deploy.frames import in_batches, read_frames
from rgb2pc_lib.deploy.hub import is_repository
from rgb2pc_lib.deploy.lookup import (
    Encoder,
    Images,
    at_places,
    frame_tokens,
    needed_beside_frames,
    open_encoder,
    refuse_cameras,
    refuse_weights,
    seen_by,
)
from rgb2pc_lib.deploy.stream import Live, Look, Stream, ThroughExperts, ThroughPixels
from rgb2pc_lib.encoders.encode import encode, kept
from rgb2pc_lib.encoders.rays import Cameras, RayEncoder
from rgb2pc_lib.errors import InputError, tell
from rgb2pc_lib.learning.finish import embed_samples
from rgb2pc_lib.learning.models import Student
from rgb2pc_lib.learning.prepare import pick_device
from rgb2pc_lib.learning.runs import Run, look_ahead_words, sights, window_words


def embed_packs(run: Run, workspace: Workspace, device: str = "auto") -> tuple[pd.DataFrame, np.ndarray]:
    """Embed every step that all experts of the run have; no teacher is needed.

    Returns the keys (task, episode, step, time) and the embeddings `[n, E]` float32, row for row. A run of windows of
    steps embeds single steps too, which is told: it was fitted to other samples.
    Raises InputError when the workspace lacks an expert of the run, a pack is unreadable, or no step is in all packs.

    >>> keys, embeddings = embed_packs(run, workspace)
    >>> len(keys), embeddings.shape
    (96, (96, 16))
    """
    _tell_windows(run, run.name)
    student, _ = run.student()
    pairing = pair(workspace.only(*student.experts), teacher=False)
    samples = every_step(pairing)
    on = pick_device(device)
    gatherer = Gatherer(samples, run.config.frame_copy, device=on)
    places = embedding_lattice(pairing.finest_grid)
    embeddings, _ = embed_samples(student.to(on), gatherer, np.arange(len(samples)), places)
    return samples.keys(), embeddings


def _tell_windows(run: Run, called: str) -> None:
    if words := window_words(run.config):
        tell(f"{called}: {words} Here each frame is embedded by itself; for that, train with --sample_unit step")


def every_step(pairing: Pairing) -> Samples:
    """All steps that every expert has, whether or not the teacher has them."""
    refuse_broken(pairing)
    has = (pairing.table[pairing.experts] == OK).all(axis=1).to_numpy()
    if not has.any():
        raise InputError(f"no step is in the packs of all of {', '.join(pairing.experts)}")
    rows = np.flatnonzero(has)[:, None]
    return Samples(pairing, rows, dict.fromkeys(pairing.experts, rows), np.full_like(rows, -1))


class Cut(NamedTuple):
    """How an episode is cut into windows, for an expert that sees several frames together."""

    window: int = 8  # frames seen at once
    stride: int = 8  # frames from one window to the next
    causal: bool = False  # a window ends at each frame


@dataclass(frozen=True)
class Embedder:
    """RGB frames in, embeddings out: through the run's own experts and its student, or through a compact student.

    Experts: the same numbers as from packs extracted beforehand, up to the packs' rounding to 16 bits.

    >>> embedder = Embedder.from_run(compact)
    >>> frames = np.zeros((5, 120, 160, 3), np.uint8)
    >>> embedder(frames).shape  # [B, H, W, 3] -> [B, E]
    (5, 16)
    """

    name: str  # of the run's folder, or of the hub
    forward: Callable[[Images, Cameras], tuple[torch.Tensor, torch.Tensor | None]]  # images -> what `look` gives
    together: bool = False  # an expert sees several frames: give all frames of an episode at once, in order
    live: Live | None = None  # the same of what has been seen up to now
    look_ahead: str = ""  # what the run saw of the future, in a sentence; nothing where it is as it will be live

    @classmethod
    def from_run(
        cls, run: Run | CompactRun | str | Path, device: str = "auto", weights: Mapping[str, str | Path] | None = None,
        window: int = 0, stride: int = 0, revision: str | None = None, cache: str | Path | None = None,
        offline: bool = False,
    ) -> Embedder:  # fmt: skip
        """An embedder of a finished run: of its folder, or of a model hub, `owner/name`. A folder here always wins.

        That it was fitted to windows of steps, not to single frames, is told.

        Args:
            weights: expert -> its official file or folder, for experts that do not bring their own.
            window: frames seen at once by experts that see several together (0: as the run's packs were extracted, or
                8 where it does not say).
            stride: frames from one window to the next, likewise.
            revision: of a hub: branch, tag or commit; none: what stands there now.
            cache: of a hub: folder of what is fetched; none: huggingface_hub's own.
            offline: of a hub: do not ask it, take what was fetched before.

        Raises InputError when the folder holds no finished run, the hub does not give one, an expert has no encoder or
        no weights here, or weights are of none of its experts.

        >>> Embedder.from_run(compact.folder, device="cpu").name
        'compact'
        """
        asked, on, weights = run, pick_device(device), weights or {}
        run = open_run(run, revision, cache, offline)
        called = str(asked) if isinstance(asked, str | Path) and is_repository(asked) else run.name
        if isinstance(run, CompactRun):
            refuse_weights(weights, (), called)
            if ahead := run.finished and look_ahead_words(run.summary):
                tell(f"{called}: sees one frame, but the fused student that it learned from was not live. {ahead}")
            pixels = ThroughPixels(run.compact().to(on))
            return cls(called, partial(_through_pixels, pixels.network), live=pixels)
        _tell_windows(run, called)
        student, summary = run.student()[0].to(on), run.summary
        refuse_weights(weights, student.experts, called)
        loaded = {n: open_encoder(n, str(on), weights.get(n)) for n in dict.fromkeys(map(encoder_of, student.experts))}
        encoders = {name: loaded[encoder_of(name)] for name in student.experts}
        cuts = {name: _cut(sight, window, stride) for name, sight in sights(summary).items() if name in encoders}
        together = {name: cut for name, cut in cuts.items() if encoders[name].together}
        through = partial(_through_experts, student, encoders, run.config.frame_copy, together)
        live = ThroughExperts(student, encoders, {name: cut.window for name, cut in together.items()})
        return cls(called, through, bool(together), live, look_ahead_words(summary))

    def stream(self, cameras: int | None = None) -> Stream:
        """Frames one at a time, as they come from a camera, or from so many at once: see `Stream`.

        The numbers are those of packs extracted with --causal. Raises InputError for a run that was trained with a view
        of the future, which a camera does not give.

        >>> stream = Embedder.from_run(compact).stream()
        >>> stream(np.zeros((120, 160, 3), np.uint8)).embedding.shape
        (16,)
        >>> stream.reset()  # before the next episode
        """
        if self.look_ahead or self.live is None:
            raise InputError(
                f"{self.name}: {self.look_ahead or 'it has no live view.'} Extract its experts with "
                "tools/extract_features.py --causal and train again; then it runs on a camera"
            )
        return Stream(self.live, cameras)

    def __call__(self, images: Images, cameras: Cameras = None) -> np.ndarray:
        """Embeddings `[B, E]` float32 of RGB images `[B, H, W, 3]` uint8, of any size. Raises InputError otherwise.

        A run of several cameras takes them by name, `{"head": images, "wrist": images}`; one that is missing is left
        out, and its experts are absent. A run with rays is told the `cameras` of the images, one each.

        >>> Embedder.from_run(compact)(np.zeros((120, 160, 3)))
        Traceback (most recent call last):
        rgb2pc_lib.errors.InputError: expected RGB images [B, H, W, 3] in uint8, found [120, 160, 3] in float64
        """
        return self.look(images, cameras).embedding

    @torch.no_grad()
    def look(self, images: Images, cameras: Cameras = None) -> Look:
        """The embeddings `[B, E]` beside the spatial tokens `[B, S * S, D]`, where it gives those: see `Look`.

        >>> look = Embedder.from_run(compact).look(np.zeros((2, 120, 160, 3), np.uint8))
        >>> look.embedding.shape, look.spatial.shape  # S x S blocks of the image, row by row
        ((2, 16), (2, 16, 16))
        """
        named = (
            {k: one for k, one in images.items() if one is not None} if isinstance(images, Mapping) else {"": images}
        )
        arrays = {camera: np.ascontiguousarray(one) for camera, one in named.items()}
        for one in arrays.values():
            if one.dtype != np.uint8 or one.ndim != 4 or one.shape[-1] != 3:
                raise InputError(f"expected RGB images [B, H, W, 3] in uint8, found {list(one.shape)} in {one.dtype}")
            if not one.size:
                raise InputError(f"expected one image or more, with pixels, found none in {list(one.shape)}")
        if len({len(one) for one in arrays.values()}) > 1:
            raise InputError(f"expected as many images of each camera, found {[len(one) for one in arrays.values()]}")
        embedding, spatial = self.forward(arrays if isinstance(images, Mapping) else arrays[""], cameras)
        return Look(embedding.float().cpu().numpy(), None if spatial is None else spatial.float().cpu().numpy())


def _cut(sight: LookAhead | None, window: int, stride: int) -> Cut:
    """As a run's packs were cut, where nothing else is asked for."""
    known = Cut() if sight is None else Cut(sight.window, sight.stride or sight.window, sight.causal)
    return Cut(window or known.window, stride or known.stride, known.causal)


def _through_pixels(network: Compact, images: Images, cameras: Cameras) -> tuple[torch.Tensor, torch.Tensor | None]:
    moments = [images] if isinstance(images, Mapping) else images
    return ThroughPixels(network)([[moment] for moment in moments])


def _through_experts(
    student: Student, encoders: dict[str, Encoder], copy: str, cuts: Mapping[str, Cut], images: Images,
    cameras: Cameras,
) -> tuple[torch.Tensor, torch.Tensor | None]:  # fmt: skip
    return student.look(*live_tokens(encoders, images, None, copy, cuts, cameras))


def live_tokens(
    encoders: Mapping[str, Encoder], images: Images, at: np.ndarray | None = None, copy: str = "middle",
    cuts: Mapping[str, Cut] = {}, cameras: Cameras = None,  # noqa: B006 (never changed)
) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:  # fmt: skip
    """What a batch gathered from packs would hold of frames `[B, H, W, 3]` uint8, up to the packs' rounding; of several
    cameras by name.

    Returns tokens (expert -> `[B, K, C]`), present `[B, K, M]` and positions `[B, K, 2]`, at the places `at` `[K, 2]`;
    without them at those where steps are embedded (`embedding_lattice` of the finest of these experts' grids).
    """
    refuse_cameras(encoders, images)
    seen = {name: seen_by(name, images) for name in encoders}
    grids = {
        name: _one_copy(encoders[name], image, copy, cuts.get(name, Cut()), cameras)
        for name, image in seen.items() if image is not None
    }  # fmt: skip
    return at_places(encoders, grids, images, at)


def _one_copy(encoder: Encoder, images: np.ndarray, copy: str, cut: Cut, cameras: Cameras) -> torch.Tensor:
    """Tokens `[B, Hf, Wf, C]`: each frame as it stands in the window that the run takes its copies from."""
    if isinstance(encoder, RayEncoder) or not encoder.together:
        return frame_tokens(encoder, images, cameras)
    tokens = encode(encoder, images, cut.window, cut.stride, causal=cut.causal)  # [W, T, Hf, Wf, C]
    places: dict[int, list[tuple[int, int]]] = {}
    for w, rows in enumerate(kept(len(images), *cut)):
        for t, frame in enumerate(rows):
            places.setdefault(frame, []).append((w, t))
    chosen = [choose(places[i], copy, tokens.shape[1]) for i in range(len(images))]
    return torch.stack([tokens[w, t] for w, t in chosen])


def embed_frames(
    embedder: Embedder, sources: Sequence[str | Path], every: int = 1, batch: int = 8, progress: bool = True,
    faults: Faults = AT_ONCE,
) -> tuple[list[str], np.ndarray]:  # fmt: skip
    """Names and embeddings `[n, E]` of images, folders of images and videos (`frames.read_frames`).

    Frames are decoded and embedded `batch` at a time; where an expert sees frames together, a folder or video at once.
    What cannot be read or embedded is put into `faults`. Raises InputError where nothing is left, and before anything
    is read for a run that needs more than frames of one camera: rays, or cameras by name.
    """
    if batch < 1:
        raise InputError(f"--batch: expected at least 1, found {batch}")
    if needed := needed_beside_frames(getattr(embedder.live, "encoders", ())):
        raise InputError(
            f"{embedder.name}: needs {needed}, which frames alone do not tell; embed its packs with embed_packs, or "
            "give it to the Embedder from Python"
        )
    names, rows = [], []
    with tqdm(desc=embedder.name, unit="frame", disable=not progress) as bar:
        frames = read_frames(sources, every, faults)
        for some, images in in_batches(frames, 0 if embedder.together else batch):
            with faults.at(*some):
                rows.append(embedder(images))
                names += some
            bar.update(len(some))
    if not rows:
        raise InputError("no frame could be embedded: " + " | ".join(faults.lines()[:6]))
    return names, np.concatenate(rows)


def refuse_unwritable(path: Path) -> None:
    """Raises InputError for what `save_embeddings` does not write: another ending, or parquet without its package."""
    if path.suffix not in (".npz", ".parquet"):
        raise InputError(f"{path}: expected a name that ends in .npz or .parquet")
    if path.suffix == ".parquet" and find_spec("pyarrow") is None:
        raise InputError(f"{path}: parquet needs pyarrow; run: pip install 'rgb2pc[import]', or write .npz")


def save_embeddings(path: Path, names: list[str], embeddings: np.ndarray) -> None:
    """Write `.npz` (arrays `names` and `embeddings`) or `.parquet` (columns `name` and `embedding`).

    Raises InputError as `refuse_unwritable` does.
    """
    refuse_unwritable(path)
    if path.suffix == ".npz":
        return write_atomic(path, lambda p: np.savez(p, names=np.array(names), embeddings=embeddings))
    table = pd.DataFrame({"name": names, "embedding": list(embeddings)})
    write_atomic(path, lambda p: table.to_parquet(p, engine="pyarrow", index=False))
