"""A camera's frames one at a time: what comes out is what packs extracted beforehand give, for every expert."""

import importlib.util
import json
from functools import partial

import numpy as np
import pytest
import tiny_weights
import torch
from PIL import Image

from rgb2pc_lib.data.packs import FeaturePack, list_packs
from rgb2pc_lib.data.pairing import pair
from rgb2pc_lib.data.pictures import read_image
from rgb2pc_lib.data.sampling import Gatherer, embedding_lattice, ordered_plans
from rgb2pc_lib.data.workspace import SAMPLE, Workspace
from rgb2pc_lib.deploy.backbones import Compact
from rgb2pc_lib.deploy.embed import Embedder, _through_pixels, embed_packs, every_step
from rgb2pc_lib.deploy.stream import Stream, ThroughExperts, ThroughPixels, as_frame
from rgb2pc_lib.encoders.encode import past
from rgb2pc_lib.encoders.extract import extract, list_frames
from rgb2pc_lib.encoders.images import EXPERTS, STANDINS, load_encoder
from rgb2pc_lib.encoders.rays import CHANNELS, SOMEWHERE, live_rays
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.learning.config import Config
from rgb2pc_lib.learning.models import Student
from rgb2pc_lib.learning.point_models import PlaceStudent, PointHead
from rgb2pc_lib.learning.runs import Run, build_student

OFFICIAL = sorted(set(EXPERTS) - set(STANDINS))
WINDOW, STEPS = 3, 5


@pytest.fixture(scope="module")
def rgb(tmp_path_factory):
    """Episodes of 5 and of 2 frames: bands of the sample's, 16 x 112 pixels, so that few tokens have to be made."""
    root = tmp_path_factory.mktemp("rgb")
    found = list_frames(Workspace.load(SAMPLE).rgb, ["hammer"]).items()
    for ((task, episode), files), steps in zip(found, (STEPS, 2), strict=False):
        (root / task / episode).mkdir(parents=True)
        for file in files[:steps]:
            Image.fromarray(read_image(file)[104:120, 56:168]).save(root / task / episode / f"{file.stem}.png")
    return root


def images(rgb, episode):
    return [read_image(file) for file in list_frames(rgb)["hammer", episode]]


def finished(folder, workspace, copy="middle"):
    """A run with random weights on a workspace's packs, as if it had been trained."""
    pairing = pair(workspace, teacher=False)
    config = Config(fusion="moe", fuse_dim=24, frame_copy=copy, save_dir=str(folder)).with_workspace(workspace)
    folder.mkdir()
    run = Run(folder)
    run.file("config.json").write_text(config.to_json())
    run.save_student(build_student(config, pairing.channels, 16), pairing.channels, torch.zeros(16))
    seen = {name: sight._asdict() for name, sight in pairing.look_ahead(copy).items()}
    told = {"n_train": 1, "n_held_out": 1, "held-out": {}, "look_ahead": seen, "gates": dict.fromkeys(seen, 1.0)}
    run.file("summary.json").write_text(json.dumps(told))
    return run


def offline(run, workspace):
    """(episode, step) -> its embedding and its spatial tokens, from packs."""
    keys, embeddings = embed_packs(run, workspace)
    samples, student = every_step(pair(workspace, teacher=False)), run.student()[0]
    at = embedding_lattice(samples.pairing.finest_grid)
    with torch.no_grad():
        batches = Gatherer(samples, run.config.frame_copy).run(ordered_plans(samples, np.arange(len(samples)), 4, at))
        spatial = torch.cat([student.spatial(b.tokens, b.present, b.positions)[0].clone() for b in batches]).numpy()
    rows = zip(keys["episode"], keys["step"], embeddings, spatial, strict=True)
    return {(episode, step): both for episode, step, *both in rows}


def agree(look, expected):
    for found, wanted in zip(look, expected, strict=True):
        assert np.abs(found - wanted).max() < 1e-3 * np.abs(wanted).max()


