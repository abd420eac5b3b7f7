"""A store for packs that fit into one memory: every frame that may be asked for, one copy each, gathered there.

On a GPU this leaves only positions to be sent in every step. The same code runs on a CPU.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from rgb2pc_lib.data.packs import FeaturePack
from rgb2pc_lib.data.pairing import Samples

_SHARE = 0.8  # of a GPU's free memory; the rest is for the student and its batches


class Resident:
    """The frames of all samples' experts on one device.

    >>> store = Resident(samples, "middle", "cuda")  # doctest: +SKIP
    >>> store.tokens("vggt", rows, draws, cells).shape  # rows [B, S], draws [B], cells [B, K]  # doctest: +SKIP
    torch.Size([32, 256, 2048])
    """

    def __init__(self, samples: Samples, frame_copy: str, device: str | torch.device):
        self.device = torch.device(device)
        self.flat: dict[str, Tensor] = {}  # expert -> [all tokens, C]
        self.first: dict[str, np.ndarray] = {}  # expert -> row of the pairing table -> where its tokens begin
        self.step: dict[str, np.ndarray] = {}  # from one copy of a frame to the next
        self.copies: dict[str, np.ndarray] = {}  # how many there are
        for name in samples.expert_rows:
            self._load(name, samples, frame_copy)

    def _load(self, name: str, samples: Samples, frame_copy: str) -> None:
        frames = list(_frames(samples, name, frame_copy))
        rows = len(samples.pairing.table)
        first, step, copies = np.zeros(rows, np.int64), np.zeros(rows, np.int64), np.ones(rows, np.int64)
        size = sum(len(places) * pack.grid[0] * pack.grid[1] for _, pack, places in frames)
        pack = frames[0][1]
        flat = torch.empty(size, pack.channels, dtype=pack.dtype, device=self.device)
        at = 0
        for row, pack, places in frames:
            cells = pack.grid[0] * pack.grid[1]
            first[row], step[row], copies[row] = at, cells, len(places)
            for place in places:
                flat[at : at + cells] = pack.grid_at(place).view(cells, -1)
                at += cells
        self.flat[name], self.first[name], self.step[name], self.copies[name] = flat, first, step, copies

    def tokens(self, name: str, rows: np.ndarray, draws: np.ndarray, cells: np.ndarray) -> Tensor:
        """Tokens `[B, K, C]` of cells `[B, K]` (-1: an arbitrary token); the mean where a sample has several rows.

        Args: rows `[B, S]` of the pairing table, -1 = none; draws `[B]` in [0, 1) choose among copies.
        """
        copy = (draws[:, None] * self.copies[name][rows]).astype(np.int64)
        start = self.first[name][rows] + copy * self.step[name][rows]  # [B, S]
        index = torch.from_numpy(start[:, :, None] + np.maximum(cells, 0)[:, None])  # [B, S, K]
        if self.device.type == "cuda":
            index = index.pin_memory().to(self.device, non_blocking=True)
        flat, there = self.flat[name], rows >= 0
        if rows.shape[1] == 1:
            return flat.index_select(0, index.flatten()).view(*cells.shape, -1)
        total = torch.zeros(*cells.shape, flat.shape[1], device=self.device)
        for s in range(rows.shape[1]):
            member = torch.from_numpy(there[:, s]).to(self.device)
            read = flat.index_select(0, index[:, s].flatten()).view(total.shape)
            total += torch.where(member[:, None, None], read.float(), 0.0)
        return (total / torch.from_numpy(there.sum(1)).to(self.device)[:, None, None]).to(flat.dtype)


def fits(samples: Samples, frame_copy: str, device: torch.device) -> bool:
    """Whether the frames of all samples fit into what is free of a GPU's memory."""
    if device.type != "cuda":
        return False
    needed = sum(
        len(places) * pack.grid[0] * pack.grid[1] * pack.channels * pack.dtype.itemsize
        for name in samples.expert_rows
        for _, pack, places in _frames(samples, name, frame_copy)
    )
    return needed <= _SHARE * torch.cuda.mem_get_info(device)[0]


def _frames(samples: Samples, name: str, frame_copy: str) -> Iterator[tuple[int, FeaturePack, list[tuple[int, int]]]]:
    """(row of the table, pack, places) of every frame that an expert may be asked for, in the order of the files."""
    table, packs = samples.pairing.table, samples.pairing.packs[name]
    keys = list(zip(table["task"], table["episode"], table["step"], strict=True))
    used = np.unique(samples.expert_rows[name])
    for row in used[used >= 0].tolist():
        task, episode, step = keys[row]
        pack = packs[task, episode]
        yield row, pack, pack.copies[step] if frame_copy == "random" else [pack.where(step, frame_copy)]
