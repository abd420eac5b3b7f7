"""Weights of our own making: a safetensors file that says of itself, in one JSON text, what they are the weights of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from rgb2pc_lib import errors
from rgb2pc_lib.data.files.guarded import DAMAGE, expect, first_line, parse_json
from rgb2pc_lib.errors import InputError

Network = TypeVar("Network", bound=nn.Module)


def read_weights(
    path: Path, key: str, wanted: dict[str, type], remedy: str
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a weights file says of itself under `key`, with the values `wanted` in it, and its tensors.

    Raises InputError naming the file when it is damaged, or says something else.
    """
    try:
        with safe_open(path, framework="pt") as f:
            told = (f.metadata() or {}).get(key)
            tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
    except (SafetensorError, *DAMAGE) as e:
        what = errors.remedy(path, remedy, remedy)
        raise InputError(f"{path}: not readable weights ({first_line(e)}); {what}") from None
    if told is None:
        raise InputError(f"{path}: weights of something else, they say nothing of '{key}'; {remedy}")
    if odd := [k for k, v in tensors.items() if v.dtype not in (torch.float32, torch.int64)]:
        raise InputError(f"{path}: {odd[0]}: expected fp32, found {tensors[odd[0]].dtype}; {remedy}")
    about = expect(parse_json(told, path, remedy), dict, path, key, remedy)
    for name, kind in wanted.items():
        expect(about.get(name), kind, path, name, remedy)
    return about, tensors


def fill(
    build: Callable[[], Network], tensors: dict[str, Tensor], path: Path, whose: str, told: str = "", remedy: str = ""
) -> Network:
    """A network that is built without weights, with those of a file: every one, no more and no fewer.

    Raises InputError naming the file where they are not those that `whose` ("config.json describes"); `told` is added.
    """
    try:
        network = build()
        network.load_state_dict(tensors, assign=True)
    except (RuntimeError, TypeError, ValueError, KeyError, OverflowError, AttributeError) as e:
        said = str(e).partition("\n")[2] if "state_dict for" in str(e) else str(e)  # torch begins with a title
        why = "; ".join(filter(None, [first_line(said), told]))
        raise InputError(f"{path}: not the weights that {whose} ({why}); {remedy}") from None
    return network
