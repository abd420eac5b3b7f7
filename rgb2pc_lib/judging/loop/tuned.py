"""A small network that is trained together with its policy: from a compact student, or from random weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from rgb2pc_lib.deploy.backbones import Compact
from rgb2pc_lib.deploy.compact import CompactRun
from rgb2pc_lib.deploy.compress import augmented
from rgb2pc_lib.deploy.frames import frame_cache, resized
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.judging.loop.demonstrations import Demonstrations
from rgb2pc_lib.judging.loop.heads import HeadSettings, Scale, fit, mlp
from rgb2pc_lib.judging.loop.representations import Fitted, Live, Source, weights_digest
from rgb2pc_lib.judging.loop.scenes import Policy, Recorder, Seen, own_state


@dataclass(frozen=True)
class Tuned:
    """A compact student's network, fine-tuned with the policy on one task's frames.

    With `pretrained` it begins as the compact student is, else the same network begins at random. Frames are changed
    while it is trained, as in `compress`; it has no features of its own, so nothing is kept but the frames' places.
    """

    folder: Path
    pretrained: bool
    steps: int = 400
    batch_size: int = 32
    lr: float = 3e-4
    cloud = False

    def made_from(self, source: Source) -> str:
        config = CompactRun.open(self.folder).config
        start = weights_digest(self.folder) if self.pretrained else f"random {config.backbone} {config.size}"
        return f"tuned {start} {self.steps} {self.batch_size} {self.lr} {source.digest}"

    def features(self, source: Source) -> Fitted:
        size = CompactRun.open(self.folder).config.size
        frame_cache(source.frames, size)
        return {
            "x": np.zeros((len(source.frames), 0), np.float32),
            "frames": np.array([str(path) for path in source.frames]),
            "start": np.array(self.made_from(source)),
        }

    def live(self, fitted: Fitted, recorder: Recorder) -> Live:
        raise InputError("a network that is tuned with its policy has no features of its own; judge it by roll-outs")

    def policy(
        self, demonstrations: Demonstrations, fitted: Fitted, rows: np.ndarray, seed: int, recorder: Recorder
    ) -> Policy:
        """The network and an MLP on it, trained on the steps `rows` `[n]` (bool), every draw from the seed."""
        run = CompactRun.open(self.folder)
        network = run.compact()
        if not self.pretrained:
            network = Compact(run.config.backbone, network.size, network.head.out_features, seed)
        generator = torch.Generator().manual_seed(seed)
        pixels = frame_cache([Path(p) for p in fitted["frames"]], network.size)
        actions = demonstrations.actions[rows]
        own, told = Scale.of(demonstrations.own[rows]), Scale.of(actions.reshape(len(actions), -1))
        head = mlp(network.head.out_features + demonstrations.own.shape[1], told.mean.size, 256, generator)
        inputs = torch.from_numpy(own(demonstrations.own[rows]))
        wanted = torch.from_numpy(told(actions.reshape(len(actions), -1)))
        index = np.flatnonzero(rows)
        both = nn.ModuleList([network.train(), head])

        def both_parts(images: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
            embedding = network(images)
            return head(torch.cat([F.layer_norm(embedding, embedding.shape[1:]), known], 1))

        def loss(some: torch.Tensor) -> torch.Tensor:
            drawn = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator)))
            images = augmented(torch.from_numpy(pixels[index[some.numpy()]]).float(), drawn)
            return (both_parts(images, inputs[some]) - wanted[some]).square().mean()

        settings = HeadSettings(self.steps, self.batch_size, self.lr, weight_decay=1e-2)
        fit(both, loss, len(index), settings, generator)

        @torch.no_grad()
        def policy(seen: Sequence[Seen]) -> np.ndarray:
            images = np.stack([resized(recorder.frame(s.image), network.size) for s in seen])
            known = torch.from_numpy(own(own_state(seen)))
            found = both_parts(torch.from_numpy(images), known).numpy()
            return told.back(found).reshape(len(seen), *actions.shape[1:])

        return policy
