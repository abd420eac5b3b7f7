"""Images and videos as RGB pixels: the one decoder, for extraction, embedding, importers, exports and pictures alike.

What a file says of itself is honoured, by these rules:

| a file says | its pixels are |
|---|---|
| an orientation (EXIF, XMP), a display matrix (video) | turned and mirrored by quarters as it says |
| 16 bits a channel, or 10 and 12 (video) | the upper 8 bits |
| palette, grey, CMYK, YCbCr | converted to RGB; grey is three times the same |
| alpha, or a transparent colour | composited over white; refused where nothing at all is opaque |

Colour profiles are not applied, as the experts' own code applies none. Sizes are those after turning.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from rgb2pc_lib.data.numbers import as_bytes
from rgb2pc_lib.errors import InputError, cut_short, remedy

RULES = 2  # of this module; what was decoded by others is decoded anew
_ORIENTATION = 0x0112  # EXIF tag
_DEEP = ("I;16", "I;16L", "I;16B", "I;16N")


class Turn(NamedTuple):
    """Rows and columns exchanged, then mirrored left to right, then top to bottom: every turn by quarters is one."""

    exchange: bool = False
    mirror: bool = False
    flip: bool = False

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """`[H, W, ...]` turned.

        >>> Turn(exchange=True, mirror=True)(np.array([[1, 2], [3, 4]])).tolist()  # a quarter clockwise
        [[3, 1], [4, 2]]
        """
        pixels = pixels.swapaxes(0, 1) if self.exchange else pixels
        turned = pixels[:: -1 if self.flip else 1, :: -1 if self.mirror else 1]
        return np.ascontiguousarray(turned)


_EXIF = {
    2: Turn(mirror=True), 3: Turn(mirror=True, flip=True), 4: Turn(flip=True), 5: Turn(exchange=True),
    6: Turn(exchange=True, mirror=True), 7: Turn(True, True, True), 8: Turn(exchange=True, flip=True),
}  # fmt: skip


# -- images


def encoded(pixels: np.ndarray, kind: str, **options: Any) -> bytes:
    """Pixels `[H, W, 3]` uint8 as the bytes of a file, to be written in one go.

    Pillow, given a path, does not notice where a full disk or a limit takes only a part of what it writes.

    >>> encoded(np.zeros((2, 2, 3), np.uint8), "PNG")[1:4]
    b'PNG'
    """
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, kind, **options)
    return written.getvalue()


def read_image(path: Path) -> np.ndarray:
    """RGB pixels `[H, W, 3]` uint8 of a PNG or JPEG. Raises InputError naming a file that cannot be decoded."""
    with _readable(path), Image.open(path) as image:
        return pixels_of(image)


def image_size(path: Path) -> tuple[int, int]:
    """Height and width in pixels, told by the file's head. Raises InputError naming a file that is no image."""
    with _readable(path), Image.open(path) as image:
        return (image.width, image.height) if _turn(image).exchange else (image.height, image.width)


def decode(data: bytes, what: str) -> np.ndarray:
    """RGB pixels `[H, W, 3]` uint8 of an encoded image. Raises InputError naming `what` where it cannot be decoded."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return pixels_of(image)
    except _UNREADABLE as e:
        raise InputError(f"{what}: expected an encoded image (JPEG or PNG), found: {e or type(e).__name__}") from None


def as_rgb(pixels: np.ndarray, what: str) -> np.ndarray:
    """RGB `[H, W, 3]` uint8 of pixels that come as an array: grey, RGB or RGBA, their numbers by the rule for colours.

    Raises InputError naming `what` for other shapes and numbers.

    >>> as_rgb(np.full((2, 2, 1), 0.5), "frame 0")[0, 0].tolist()
    [128, 128, 128]
    """
    pixels = np.asarray(pixels)
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    if pixels.ndim not in (2, 3) or channels not in (1, 3, 4):
        expected = "pixels [H, W], [H, W, 3] or [H, W, 4]"
        raise InputError(f"{what}: expected {expected}, found {list(pixels.shape)}; write them so")
    pixels = as_bytes(pixels, what).reshape(*pixels.shape[:2], channels)
    if channels == 4:
        return _over_white(Image.fromarray(np.ascontiguousarray(pixels)), f"{what}: ")
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))


_UNREADABLE = (  # what Pillow raises for damaged files
    OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, ArithmeticError, MemoryError, struct.error,
    zlib.error, Image.DecompressionBombError,
)  # fmt: skip


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except InputError as e:
        raise InputError(f"{path}: {e}") from None
    except _UNREADABLE as e:
        what = remedy(path, "record or copy this frame again", "save it as PNG or JPEG", str(e))
        raise InputError(f"{path}: expected a readable PNG or JPEG, found: {e or type(e).__name__}; {what}") from None


def _turn(image: Image.Image) -> Turn:
    try:
        said = image.getexif().get(_ORIENTATION, 1)
    except _UNREADABLE:  # of a damaged EXIF block; the pixels may well be sound
        return Turn()
    return _EXIF.get(said, Turn()) if isinstance(said, int) else Turn()


def pixels_of(image: Image.Image) -> np.ndarray:
    """RGB pixels `[H, W, 3]` uint8 of an image of Pillow's, by the rules above. Raises InputError for 32 bits."""
    if image.mode in _DEEP or image.mode == "I" and image.format == "PNG":
        rgb = np.repeat((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)[..., None], 3, 2)
    elif image.mode in ("I", "F"):
        raise InputError(f"pixels of 32 bits ({image.mode}), whose white is not known; save them with 8 or 16 bits")
    elif image.has_transparency_data:
        rgb = _over_white(image.convert("RGBA"))
    else:
        rgb = np.array(image.convert("RGB"))
    turn = _turn(image)
    return rgb if turn == Turn() else turn(rgb)


