"""From the frames of one episode to tokens: cut into windows, and in batches that fit into memory."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from tqdm import tqdm

from rgb2pc_lib.encoders.images import Expert, ImageEncoder
from rgb2pc_lib.errors import InputError


def windows(frames: int, window: int, stride: int) -> list[list[int]]:
    """Frame indices of each window: all full, the last one shifted back to end on the last frame.

    An episode shorter than a window is one window of its own length.

    >>> windows(5, window=3, stride=3), windows(2, window=3, stride=3)
    ([[0, 1, 2], [2, 3, 4]], [[0, 1]])
    """
    if not 1 <= stride <= window:
        raise InputError(f"expected 1 <= stride <= window (else frames are lost), found {stride} and {window}")
    length = min(window, frames)
    starts = list(range(0, frames - length + 1, stride))
    if starts[-1] + length < frames:
        starts.append(frames - length)
    return [list(range(s, s + length)) for s in starts]


def past(frame: int, window: int) -> range:
    """What is seen of an episode at a frame, by an expert of causal windows: the frame and up to `window` - 1 before.

    The first frames have shorter windows; nothing is repeated to fill them.

    >>> list(past(1, window=3)), list(past(5, window=3))
    ([0, 1], [3, 4, 5])
    """
    return range(max(0, frame + 1 - window), frame + 1)


def kept(frames: int, window: int, stride: int, causal: bool = False) -> list[list[int]]:
    """Frame indices of each window as a pack holds them: `windows`, or of causal ones the last frame alone.

    >>> kept(3, window=2, stride=1), kept(3, window=2, stride=1, causal=True)
    ([[0, 1], [1, 2]], [[0], [1], [2]])
    """
    return windows(frames, 1, 1) if causal else windows(frames, window, stride)


def encode(
    encoder: ImageEncoder,
    frames: Sequence[np.ndarray] | np.ndarray,
    window: int = 8,
    stride: int = 8,
    batch: int | BatchSize = 8,
    causal: bool = False,
) -> torch.Tensor:
    """Tokens `[W, T, Hf, Wf, C]` float32 of an episode's frames, uint8 `[F, H, W, 3]`, cut into windows as a pack is.

    With `causal` windows, `past`, T is 1: each frame as it is seen at its own time. Raises InputError where a single
    frame, or window, does not fit into memory.

    >>> encode(load_encoder("vggt", weights="model.pt"), video[:20], stride=4).shape  # doctest: +SKIP
    torch.Size([4, 8, 28, 37, 2048])
    """
    index, whole = kept(len(frames), window, stride, causal), torch.empty(0)
    for place, tokens in encode_frames(encoder, frames, window, stride, batch, causal):
        whole = tokens.new_empty(len(index) * len(index[0]), *tokens.shape) if not len(whole) else whole
        whole[place] = tokens
    return whole.unflatten(0, (len(index), -1))


def encode_frames(
    encoder: ImageEncoder,
    frames: Sequence[np.ndarray] | np.ndarray,
    window: int = 8,
    stride: int = 8,
    batch: int | BatchSize = 8,
    causal: bool = False,
    seen: Callable[[int], None] = lambda frames: None,
) -> Iterator[tuple[int, torch.Tensor]]:
    """(place, tokens `[Hf, Wf, C]` on the processor) for every place = window * T + frame of an episode's pack.

    An expert that looks at single frames encodes each once, `batch` at a time, and its copies in overlapping windows
    are the same. One that looks at several frames together (`encoder.together`) encodes window after window: a
    frame's tokens differ from window to window. With `causal` a window ends at each frame, and only that one is kept
    of it: T is 1, and as many windows are encoded as there are frames. `frames` may be anything that gives an array
    for a slice; `seen` is told how many were encoded. Raises InputError where a single frame, or window, does not fit
    into memory.
    """
    index = kept(len(frames), window, stride, causal)  # W lists of T, each of frames in a row
    size = batch if isinstance(batch, BatchSize) else BatchSize(batch)

    def tokens(start, stop):
        found = size.encode(encoder, torch.as_tensor(frames[start:stop])).cpu()
        seen(stop - start)
        return found

    if encoder.together and causal:
        for frame in range(len(frames)):
            yield frame, tokens(past(frame, window).start, frame + 1)[-1]
        return
    if encoder.together:
        for w, rows in enumerate(index):
            for t, found in enumerate(tokens(rows[0], rows[-1] + 1)):
                yield w * len(rows) + t, found
        return
    places: list[list[int]] = [[] for _ in range(len(frames))]
    for place, frame in enumerate(i for rows in index for i in rows):
        places[frame].append(place)
    start = 0
    while start < len(frames):
        stop = min(start + size.frames, len(frames))
        for frame, found in enumerate(tokens(start, stop), start):
            for place in places[frame]:
                yield place, found
        start = stop


def frames_encoded(expert: Expert, frames: int, window: int, stride: int, causal: bool = False) -> int:
    """How many frames go through an expert for an episode: each once, or once a window if it sees them together."""
    if not expert.together:
        return frames
    seen = (past(frame, window) for frame in range(frames)) if causal else windows(frames, window, stride)
    return sum(map(len, seen))


class BatchSize:
    """How many frames are encoded at a time: halved, for all that follow, whenever they do not fit into memory."""

    def __init__(self, frames: int):
        self.frames = frames

    def encode(self, encoder: ImageEncoder, images: torch.Tensor) -> torch.Tensor:
        """`encoder(images)`, in halves where it has to be. Raises InputError when it cannot be made smaller."""
        try:
            return encoder(images)
        except (MemoryError, RuntimeError) as e:
            if not out_of_memory(e):
                raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        count, (height, width) = len(images), images.shape[1:3]
        if encoder.together or count == 1:
            raise InputError(
                f"expert '{encoder.name}': {count} frame(s) of {width} x {height} pixels together do not fit into the "
                f"memory of '{encoder.device}'; "
                + ("give a smaller --window" if count > 1 else "free some, or choose another --device")
            )
        self.frames = min(self.frames, (count + 1) // 2)
        tqdm.write(f"{encoder.name}: out of memory, {self.frames} frame(s) at a time from now on", file=sys.stderr)
        return torch.cat([self.encode(encoder, half) for half in images.split((count + 1) // 2)])


def out_of_memory(e) -> bool:  # torch says it in several ways, on the processor only in words
    words = "out of memory", "not enough memory", "can't allocate memory"
    return isinstance(e, MemoryError | torch.OutOfMemoryError) or any(w in str(e) for w in words)
