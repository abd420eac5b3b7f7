"""Official weights: a file or folder of the user's, or the hub's where the user allows it. Reading runs no code."""

from __future__ import annotations

import hashlib
import importlib
import json
import pickle
import re
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from rgb2pc_lib.data.files.guarded import DAMAGE
from rgb2pc_lib.errors import InputError

HUB = 'pip install "transformers>=5.0"'  # brings huggingface_hub


@dataclass(frozen=True)
class Source:
    """Where an expert's official weights are, and under which terms."""

    what: str  # to download, in words
    files: Sequence[str]  # names of the weight file; in a folder, the first one that is there is read
    url: str
    licence: str
    repository: str = ""  # on the hub; else the url is the file itself
    others: str = ""  # sizes that are read as well

    def says(self, expert: str) -> str:
        """Which file an expert needs, from where, under which licence, and how to pass it."""
        return (
            f"expert '{expert}' needs its weights: {self.what} from {self.url}; licence: {self.licence}. "
            + (f"{self.others}. " if self.others else "")
            + f"Download it and pass --weights {expert}=PATH, or pass --allow_download to fetch it now"
        )


def find_weights(expert: str, source: Source, weights: str | Path | None, allow_download: bool = False) -> Path:
    """The file or folder with an expert's weights, which is downloaded only if that is allowed.

    `weights` is a path, or with `allow_download` a hub repository `owner/name`; without, the official one is taken.
    Raises InputError saying which file is needed, from where, under which licence, and how to pass it.
    """
    if weights is not None and Path(weights).expanduser().exists():
        return Path(weights).expanduser()
    if weights is None:
        if not allow_download:
            raise InputError(source.says(expert))
        return _from_hub(expert, source, source.repository) if source.repository else _from_url(expert, source)
    if allow_download and re.fullmatch(r"[\w-]+/[\w.-]+", str(weights)):
        return _from_hub(expert, source, str(weights))
    raise InputError(f"{weights}: no such file or folder. {source.says(expert)}")


def network_fingerprint(network: nn.Module, *facts: str) -> str:
    """Sixteen hexadecimal digits that follow from the config, every weight, and what else decides the features."""
    config: Any = network.config
    digest = hashlib.sha256(json.dumps(asdict(config)).encode())
    for name, value in network.state_dict().items():
        digest.update(name.encode() + value.numpy().tobytes())
    for fact in facts:
        digest.update(fact.encode())
    return digest.hexdigest()[:16]


def huggingface(install: str) -> tuple[Any, tuple[type[BaseException], ...]]:
    """huggingface_hub, and what it raises: its own errors, and those of the HTTP library that it is built on.

    Raises InputError with the command to `install` it where it is not there.
    """
    try:
        errors = importlib.import_module("huggingface_hub.errors")
        hub = importlib.import_module("huggingface_hub")
    except ImportError:
        raise InputError(f"to ask a hub, huggingface_hub is needed; run: {install}") from None
    return hub, (OSError, ValueError, RuntimeError, *errors.HfHubHTTPError.__bases__)


def _from_hub(expert, source, repository):
    hub, refusals = huggingface(HUB)
    try:
        there = hub.list_repo_files(repository)
        file = next((name for name in source.files if name in there), None)
        if file is None:
            raise ValueError(f"it holds none of {', '.join(source.files)}")
        return Path(hub.snapshot_download(repository, allow_patterns=["config.json", file]))
    except refusals as e:  # offline, gated, misspelt
        raise InputError(
            f"{repository}: the hub did not give it ({_first_line(e)}); for a gated model accept its licence at "
            f"{source.url} and run `hf auth login`, or download it elsewhere and pass --weights {expert}=PATH"
        ) from None


def _from_url(expert, source):
    path = Path(torch.hub.get_dir()) / "checkpoints" / source.files[0]
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(source.url, str(path))
        except (OSError, RuntimeError) as e:
            raise InputError(
                f"{source.url}: not downloaded ({_first_line(e)}); download it elsewhere and pass "
                f"--weights {expert}=PATH"
            ) from None
    return path


