"""What the four real experts cost a frame of a camera: networks of the official sizes with random weights.

    python benchmarks/bench_experts.py                      # 240 x 320; VGGT and DA3 on windows of 8 and of 1 frames
    python benchmarks/bench_experts.py --only croco dinov3

On the processor it is one thread's own time, which other programs disturb
little; on a GPU, where there is one, the clock's, in the precision that the experts run in there. With a window of 8
every new frame is seen together with the 7 before it (docs/how/live.md).
"""

from __future__ import annotations

import argparse
import time

from common import load  # isort: skip (sets the number of threads before torch)

import torch

from rgb2pc_lib.encoders import croco, da3, vggt
from rgb2pc_lib.encoders.images import describe
from rgb2pc_lib.encoders.vit import normalise
from rgb2pc_lib.learning.models import initialise

WINDOWS = {"croco": (1,), "dinov3": (1,), "vggt": (8, 1), "da3": (8, 1)}
FRAME = 240, 320
REPEATS = 3  # of single frames; a window of several takes a minute or more and is seen once


def network(name: str) -> torch.nn.Module:
    """As the official file of the usual size makes it: CroCo v2 ViT-L, DINOv3 ViT-B/16, VGGT-1B, DA3-Large."""
    if name == "croco":
        found: torch.nn.Module = croco.Encoder(1024, 24, 16)
    elif name == "vggt":
        found = vggt.Aggregator(1024, 24, 16, 4096, 24, 4096)
    elif name == "da3":
        found = da3.backbone("large")
    else:
        from transformers import DINOv3ViTConfig, DINOv3ViTModel

        found = DINOv3ViTModel(DINOv3ViTConfig(
            hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, patch_size=16,
            num_register_tokens=4, image_size=224,
        ))  # fmt: skip
    initialise(found, torch.Generator().manual_seed(0))
    return found.eval().requires_grad_(False)


def see(name: str, net: torch.nn.Module, x: torch.Tensor) -> None:
    """A window `[T, 3, h, w]`, as the expert's own loader gives it to the network."""
    with torch.autocast("cuda", torch.bfloat16, enabled=x.is_cuda and name in ("vggt", "da3")):
        if name == "vggt":
            net(x)
        elif name == "da3":
            net(normalise(x)[None])
        else:
            net(normalise(x))


@torch.no_grad()
def milliseconds(name: str, net: torch.nn.Module, frames: int, device: str) -> float:
    """The least time of one window."""
    x = torch.rand(frames, 3, *[n * describe(name).patch_size for n in describe(name).view(*FRAME).grid], device=device)
    clock = time.perf_counter if device == "cuda" else time.process_time
    times = []
    for _ in range(REPEATS if frames == 1 or device == "cuda" else 1):
        start = clock()
        see(name, net, x)
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(1e3 * (clock() - start))
    return min(times)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--only", nargs="+", choices=WINDOWS, default=list(WINDOWS), metavar="EXPERT")
    args = p.parse_args()
    print(f"frames of {FRAME[0]} x {FRAME[1]}; load {load()}", flush=True)
    for name in args.only:
        net = network(name)
        size = sum(w.numel() for w in net.parameters()) / 1e6
        for device in ["cpu"] + ["cuda"] * torch.cuda.is_available():
            net.to(device)
            for frames in WINDOWS[name]:
                found = milliseconds(name, net, frames, device)
                print(f"{name:8} {size:6.0f} M weights  {device}  window {frames}  {found:9.0f} ms a frame", flush=True)


if __name__ == "__main__":
    main()
