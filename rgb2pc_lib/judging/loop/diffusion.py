"""Another head: chunks of actions drawn by diffusion, to see whether an order of representations hangs on the head."""

from __future__ import annotations

import numpy as np
import torch

from rgb2pc_lib.errors import InputError
from rgb2pc_lib.judging.loop.heads import Head, HeadSettings, Scale, fit, mlp, thinned

_NOISES, _STEPS = 50, 10  # levels of noise in training, and steps of drawing
_WAVES = 8  # sines and cosines that tell the level


def train_diffusion_head(
    x: np.ndarray,
    actions: np.ndarray,
    seed: int,
    settings: HeadSettings = HeadSettings(),  # noqa: B008
    told: int = 0,
) -> Head:
    """A head as `train_head` gives it, whose chunks are drawn by denoising (Chi et al. 2023; Song et al. 2021, DDIM).

    The network is told the features, the noisy chunk and how noisy it is, and foretells the chunk. Every chunk is drawn
    from the same noise, so that a head is a function of what it sees. The noise schedule is that of `diffusers`.
    Raises InputError where diffusers is not installed.
    """
    try:
        from diffusers import DDIMScheduler
    except ImportError:
        raise InputError("--head diffusion needs diffusers; run: pip install 'rgb2pc[loop]'") from None
    generator = torch.Generator().manual_seed(seed)
    reader, meant = Scale.of(x), Scale.of(actions.reshape(len(actions), -1))
    width = meant.mean.size
    seen, wanted = (torch.from_numpy(s) for s in (reader(x), meant(actions.reshape(len(actions), -1))))
    network = mlp(seen.shape[1] + width + 2 * _WAVES, width, settings.hidden, generator)
    schedule = DDIMScheduler(_NOISES, beta_schedule="squaredcos_cap_v2", prediction_type="sample", clip_sample=False)

    def loss(rows):
        level = torch.randint(_NOISES, rows.shape, generator=generator)
        noise = torch.randn((len(rows), width), generator=generator)
        some = thinned(seen[rows], settings.dropout, told, generator)
        noisy = schedule.add_noise(wanted[rows], noise, level)
        return (network(torch.cat([some, noisy, _waves(level)], 1)) - wanted[rows]).square().mean()

    fit(network, loss, len(x), settings, generator)
    start = torch.randn((1, width), generator=generator)

    @torch.no_grad()
    def head(features: np.ndarray) -> np.ndarray:
        known, chunk = torch.from_numpy(reader(features)), start.expand(len(features), -1)
        schedule.set_timesteps(_STEPS)
        for level in schedule.timesteps:
            found = network(torch.cat([known, chunk, _waves(level.expand(len(features)))], 1))
            chunk = schedule.step(found, level, chunk).prev_sample
        return meant.back(chunk.numpy()).reshape(len(features), *actions.shape[1:])

    return head


def _waves(level: torch.Tensor) -> torch.Tensor:
    """How noisy, `[B]` -> `[B, 2 * _WAVES]`."""
    angles = level[:, None] / _NOISES * torch.pi * 2.0 ** torch.arange(_WAVES)
    return torch.cat([angles.sin(), angles.cos()], 1)