@pytest.mark.parametrize("name", OFFICIAL)
def test_online_equals_offline(name, rgb, tmp_path, monkeypatch):
    if missing := [m for m in tiny_weights.NEEDS[name] if importlib.util.find_spec(m) is None]:
        pytest.skip(f"expert '{name}' needs {', '.join(missing)}")
    weights = tiny_weights.save(name, tmp_path / "weights")
    encoder = load_encoder(name, weights=weights)
    how = dict(window=WINDOW, causal=True, dtype="fp32", progress=False)
    extract(encoder, rgb, tmp_path / "packs", **how)
    workspace = Workspace(experts={name: tmp_path / "packs"}, rgb=rgb, name="causal")
    pack = FeaturePack.open(list_packs(tmp_path / "packs")["hammer", "episode_0000"])
    assert pack.shape[:2] == (STEPS, 1) and not pack.ahead.any() and pack.meta["causal"] and pack.ahead_told
    run = finished(tmp_path / "run", workspace)
    expected = offline(run, workspace)
    embedder = Embedder.from_run(run, weights={name: weights})
    assert embedder.together == encoder.together and not embedder.look_ahead
    stream = embedder.stream()
    for episode in ("episode_0000", "episode_0001"):
        stream.reset()
        for number, image in enumerate(images(rgb, episode)):
            agree(stream(image), expected[episode, f"step_{number:04d}"])
    direct = embedder(np.stack(images(rgb, "episode_0000")))  # a whole episode at once, cut as the run's packs were
    agree([direct], [np.stack([expected["episode_0000", f"step_{n:04d}"][0] for n in range(STEPS)])])
    if encoder.together:  # the past matters
        alone = embedder.stream()(images(rgb, "episode_0001")[1]).embedding
        wanted = expected["episode_0001", "step_0001"][0]
        assert np.abs(alone - wanted).max() > 2e-3 * np.abs(wanted).max()


def test_the_first_frames_have_shorter_windows():
    assert [list(past(i, 3)) for i in range(5)] == [[0], [0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4]]


def test_what_was_trained_with_a_view_of_the_future_is_not_streamed(rgb, tmp_path):
    weights = tiny_weights.save("vggt", tmp_path / "weights")
    encoder = load_encoder("vggt", weights=weights)
    extract(encoder, rgb, tmp_path / "packs", window=WINDOW, stride=1, progress=False)
    workspace = Workspace(experts={"vggt": tmp_path / "packs"}, rgb=rgb, name="windows")
    for copy, ahead in (("middle", "0.9"), ("last", "0.6")):  # 2 1 1 1 0 and 1 0; 2 1 0 0 0 and 1 0
        run = finished(tmp_path / copy, workspace, copy)
        embedder = Embedder.from_run(run, weights={"vggt": weights})
        assert f"vggt sees {ahead} later frames on average" in embedder.look_ahead
        with pytest.raises(InputError, match=f"{copy}: Trained with a view of the future: .* --causal and train again"):
            embedder.stream()
    summary = run.summary
    del summary["look_ahead"]  # a run of before that was recorded
    run.file("summary.json").write_text(json.dumps(summary))
    with pytest.raises(InputError, match="vggt may see later frames, which was not recorded"):
        Embedder.from_run(run, weights={"vggt": weights}).stream()


# -- several cameras, and what a frame may be


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    """A student of VGGT, which sees windows, and of CroCo."""
    encoders = {
        name: load_encoder(name, weights=tiny_weights.save(name, tmp_path_factory.mktemp(name)))
        for name in ("vggt", "croco")
    }
    student = Student({name: encoder.channels for name, encoder in encoders.items()}, 8, width=12).eval()
    return ThroughExperts(student, encoders, {"vggt": WINDOW}, side=2)


def test_cameras_side_by_side_are_cameras_alone(live, rgb):
    """Of two sizes, one of them reset on the way."""
    left = images(rgb, "episode_0000")
    right = [image[:, :56] for image in left[::-1]]
    both, alone = Stream(live, cameras=3), [Stream(live) for _ in range(3)]
    for step in range(4):
        if step == 2:
            both.reset([1])
            alone[1].reset()
        frames = [left[step], right[step], left[step + 1]]
        found = both(frames)
        assert found.embedding.shape == (3, 8) and found.spatial.shape == (3, 4, 12)
        for i, (stream, frame) in enumerate(zip(alone, frames, strict=True)):
            agree((found.embedding[i], found.spatial[i]), stream(frame))


