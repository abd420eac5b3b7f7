"""What the student is pulled by. All take embeddings `[B, E]`; rows i of both are the same sample."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def info_nce(student: Tensor, teacher: Tensor, tau: Tensor | float, ignore: Tensor | None = None) -> Tensor:
    """Symmetric InfoNCE over the batch (CLIP, Radford et al. 2021): cross entropy of student->teacher and back.

    Args:
        tau: temperature of the cosine similarities.
        ignore: `[B, B]` bool, pairs left out as negatives (near in time); the diagonal is always kept.

    Perfect, well separated pairs cost nearly nothing; random ones log(B).

    >>> info_nce(torch.eye(4), torch.eye(4), 0.01).item() < 1e-6
    True
    """
    logits = F.normalize(student, dim=-1) @ F.normalize(teacher, dim=-1).T / tau  # [B, B]
    if ignore is not None:
        own = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
        logits = logits.masked_fill(ignore & ~own, -torch.inf)
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def normalised_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance of the normalised embeddings, summed over E and averaged over the batch: 2 - 2 cos."""
    return (F.normalize(student, dim=-1) - F.normalize(teacher, dim=-1)).square().sum(-1).mean()


def relational(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the two cosine-similarity matrices, diagonal left out (Park et al. 2019, RKD)."""
    s, t = F.normalize(student, dim=-1), F.normalize(teacher, dim=-1)
    off = ~torch.eye(len(s), dtype=torch.bool, device=s.device)
    return (s @ s.T - t @ t.T)[off].square().mean()


def load_balance(gates: Tensor, present: Tensor) -> Tensor:
    """M * sum of squared mean gates - 1: zero when all experts are used equally, M - 1 when one takes everything.

    Args: gates and present `[B, K, M]`; places that no expert covers do not count.
    """
    there = present.any(-1)
    share = gates[there].mean(0)  # [M]
    return gates.shape[-1] * share.square().sum() - 1


def near_in_time(episode: Tensor, time: Tensor, within: int) -> Tensor:
    """`[B, B]` bool: same episode and at most `within` steps apart. False everywhere for within = 0.

    >>> near_in_time(torch.tensor([0, 0, 1]), torch.tensor([1, 2, 2]), 1).int().tolist()
    [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    """
    if within == 0:
        return torch.zeros(len(episode), len(episode), dtype=torch.bool, device=episode.device)
    return (episode[:, None] == episode) & ((time[:, None] - time).abs() <= within)