def _over_white(rgba: Image.Image, what: str = "") -> np.ndarray:
    if not rgba.getchannel("A").getextrema()[1]:
        raise InputError(
            f"{what}no pixel is opaque, so nothing of the image is to be seen; save it without its alpha channel"
        )
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return np.array(Image.alpha_composite(white, rgba).convert("RGB"))


# -- videos


def read_video(path: Path, every: int = 1) -> Iterator[tuple[int, np.ndarray]]:
    """(number of the frame, RGB pixels `[H, W, 3]` uint8) of a video, decoded one frame at a time.

    Raises InputError when PyAV is not installed, for a file that is no video, and after the last frame of one that is
    cut short.
    """
    count = 0
    with _opened(path) as (container, stream):
        for count, frame in enumerate(container.decode(stream), 1):
            if (count - 1) % every == 0:
                yield count - 1, _frame_pixels(frame, path)
    if cut_short(path):
        raise InputError(f"{path}: is cut short after {count} frames; copy it again")


def frame_times(path: Path) -> np.ndarray:
    """When each frame of a video is shown, `[frames]` s, rising; told by the container, nothing is decoded."""
    with _opened(path) as (container, stream):
        shown = [p.pts for p in container.demux(stream) if p.pts is not None and not p.is_discard]
        return np.sort(np.array(shown, np.int64)) * float(stream.time_base)


def video_frames(path: Path, numbers: list[int], times: np.ndarray) -> Iterator[np.ndarray]:
    """The frames `[H, W, 3]` uint8 of these rising numbers, of a video whose `frame_times` are known.

    It is decoded once, from the last key frame before the first of them on.
    Raises InputError naming the file when it cannot be read, or ends too early.
    """
    wanted = iter(numbers)
    number = next(wanted, None)
    if number is None:
        return
    half = np.diff(times).min(initial=1.0) / 2  # s
    with _opened(path) as (container, stream):
        container.seek(max(int((times[number] - half) / stream.time_base), 0), stream=stream)
        for frame in container.decode(stream):
            while number is not None and frame.time is not None and abs(frame.time - times[number]) < half:
                yield _frame_pixels(frame, path)
                number = next(wanted, None)
            if number is None:
                return
    raise InputError(f"{path}: expected a frame at {times[number]:.3f} s, and it cannot be decoded; encode it again")


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    try:
        import av
    except ImportError:
        raise InputError(f"{path}: reading a video needs PyAV; run: pip install 'rgb2pc[import]'") from None
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                what = remedy(path, "copy it again", "choose another")
                raise InputError(f"{path}: expected a video, found a file without pictures; {what}")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            yield container, stream
    except (av.error.FFmpegError, OSError, UnicodeDecodeError) as e:  # the last of names in it that are no text
        what = remedy(path, "copy it again", "encode it as mp4 (H.264)", str(e))
        raise InputError(f"{path}: expected a readable video, found: {e}; {what}") from None


def _frame_pixels(frame: Any, path: Path) -> np.ndarray:
    if any(c.is_alpha for c in frame.format.components):
        rgb = as_rgb(frame.to_ndarray(format="rgba"), f"{path}")
    else:
        rgb = frame.to_ndarray(format="rgb24")
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if not matrix:
        return rgb
    turn = _matrix_turn(np.frombuffer(matrix, np.int32)[[0, 1, 3, 4]] / 65536)
    if turn is None:
        raise InputError(f"{path}: is to be turned by no quarter of a circle; encode it upright")
    return rgb if turn == Turn() else turn(rgb)


def _matrix_turn(abcd: np.ndarray) -> Turn | None:
    """A display matrix, x' = a x + c y and y' = b x + d y, as a turn; None where it turns by no quarter."""
    a, b, c, d = np.rint(abcd).astype(int)
    if b == c == 0 and a and d:
        return Turn(False, a < 0, d < 0)
    return Turn(True, c < 0, b < 0) if a == d == 0 and b and c else None
