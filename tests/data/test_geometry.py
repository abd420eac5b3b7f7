"""Pixels, tokens and points in each other's coordinates: closed forms, round trips, borders."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rgb2pc_lib.data.geometry import Camera, Placement, fractions_to_uv, lookup, same_points, uv_to_fractions, visible

SIZES = [(224, 224), (225, 301), (97, 640), (1036, 518), (481, 275)]  # height, width: odd, wide, tall
PLACEMENTS = [
    *(Placement.by_rule("dinov3", size, (14, 14)) for size in SIZES),
    *(Placement.by_rule("da3", size, (27, 36)) for size in SIZES),
    Placement.by_rule("vggt", (97, 640), (6, 37)),
    Placement.by_rule("vggt", (1036, 518), (37, 37)),
    Placement.by_rule("vggt", (481, 275), (37, 37)),
    Placement.by_rule("da3", (500, 333), (36, 23), process_res_method="upper_bound_crop"),
    Placement((50, 70), (7, 9), (0.1, 0.3, 0.85, 0.9)),
]


@pytest.mark.parametrize("placement", PLACEMENTS, ids=lambda p: f"{p.size}-{p.grid}")
def test_there_and_back(placement):
    rng = np.random.default_rng(0)
    uv = rng.uniform(-0.5, np.array(placement.size[::-1]) - 0.5, (500, 2))
    np.testing.assert_allclose(placement.to_uv(placement.to_token(uv)), uv, atol=1e-6)
    np.testing.assert_allclose(fractions_to_uv(uv_to_fractions(uv, placement.size), placement.size), uv, atol=1e-9)
    every = np.arange(np.prod(placement.grid))
    assert np.array_equal(placement.cells(placement.centres()), every)  # each cell's centre lies in it
    half = np.array(placement.patch[::-1]) / 2
    for corner in ((-1, -1), (1, -1), (-1, 1), (1, 1)):  # and so does all of it
        assert np.array_equal(placement.cells(placement.centres() + 0.999 * half * corner), every)


@pytest.mark.parametrize("placement", PLACEMENTS, ids=lambda p: f"{p.size}-{p.grid}")
def test_a_border_belongs_to_the_cell_after_it(placement):
    """Exactly on the border between two cells, for every one of them and whatever the sizes are."""
    h, w = placement.grid
    inside = placement.to_uv(np.stack([np.arange(w), np.full(w, h / 2)], -1))
    assert np.array_equal(placement.cells(inside) % w, np.arange(w))
    inside = placement.to_uv(np.stack([np.full(h, w / 2), np.arange(h)], -1))
    assert np.array_equal(placement.cells(inside) // w, np.arange(h))
    assert placement.cells(placement.to_uv(np.array([[w, 0.5], [0.5, h], [-1e-6, 0.5]]))).tolist() == [-1, -1, -1]


def test_pixels_by_hand():
    square = Placement((224, 224), (14, 14))  # patches of 16 pixels
    assert square.cells(np.array([[15, 0], [16, 0], [0, 15.49], [0, 15.5]])).tolist() == [0, 1, 0, 14]
    assert square.to_token(np.array([7.5, 23.5])).tolist() == [0.5, 1.5] and square.patch == (16, 16)
    odd = Placement((45, 225), (6, 30))  # patches of 7.5 pixels: pixel 7's centre is on the border
    assert odd.cells(np.array([[6, 0], [7, 0], [8, 0]])).tolist() == [0, 1, 1]


def test_vggt_keeps_the_middle_band_of_a_tall_image():
    """518 x 1036 is kept at its size, so rows 259 to 776 are seen, in patches of 14 pixels."""
    tall = Placement.by_rule("vggt", (1036, 518), (37, 37))
    rows = np.array([[0, 258], [0, 259], [0, 272], [0, 273], [0, 776], [0, 777]])
    assert tall.cells(rows).tolist() == [-1, 0, 0, 37, 36 * 37, -1]
    assert tall.sees(rows).tolist() == [False, True, True, True, True, False] and tall.patch == (14, 14)
    wide = Placement.by_rule("vggt", (97, 640), (6, 37))  # 518 x 78.5, rounded to 84: a resize, all is seen
    assert wide.sees(np.array([[0, 0], [639, 96]])).all()


def test_a_crop_to_patches_leaves_a_margin():
    """333 x 500 goes to 336 x 504; of 336 columns 23 patches keep 322, from the 7th on; all 504 rows are kept."""
    crop = Placement.by_rule("da3", (500, 333), (36, 23), process_res_method="upper_bound_crop")
    left, right = 7 * 333 / 336 - 0.5, 329 * 333 / 336 - 0.5
    columns = np.array([left - 1e-3, left + 1e-3, right - 1e-3, right + 1e-3])
    assert crop.cells(np.stack([columns, 0 * columns], -1)).tolist() == [-1, 0, 22, -1]


def test_nearest_takes_the_token_that_covers_the_place():
    placement = Placement((40, 60), (4, 6), (0.0, 0.25, 1.0, 0.75))  # rows 10 to 29
    features = torch.arange(24.0).reshape(4, 6, 1)
    found, seen = lookup(features, placement, np.array([[0, 9], [0, 10], [9, 14], [10, 15], [59, 29], [59, 30]]))
    assert seen.tolist() == [False, True, True, True, True, False]
    assert found[:, 0].tolist() == [0, 0, 0, 7, 23, 0]


@pytest.mark.parametrize("placement", PLACEMENTS, ids=lambda p: f"{p.size}-{p.grid}")
def test_bilinear_is_exact_for_what_is_linear(placement):
    """Tokens that hold their own centre give back the place that is asked for, up to half a cell from the border."""
    h, w = placement.grid
    centres = torch.from_numpy(placement.centres()).float().reshape(h, w, 2)
    rng = np.random.default_rng(1)
    token = rng.uniform(0.5, np.array([w, h]) - 0.5, (200, 2))
    uv = placement.to_uv(token)
    found, seen = lookup(centres, placement, uv, "bilinear")
    assert seen.all()
    np.testing.assert_allclose(found.numpy(), uv, atol=2e-3)
    edge = placement.to_uv(np.array([[0.1, h / 2]]))  # nearer to the border than any centre: as at the centre
    assert lookup(centres, placement, edge, "bilinear")[0][0, 0].item() == pytest.approx(
        centres[0, 0, 0].item(), abs=1e-3
    )


def test_resizing_an_image_moves_its_tokens_by_the_rule():
    """A real resize agrees: the mean colour of a patch of the resized image is what bilinear lookup gives there."""
    ramp = torch.arange(301.0).expand(1, 1, 225, 301)  # each pixel holds its column
    resized = F.interpolate(ramp, (224, 224), mode="bilinear", antialias=True)
    tokens = F.avg_pool2d(resized, 16)[0].permute(1, 2, 0)  # [14, 14, 1]
    placement = Placement((225, 301), (14, 14))
    inner = placement.centres().reshape(14, 14, 2)[1:-1, 1:-1].reshape(-1, 2)
    np.testing.assert_allclose(lookup(tokens, placement, inner)[0][:, 0], inner[:, 0], atol=0.05)


def test_unknown_lookup():
    with pytest.raises(ValueError, match="nearest, bilinear"):
        lookup(torch.zeros(2, 2, 1), Placement((4, 4), (2, 2)), np.zeros((1, 2)), "cubic")


# -- cameras

K = np.array([[100.0, 0, 32], [0, 100, 24], [0, 0, 1]])


def turned(angle: float, shift) -> np.ndarray:
    pose = np.eye(4)
    pose[:3, :3] = [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
    pose[:3, 3] = shift
    return pose


def test_what_a_camera_sees():
    camera = Camera(K, np.eye(4), (48, 64))
    uv, depth, inside = camera.see(np.array([[0, 0, 2], [0.1, 0.2, 1], [0, 0, -1], [0.64, 0, 2], [-0.64, -0.48, 2]]))
    np.testing.assert_allclose(uv[:2], [[31.5, 23.5], [41.5, 43.5]])
    assert depth.tolist() == [2, 1, -1, 2, 2]
    assert inside.tolist() == [True, True, False, False, True]  # the right edge is outside, the left one inside


def test_a_resized_camera_sees_the_same_fractions():
    camera = Camera(K, turned(0.1, [0, 0, 0.2]), (48, 64))
    world = np.random.default_rng(0).uniform([-0.2, -0.2, 1], [0.2, 0.2, 2], (50, 3))
    small = camera.resized((31, 23))
    np.testing.assert_allclose(
        uv_to_fractions(camera.see(world)[0], (48, 64)), uv_to_fractions(small.see(world)[0], (31, 23))
    )


def test_camera_to_world_and_back():
    camera = Camera(K, turned(0.4, [0.1, -0.2, 0.3]), (48, 64))
    xyz = np.array([[0.1, 0.2, 1.5], [-0.1, 0.0, 0.7]])
    uv, depth, _ = camera.see(camera.world(xyz))
    np.testing.assert_allclose(depth, xyz[:, 2])
    np.testing.assert_allclose(uv + 0.5, 100 * xyz[:, :2] / xyz[:, 2:] + [32, 24])


def test_a_wall_hides_what_is_behind_it_from_one_view_only():
    """A wall at 1 m covers the left half of one view; from the side the same points are seen."""
    y, x = np.mgrid[-0.3:0.3:25j, -0.6:0.6:49j]
    back = np.stack([x, y, np.full_like(x, 2.0)], -1).reshape(-1, 3)
    wall = back[back[:, 0] < 0] * [0.5, 0.5, 0.5]
    front = Camera(K, np.eye(4), (48, 64))
    hidden = back[:, 0] < -0.05
    seen = visible(back, front, np.concatenate([wall, back[back[:, 0] >= 0]]), radius=3)
    inside = front.see(back)[2]
    assert not seen[hidden].any() and seen[inside & (back[:, 0] > 0.05)].all() and not seen[~inside].any()
    side = Camera(K, turned(0.0, [0.5, 0, 0]), (48, 64))  # the wall appears further to the right there
    assert visible(back, side, back, radius=3)[side.see(back)[2]].all()
    assert not visible(back, front, np.zeros((0, 3))).any()  # nothing recorded, nothing claimed


def test_same_points_are_mutual_and_near():
    a = np.array([[0.0, 0, 0], [1, 0, 0], [2, 0, 0], [2.002, 0, 0]])
    b = np.array([[2.003, 0, 0], [1.5, 0, 0], [0.004, 0, 0]])
    i, j = same_points(a, b, within=0.005)
    assert i.tolist() == [0, 3] and j.tolist() == [2, 0]
