"""A compact student inside a policy: a module that is frozen or tuned, and its ResNet under torchvision's names."""

from __future__ import annotations

import re
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rgb2pc_lib.data.files.writing import write_atomic
from rgb2pc_lib.deploy.backbones import Compact
from rgb2pc_lib.deploy.compact import CompactRun, open_run
from rgb2pc_lib.errors import InputError

_NAMES = (  # of transformers' ResNet -> of torchvision's
    (r"embedder\.embedder\.convolution", "conv1"),
    (r"embedder\.embedder\.normalization", "bn1"),
    (r"encoder\.stages\.(\d)\.layers\.(\d)\.layer\.(\d)\.convolution", "layer{}.{}.conv{}"),
    (r"encoder\.stages\.(\d)\.layers\.(\d)\.layer\.(\d)\.normalization", "layer{}.{}.bn{}"),
    (r"encoder\.stages\.(\d)\.layers\.(\d)\.shortcut\.convolution", "layer{}.{}.downsample.0"),
    (r"encoder\.stages\.(\d)\.layers\.(\d)\.shortcut\.normalization", "layer{}.{}.downsample.1"),
)


class PolicyBackbone(nn.Module):
    """The images of a policy in, one embedding each out, and spatial tokens for policies that attend to places.

    Input: `[..., 3, H, W]`, fractions from 0 to 1 or uint8, RGB, of any size: each is resized as a whole to what the
    network sees, antialiased, and normalised inside. Output: `[..., E]` float32, `embed_dim` E; of `look` also
    `[..., P, D]`, P blocks of the image row by row, `spatial_dim` D (0 where the network gives none).

    Raises InputError for floats that are no fractions, such as those of images that are normalised already. A compiled
    or exported module cannot look at values, and does not.

    Batch norms keep the statistics of their training either way: a policy's batches are small and of few scenes.

    Args:
        network: of a compact student.
        freeze: whether its weights stay as they are; else they are parameters like the policy's own.

    >>> eyes = PolicyBackbone.from_run(compact.folder)
    >>> eyes(torch.rand(2, 3, 3, 48, 64)).shape  # two moments of three cameras
    torch.Size([2, 3, 16])
    >>> sum(p.requires_grad for p in eyes.parameters()), eyes.embed_dim
    (0, 16)
    >>> embedding, spatial = eyes.look(torch.rand(2, 3, 3, 48, 64))
    >>> spatial.shape, eyes.spatial_dim  # 4 x 4 places of each image
    (torch.Size([2, 3, 16, 16]), 16)
    """

    def __init__(self, network: Compact, freeze: bool = True):
        super().__init__()
        self.network = network.eval().requires_grad_(not freeze)
        self.embed_dim: int = network.head.out_features
        self.spatial_dim: int = 0 if network.spatial is None else network.spatial.usual.shape[1]

    @classmethod
    def from_run(
        cls, run: CompactRun | str | Path, freeze: bool = True, revision: str | None = None,
        cache: str | Path | None = None, offline: bool = False,
    ) -> PolicyBackbone:  # fmt: skip
        """That of a finished compact student: of its folder, or of a model hub (the last three: `Embedder.from_run`).

        Raises InputError where it is another kind of run.
        """
        found = open_run(run, revision, cache, offline)
        if not isinstance(found, CompactRun):
            raise InputError(
                f"{found.folder}: expected a compact student, found one that needs its experts; distil it into one "
                f"with tools/train_compact.py --run {found.folder}"
            )
        return cls(found.compact(), freeze)

    def forward(self, images: Tensor) -> Tensor:
        """`[..., 3, H, W]` -> `[..., E]`."""
        return self.network(self._seen(images)).unflatten(0, images.shape[:-3])

    def look(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """`[..., 3, H, W]` -> `[..., E]` and the spatial tokens `[..., P, D]`, or None where it gives none."""
        embedding, spatial = self.network.look(self._seen(images))
        before = images.shape[:-3]
        return embedding.unflatten(0, before), None if spatial is None else spatial.unflatten(0, before)

    def grid(self, images: Tensor) -> Tensor:
        """The network's last map, `[..., 3, H, W]` -> `[..., C, s, s]`, which was not distilled itself."""
        return self.network.grid(self._seen(images)).unflatten(0, images.shape[:-3])

    def train(self, mode: bool = True) -> PolicyBackbone:
        """Stays in evaluation mode, whatever the policy does: its batch norms keep their statistics."""
        super().train(False)
        self.training = mode
        return self

    def _seen(self, images: Tensor) -> Tensor:
        """`[B, S, S, 3]` from 0 to 255."""
        whole = images.dtype == torch.uint8
        if images.ndim < 4 or images.shape[-3] != 3 or not (whole or images.is_floating_point()):
            kind = str(images.dtype).removeprefix("torch.")
            raise InputError(
                f"expected images [..., 3, H, W] as uint8 or fractions from 0 to 1, found {list(images.shape)} in "
                f"{kind}; convert them"
            )
        if not whole and images.numel() and not _recording(images):
            low, high = torch.stack(images.detach().aminmax()).tolist()  # one wait for a GPU
            if not (low >= -1e-3 and high <= 1.001):  # nan too
                raise InputError(
                    f"expected images as uint8 or fractions from 0 to 1, found {images.dtype} from {low:.3g} to "
                    f"{high:.3g}; divide what is from 0 to 255 by 255, leave normalising out, as it is done inside, "
                    "and clamp what resizing or noise left beyond"
                )
        x = images.flatten(0, -4).float() * (1 if whole else 255)
        size = (self.network.size, self.network.size)
        if x.shape[2:] != size:
            x = F.interpolate(x, size, mode="bilinear", antialias=True)
        return x.permute(0, 2, 3, 1)


def _recording(images: Tensor) -> bool:
    """Whether what is done now is only written down, to be done later: then tensors have no values to look at."""
    captured = images.is_cuda and torch.cuda.is_current_stream_capturing()
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or captured


def torchvision_state(network: Compact) -> dict[str, Tensor]:
    """The weights of a ResNet under the names that torchvision's has, without its classifier `fc`.

    Load them by `load_state_dict(state, strict=False)`, of which only `fc.weight` and `fc.bias` are missing. Its input
    is normalised with ImageNet's mean and deviation, as usual. Raises InputError for another network.

    >>> sorted(torchvision_state(Compact("resnet18", 32, 8)))[:2]
    ['bn1.bias', 'bn1.num_batches_tracked']
    """
    return {_torchvision(name): tensor.contiguous().cpu() for name, tensor in network.backbone.state_dict().items()}


def _torchvision(name: str) -> str:
    for ours, theirs in _NAMES:
        if found := re.match(ours, name):
            stage, layer, *convolution = (int(number) for number in found.groups()) if found.groups() else (0, 0)
            numbers = [stage + 1, layer, *(number + 1 for number in convolution)]
            return theirs.format(*numbers) + name[found.end() :]
    raise InputError(f"expected a ResNet, found a network with '{name}'; torchvision's layout is that of a ResNet")


def save_torchvision(network: Compact, path: Path) -> Path:
    """Write `torchvision_state` with torch.save: tensors alone, which `torch.load(path, weights_only=True)` reads."""
    state = torchvision_state(network)
    write_atomic(path, lambda p: torch.save(state, p))
    return path
