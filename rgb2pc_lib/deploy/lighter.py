"""Lighter kinds of an ONNX file: half precision, and 8-bit numbers calibrated on real frames.

Input and outputs stay as they are: pixels uint8, embedding and spatial tokens float32.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from rgb2pc_lib.data.files.writing import write_atomic
from rgb2pc_lib.errors import InputError

_BATCH = 8  # frames of a calibration batch


def to_fp16(path: Path, out: Path) -> None:
    """Write the file with weights and intermediate results in 16-bit floats: half as large.

    Raises InputError where onnxruntime is missing.
    """
    try:
        import onnx
        from onnxruntime.transformers.float16 import convert_float_to_float16
    except ImportError as e:
        raise _missing(path, e) from None
    half = convert_float_to_float16(onnx.load(path), keep_io_types=True)
    write_atomic(out, lambda p: onnx.save(half, str(p)))


def to_int8(path: Path, out: Path, frames: np.ndarray) -> None:
    """Write the file with weights and intermediate results in 8 bits, a quarter as large (static quantisation, QDQ).

    Weights are scaled by channel. How large intermediate results get is measured on `frames` `[n, S, S, 3]` uint8.
    Raises InputError where onnxruntime is missing.
    """
    try:
        from onnxruntime import quantization
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError as e:
        raise _missing(path, e) from None

    class Frames(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.starts = iter(range(0, len(frames), _BATCH))

        def get_next(self) -> dict[str, np.ndarray] | None:
            start = next(self.starts, None)
            return None if start is None else {"images": np.ascontiguousarray(frames[start : start + _BATCH])}

    settings: dict[str, Any] = {"quant_format": quantization.QuantFormat.QDQ, "per_channel": True}
    settings |= {"activation_type": quantization.QuantType.QUInt8, "weight_type": quantization.QuantType.QInt8}
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)  # it advises on the root logger
    try:
        with tempfile.TemporaryDirectory() as folder:
            prepared = str(Path(folder) / "prepared.onnx")
            quant_pre_process(str(path), prepared, skip_symbolic_shape=True)
            write_atomic(out, lambda p: quantization.quantize_static(prepared, str(p), Frames(), **settings))
    finally:
        logging.getLogger().setLevel(level)


def _missing(path: Path, e: ImportError) -> InputError:
    return InputError(f"{path}: making it lighter needs {e.name}; run: pip install 'rgb2pc[deploy]'")
