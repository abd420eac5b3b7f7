"""Vision transformers against torch's own layers, transformers' DINOv2, and the authors' code where it can be had."""

import functools
import re

import pytest
import tiny_weights
import torch
from torch import nn

from rgb2pc_lib.encoders import croco, vggt
from rgb2pc_lib.encoders.vit import Block, normalise, places, rotations, turn

CHECKOUT = "the reference is not installable: put a checkout of {} on PYTHONPATH"


@pytest.fixture(autouse=True)
def seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def renamed(key, names):
    return functools.reduce(lambda k, pair: k.replace(*pair), names.items(), key)


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


@torch.no_grad()
def test_a_block_is_torchs_own_encoder_layer():
    block = tiny_weights.randomise(Block(32, 4, 48))
    layer = nn.TransformerEncoderLayer(32, 4, 48, activation="gelu", batch_first=True, norm_first=True)
    layer.norm1.eps = layer.norm2.eps = 1e-6
    names = {"self_attn.in_proj_": "attn.qkv.", "self_attn.out_proj": "attn.proj", "linear": "mlp.fc"}
    layer.load_state_dict({key: block.state_dict()[renamed(key, names)] for key in layer.state_dict()})
    x = torch.randn(2, 11, 32)
    assert relative(block(x), layer.eval()(x)) < 1e-6


def test_rotary_positions_turn_pairs_by_known_angles():
    table = rotations(torch.tensor([[3, 0], [0, 5]]), width=8)  # speeds 1 and 100 ** -0.5 = 0.1
    x = torch.zeros(2, 8)
    x[0, 0], x[0, 1], x[1, 4] = 1, 1, 1  # the first token: both pairs of y; the second: the first pair of x
    y = turn(x, table)
    angle = torch.tensor([3, 0.3, 5])
    torch.testing.assert_close(y[0, [0, 1]], angle[:2].cos())
    torch.testing.assert_close(y[0, [2, 3]], angle[:2].sin())
    torch.testing.assert_close(y[1, [4, 6]], torch.stack([angle[2].cos(), angle[2].sin()]))
    assert y[0, 4:].abs().max() == 0 and y[1, :4].abs().max() == 0


def test_rotary_products_depend_on_the_distance_alone():
    q, k = torch.randn(2, 16)
    at = places((4, 6))
    product = turn(q.expand(24, 16), rotations(at, 16)) @ turn(k.expand(24, 16), rotations(at, 16)).T  # [24, 24]
    shifted = turn(q.expand(24, 16), rotations(at + 7, 16)) @ turn(k.expand(24, 16), rotations(at + 7, 16)).T
    torch.testing.assert_close(product, shifted, rtol=1e-4, atol=1e-5)
    assert product.std() > 0.1 and abs(product[0, 1] - product[1, 0]) > 1e-3  # left and right are told apart


@torch.no_grad()
@pytest.mark.parametrize("size", [(70, 70), (84, 126)])
def test_the_patches_of_vggt_are_dinov2_of_transformers(size):
    transformers = pytest.importorskip("transformers", reason="the extra backbones is not installed")
    ours = tiny_weights.randomise(vggt.Dino(32, 3, 4, 128, side=5, registers=4))
    config = transformers.Dinov2WithRegistersConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=4, image_size=70, patch_size=14, num_register_tokens=4
    )
    theirs = transformers.Dinov2WithRegistersModel(config).eval()
    names = {
        "embeddings.patch_embeddings.projection": "patch_embed.proj", "embeddings.position_embeddings": "pos_embed",
        "embeddings.": "", "encoder.layer.": "blocks.", "attention.o_proj": "attn.proj", "layernorm.": "norm.",
        "layer_scale1.lambda1": "ls1.gamma", "layer_scale2.lambda1": "ls2.gamma",
    }  # fmt: skip
    state, mine = {"embeddings.mask_token": torch.zeros(1, 32)}, ours.state_dict()
    for key in theirs.state_dict().keys() - state.keys():
        name = renamed(key, names)
        part = "qkv".find(name.split("_proj")[0][-1]) if "_proj" in name else -1
        if part >= 0:
            name = re.sub("attention.._proj", "attn.qkv", name)
        state[key] = mine[name].chunk(3)[part] if part >= 0 else mine[name]
    theirs.load_state_dict(state)
    x = torch.randn(2, 3, *size)
    assert relative(ours(x), theirs(x).last_hidden_state[:, 5:]) < 1e-6


@torch.no_grad()
def test_croco_is_the_authors_encoder(tmp_path):
    """github.com/naver/croco, CC BY-NC-SA 4.0: `PYTHONPATH=<checkout> pytest tests/encoders/test_vit.py`."""
    models = pytest.importorskip("models.croco", reason=CHECKOUT.format("github.com/naver/croco"))
    sizes = {"enc_embed_dim": 64, "enc_depth": 3, "enc_num_heads": 4, "dec_embed_dim": 32, "dec_depth": 1}
    theirs = tiny_weights.randomise(models.CroCoNet(**sizes, dec_num_heads=2, pos_embed="RoPE100"))
    path = tmp_path / "CroCo_V2_ViTBase_SmallDecoder.pth"
    torch.save({"croco_kwargs": sizes | {"pos_embed": "RoPE100"}, "model": theirs.state_dict()}, path)
    images = torch.randint(0, 256, (2, 224, 224, 3), dtype=torch.uint8)
    expected = theirs._encode_image(normalise(images.permute(0, 3, 1, 2) / 255))[0]
    assert relative(croco.load_croco("cpu", path)(images).flatten(1, 2), expected) < 1e-6


@torch.no_grad()
@pytest.mark.parametrize("frames, size", [(3, (60, 320)), (1, (60, 320)), (2, (480, 320))])
def test_vggt_is_the_authors_aggregator(tmp_path, frames, size):
    """github.com/facebookresearch/vggt: `PYTHONPATH=<checkout> pytest tests/encoders/test_vit.py`."""
    reference = pytest.importorskip(
        "vggt.models.aggregator", reason=CHECKOUT.format("github.com/facebookresearch/vggt")
    )
    from vggt.layers.vision_transformer import DinoVisionTransformer

    theirs = reference.Aggregator(embed_dim=64, depth=3, num_heads=4, patch_embed="conv")
    theirs.patch_embed = DinoVisionTransformer(
        img_size=518, patch_size=14, embed_dim=64, depth=2, num_heads=4, num_register_tokens=4, block_chunks=0,
        interpolate_antialias=True, interpolate_offset=0.0, init_values=1.0,
    )  # fmt: skip
    tiny_weights.randomise(theirs)
    torch.save({f"aggregator.{k}": v for k, v in theirs.state_dict().items()}, tmp_path / "model.pt")
    encoder = vggt.load_vggt("cpu", tmp_path)
    images = torch.randint(0, 256, (frames, *size, 3), dtype=torch.uint8)
    tokens = encoder(images)
    layers, first = theirs(vggt.prepare(images, encoder.view(*size))[None])[:2]
    assert relative(tokens.flatten(1, 2), layers[-1][0][:, first:]) < 1e-6
