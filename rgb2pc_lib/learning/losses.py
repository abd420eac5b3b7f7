"""What the student is pulled by. All take embeddings `[B, E]`; rows i of both are the same sample.

Up to 4,096 samples the B x B matrices are made as they are. Beyond, they would be most of a training's memory: then
InfoNCE goes over a few rows at a time and the relational term over products of width E, both exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from rgb2pc_lib.learning.metrics import some_rows

_WHOLE = 4096  # samples: up to here B x B is made at once, 64 MB


class Pairs(Protocol):
    """Which pairs of a batch, a `[B, B]` bool of which rows are made when they are asked for."""

    def __getitem__(self, rows: slice, /) -> Tensor: ...  # [rows, B]


@dataclass(frozen=True)
class NearInTime:
    """Which pairs are of the same episode and at most `within` steps apart: a `[B, B]` bool that is never whole.

    Rows are made when they are asked for. False everywhere for within = 0.

    >>> NearInTime(torch.tensor([0, 0, 1]), torch.tensor([1, 2, 2]), 1)[:].int().tolist()
    [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    """

    episode: Tensor  # [B]
    time: Tensor  # [B], steps
    within: int

    def __getitem__(self, rows: slice) -> Tensor:  # [rows, B]
        near = (self.time[rows, None] - self.time).abs() <= self.within
        return near & (self.episode[rows, None] == self.episode) & (self.within > 0)


def negatives(episode: np.ndarray, time: np.ndarray, within: int, batch: int) -> float:
    """How many negatives a sample meets in a batch, on average over samples `[n]`, without those near in time.

    >>> negatives(np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]), within=1, batch=4)
    2.0
    """
    near = 0
    for e in np.unique(episode) if within else ():
        t = np.sort(time[episode == e])
        near += int((np.searchsorted(t, t + within, "right") - np.searchsorted(t, t - within)).sum()) - len(t)
    return float((batch - 1) * (1 - near / max(len(time) * (len(time) - 1), 1)))


def info_nce(student: Tensor, teacher: Tensor, tau: Tensor | float, ignore: Pairs | None = None) -> Tensor:
    """Symmetric InfoNCE over the batch (CLIP, Radford et al. 2021): cross entropy of student->teacher and back.

    Args:
        tau: temperature of the cosine similarities.
        ignore: `[B, B]` bool, pairs left out as negatives (near in time); the diagonal is always kept.

    Perfect, well separated pairs cost nearly nothing; random ones log(B).

    >>> info_nce(torch.eye(4), torch.eye(4), 0.01).item() < 1e-6
    True
    """
    student, teacher = F.normalize(student, dim=-1), F.normalize(teacher, dim=-1)
    if len(student) > _WHOLE:
        by_rows: Callable[..., Tensor] = _InfoNCEByRows.apply
        return by_rows(student, teacher, torch.as_tensor(tau, device=student.device), ignore)
    logits = student @ teacher.T / tau  # [B, B]
    if ignore is not None:
        own = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
        logits = logits.masked_fill(ignore[:] & ~own, -torch.inf)
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


class _InfoNCEByRows(torch.autograd.Function):
    """The same of unit vectors with memory for some rows of the similarities only; backward makes them again.

    Forward keeps the logarithm of each row's and each column's sum of exponentials. With the probabilities p of rows
    and q of columns that these give, the gradient of a logit is (p + q - 2 on the diagonal) / 2B.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, tau: Tensor, ignore: Pairs | None) -> Tensor:
        by_row, own = student.new_empty(2, len(student))
        by_column = torch.full_like(by_row, -torch.inf)
        for rows in some_rows(len(student)):
            logits = _logits(student, teacher, tau, ignore, rows)  # [rows, B]
            by_row[rows], own[rows] = logits.logsumexp(1), logits.diagonal(rows.start)
            by_column = torch.logaddexp(by_column, logits.logsumexp(0))
        ctx.save_for_backward(student, teacher, tau, by_row, by_column)
        ctx.ignore = ignore
        loss: Tensor = ((by_row - own).mean() + (by_column - own).mean()) / 2
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, Tensor, None]:
        student, teacher, tau, by_row, by_column = ctx.saved_tensors
        to_student = torch.empty_like(student)
        to_teacher = torch.zeros_like(teacher) if ctx.needs_input_grad[1] else None
        for rows in some_rows(len(student)):
            logits = _logits(student, teacher, tau, ctx.ignore, rows)
            pull = (logits - by_row[rows, None]).exp_() + logits.sub_(by_column).exp_()
            pull.diagonal(rows.start).sub_(2)
            to_student[rows] = pull @ teacher
            if to_teacher is not None:
                to_teacher.addmm_(pull.T, student[rows])
        scale = grad / (2 * len(student) * tau)
        to_tau = -(to_student * student).sum() * scale / tau
        return to_student * scale, None if to_teacher is None else to_teacher * scale, to_tau, None


def _logits(student: Tensor, teacher: Tensor, tau: Tensor, ignore: Pairs | None, rows: slice) -> Tensor:  # [rows, B]
    logits = student[rows] @ teacher.T / tau
    if ignore is not None:
        left_out = ignore[rows].clone()
        left_out.diagonal(rows.start).fill_(False)
        logits.masked_fill_(left_out, -torch.inf)
    return logits


def normalised_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance of the normalised embeddings, summed over E and averaged over the batch: 2 - 2 cos."""
    return (F.normalize(student, dim=-1) - F.normalize(teacher, dim=-1)).square().sum(-1).mean()


def relational(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the two cosine-similarity matrices, diagonal left out (Park et al. 2019, RKD)."""
    s, t = F.normalize(student, dim=-1), F.normalize(teacher, dim=-1)
    if len(s) > _WHOLE:  # |SS' - TT'| = |S'S| - 2 |S'T| + |T'T|, all squared; double, as their difference is small
        s, t = s.double(), t.double()
        whole = (s.T @ s).square().sum() - 2 * (s.T @ t).square().sum() + (t.T @ t).square().sum()
        own = (s.square().sum(1) - t.square().sum(1)).square().sum()
        return ((whole - own) / (len(s) * (len(s) - 1))).to(student.dtype)
    off = ~torch.eye(len(s), dtype=torch.bool, device=s.device)
    return (s @ s.T - t @ t.T)[off].square().mean()


def load_balance(gates: Tensor, present: Tensor) -> Tensor:
    """M * sum of squared mean gates - 1: zero when all experts are used equally, M - 1 when one takes everything.

    Args: gates and present `[B, K, M]`; places that no expert covers do not count.
    """
    there = present.any(-1)
    share = gates[there].mean(0)  # [M]
    return gates.shape[-1] * share.square().sum() - 1
