"""ULIP made small, and checkpoints of it with random weights in the official layout."""

import argparse

import torch

from rgb2pc_lib.encoders.clouds.ulip import Ulip, UlipConfig

SMALL = {
    "ulip": UlipConfig(depth=2, groups=16, neighbours=8, points=64),
    "ulip2": UlipConfig(depth=3, channels=6, embed_dim=1280, groups=16, neighbours=8, points=80),
}


def random_state(config, seed=0):
    """Random weights under the official names, with norms that do something."""
    draw, state = torch.Generator().manual_seed(seed), Ulip(config).state_dict()
    for name, value in state.items():
        if value.is_floating_point():
            scale = 0.5 / value[0].numel() ** 0.5 if value.ndim > 1 else 0.2
            value.normal_(0, scale, generator=draw)
            if name.endswith("running_var") or (value.ndim == 1 and name.endswith("weight")):  # of norms: around 1
                value.add_(1).abs_()
        else:
            value.fill_(3)
    return state


def official(path, state, **more):
    """A checkpoint as ULIP's training saves it."""
    towers = {"module.logit_scale": torch.ones(()), "module.visual.cls_token": torch.zeros(1, 1, 768)}
    wrapped = {f"module.{name}": value for name, value in state.items()} | towers
    torch.save({"epoch": 9, "state_dict": wrapped, "args": argparse.Namespace(lr=1e-3), **more}, path)
    return path
