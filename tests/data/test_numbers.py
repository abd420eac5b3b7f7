"""Kind A: numbers in another type fit, are converted by the rule, or are refused by name; wherever they come in."""

import numpy as np
import pytest
import torch

from rgb2pc_lib.checks.sources import step_cloud
from rgb2pc_lib.data.clouds import Cloud, read_ply, write_ply
from rgb2pc_lib.data.numbers import as_bytes, as_positions, as_type
from rgb2pc_lib.data.pairing import Pairing
from rgb2pc_lib.data.pictures import as_rgb
from rgb2pc_lib.data.teacher import TeacherFile
from rgb2pc_lib.data.workspace import Workspace
from rgb2pc_lib.encoders.pack_file import new_pack
from rgb2pc_lib.errors import InputError

TRUE = np.array([[0, 51, 255], [102, 204, 153]], np.uint8)  # every one a share of white with one decimal
WHOLE = [np.dtype(t) for t in ("u1", "i2", "u2", "i4", "u4", "i8", "u8")]


def through_ply(colours, folder):
    """Colours as another program writes them, ascii, in the type that they have."""
    kind = {"f": "float", "u1": "uchar", "i2": "short", "u2": "ushort", "i4": "int", "u4": "uint"}
    name = kind.get(colours.dtype.str[1:], kind.get(colours.dtype.kind))
    if name is None:
        pytest.skip("PLY has no such type")
    rows = "\n".join(f"{i} 0 1 {' '.join(map(str, row.tolist()))}" for i, row in enumerate(colours))
    properties = [
        *(f"property float {axis}" for axis in "xyz"),
        *(f"property {name} {c}" for c in ("red", "green", "blue")),
    ]
    header = ["ply", "format ascii 1.0", f"element vertex {len(colours)}", *properties, "end_header"]
    (folder / "a.ply").write_text("\n".join([*header, rows, ""]))
    return read_ply(folder / "a.ply").rgb


def through_teacher(colours, folder):
    """As the points of a teacher's file."""
    path = folder / "step_0.ply.ulip_x.pt"
    points = np.concatenate([np.ones((len(colours), 3)), colours.astype(float)], 1)
    torch.save({"pc_feat": torch.ones(len(colours), 4), "pc": torch.tensor(points)}, path)
    cloud, _ = step_cloud(Workspace(), Pairing(None, {}, {("p", "e"): {"s": TeacherFile(path)}}), "p", "e", "s")
    return cloud.rgb


def through_pixels(colours, folder):
    return as_rgb(colours[None], "frame 0")[0]


def through_writing(colours, folder):
    write_ply(folder / "b.ply", Cloud(np.ones((len(colours), 3), np.float32), colours))
    return read_ply(folder / "b.ply").rgb


DOORS = [lambda colours, folder: as_bytes(colours, "x"), through_ply, through_teacher, through_pixels, through_writing]


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("kind", WHOLE, ids=str)
def test_whole_colours_of_any_type_come_in_alike(tmp_path, door, kind):
    assert np.array_equal(door(TRUE.astype(kind), tmp_path), TRUE)
    if kind.itemsize > 1 and kind != np.dtype("i2") and door is not through_teacher:  # whose columns are fractions
        assert np.array_equal(door((TRUE.astype(np.int64) * 257).astype(kind), tmp_path), TRUE)  # 16 bits


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("kind", ["f4", "f8"])
@pytest.mark.parametrize("white", [1, 255])
def test_fractions_come_in_alike(tmp_path, door, kind, white):
    assert np.array_equal(door((TRUE / 255 * white).astype(kind), tmp_path), TRUE)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("bad", [-1.0, 300.0, 1.5, np.nan, np.inf, 70000.0, -40000.0])
def test_colours_that_fit_no_rule_are_refused_by_name(tmp_path, door, bad):
    colours = (TRUE / 255).astype(np.float64)
    colours[1, 1] = bad
    with pytest.raises(InputError, match=r"^\S*(x|ply|pt|frame 0)\S*: "):
        door(colours, tmp_path)


def test_positions_keep_their_meaning():
    near = np.random.default_rng(0).uniform(-1, 1, (50, 3))
    assert as_positions(near, "x").dtype == np.float32
    np.testing.assert_allclose(as_positions(near, "x"), near, atol=1e-6)
    with pytest.raises(InputError, match=r"x: expected positions that 32 bits can tell.*subtract a common origin"):
        as_positions(near + [4_500_000, 500_000, 0], "x")  # a map's coordinates
    for bad in (np.nan, np.inf):
        with pytest.raises(InputError, match="x: expected finite positions, found 1 points without"):
            as_positions(np.vstack([near, [[bad, 0, 0]]]), "x")
    for odd in (np.array([["a"]]), np.ones((2, 3), complex), np.array([[object()] * 3])):
        with pytest.raises(InputError, match="x: expected positions as numbers"):
            as_positions(odd, "x")


def test_a_maps_coordinates_are_refused_wherever_points_come_in(tmp_path):
    far = np.random.default_rng(0).uniform(-0.01, 0.01, (50, 3)) + [4_500_000, 500_000, 0]
    with pytest.raises(InputError, match="32 bits can tell"):
        write_ply(tmp_path / "a.ply", Cloud(far))
    axes = "".join(f"property double {axis}\n" for axis in "xyz")
    header = f"ply\nformat ascii 1.0\nelement vertex 50\n{axes}end_header\n"
    (tmp_path / "a.ply").write_text(header + "\n".join(" ".join(f"{v:.6f}" for v in p) for p in far) + "\n")
    with pytest.raises(InputError, match="a.ply: .*32 bits can tell"):
        read_ply(tmp_path / "a.ply")
    with pytest.raises(InputError, match="pt: pc: .*32 bits can tell"):
        through_far(far, tmp_path)


def through_far(points, folder):
    path = folder / "step_0.ply.ulip_x.pt"
    torch.save({"pc_feat": torch.ones(len(points), 4), "pc": torch.tensor(points)}, path)
    return step_cloud(Workspace(), Pairing(None, {}, {("p", "e"): {"s": TeacherFile(path)}}), "p", "e", "s")


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32])
def test_tokens_fit_or_are_refused(tmp_path, kind):
    tokens = torch.tensor([[1.0, -65504.0, 3e-8]])
    assert as_type(tokens, kind, "x").dtype == kind
    for bad in (torch.nan, torch.inf, *([65520.0] if kind == torch.float16 else [])):
        with pytest.raises(InputError, match="^x: "):
            as_type(torch.tensor([[1.0, bad]]), kind, "x")
    name = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}[kind]
    with (
        pytest.raises(InputError, match="frame step_0.png: expected finite features"),
        new_pack(tmp_path / "p" / "e.pt", ["step_0.png"], (1, 1), {"enc_embed_dim": 2}, dtype=name) as put,
    ):
        put(0, torch.tensor([[[1.0, torch.nan]]]))
    assert not list((tmp_path / "p").iterdir())
