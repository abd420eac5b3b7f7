import pytest
import torch

from rgb2pc_lib.deploy.backbones import BACKBONES, Compact
from rgb2pc_lib.errors import InputError


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_embeds_and_is_its_seeds_alone(name):
    torch.manual_seed(1)
    one = Compact(name, 64, 16, seed=3, places=4, width=6)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    two = Compact(name, 64, 16, seed=3, places=4, width=6)
    assert torch.equal(torch.get_rng_state(), state)  # nothing is taken from the global generator
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    other = Compact(name, 64, 16, seed=4)
    assert not torch.equal(other.head.weight, one.head.weight)
    images = torch.randint(0, 256, (3, 64, 64, 3), dtype=torch.uint8)
    out = one.eval()(images)
    assert out.shape == (3, 16) and out.isfinite().all() and out.std() > 0
    assert torch.equal(one(images.float()), out)
    embedding, spatial = one.look(images)
    assert torch.equal(embedding, out) and spatial.shape == (3, 16, 6)
    assert spatial.isfinite().all() and spatial.std() > 0


def test_the_head_knows_where_things_are():
    """The same square left and right: a mean over the map would differ by its borders alone."""
    network = Compact("vit_tiny", 64, 16).eval()
    network.backbone.embeddings.position_embeddings.data.zero_()  # so that only the head can tell the place
    left = torch.zeros(1, 64, 64, 3)
    left[:, 16:32, 0:16] = 255
    right = left.roll(48, 2)
    with torch.no_grad():
        assert (network(left) - network(right)).norm() > 0.1 * network(left).norm()


def test_it_starts_from_a_folder_of_pretrained_weights(tmp_path):
    made = Compact("resnet18", 64, 16, seed=9)
    made.backbone.save_pretrained(tmp_path / "own")
    network = Compact("resnet18", 64, 16, seed=0, weights=tmp_path / "own")
    for k, v in made.backbone.state_dict().items():
        assert torch.equal(network.backbone.state_dict()[k], v)
    assert not torch.equal(network.head.weight, made.head.weight)
    with pytest.raises(InputError, match="own: not the weights of this backbone"):
        Compact("vit_tiny", 64, 16, weights=tmp_path / "own")
    with pytest.raises(InputError, match="nowhere: expected model.safetensors"):
        Compact("resnet18", 64, 16, weights=tmp_path / "nowhere")
