"""Kind D: one decoder, which honours what a file says of itself, behind everything that looks at images."""

import runpy
import sys
import types

import numpy as np
import pytest
from PIL import Image

from rgb2pc_lib.data.pictures import as_rgb, decode, image_size, read_image
from rgb2pc_lib.deploy.export import EXAMPLE
from rgb2pc_lib.deploy.frames import frame_cache, read_frames
from rgb2pc_lib.encoders.extract import Frames
from rgb2pc_lib.errors import InputError

SEEN = 204 * np.random.default_rng(0).integers(0, 2, (6, 10, 3), np.uint8).repeat(8, 0).repeat(8, 1)  # [48, 80, 3]
GREY = SEEN[..., :1].repeat(3, 2)
# EXIF orientation -> how a camera stores an image that is seen upright
STORED = {
    1: lambda x: x, 2: lambda x: x[:, ::-1], 3: lambda x: x[::-1, ::-1], 4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1), 6: lambda x: np.rot90(x), 7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: np.rot90(x, -1),
}  # fmt: skip


def turned(orientation):
    def write(folder):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(np.ascontiguousarray(STORED[orientation](SEEN))).save(folder / "a.png", exif=exif)
        return folder / "a.png", SEEN

    return write


def stored(mode, ending="png", seen=SEEN, **options):
    def write(folder):
        Image.fromarray(SEEN).convert(mode).save(folder / f"a.{ending}", **options)
        return folder / f"a.{ending}", seen

    return write


def deep(folder):
    Image.fromarray(GREY[..., 0].astype(np.uint16) * 257).save(folder / "a.png")
    return folder / "a.png", GREY


def half_transparent(folder):
    alpha = np.full((*SEEN.shape[:2], 1), 255, np.uint8)
    alpha[:, 40:] = 0
    Image.fromarray(np.concatenate([SEEN, alpha], 2)).save(folder / "a.png")
    expected = SEEN.copy()
    expected[:, 40:] = 255
    return folder / "a.png", expected


def transparent_colour(folder):
    Image.fromarray(SEEN).quantize(8).save(folder / "a.png")
    with Image.open(folder / "a.png") as image:
        colour = image.getpixel((0, 0))
        expected = np.array(image.convert("RGB"))
        expected[np.asarray(image) == colour] = 255
        image.save(folder / "b.png", transparency=colour)
    return folder / "b.png", expected


LUMA = np.asarray(Image.fromarray(SEEN).convert("L"))[..., None].repeat(3, 2)
FILES = {
    **{f"turned, {o}": turned(o) for o in STORED},
    "RGB": stored("RGB"), "RGBA": stored("RGBA"), "palette": stored("P"), "grey": stored("L", seen=LUMA),
    "grey and alpha": stored("LA", seen=LUMA), "CMYK": stored("CMYK", "jpg", quality=95), "16 bits": deep,
    "YCbCr": stored("RGB", "jpg", quality=95, subsampling=0),
    "half transparent": half_transparent, "a transparent colour": transparent_colour,
}  # fmt: skip


def exported(path, monkeypatch, folder):
    """The pixels that the example beside an exported network gives to it, at their own size."""
    height, width = image_size(path)
    asked = []
    session = types.SimpleNamespace(
        get_inputs=lambda: [types.SimpleNamespace(shape=[1, 80])], run=lambda _, given: asked.append(given) or [None]
    )
    fake = types.SimpleNamespace(InferenceSession=lambda *_, **__: session)
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    (folder / "infer.py").write_text(EXAMPLE)
    example = runpy.run_path(str(folder / "infer.py"))
    return np.asarray(example["upright"](path).resize((width, height)))


LOOKS = {
    "read_image": lambda path, *_: read_image(path),
    "decode": lambda path, *_: decode(path.read_bytes(), "x"),
    "extraction": lambda path, *_: Frames([path])[0:1][0],
    "embedding": lambda path, *_: next(read_frames([path]))[2],
    "exported example": exported,
}


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("file", FILES)
def test_everything_sees_a_file_as_it_says(tmp_path, monkeypatch, file, look):
    path, expected = FILES[file](tmp_path)
    tolerance = 40 if path.suffix == ".jpg" else 0  # lossy
    seen = LOOKS[look](path, monkeypatch, tmp_path)
    assert seen.dtype == np.uint8 and seen.shape == expected.shape == (*image_size(path), 3)
    assert np.abs(seen.astype(int) - expected).mean() <= tolerance / 8
    if not tolerance and file != "palette":
        assert np.array_equal(seen, expected)


@pytest.mark.parametrize("file", FILES)
def test_the_cache_of_frames_holds_them_so(tmp_path, file):
    path, _ = FILES[file](tmp_path)
    small = frame_cache([path], 16, tmp_path / "cache", progress=False)[0]
    expected = np.asarray(Image.fromarray(read_image(path)).resize((16, 16), Image.Resampling.BILINEAR))
    assert np.array_equal(small, expected)


def test_what_shows_nothing_or_has_no_white_is_refused(tmp_path):
    Image.new("RGBA", (4, 4), (9, 9, 9, 0)).save(tmp_path / "clear.png")
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "depth.tiff")
    for name, said in {"clear.png": "no pixel is opaque", "depth.tiff": "whose white is not known"}.items():
        with pytest.raises(InputError, match=f"{name}: .*{said}"):
            read_image(tmp_path / name)
    for pixels in (np.zeros((4, 4, 2)), np.zeros(4), np.zeros((2, 4, 4, 3)), np.full((4, 4, 3), 1.5)):
        with pytest.raises(InputError, match="^x: "):
            as_rgb(pixels, "x")
