"""The second distillation: a finished run into one small network that sees nothing but RGB frames.

The loop, the losses, the log and the checkpoints are those of `train`; what is new is what a batch holds (pixels,
changed in ways that leave the target true) and what it is pulled to: the fused student's embedding of that frame, and
its spatial tokens, place by place.
"""

from __future__ import annotations

import json
import math
from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rgb2pc_lib.data.files.writing import claim, write_atomic
from rgb2pc_lib.data.workspace import PROJECT
from rgb2pc_lib.deploy.backbones import Compact
from rgb2pc_lib.deploy.compact import CompactConfig, CompactRun
from rgb2pc_lib.deploy.frames import frame_cache
from rgb2pc_lib.deploy.lookup import needed_beside_frames, refuse_weights
from rgb2pc_lib.deploy.places import missed, told_of_places, usual
from rgb2pc_lib.deploy.targets import Targets, more_targets, own_targets
from rgb2pc_lib.errors import InputError, tell
from rgb2pc_lib.learning import ranks
from rgb2pc_lib.learning.learner import Learner
from rgb2pc_lib.learning.losses import NearInTime
from rgb2pc_lib.learning.metrics import agreement, retrieval
from rgb2pc_lib.learning.models import SIDE
from rgb2pc_lib.learning.objective import embedding_loss
from rgb2pc_lib.learning.precision import in_bfloat16
from rgb2pc_lib.learning.prepare import pick_device, refuse_few_negatives
from rgb2pc_lib.learning.runs import Run, sights
from rgb2pc_lib.learning.train import Progress, begin, follow


@dataclass
class Pixels:
    """A batch: frames as the network sees them, and what the fused student makes of them."""

    images: Tensor  # [B, S, S, 3] float, 0..255
    teacher: Tensor  # [B, E], the fused student's embeddings
    samples: np.ndarray  # [B]


