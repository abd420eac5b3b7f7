import os
import sys

import numpy as np
import pytest
from PIL import Image

from rgb2pc_lib.deploy import frames
from rgb2pc_lib.deploy.frames import frame_cache, in_batches, read_frames, resized
from rgb2pc_lib.errors import InputError


def picture(path, value, size=(8, 6)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 0, 0)).save(path)
    return path


def test_a_folder_is_read_in_the_order_of_its_numbers(tmp_path):
    for i in (2, 10, 1):
        picture(tmp_path / "a" / f"step_{i}.png", i)
    found = [(name, int(image[0, 0, 0])) for _, name, image in read_frames([tmp_path])]
    assert found == [("a/step_1.png", 1), ("a/step_2.png", 2), ("a/step_10.png", 10)]
    assert next(read_frames([tmp_path / "a" / "step_2.png"]))[1] == "step_2.png"


def test_batches_hold_one_sequence_and_one_size(tmp_path):
    for i in range(3):
        picture(tmp_path / "a" / f"{i}.png", i)
    picture(tmp_path / "a" / "3.png", 3, size=(4, 4))
    picture(tmp_path / "b" / "4.png", 4)
    assert [names for names, _ in in_batches(read_frames([tmp_path]), 2)] == [
        ["a/0.png", "a/1.png"], ["a/2.png"], ["a/3.png"], ["b/4.png"],
    ]  # fmt: skip
    assert [len(images) for _, images in in_batches(read_frames([tmp_path]), 0)] == [3, 1, 1]


def test_what_cannot_be_read_is_named(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="nowhere: no such"):
        list(read_frames([tmp_path / "nowhere"]))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty.*found none"):
        list(read_frames([tmp_path / "empty"]))
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputError, match="notes.txt: expected an image"):
        list(read_frames([tmp_path / "notes.txt"]))
    (tmp_path / "clip.mp4").write_bytes(b"no video")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputError, match=r"clip.mp4: .*pip install 'rgb2pc\[import\]'"):
        list(read_frames([tmp_path / "clip.mp4"]))


def test_a_video_gives_its_frames_by_number(tmp_path):
    av = pytest.importorskip("av", reason="PyAV reads videos: pip install 'rgb2pc[import]'")
    values = [20, 60, 100, 140, 180, 220]
    with av.open(str(tmp_path / "clip.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 64
        for value in values:
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), value, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    found = {name: float(image.mean()) for _, name, image in read_frames([tmp_path / "clip.mp4"], every=2)}
    assert list(found) == ["clip.mp4#000000", "clip.mp4#000002", "clip.mp4#000004"]
    np.testing.assert_allclose(list(found.values()), values[::2], atol=6)  # a lossy codec
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(InputError, match="broken.mp4: expected a readable video"):
        list(read_frames([tmp_path / "broken.mp4"]))


def test_the_cache_decodes_once_and_again_when_a_file_changes(tmp_path, monkeypatch):
    files = [picture(tmp_path / f"{i}.png", 50 * i, size=(20, 10)) for i in range(3)]
    table = frame_cache(files, 8, tmp_path / "cache", progress=False)
    assert isinstance(table, np.memmap) and table.shape == (3, 8, 8, 3) and table[:, 0, 0, 0].tolist() == [0, 50, 100]
    read = frames.read_image
    monkeypatch.setattr(frames, "read_image", lambda path: pytest.fail(f"decoded {path} again"))
    assert np.array_equal(frame_cache(files, 8, tmp_path / "cache", progress=False), table)
    monkeypatch.setattr(frames, "read_image", read)
    picture(files[1], 200, size=(20, 10))
    os.utime(files[1], ns=(1, 1))
    assert frame_cache(files, 8, tmp_path / "cache", progress=False)[1, 0, 0, 0] == 200


def test_resizing_takes_the_whole_image():
    image = np.zeros((10, 40, 3), np.uint8)
    image[:, 20:] = 200
    small = resized(image, 8)
    assert small.shape == (8, 8, 3) and small[:, 0].max() == 0 and small[:, -1].min() == 200
    with pytest.raises(InputError, match="float32"):
        resized(image.astype(np.float32), 8)
