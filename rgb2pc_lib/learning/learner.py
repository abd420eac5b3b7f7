"""One training step: outputs of the samples, part by part; one loss over all of them; gradients; update.

The loss is cut from the student. First the outputs of every sample of the batch are made and brought together from
all ranks; the loss gives a gradient for each output; then every rank carries the gradients of its own samples on
into the weights, and these are summed over the ranks. With `micro_batch`, a rank reads and forwards a few samples at
a time, without a graph, and once more with one when the gradients are known (GradCache, Gao et al. 2021). All this
is exact: the numbers of parts and ranks change nothing but the order of sums.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from rgb2pc_lib.data.sampling import Plan
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.learning import ranks
from rgb2pc_lib.learning.objective import Objective

Aim = TypeVar("Aim", bound=Objective)


class Learner(Generic[Aim]):
    """Student, optimiser and the step that trains it.

    >>> learner = Learner(Distillation(config, student, mean, samples))  # doctest: +SKIP
    >>> learner.step(0, gatherer.run(learner.plans(planner(0))))  # doctest: +SKIP
    (4.16, {'InfoNCE': 4.16}, {'croco': 0.5, 'vggt': 0.5})
    """

    def __init__(self, objective: Aim):
        self.objective, self.config, self.student = objective, objective.config, objective.student
        config = self.config
        named = dict(self.student.named_parameters())
        few = [named.pop("logits")] if "logits" in named else []  # M numbers that must travel far: ten times the rate
        few += [objective.log_tau] * config.learn_tau
        groups = [
            {"params": [p for p in named.values() if p.ndim > 1], "weight_decay": config.weight_decay, "factor": 1.0},
            {"params": [p for p in named.values() if p.ndim <= 1], "weight_decay": 0.0, "factor": 1.0},
            {"params": few, "weight_decay": 0.0, "factor": 10.0},
        ]
        self.optimiser = torch.optim.AdamW([g for g in groups if g["params"]], lr=config.lr, fused=True)
        own, size = ranks.rows(config.batch_size), config.micro_batch or config.batch_size
        self.parts = [slice(start, min(start + size, own.stop)) for start in range(own.start, own.stop, size)]

    def rate(self, n: int) -> float:
        """Learning rate of step n (from 0): linear warm-up over 5 %, then cosine to zero."""
        warm = max(round(0.05 * self.config.steps), 1)
        if n < warm:
            return self.config.lr * (n + 1) / warm
        return self.config.lr * 0.5 * (1 + math.cos(math.pi * (n - warm) / max(self.config.steps - warm, 1)))

    def plans(self, plan: Plan) -> list[Plan]:
        """What is to be gathered here for a step: this rank's parts of the batch, twice where there are several.

        The teacher, a look-up in a table, comes whole with the first part: random points are drawn in one order.
        """
        cut = [
            dataclasses.replace(
                plan,
                samples=plan.samples[rows],
                teacher=plan.teacher if rows is self.parts[0] else plan.teacher[:1],
                positions=plan.positions[rows],
                draws=plan.draws[rows],
                keep=plan.keep[rows],
                points=None if plan.points is None else plan.points[rows],
            )
            for rows in self.parts
        ]
        return cut if len(cut) == 1 else cut + cut

    def step(self, n: int, batches: Iterator[Any]) -> tuple[float, dict[str, float], dict[str, float]]:
        """Train on the batch of step n, gathered as `plans` says: the loss, its terms and the experts' mean gates.

        Each of them is that of the whole batch, on all ranks.
        """
        for group in self.optimiser.param_groups:
            group["lr"] = group["factor"] * self.rate(n)
        self.optimiser.zero_grad(set_to_none=True)
        self.objective.log_tau.grad = None  # also where it is not learned
        whole, loss, terms = self._gradients(n, batches)
        if self.config.grad_clip:
            torch.nn.utils.clip_grad_norm_(self.student.parameters(), self.config.grad_clip)
        self.optimiser.step()
        gates = {}
        if "gates" in whole:
            gates = dict(zip(self.objective.experts, whole["gates"].detach().mean((0, 1)).tolist(), strict=True))
        return loss.item(), {k: v.item() for k, v in terms.items()}, gates

    def _gradients(self, n: int, batches: Iterator[Any]) -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor]]:
        parts, noise = self.parts, self.objective.noise(n)
        teacher: Tensor | None = None

        def outputs(rows: slice) -> dict[str, Tensor]:
            nonlocal teacher
            batch = next(batches)
            teacher = batch.teacher if teacher is None else teacher
            return self.objective.outputs(batch, None if noise is None else noise[rows])

        with ranks.agreed(), torch.set_grad_enabled(len(parts) == 1):
            seen = [outputs(rows) for rows in parts]
        whole = {k: ranks.gather(torch.cat([some[k].detach() for some in seen])) for k in seen[0]}
        for output in whole.values():
            output.requires_grad_(output.is_floating_point())
        assert teacher is not None  # it came with the first part
        loss, terms = self.objective.loss(whole, teacher)
        if not torch.isfinite(loss):
            raise InputError(f"the loss is {loss.item()} at step {n + 1}; lower --lr or raise --tau")
        loss.backward()
        gradients = {k: v.grad for k, v in whole.items() if v.grad is not None}
        with ranks.agreed():
            for rows in parts:
                again = seen[0] if len(parts) == 1 else outputs(rows)
                torch.autograd.backward([again[k] for k in gradients], [g[rows] for g in gradients.values()])
        ranks.add_up([p.grad for p in self.student.parameters() if p.grad is not None])
        return whole, loss, terms

    def state(self) -> dict[str, Any]:
        return {
            "student": self.student.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "log_tau": self.objective.log_tau.detach(),
            "amp": self.objective.amp,
        }

    def load(self, state: dict[str, Any]) -> None:
        self.student.load_state_dict(state["student"])
        self.optimiser.load_state_dict(state["optimiser"])
        with torch.no_grad():
            self.objective.log_tau.copy_(state["log_tau"])
        self.objective.amp = state.get("amp", self.objective.amp)  # a run keeps the precision it began with
