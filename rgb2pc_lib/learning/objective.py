"""What a student is trained for: its outputs for some samples, and the loss over all samples of a batch.

The learner asks for outputs of a part of a batch at a time, brings all parts together and asks for the loss once.
So an objective needs to know nothing of processes and micro-batches. What the learner asks of one is `Objective`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from rgb2pc_lib.data.pairing import Samples
from rgb2pc_lib.data.sampling import Batch, Gatherer, Plan, refuse_not_finite
from rgb2pc_lib.learning.config import Config
from rgb2pc_lib.learning.losses import NearInTime, info_nce, load_balance, normalised_mse, relational
from rgb2pc_lib.learning.models import Student
from rgb2pc_lib.learning.settings import Settings

Plans = Callable[[int], Plan]  # the plan of step n, whatever was asked before


class Objective(Protocol):
    """What the learner asks of an objective."""

    log_tau: nn.Parameter  # logarithm of the temperature, learned or not
    amp: bool  # whether it computes in bfloat16

    @property
    def config(self) -> Settings: ...

    @property
    def student(self) -> nn.Module: ...  # whose weights are trained

    @property
    def experts(self) -> Sequence[str]: ...  # names of the gates, where its outputs have "gates"

    def noise(self, n: int) -> Tensor | None:
        """What the student draws at random in step n, for the whole batch."""

    def outputs(self, batch: Any, noise: Tensor | None) -> dict[str, Tensor]:
        """What the loss needs to know of the samples of one of its batches, one row each: that of b is `[b, ...]`.

        What the student makes has a gradient; whole numbers and bools are facts about the samples.
        """

    def loss(self, outputs: dict[str, Tensor], teacher: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and its terms, unweighted, from the outputs of all samples of a batch and their teacher `[B, E]`."""


class Distillation:
    """One embedding per sample, like the teacher's: InfoNCE, with the terms that the config adds.

    Args:
        mean: `[E]`, the teacher's mean over the training samples.
        samples: those that the batches' sample numbers count.
    """

    distils = True  # its embeddings are in the teacher's space and can be compared with it

    def __init__(self, config: Config, student: Student, mean: Tensor, samples: Samples):
        self.config, self.student, self.mean, self.device = config, student.train(), mean, mean.device
        self.experts = student.experts
        self.amp = config.amp == "on"  # "auto" is decided before the loop, once for all ranks
        self.samples, keys = samples, samples.keys()
        episode, time = keys.groupby(["task", "episode"]).ngroup(), keys["time"]
        self.episode, self.time = (torch.tensor(k.to_numpy(np.int32), device=self.device) for k in (episode, time))
        self.places = min(config.student_tokens, math.prod(samples.pairing.finest_grid))
        self.log_tau = torch.nn.Parameter(torch.tensor(math.log(config.tau), device=self.device))

    def noise(self, n: int) -> Tensor | None:
        """`[B, K, M]` for its gate, or nothing."""
        if self.student.fusion != "moe" or not self.student.gate_noise:
            return None
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + n)
        return torch.randn(self.config.batch_size, self.places, len(self.student.experts), generator=generator)

    def outputs(self, batch: Batch, noise: Tensor | None) -> dict[str, Tensor]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.amp):
            out = self.student(batch.tokens, batch.present, batch.positions, noise)
        refuse_not_finite(batch, self.samples, out.embedding)
        samples = torch.from_numpy(batch.samples).to(self.device)
        outputs = {"embedding": out.embedding.float(), "gates": out.gates.float(), "samples": samples}
        return outputs | ({"present": batch.present} if self.config.load_balance else {})

    def loss(self, outputs: dict[str, Tensor], teacher: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        samples, weight = outputs["samples"], self.config.load_balance
        near = NearInTime(self.episode[samples], self.time[samples], self.config.exclude_near)
        loss, terms = embedding_loss(self.config, outputs["embedding"], teacher - self.mean, self.log_tau.exp(), near)
        if weight:
            terms["load balance"] = load_balance(outputs["gates"], outputs["present"])
            loss = loss + weight * terms["load balance"]
        return loss, terms

    def figures(self, gatherer: Gatherer, index: np.ndarray, most: int = 0) -> dict[str, float]:
        """Held-out figures of an objective's own, beside those of the embeddings; here there are none."""
        return {}


def begin(
    config: Config, student: Student, mean: Tensor, samples: Samples, planner: Plans
) -> tuple[Distillation, Plans]:
    """The objective of plain distillation and its plans, which are the planner's."""
    return Distillation(config, student, mean, samples), planner


def embedding_loss(
    config: Settings, embedding: Tensor, target: Tensor, tau: Tensor, near: NearInTime
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and its terms, unweighted, of embeddings `[B, E]` pulled to targets `[B, E]`: InfoNCE, MSE, relational."""
    terms = {"InfoNCE": info_nce(embedding, target, tau, near if config.exclude_near else None)}
    loss = terms["InfoNCE"]
    more = ("MSE", config.loss_mse, normalised_mse), ("relational", config.loss_relational, relational)
    for name, weight, term in more:
        if weight:
            terms[name] = term(embedding, target)
            loss = loss + weight * terms[name]
    return loss, terms