def test_frames_in_every_form_are_the_same_frame(live, rgb):
    image = images(rgb, "episode_0000")[0]
    forms = [
        image, Image.fromarray(image), torch.from_numpy(image), torch.from_numpy(image).permute(2, 0, 1),
        torch.from_numpy(image).permute(2, 0, 1) / 255, image.astype(np.float64) / 255, image[:, ::-1][:, ::-1],
        torch.from_numpy(image).double() / 255,
    ]  # fmt: skip
    for form in forms:
        assert np.array_equal(as_frame(form), image) and as_frame(form).dtype == np.uint8
    short = torch.from_numpy(image / 255).bfloat16()  # of 8 bits, which numpy does not know
    assert np.array_equal(as_frame(short), (short.float() * 255).round().byte().numpy())
    assert np.array_equal(as_frame(Image.fromarray(image[..., 0])), np.repeat(image[..., :1], 3, 2))  # grey
    wrong = [image[..., 0], image.astype(np.float32), image.astype(np.int64), np.zeros((2, 4, 4, 3), np.uint8), "frame"]
    for form in [*wrong, np.full((4, 4, 3), np.nan)]:
        with pytest.raises(InputError, match=r"expected a frame \[H, W, 3\] or \[3, H, W\], uint8 or fractions"):
            as_frame(form)


def test_a_stream_says_what_is_wrong_with_its_frames(live, rgb):
    image = images(rgb, "episode_0000")[0]
    stream = Stream(live, cameras=2)
    with pytest.raises(InputError, match="expected a frame of each of 2 cameras, found 1"):
        stream([image])
    stream([image, image])
    with pytest.raises(InputError, match=r"camera 1: expected 112 x 16 pixels as before, found 64 x 16; reset\(\)"):
        stream([image, image[:, :64]])


def test_what_a_stream_refuses_it_has_not_seen(live, rgb):
    """A moment that is given again, after a fault, gives what it gives where nothing failed."""
    f1, f2 = images(rgb, "episode_0000")[:2]
    failing, never = Stream(live, cameras=2), Stream(live, cameras=2)
    failing([f1, f1]), never([f1, f1])
    for frames, camera in (([f2, None], None), ([f2, f2[:, :64]], None), ([f2, f2], [SOMEWHERE])):
        with pytest.raises(InputError):
            failing(frames, camera)
    for found, wanted in zip(failing([f2, f2]), never([f2, f2]), strict=True):
        assert np.array_equal(found, wanted)
    student = Student({"vggt": live.encoders["vggt"].channels, "rays": CHANNELS}, 8, width=12).eval()
    calibrated = ThroughExperts(student, {"vggt": live.encoders["vggt"], "rays": live_rays()}, {"vggt": WINDOW})
    failing, never = Stream(calibrated), Stream(calibrated)
    failing(f1, SOMEWHERE), never(f1, SOMEWHERE)
    with pytest.raises(InputError, match="expert rays: expected the camera of each of 1 frames, found none"):
        failing(f2)
    assert np.array_equal(failing(f2, SOMEWHERE).embedding, never(f2, SOMEWHERE).embedding)


def test_a_compact_student_streams_frames_of_any_size():
    network = Compact("resnet18", 32, 8, places=4, width=6).eval()
    stream, rng = Stream(ThroughPixels(network)), np.random.default_rng(0)
    for height, width in ((20, 30), (64, 48)):
        frame = rng.integers(0, 256, (height, width, 3), np.uint8)
        small = np.array(Image.fromarray(frame).resize((32, 32), Image.Resampling.BILINEAR))
        found = stream(frame)
        expected = [x.detach().numpy()[0] for x in network.look(torch.from_numpy(small)[None])]
        assert found.spatial.shape == (16, 6) and all(map(partial(np.allclose, atol=1e-6), found, expected))


