"""A pack written frame by frame: a file of many gigabytes takes no more memory than one frame."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from rgb2pc_lib.data.files.writing import new_file
from rgb2pc_lib.data.mapped import bits, find
from rgb2pc_lib.data.numbers import as_type
from rgb2pc_lib.data.packs import KEY
from rgb2pc_lib.encoders.encode import kept, windows
from rgb2pc_lib.encoders.images import Expert
from rgb2pc_lib.errors import InputError

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


@contextmanager
def new_pack(
    path: Path, frame_paths: Sequence[str], grid: Sequence[int], meta: dict, window=8, stride=8, dtype="fp16",
    causal: bool = False,
) -> Iterator[Callable[[int, torch.Tensor], None]]:  # fmt: skip
    """Write a pack through a function of (place, tokens `[Hf, Wf, C]`), place = window * T + frame, in any order.

    It is a torch file of the documented layout, laid out at once by `torch.save` and then filled, so the checksum that
    zip archives have of their entries stays zero; nothing that reads packs looks at it. The pack has a hidden name
    until all places are filled and on the disk; what an interrupted attempt left is removed by the next.
    `meta["enc_embed_dim"]` says the channels. Raises InputError when tokens have another shape, are no finite numbers
    or do not fit into the type, and when places are left.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "task" / "episode_0000.pt"
    >>> with new_pack(path, ["step_0.png", "step_1.png"], (2, 3), {"enc_embed_dim": 4}) as put:
    ...     put(0, torch.zeros(2, 3, 4)), put(1, torch.ones(2, 3, 4))
    (None, None)
    >>> torch.load(path, weights_only=True)["per_frame_features"].shape
    torch.Size([1, 2, 2, 3, 4])
    """
    index = kept(len(frame_paths), window, stride, causal)  # W lists of T
    shape = len(index), len(index[0]), *grid, meta["enc_embed_dim"]
    meta = meta | layout(len(frame_paths), window, stride, causal) | {"grid": list(grid), "save_dtype": dtype}
    features = torch.empty(shape, dtype=DTYPES[dtype])  # never touched, so it takes no memory
    pack = {
        KEY: features,
        "frame_paths": [[frame_paths[i] for i in rows] for rows in index],
        "meta": meta,
    }
    names = [frame_paths[i] for rows in index for i in rows]
    left = set(range(shape[0] * shape[1]))
    with new_file(path, features.nbytes, alone=True) as unfinished:
        with torch.serialization.skip_data():
            torch.save(pack, unfinished)
        found, size = find(unfinished, features), features[0, 0].nbytes
        assert found is not None  # torch has just written it
        with open(unfinished, "r+b") as f:

            def put(place, tokens):
                if tuple(tokens.shape) != shape[2:]:
                    expected = f"tokens {list(shape[2:])} of a frame"
                    raise InputError(f"{path}: expected {expected}, found {list(tokens.shape)}")
                stored = as_type(tokens, DTYPES[dtype], f"{path}, frame {names[place]}")
                f.seek(found.offset + place * size)
                f.write(bits(stored.contiguous().cpu()).data)
                left.discard(place)

            yield put
        if left:
            raise InputError(f"{path}: expected tokens for all {shape[0] * shape[1]} places, {len(left)} are missing")


def layout(frames: int, window: int, stride: int, causal: bool = False) -> dict:
    """What a pack says of how an episode of so many frames was cut.

    >>> layout(20, 8, 8)
    {'num_frames': 20, 'window_size': 8, 'stride': 8, 'num_windows': 3}
    >>> layout(20, 8, 8, causal=True)  # a window of at most 8 frames ends at each
    {'num_frames': 20, 'window_size': 8, 'stride': 1, 'num_windows': 20, 'causal': True}
    """
    if causal:
        return {"num_frames": frames, "window_size": min(window, frames), "stride": 1, "num_windows": frames,
                "causal": True}  # fmt: skip
    index = windows(frames, window, stride)
    return {"num_frames": frames, "window_size": len(index[0]), "stride": stride, "num_windows": len(index)}


def seen_ahead(expert: Expert, frames: int, window: int, causal: bool = False) -> int | list[int]:
    """What a pack says of how many frames after its own each of a window's has seen: T numbers, or one for all.

    >>> from rgb2pc_lib.encoders.images import describe
    >>> seen_ahead(describe("vggt"), 20, window=4), seen_ahead(describe("vggt"), 20, window=4, causal=True)
    ([3, 2, 1, 0], 0)
    """
    return list(range(min(window, frames)))[::-1] if expert.together and not causal else 0