class Compression:
    """The objective (see `objective`): one embedding per frame, and its spatial tokens, like the fused student's.

    Spatial tokens are compared place by place, as they are: `loss_spatial` counts the share of their variance around
    each place's mean over the training frames that is missed (1 where a network tells nothing of a frame).
    """

    experts: tuple[str, ...] = ()  # it has no gates

    def __init__(self, config: CompactConfig, network: Compact, data: Targets):
        keys, self.spatial = data.keys, data.spatial
        self.config, self.student = config, network.train()
        self.device = network.head.weight.device
        self.amp = in_bfloat16(config.amp, self.device)
        self.episode = torch.tensor(keys.groupby(["task", "episode"]).ngroup().to_numpy(), device=self.device)
        self.time = torch.tensor(keys["time"].to_numpy(), device=self.device)
        self.log_tau = torch.nn.Parameter(torch.tensor(math.log(config.tau), device=self.device))

    def noise(self, n: int) -> None:
        """The network draws nothing; what is random about a step is drawn with its pixels."""
        return None

    def outputs(self, batch: Pixels, noise: Tensor | None) -> dict[str, Tensor]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.amp):
            embedding, spatial = self.student.look(batch.images)
        outputs = {"embedding": embedding.float(), "samples": torch.from_numpy(batch.samples).to(self.device)}
        return outputs | ({} if spatial is None else {"spatial": spatial.float()})

    def loss(self, outputs: dict[str, Tensor], teacher: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        samples = outputs["samples"]
        near = NearInTime(self.episode[samples], self.time[samples], self.config.exclude_near)
        loss, terms = embedding_loss(self.config, outputs["embedding"], teacher, self.log_tau.exp(), near)
        if self.spatial is not None and self.student.spatial is not None:
            wanted = torch.from_numpy(self.spatial[samples.cpu().numpy()]).to(self.device)
            terms["spatial"] = missed(outputs["spatial"], wanted, self.student.spatial.spread)
            loss = loss + self.config.loss_spatial * terms["spatial"]
        return loss, terms


def train_compact(
    config: CompactConfig, resume: bool = False, weights: Mapping[str, str | Path] | None = None
) -> Generator[Progress]:
    """Train a compact student and leave it in `config.folder`; yields after every step, resumes like `train`.

    `weights`: expert -> its official file or folder, for experts that do not bring their own and that frames of
    `more_rgb` go through. Raises InputError for bad input, when the folder already holds a run (unless it is to be
    resumed), and while another training writes there.

    >>> config = CompactConfig(run=str(run.folder), save_dir=str(folder / "small"), size=32, steps=2, batch_size=16)
    >>> [progress.step for progress in train_compact(config)]
    [1, 2]
    >>> CompactRun.open(config.folder).finished
    True
    """
    with claim(config.folder):
        yield from _train(config, resume, weights or {})


def _train(config: CompactConfig, resume: bool, weights: Mapping[str, str | Path]) -> Generator[Progress]:
    if not config.run:
        raise InputError("--run: name the folder of the finished run to distil")
    if ranks.world() > 1:
        raise InputError(
            "a compact student is trained by one process (batch norms need whole batches); leave out torchrun"
        )
    device = pick_device(config.device)
    run = CompactRun(config.folder)
    state = begin(run, config, resume)
    fused = Run.open(PROJECT / config.run)
    refuse_weights(weights, fused.config.vis_roots, str(fused.folder))
    more = [PROJECT / root for root in config.more_rgb]
    data = gather_targets(fused, more, config.device, config.spatial, weights)
    pixels = frame_cache(data.files, config.size)
    side, watched = _watched(fused, data)
    seen = frame_cache(watched.files, config.size)
    data = without_twins(data, pixels, watched, seen)
    refuse_few_negatives(config, data.keys[~data.held_out])
    network = build(config, data)
    last = torch.channels_last
    network = network.to(device, memory_format=last)  # type: ignore[call-overload]  # torch's types lack it
    learner = Learner(Compression(config, network, data))
    own = np.arange(len(fused.embeddings()["held_out"]))  # the run's own steps stand first
    usually = None if network.spatial is None else network.spatial.usual.cpu().numpy()

    def curve() -> dict[str, float]:
        embedding, spatial = look_at_pixels(network, seen, np.arange(len(seen)))
        found = {"cosine": agreement(embedding, watched.embeddings)["cosine"]}
        found |= retrieval(embedding, watched.embeddings) | told_of_places(spatial, watched.spatial, usually)
        return {f"{side}/{k}": v for k, v in found.items()}

    yield from follow(run, learner, lambda first: _batches(config, data, pixels, first, device), curve, state)
    _finish(run, config, network.eval(), fused, data, pixels, own)


def build(config: CompactConfig, data: Targets) -> Compact:
    """The network before its first step."""
    width = data.embeddings.shape[1]
    if data.spatial is None:
        return Compact(config.backbone, config.size, width, config.seed, config.backbone_weights)
    places = {"places": SIDE, "width": data.spatial.shape[-1]}
    network = Compact(config.backbone, config.size, width, config.seed, config.backbone_weights, **places)
    assert network.spatial is not None  # as it has places
    mean, spread = usual(data.spatial[~data.held_out])
    network.spatial.expect(torch.from_numpy(mean), spread)
    return network


def _watched(fused: Run, data: Targets) -> tuple[str, Targets]:
    """The steps behind the curve, and their name: the run's own for validation, or the held-out ones without such."""
    own = own_targets(fused, "validation", data.spatial is not None)
    if own.held_out.any():
        return "validation", own.take(np.flatnonzero(own.held_out))
    return "held-out", data.take(np.flatnonzero(data.held_out))


def gather_targets(
    fused: Run, more_rgb: list[Path], device: str = "auto", spatial: bool = False,
    weights: Mapping[str, str | Path] | None = None,
) -> Targets:  # fmt: skip
    """The run's own steps first, then the frames of every further folder.

    Raises InputError as `own_targets` does, and for further frames where the run needs more than those to embed them.
    """
    if more_rgb and (needed := needed_beside_frames(fused.config.vis_roots)):
        raise InputError(f"--more_rgb: {fused.folder} needs {needed}, which frames alone do not tell; leave it out")
    data = own_targets(fused, spatial=spatial, device=device)
    for root in more_rgb:
        data = data + more_targets(fused, root, device=device, spatial=spatial, weights=weights)
    return data


def without_twins(data: Targets, pixels: np.ndarray, watched: Targets, seen: np.ndarray) -> Targets:
    """The same, where a training frame that is, pixel by pixel, held out or watched takes no part; that is told.

    `pixels` and `seen` are the frames `[n, S, S, 3]` of both. Those of a simulator may be the same in several episodes,
    as before anything has moved.
    """
    guarded = [(data.files[i], pixels[i]) for i in np.flatnonzero(data.held_out)]
    guarded += zip(watched.files, seen, strict=True)
    held = {hash(frame.tobytes()): (file, frame) for file, frame in guarded}
    twins = {
        i: known[0] for i in np.flatnonzero(~data.held_out)
        if (known := held.get(hash(pixels[i].tobytes()))) is not None and np.array_equal(pixels[i], known[1])
    }  # fmt: skip
    if twins:
        i, twin = next(iter(twins.items()))
        tell(f"{data.files[i]}: the same pixels as {twin}, which is for judging; "
             f"{len(twins)} training frame(s) like it are left out")  # fmt: skip
    return replace(data, held_out=data.held_out | np.isin(np.arange(len(pixels)), list(twins)))


def _batches(config, data: Targets, pixels: np.ndarray, first: int, device) -> Generator[Pixels]:
    """Batch n is a pure function of (seed, n): epochs are permutations, and every change of the pixels is drawn."""
    training = np.flatnonzero(~data.held_out)
    if config.batch_size > len(training):
        raise InputError(f"--batch_size {config.batch_size} is larger than the {len(training)} frames; lower it")
    per_epoch = len(training) // config.batch_size
    for n in range(first, config.steps):
        order = np.random.default_rng([config.seed, 1, n // per_epoch]).permutation(training)
        chosen = order[n % per_epoch * config.batch_size :][: config.batch_size]
        images = torch.from_numpy(pixels[chosen]).to(device).float()
        images = augmented(images, np.random.default_rng([config.seed, 2, n]), config.photometric, config.shift)
        yield Pixels(images, torch.from_numpy(data.embeddings[chosen]).to(device), chosen)


def augmented(images: Tensor, rng: np.random.Generator, photometric: float = 1.0, shift: float = 0.01) -> Tensor:
    """Frames `[B, S, S, 3]` in 0..255, each changed by its own draw in ways that leave its target true.

    Light and colour: gain, contrast, saturation, tint and gamma. Camera: blur and noise. Place: a shift of at most
    `shift` of the side, its edge repeated. Never a flip, a crop or a turn: the embedding says where things are.
    """
    size = images.shape[1]
    x = images / 255

    def draw(low, high, channels=1):
        return torch.from_numpy(rng.uniform(low, high, (len(images), 1, 1, channels)).astype(np.float32)).to(x.device)

    p = photometric
    x = x * draw(1 - 0.4 * p, 1 + 0.4 * p) * draw(1 - 0.15 * p, 1 + 0.15 * p, 3)
    mean = x.mean((1, 2, 3), keepdim=True)
    x = mean + (x - mean) * draw(1 - 0.3 * p, 1 + 0.3 * p)
    grey = x.mean(3, keepdim=True)
    x = grey + (x - grey) * draw(1 - 0.4 * p, 1 + 0.4 * p)
    x = x.clamp(1e-4, 1) ** torch.exp(draw(-0.3 * p, 0.3 * p))
    some = draw(0, 1) < 0.3 * min(p, 1)
    blurred = F.avg_pool2d(F.pad(x.permute(0, 3, 1, 2), (1, 1, 1, 1), mode="replicate"), 3, 1).permute(0, 2, 3, 1)
    x = torch.where(some, blurred, x)
    noise = torch.from_numpy(rng.standard_normal(x.shape, np.float32)).to(x.device)
    x = x + noise * draw(0, 0.03 * p)
    if most := round(shift * size):
        padded = F.pad(x.permute(0, 3, 1, 2), (most,) * 4, mode="replicate").permute(0, 2, 3, 1)
        at = rng.integers(0, 2 * most + 1, (len(images), 2))
        x = torch.stack([f[r : r + size, c : c + size] for f, (r, c) in zip(padded, at.tolist(), strict=True)])
    return x.clamp(0, 1) * 255


def embed_pixels(network: Compact, pixels: np.ndarray, index: np.ndarray, batch: int = 64) -> np.ndarray:
    """Embeddings `[n, E]` of cached frames `[*, S, S, 3]` uint8, in evaluation mode and in full precision."""
    return look_at_pixels(network, pixels, index, batch)[0]


@torch.no_grad()
def look_at_pixels(
    network: Compact, pixels: np.ndarray, index: np.ndarray, batch: int = 64
) -> tuple[np.ndarray, np.ndarray | None]:
    """`embed_pixels`, beside the spatial tokens `[n, P, D]` where there are any."""
    was_training = network.training
    network.eval()
    rows, device = [], network.head.weight.device
    for start in range(0, len(index), batch):
        looked = network.look(torch.from_numpy(pixels[index[start : start + batch]]).to(device))
        rows.append([None if x is None else x.float().cpu() for x in looked])
    network.train(was_training)
    embedding, spatial = zip(*rows, strict=True)
    return torch.cat(embedding).numpy(), None if spatial[0] is None else torch.cat(spatial).numpy()


def _finish(run: CompactRun, config: CompactConfig, network: Compact, fused: Run, data, pixels, own) -> None:
    """Weights, embeddings of the run's own steps, and final figures on the held-out ones."""
    run.save_compact(network, config.backbone)
    stored = fused.embeddings()
    embedding, spatial = look_at_pixels(network, pixels, own)
    arrays: dict[str, Any] = {k: stored[k] for k in ("task", "episode", "step", "time", "held_out", "teacher")}
    arrays |= {"student": embedding, "fused": stored["student"]}
    write_atomic(run.file("embeddings.npz"), lambda p: np.savez(p, **arrays))
    if spatial is not None:
        write_atomic(run.file("spatial.npz"), lambda p: np.savez(p, student=spatial))
    h = stored["held_out"]
    told = {**retrieval(embedding[h], stored["student"][h]), **agreement(embedding[h], stored["student"][h])}
    if spatial is not None and network.spatial is not None:
        told |= told_of_places(spatial[h], data.spatial[own][h], network.spatial.usual.cpu().numpy())
    summary = {
        "n_train": int((~data.held_out).sum()),
        "n_more": len(data.files) - len(own),
        "n_held_out": int(h.sum()),
        "look_ahead": {name: sight._asdict() for name, sight in sights(fused.summary).items() if sight},
        "licences": dict.fromkeys(fused.summary["gates"], "") | fused.summary["licences"],
        "held-out": told,
    }
    write_atomic(run.file("summary.json"), lambda p: p.write_text(json.dumps(summary, indent=2), encoding="utf-8"))
