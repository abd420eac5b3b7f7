"""Use a run: packs -> one embedding per step, or RGB frames straight to embeddings through the expert encoders."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from rgb2pc_lib.encoders.images import load_encoder
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.pairing import OK, Pairing, Samples, pair, refuse_broken
from rgb2pc_lib.runs import Run
from rgb2pc_lib.sampling import Gatherer, embedding_lattice
from rgb2pc_lib.train import embed_samples, pick_device
from rgb2pc_lib.workspace import Workspace


def embed_packs(run: Run, workspace: Workspace, device: str = "auto") -> tuple[pd.DataFrame, np.ndarray]:
    """Embed every step that all experts of the run have; no teacher is needed.

    Returns the keys (task, episode, step, time) and the embeddings `[n, E]` float32, row for row.

    >>> keys, embeddings = embed_packs(Run.open("runs/moe-seed0"), Workspace.load(SAMPLE))  # doctest: +SKIP
    """
    student, _ = run.student()
    pairing = pair(workspace.only(*student.experts), teacher=False)
    samples = every_step(pairing)
    device = pick_device(device)
    gatherer = Gatherer(samples, run.config.frame_copy, device=device)
    places = embedding_lattice(pairing.finest_grid)
    embeddings, _ = embed_samples(student.to(device), gatherer, np.arange(len(samples)), places)
    return samples.keys(), embeddings


def every_step(pairing: Pairing) -> Samples:
    """All steps that every expert has, whether or not the teacher has them."""
    refuse_broken(pairing)
    has = (pairing.table[pairing.experts] == OK).all(axis=1).to_numpy()
    if not has.any():
        raise InputError(f"no step is in the packs of all of {', '.join(pairing.experts)}")
    rows = np.flatnonzero(has)[:, None]
    return Samples(pairing, rows, dict.fromkeys(pairing.experts, rows), np.full_like(rows, -1))


@dataclass
class RGBEmbedder:
    """RGB frames in, embeddings out: the run's own experts, then its student.

    >>> embedder = RGBEmbedder.open("runs/moe-seed0")  # doctest: +SKIP
    >>> embedder(frames).shape  # uint8 [B, H, W, 3] -> [B, E]  # doctest: +SKIP
    (8, 256)
    """

    student: torch.nn.Module
    encoders: dict

    @classmethod
    def open(cls, folder, device: str = "cpu") -> RGBEmbedder:
        """Raises InputError when the folder holds no finished run or an expert has no encoder here."""
        student, _ = Run.open(folder).student()
        return cls(student.to(device), {name: load_encoder(name, device=device) for name in student.experts})

    @torch.no_grad()
    def __call__(self, images: np.ndarray) -> np.ndarray:
        frames = torch.as_tensor(images)
        grids = {name: encoder(frames) for name, encoder in self.encoders.items()}  # [B, Hf, Wf, C]
        at = embedding_lattice(max((tuple(g.shape[1:3]) for g in grids.values()), key=lambda s: s[0] * s[1]))  # [K, 2]
        tokens = {}
        for name, grid in grids.items():
            rows, cols = (at[:, 1] * grid.shape[1]).astype(int), (at[:, 0] * grid.shape[2]).astype(int)
            tokens[name] = grid[:, rows, cols]  # [B, K, C]
        shape = (len(images), len(at))
        device = next(self.student.parameters()).device
        present = torch.ones(*shape, len(tokens), dtype=torch.bool, device=device)
        positions = torch.tensor(at, dtype=torch.float32, device=device).expand(*shape, 2)
        return self.student(tokens, present, positions).embedding.cpu().numpy()
