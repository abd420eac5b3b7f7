"""Weights: found, or said where to find; downloaded only when that is allowed; read without running code; fitting."""

import sys
import types

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from rgb2pc_lib.encoders.weights import (
    Source,
    fill,
    find_weights,
    fingerprint,
    read_shapes,
    read_state,
    read_torch,
    weight_file,
)
from rgb2pc_lib.errors import InputError

SOURCE = Source(
    "the file a.pt (1 GB)", ["a.safetensors", "a.pt"], "https://there", "free", "owner/model", "b.pt is fine"
)


class Code:
    def __reduce__(self):
        return print, ("run",)


def test_a_path_is_taken_as_it_is_and_a_missing_one_is_named(tmp_path):
    assert find_weights("x", SOURCE, tmp_path) == tmp_path
    with pytest.raises(
        InputError, match="nowhere: no such file or folder. expert 'x' needs its weights: the file a.pt"
    ):
        find_weights("x", SOURCE, tmp_path / "nowhere")
    with pytest.raises(
        InputError, match="from https://there; licence: free. b.pt is fine. Download it and pass --weights"
    ):
        find_weights("x", SOURCE, None)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub that holds one repository; what is asked of it is noted."""
    asked = []
    NoNetwork = type("NoNetwork", (Exception,), {})  # of the HTTP library, whichever that is

    def list_repo_files(repository):
        asked.append(repository)
        if repository == "owner/gated":
            raise OSError("401 Client Error\nmore")
        if repository == "owner/away":
            raise NoNetwork("no network")
        return {"owner/model": ["README.md", "a.pt", "config.json"], "owner/other": ["README.md"]}[repository]

    def snapshot_download(repository, allow_patterns):
        asked.append(allow_patterns)
        return str(tmp_path)

    for name in ("huggingface_hub", "huggingface_hub.errors"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["huggingface_hub"].list_repo_files = list_repo_files
    sys.modules["huggingface_hub"].snapshot_download = snapshot_download
    sys.modules["huggingface_hub.errors"].HfHubHTTPError = type("HfHubHTTPError", (NoNetwork, OSError), {})
    return asked


def test_the_hub_is_asked_only_when_that_is_allowed(hub, tmp_path):
    with pytest.raises(InputError):
        find_weights("x", SOURCE, None)
    with pytest.raises(InputError, match="owner/model: no such file or folder"):
        find_weights("x", SOURCE, "owner/model")
    assert hub == []
    assert find_weights("x", SOURCE, None, allow_download=True) == tmp_path
    assert hub == ["owner/model", ["config.json", "a.pt"]]  # not all that is there
    assert find_weights("x", SOURCE, "owner/model", allow_download=True) == tmp_path


def test_what_the_hub_does_not_give(hub):
    with pytest.raises(InputError, match=r"owner/gated: the hub did not give it \(401 Client Error\); .*hf auth login"):
        find_weights("x", SOURCE, "owner/gated", allow_download=True)
    with pytest.raises(InputError, match=r"owner/away: the hub did not give it \(no network\)"):
        find_weights("x", SOURCE, "owner/away", allow_download=True)
    with pytest.raises(InputError, match="owner/other: .*it holds none of a.safetensors, a.pt"):
        find_weights("x", SOURCE, "owner/other", allow_download=True)
    with pytest.raises(InputError, match="no such file"):
        find_weights("x", SOURCE, "../owner/model/x", allow_download=True)


def test_a_plain_download_is_kept(monkeypatch, tmp_path):
    source, loaded = Source("w", ["w.pth"], "https://there/w.pth", "free"), []
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def download(url, path):
        loaded.append(url)
        torch.save({}, path)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    paths = {find_weights("x", source, None, allow_download=True) for _ in range(2)}
    assert paths == {tmp_path / "checkpoints" / "w.pth"} and loaded == ["https://there/w.pth"]
    (tmp_path / "checkpoints" / "w.pth").unlink()

    def offline(url, path):
        raise OSError("Name or service not known")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(InputError, match=r"w.pth: not downloaded \(Name or service not known\)"):
        find_weights("x", source, None, allow_download=True)


def test_the_first_known_file_of_a_folder(tmp_path):
    with pytest.raises(InputError, match="expected a.safetensors or a.pt in this folder, found nothing"):
        weight_file(tmp_path, SOURCE)
    (tmp_path / "a.pt").touch()
    assert weight_file(tmp_path, SOURCE) == weight_file(tmp_path / "a.pt", SOURCE) == tmp_path / "a.pt"
    (tmp_path / "a.safetensors").touch()
    assert weight_file(tmp_path, SOURCE).name == "a.safetensors"


@pytest.mark.parametrize("kind", ["a.safetensors", "a.pt", "old.pt"])
def test_states_are_read_by_prefix(tmp_path, kind):
    state = {"net.w": torch.arange(6.0).view(2, 3), "net.b": torch.ones(2), "head.w": torch.zeros(1)}
    if kind == "a.safetensors":
        save_file(state, tmp_path / kind)
    else:
        torch.save(state, tmp_path / kind, _use_new_zipfile_serialization=kind == "a.pt")
    found = read_state(tmp_path / kind, "net.")
    assert found.keys() == {"w", "b"} and torch.equal(found["w"], state["net.w"])
    assert read_shapes(tmp_path / kind) == {"net.w": (2, 3), "net.b": (2,), "head.w": (1,)}
    with pytest.raises(InputError, match=f"{kind}: expected weights named tail.\\*, found none"):
        read_state(tmp_path / kind, "tail.")


def test_code_and_damage_are_refused(tmp_path, capsys):
    torch.save({"w": Code()}, tmp_path / "code.pt")
    with pytest.raises(InputError, match="code.pt: reading it would run code"):
        read_torch(tmp_path / "code.pt")
    assert "run" not in capsys.readouterr().out
    for name in ("bad.safetensors", "bad.pt"):
        (tmp_path / name).write_bytes(b"no weights at all")
        with pytest.raises(InputError, match=f"{name}: "):
            read_state(tmp_path / name)
    torch.save([1], tmp_path / "list.pt")
    with pytest.raises(InputError, match="list.pt: expected named weights, found a list"):
        read_state(tmp_path / "list.pt")


def test_a_network_is_filled_completely_and_in_float32(tmp_path):
    with torch.device("meta"):
        network = nn.Linear(3, 2)
    state = {"weight": torch.arange(6.0).view(2, 3).half(), "bias": torch.tensor([1.0, -1.0], dtype=torch.bfloat16)}
    filled = fill(network, state, tmp_path / "a.pt")
    assert filled(torch.tensor([1.0, 0, 0])).tolist() == [1, 2] and not filled.training
    assert {p.dtype for p in filled.parameters()} == {torch.float32} and not any(
        p.requires_grad for p in filled.parameters()
    )
    first = fingerprint(tmp_path / "a.pt", filled)
    filled.bias.data[1] += 0.5
    assert first.startswith("a.pt ") and first != fingerprint(tmp_path / "a.pt", filled)
    for wrong, said in [
        ({"weight": state["weight"]}, r"'bias' is missing instead of \(2,\)"),
        (state | {"more": torch.ones(1)}, r"'more' is \(1,\) instead of absent"),
        (state | {"bias": torch.ones(3)}, r"'bias' is \(3,\) instead of \(2,\)"),
    ]:
        with pytest.raises(InputError, match=f"a.pt: expected the weights of Linear, but {said}"):
            fill(network, wrong, tmp_path / "a.pt")