def test_a_student_of_places_streams_what_it_embeds():
    """One that aligns places alone has no places in its adapters, live too."""
    student = PlaceStudent({"a": 8}, 16, head=PointHead("xyz", 3, 16), knows_place=False).eval()
    draw = torch.Generator().manual_seed(0)
    tokens, at = {"a": torch.randn(1, 9, 8, generator=draw)}, torch.rand(1, 9, 2, generator=draw)
    present = torch.ones(1, 9, 1, dtype=torch.bool)
    embedding, spatial = student.look(tokens, present, at)
    assert torch.equal(embedding, student(tokens, present, at).embedding)
    assert not torch.allclose(embedding, student.fuse(student.hidden(tokens, at), present, at).embedding)
    assert torch.equal(spatial.any(-1), student.spatial(tokens, present, at)[1]) and not spatial.any(-1).all()


@pytest.fixture(scope="module")
def two_cameras(rgb, tmp_path_factory):
    """A run of one expert at two cameras, the second of which sees the first one's frames upside down."""
    root = tmp_path_factory.mktemp("two")
    roots = {"head": rgb, "wrist": root / "rgb_wrist"}
    for (task, episode), files in list_frames(rgb).items():
        (roots["wrist"] / task / episode).mkdir(parents=True)
        for file in files:
            Image.fromarray(read_image(file)[::-1]).save(roots["wrist"] / task / episode / file.name)
    experts = {f"xfeat@{camera}": root / f"features_{camera}" for camera in roots}
    for frames, out in zip(roots.values(), experts.values(), strict=True):
        extract(load_encoder("xfeat"), frames, out, window=1, stride=1, dtype="fp32", progress=False)
    workspace = Workspace(rgb=rgb, cameras=roots, experts=experts)
    return finished(root / "run", workspace), workspace


def test_several_cameras_of_one_robot(two_cameras, rgb):
    run, workspace = two_cameras
    expected = offline(run, workspace)
    embedder = Embedder.from_run(run, device="cpu")
    stream, (_, second) = embedder.stream(), list_frames(rgb)
    for (_, episode), files in list_frames(rgb).items():
        stream.reset()
        for file, image in zip(files, images(rgb, episode), strict=True):
            moment = {"head": image, "wrist": Image.fromarray(image[::-1])}
            look = stream(moment)
            assert look.spatial.shape == (2 * 16, 24)  # those of one camera after those of the other
            agree(look, expected[episode, file.stem])
    frames = np.stack(images(rgb, second[1]))
    whole = embedder({"head": frames, "wrist": frames[:, ::-1]})
    agree([whole[-1]], [expected[second[1], files[-1].stem][0]])

    robots = embedder.stream(cameras=2)  # of which one has lost a camera
    both = robots([moment, {"head": image, "wrist": None}])
    agree([both.embedding[0], both.spatial[0]], look)
    assert np.abs(both.embedding[1] - look.embedding).max() > 1e-2
    assert both.spatial[1][:16].any() and not both.spatial[1][16:].any()
    agree([both.embedding[1]], [embedder({"head": frames[-1:]})[0]])


def test_frames_of_the_wrong_cameras_are_refused(two_cameras, rgb, compact_embedder):
    embedder, image = Embedder.from_run(two_cameras[0], device="cpu"), images(rgb, "episode_0000")[0]
    with pytest.raises(InputError, match="xfeat@head sees through a camera of its own; give frames by camera"):
        embedder(image[None])
    with pytest.raises(InputError, match="expected frames of head, wrist, found side"):
        embedder.stream()({"side": image})
    with pytest.raises(InputError, match="expected frames of head, wrist, found none"):
        embedder({})
    with pytest.raises(InputError, match=r"as many images of each camera, found \[1, 2\]"):
        embedder({"head": image[None], "wrist": np.stack([image, image])})
    for nothing, said in (
        (None, r"expected RGB images \[B, H, W, 3\] in uint8, found \[1\] in object"),
        (image[None][:0], r"expected one image or more, with pixels, found none in \[0, 16, 112, 3\]"),
    ):
        with pytest.raises(InputError, match=said):
            compact_embedder(nothing)
    with pytest.raises(InputError, match="a compact student sees through one camera"):
        compact_embedder({"head": image[None]})
    with pytest.raises(InputError, match="a compact student sees through one camera"):
        compact_embedder.stream()({"head": image})


@pytest.fixture
def compact_embedder():
    network = Compact("resnet18", 32, 8, seed=0).eval()
    return Embedder("small", partial(_through_pixels, network), live=ThroughPixels(network))
