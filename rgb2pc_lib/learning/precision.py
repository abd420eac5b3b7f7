"""Which precision is faster here: some processors multiply bfloat16 several times faster than float32, some slower."""

from __future__ import annotations

import functools
import time

import torch

_ROWS, _CHANNELS, _WIDTH, _TRIES = 512, 768, 256, 5  # about the tokens of a small batch through an adapter


@functools.lru_cache
def faster_in_bfloat16(device: torch.device) -> bool:
    """Whether a layer and its gradient take less time under bfloat16 autocast, by a few milliseconds of trying.

    >>> isinstance(faster_in_bfloat16(torch.device("cpu")), bool)
    True
    """
    x = torch.zeros(_ROWS, _CHANNELS, device=device)
    weight = torch.zeros(_WIDTH, _CHANNELS, device=device, requires_grad=True)
    best = {False: float("inf"), True: float("inf")}
    for _ in range(_TRIES):
        for half in best:
            _wait(device)
            start = time.perf_counter()
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                y = torch.nn.functional.gelu(torch.nn.functional.linear(x, weight))
            torch.autograd.grad(y.sum(), weight)
            _wait(device)
            best[half] = min(best[half], time.perf_counter() - start)
    return best[True] < best[False]


def in_bfloat16(amp: str, device: torch.device) -> bool:
    """What a setting "auto", "on" or "off" comes to on a device."""
    return faster_in_bfloat16(device) if amp == "auto" else amp == "on"


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