def weight_file(path: Path, source: Source) -> Path:
    """The file itself, or the one inside a folder. Raises InputError listing what was expected in it."""
    if path.is_file():
        return path
    for name in source.files:
        if (path / name).is_file():
            return path / name
    found = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
    raise InputError(f"{path}: expected {' or '.join(source.files)} in this folder, found {found}")


def read_state(path: Path, prefix: str = "", key: str | None = None) -> dict[str, torch.Tensor]:
    """Tensors of a safetensors or torch file (or of its entry `key`) whose names begin with `prefix`, without it.

    Raises InputError naming the file when it is unreadable, needs code to be read, or has no such tensor.
    """
    if path.suffix == ".safetensors":
        with _naming(path), safe_open(path, framework="pt") as f:
            state = {name: f.get_tensor(name) for name in f.keys() if name.startswith(prefix)}  # noqa: SIM118
    else:
        state = read_torch(path)
        state = state[key] if key and isinstance(state, dict) and key in state else state
        if not isinstance(state, dict):
            raise InputError(f"{path}: expected named weights, found a {type(state).__name__}")
    state = {
        name.removeprefix(prefix): value
        for name, value in state.items()
        if isinstance(name, str) and name.startswith(prefix) and isinstance(value, torch.Tensor)
    }
    if not state:
        raise InputError(f"{path}: expected weights named {prefix}*, found none; is this the right file?")
    return state


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes by name, without reading the weights. Raises InputError as `read_state` does."""
    if path.suffix != ".safetensors":
        return {name: tuple(value.shape) for name, value in read_state(path).items()}
    with _naming(path), safe_open(path, framework="pt") as f:
        return {name: tuple(f.get_slice(name).get_shape()) for name in f.keys()}  # noqa: SIM118


def read_torch(path: Path):
    """What a torch file holds, mapped rather than read. Raises InputError where that would run code."""
    with _naming(path):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def fill(network: nn.Module, state: dict[str, torch.Tensor], path: Path) -> nn.Module:
    """A network built on the "meta" device, with these weights in float32: every parameter, no more and no fewer.

    Raises InputError naming the file and the first parameter that is missing, left over, or of another shape.
    """
    want, have = ({name: tuple(v.shape) for name, v in s.items()} for s in (network.state_dict(), state))
    for name in [*want, *have]:
        if want.get(name) != have.get(name):
            raise InputError(
                f"{path}: expected the weights of {type(network).__name__}, but '{name}' is "
                f"{have.get(name, 'missing')} instead of {want.get(name, 'absent')}; is this the official file?"
            )
    network.load_state_dict({name: value.float() for name, value in state.items()}, assign=True)
    return network.eval().requires_grad_(False)


def fingerprint(path: Path, network: nn.Module) -> str:
    """Name of a weight file and a digest of a few values of every parameter, to tell one set of weights from another.

    >>> fingerprint(Path("model.pt"), nn.Identity())
    'model.pt e3b0c44298fc'
    """
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode() + value.flatten()[:16].float().cpu().numpy().tobytes())
    return f"{path.name} {digest.hexdigest()[:12]}"


class _naming:
    """Errors of reading a file, as InputError with its name."""

    def __init__(self, path):
        self.path = path

    def __enter__(self):
        return self

    def __exit__(self, kind, e, trace):
        if isinstance(e, pickle.UnpicklingError):
            raise InputError(f"{self.path}: reading it would run code that it asks for, so it is refused") from None
        if isinstance(e, (*DAMAGE, SafetensorError)) and not isinstance(e, InputError):
            raise InputError(
                f"{self.path}: expected readable weights, found: {_first_line(e)}; download it again"
            ) from None


def _first_line(e) -> str:
    return (str(e).strip().splitlines() or [type(e).__name__])[0][:160]
