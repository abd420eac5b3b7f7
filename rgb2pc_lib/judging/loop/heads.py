"""Policy heads: a frozen representation and what the robot knows of itself in, the next few actions out.

The same small network for every representation, trained by behaviour cloning on one task's demonstrations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from rgb2pc_lib.errors import InputError
from rgb2pc_lib.learning.models import initialise

Head = Callable[[np.ndarray], np.ndarray]  # [B, d] -> [B, H, A]
_FARTHEST = 5.0  # standard deviations: what is farther from the training steps is taken to be so far


@dataclass(frozen=True)
class HeadSettings:
    """How a head is trained; the same for all that are compared."""

    steps: int = 3000
    batch_size: int = 256
    lr: float = 5e-3
    weight_decay: float = 0.03
    hidden: int = 256  # width of its two hidden layers
    dropout: float = 0.5  # share of what it reads of a representation left out in training; what is told never is

    def __post_init__(self):
        for name in ("steps", "batch_size", "hidden"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} of a head: expected at least 1, found {getattr(self, name)}")


@dataclass(frozen=True)
class Scale:
    """Numbers in units of their spread over training steps, and back."""

    mean: np.ndarray  # [d]
    spread: np.ndarray  # [d], of what hardly changes a thousandth of the usual spread

    @classmethod
    def of(cls, x: np.ndarray) -> Scale:
        """That of training steps `[n, d]`."""
        spread = x.std(0)
        return cls(x.mean(0), np.maximum(spread, 1e-3 * max(spread.mean() if len(spread) else 0, 1e-9)))

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """`[..., d]` as float32, cut off far outside what training saw."""
        return ((x - self.mean) / self.spread).clip(-_FARTHEST, _FARTHEST).astype(np.float32)

    def back(self, x: np.ndarray) -> np.ndarray:
        return x * self.spread + self.mean


def mlp(inputs: int, outputs: int, hidden: int, generator: torch.Generator) -> nn.Sequential:
    """Two hidden layers, every weight from the generator."""
    layers = nn.Sequential(
        nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, outputs)
    )
    initialise(layers, generator)
    return layers


def train_head(
    x: np.ndarray,
    actions: np.ndarray,
    seed: int,
    settings: HeadSettings = HeadSettings(),  # noqa: B008
    told: int = 0,
) -> Head:
    """A head from features `[n, d]` and chunks `[n, H, A]` of one task; the last `told` features are never left out.

    Features and actions are standardised over these steps; the loss is the mean squared error. Every draw comes from
    the seed.

    >>> x = np.linspace(-1, 1, 64)[:, None]
    >>> head = train_head(x, np.repeat(x[:, None], 2, 1), seed=0, settings=HeadSettings(steps=300), told=1)
    >>> head(np.array([[0.5]])).shape, bool(abs(head(np.array([[0.5]])) - 0.5).max() < 0.1)
    ((1, 2, 1), True)
    """
    generator = torch.Generator().manual_seed(seed)
    reader, meant = Scale.of(x), Scale.of(actions.reshape(len(actions), -1))
    seen, wanted = (torch.from_numpy(s) for s in (reader(x), meant(actions.reshape(len(actions), -1))))
    network = mlp(seen.shape[1], meant.mean.size, settings.hidden, generator)

    def loss(rows: Tensor) -> Tensor:
        some = thinned(seen[rows], settings.dropout, told, generator)
        return (network(some) - wanted[rows]).square().mean()

    fit(network, loss, len(x), settings, generator)

    @torch.no_grad()
    def head(features: np.ndarray) -> np.ndarray:
        found = network(torch.from_numpy(reader(features))).numpy()
        return meant.back(found).reshape(len(features), *actions.shape[1:])

    return head


def thinned(x: Tensor, share: float, told: int, generator: torch.Generator) -> Tensor:
    """Features `[B, d]` with a share of them zero and the rest scaled up, all but the last `told`."""
    if not share or told >= x.shape[1]:
        return x
    free = x.shape[1] - told
    kept = torch.rand((len(x), free), generator=generator) >= share
    return torch.cat([x[:, :free] * kept / (1 - share), x[:, free:]], 1)


def fit(
    network: nn.Module, loss: Callable[[Tensor], Tensor], n: int, settings: HeadSettings, generator: torch.Generator
) -> None:
    """`settings.steps` steps of AdamW on `loss(rows of a batch)`, its rate falling to zero, then evaluation mode."""
    optimiser = torch.optim.AdamW(network.parameters(), settings.lr, weight_decay=settings.weight_decay)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, settings.steps)
    for _ in range(settings.steps):
        value = loss(torch.randint(n, (min(settings.batch_size, n),), generator=generator))
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        rate.step()
    network.eval()


def action_error(found: np.ndarray, actions: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """How far chunks `[n, H, A]` are from those of the demonstrations, `[n]`.

    The mean absolute error of an action, in standard deviations `spread` `[A]` of that action over training steps.
    """
    return (np.abs(found - actions) / spread).mean((1, 2))


def action_spread(actions: np.ndarray) -> np.ndarray:
    """Standard deviation `[A]` of every action over chunks `[n, H, A]`; 1 for one that never changes."""
    spread = actions.std((0, 1))
    return np.where(spread > 1e-6, spread, 1.0)
