"""Resizing: known answers, and OpenCV and Pillow themselves where they are installed."""

import numpy as np
import pytest
import torch
from PIL import Image

from rgb2pc_lib.encoders.resize import opencv_area, opencv_cubic, pillow_bicubic


def noise(height, width, count=2):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8))


def test_area_means_whole_and_partial_pixels():
    image = torch.tensor([[0, 100, 200], [40, 140, 240]]).byte().view(1, 2, 3, 1)
    assert opencv_area(image, (1, 3)).flatten().tolist() == [20, 120, 220]
    assert opencv_area(image, (2, 2)).flatten().tolist() == [33, 167, 73, 207]  # (0 + 50) / 1.5, (50 + 200) / 1.5, ...
    assert opencv_area(image, (1, 1)).flatten().tolist() == [120]


def test_cubic_follows_a_ramp_and_overshoots_an_edge():
    ramp = torch.arange(0, 200, 10).byte().view(1, 1, 20, 1).expand(1, 4, 20, 3)
    bigger = opencv_cubic(ramp, (4, 40))[0, 0, 8:-8, 0].float()
    assert (bigger - 10 * ((torch.arange(8, 32) + 0.5) / 2 - 0.5)).abs().max() <= 1
    edge = torch.tensor([100] * 8 + [150] * 8).byte().view(1, 1, 16, 1).expand(1, 4, 16, 3)
    bigger = opencv_cubic(edge, (4, 32))[0, 0, :, 0].int()
    assert bigger.min() < 100 and bigger.max() > 150


@pytest.mark.parametrize("resize", [opencv_area, opencv_cubic, pillow_bicubic])
def test_a_plain_image_stays_plain_and_sides_keep_their_meaning(resize):
    plain = torch.tensor([12, 130, 255]).byte().expand(1, 12, 18, 3)
    assert (resize(plain, (6, 9)) == plain[:, :6, :9]).all()
    rows = torch.arange(12).byte().mul(20).view(1, 12, 1, 1).expand(1, 12, 18, 3)
    small = resize(rows, (6, 9))
    assert (small[:, :, :1] == small).all() and (small[0, 1:, 0, 0] > small[0, :-1, 0, 0]).all()


@pytest.mark.parametrize("old, new", [((240, 320), (392, 518)), ((480, 640), (392, 518)), ((37, 51), (20, 80))])
def test_pillow_bicubic_is_pillows(old, new):
    images = noise(*old)
    for image, resized in zip(images, pillow_bicubic(images, new), strict=True):
        expected = Image.fromarray(image.numpy()).resize(new[::-1], Image.Resampling.BICUBIC)
        assert (np.asarray(expected) == resized.numpy()).all()


@pytest.mark.parametrize(
    "resize, flag, old, new",
    [
        (opencv_area, "INTER_AREA", (480, 640), (378, 504)),
        (opencv_area, "INTER_AREA", (720, 1280), (284, 504)),
        (opencv_area, "INTER_AREA", (96, 64), (48, 32)),
        (opencv_cubic, "INTER_CUBIC", (240, 320), (378, 504)),
        (opencv_cubic, "INTER_CUBIC", (376, 504), (378, 504)),
    ],
)
def test_opencv_itself(resize, flag, old, new):
    cv2 = pytest.importorskip("cv2", reason="opencv-python-headless, the reference, is not installed")
    images = noise(*old)
    expected = np.stack([cv2.resize(i, new[::-1], interpolation=getattr(cv2, flag)) for i in images.numpy()])
    off = np.abs(expected.astype(int) - resize(images, new).numpy().astype(int))
    assert off.max() <= 1 and (off > 0).mean() < 0.005  # OpenCV's cubic is computed in fixed point
