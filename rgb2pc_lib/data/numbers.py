"""Numbers in another type: they fit, are converted by a stated rule, or are refused by name. Never a silent wrap.

Colours: bytes stay; other whole numbers are bytes up to 255, and 16 bits (65535 is white) above; fractions are shares
of white up to 1, and bytes up to 255. Positions: float32, where rounding moves no point by more than 1/10,000 of the
cloud's extent. Tokens: the type asked for, where all stay finite.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rgb2pc_lib.errors import InputError

_MOVED = 1e-4  # share of a cloud's extent by which rounding may move a point
_SHARE = 1.001  # the largest share of white, with what rounding adds


def as_bytes(colours: np.ndarray, what: str) -> np.ndarray:
    """Colours `[..., 3]` of any type as uint8, by the rule above. Raises InputError naming `what` for others.

    >>> as_bytes(np.array([[0.0, 1.0, 0.5]]), "a.ply").tolist(), as_bytes(np.array([[65535, 0, 39168]]), "").tolist()
    ([[0, 255, 128]], [[255, 0, 152]])
    """
    colours = numbers(colours, what, "colours")
    if colours.dtype == np.uint8 or not colours.size:
        return colours.astype(np.uint8)
    colours = colours if (whole := colours.dtype.kind in "iub") else colours.astype(np.float64)
    low, high = colours.min(), colours.max()
    unclear = not whole and _SHARE < high < 8 and (colours % 1).any()  # shares that overshoot, or nearly black bytes?
    if unclear or low < (0 if whole else 1 - _SHARE) or high > (65535 if whole else 255):
        rule = "whole numbers from 0 to 255 or 65535, or fractions from 0 to 1 or 255"
        raise InputError(f"{what}: expected colours as {rule}, found {low:g} to {high:g}; write them so")
    white = (255 if high <= 255 else 65535) if whole else (1 if high <= _SHARE else 255)
    return np.rint(colours * (255 / white)).clip(0, 255).astype(np.uint8)


def as_positions(xyz: np.ndarray, what: str) -> np.ndarray:
    """Positions `[N, 3]` as float32, by the rule above. Raises InputError naming `what` for others."""
    xyz = numbers(xyz, what, "positions")
    with np.errstate(over="ignore"):
        single = xyz.astype(np.float32)
    if xyz.size and xyz.dtype not in (np.float32, np.float16):
        moved = np.abs(single.astype(np.float64) - xyz).max()
        if moved > max(_MOVED * np.ptp(xyz, axis=0).max(), 1e-5):
            raise InputError(
                f"{what}: expected positions that 32 bits can tell, found some up to {np.abs(xyz).max():.6g}, which "
                f"rounding moves by {moved:.2g}; subtract a common origin from all clouds"
            )
    return single


def numbers(values: np.ndarray, what: str, of: str) -> np.ndarray:
    """What is known of points, `[N, ...]`, after a look: real numbers, all of them finite.

    Raises InputError naming `what` and counting the points otherwise.
    """
    values = np.asarray(values)
    if values.dtype.kind not in "fiub":
        raise InputError(f"{what}: expected {of} as numbers, found {values.dtype}; write them so")
    if values.dtype.kind == "f" and not np.isfinite(values.sum(dtype=np.float64)):
        bad = ~np.isfinite(values)
        if bad.any():
            rows = bad.reshape(len(bad), -1).any(1) if values.ndim else bad
            raise InputError(f"{what}: expected finite {of}, found {rows.sum()} points without; remove those points")
    return values


def as_type(tokens: Tensor, dtype: torch.dtype, what: str, remedy: str = "use bf16 or fp32 (--dtype)") -> Tensor:
    """Tokens in another floating type. Raises InputError naming `what` where some are or would be no finite numbers."""
    cast = tokens.to(dtype)
    if not cast.isfinite().all():
        bad = int((~tokens.isfinite()).sum())
        if bad:
            found = f"NaN or infinite ones in {bad} of {tokens.numel()} places"
            raise InputError(f"{what}: expected finite features, found {found}; look at this frame and the weights")
        raise InputError(
            f"{what}: values up to {tokens.abs().max():.3g} do not fit into {str(dtype).removeprefix('torch.')}, "
            f"which ends at {torch.finfo(dtype).max:.5g}; {remedy}"
        )
    return cast
