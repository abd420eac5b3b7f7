import pytest
import torch

from rgb2pc_lib.learning import models
from rgb2pc_lib.learning.models import Student, place_features

CHANNELS = {"a": 8, "b": 5, "c": 6}


def batch(b=3, k=7, seed=0):
    g = torch.Generator().manual_seed(seed)
    tokens = {name: torch.randn(b, k, c, generator=g) for name, c in CHANNELS.items()}
    return tokens, torch.ones(b, k, len(CHANNELS), dtype=torch.bool), torch.rand(b, k, 2, generator=g)


def student(fusion, **changes):
    model = Student(CHANNELS, 16, fusion, width=12, moe_hidden=9, **changes)
    if fusion == "weighted":
        model.logits.data = torch.tensor([0.3, -0.7, 1.1])
    return model.eval()


@pytest.mark.parametrize("fusion", ["weighted", "moe", "uniform"])
def test_gates_sum_to_one(fusion):
    gates = student(fusion)(*batch()).gates
    assert gates.shape == (3, 7, 3)
    torch.testing.assert_close(gates.sum(-1), torch.ones(3, 7))


@pytest.mark.parametrize("fusion", ["weighted", "moe"])
def test_pooling_before_the_last_linear_is_exact(fusion):
    """The textbook order: whole adapter per token, gate, sum over experts, mean over tokens, projector."""
    model = student(fusion).double()
    tokens, present, positions = batch()
    tokens = {k: v.double() for k, v in tokens.items()}
    positions = positions.double()
    present[:, :3, 1] = False
    present[0, 0] = False
    out = model(tokens, present, positions)
    place = place_features(positions)
    adapted = torch.stack([model.adapters[n].outer(model.adapters[n].hidden(tokens[n], place)) for n in CHANNELS], 2)
    fused = (out.gates[..., None] * adapted).sum(2)  # [B, K, D]
    covered = present.any(-1).double()[..., None]
    pooled = (fused * covered).sum(1) / covered.sum(1)
    torch.testing.assert_close(out.embedding, model.projector(pooled))


@pytest.mark.parametrize("fusion", ["weighted", "moe"])
def test_tokens_permute_and_samples_are_independent(fusion):
    model, (tokens, present, positions) = student(fusion), batch()
    out = model(tokens, present, positions)
    order = torch.tensor([4, 2, 0, 6, 1, 3, 5])
    again = model({k: v[:, order] for k, v in tokens.items()}, present[:, order], positions[:, order])
    torch.testing.assert_close(again.embedding, out.embedding)
    torch.testing.assert_close(again.gates, out.gates[:, order])
    alone = model({k: v[1:2] for k, v in tokens.items()}, present[1:2], positions[1:2])
    torch.testing.assert_close(alone.embedding, out.embedding[1:2])


@pytest.mark.parametrize("fusion", ["weighted", "moe"])
def test_absent_experts_do_not_matter(fusion):
    """Masking an expert, leaving it out, and filling it with rubbish give the same; the gates renormalise."""
    model, (tokens, present, positions) = student(fusion), batch()
    present[:, :, 1] = False
    masked = model(tokens, present, positions)
    assert (masked.gates[:, :, 1] == 0).all()
    torch.testing.assert_close(masked.gates.sum(-1), torch.ones(3, 7))
    rubbish = model({**tokens, "b": 1e3 * torch.ones_like(tokens["b"])}, present, positions)
    torch.testing.assert_close(rubbish.embedding, masked.embedding)
    left_out = model({k: v for k, v in tokens.items() if k != "b"}, torch.ones_like(present), positions)
    torch.testing.assert_close(left_out.embedding, masked.embedding)


def test_uniform_gates_are_equal_among_the_present_and_never_learned():
    model, (tokens, present, positions) = student("uniform"), batch()
    present[0, 0, 1] = False
    gates = model(tokens, present, positions).gates
    torch.testing.assert_close(gates[0, 0], torch.tensor([0.5, 0.0, 0.5]))
    torch.testing.assert_close(gates[1], torch.full((7, 3), 1 / 3))
    assert "logits" not in dict(model.named_parameters()) and "logits" not in model.state_dict()
    weighted = Student(CHANNELS, 16, "weighted", width=12, moe_hidden=9).eval()  # starts as uniform
    torch.testing.assert_close(model(*batch()).embedding, weighted(*batch()).embedding)


def test_uncovered_places_leave_the_mean():
    model, (tokens, present, positions) = student("moe"), batch()
    present[:, 5:] = False
    some = model({k: v[:, :5] for k, v in tokens.items()}, present[:, :5], positions[:, :5])
    torch.testing.assert_close(model(tokens, present, positions).embedding, some.embedding)


def test_nothing_covered_is_finite():
    tokens, present, positions = batch()
    out = student("moe")(tokens, torch.zeros_like(present), positions)
    assert torch.isfinite(out.embedding).all() and (out.gates == 0).all()


def test_top_k_keeps_the_best_experts():
    tokens, present, positions = batch()
    every, two = student("moe")(tokens, present, positions).gates, student("moe", top_k=2)(tokens, present, positions)
    assert ((two.gates > 0).sum(-1) == 2).all()
    assert (two.gates.argmin(-1) == every.argmin(-1)).all()


def test_gate_noise_only_in_training_and_as_given():
    model, data = student("moe", gate_noise=1.0), batch()
    torch.testing.assert_close(model(*data, torch.ones(data[1].shape)).gates, model(*data).gates)
    model.train()

    def noisy(seed):
        noise = torch.randn(data[1].shape, generator=torch.Generator().manual_seed(seed))
        return model(*data, noise).gates

    torch.testing.assert_close(noisy(1), noisy(1))
    assert not torch.allclose(noisy(1), noisy(2))


def test_initial_weights_come_from_the_seed_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = Student(CHANNELS, 16, seed=3).state_dict()
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    again, other = Student(CHANNELS, 16, seed=3).state_dict(), Student(CHANNELS, 16, seed=4).state_dict()
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first["projector.1.weight"], other["projector.1.weight"])


def test_the_embedding_knows_where_tokens_lie():
    model, (tokens, present, positions) = student("moe"), batch()
    moved = model(tokens, present, (positions + 0.3) % 1)
    assert not torch.allclose(moved.embedding, model(tokens, present, positions).embedding, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_tokens_are_normalised_in_blocks_as_a_layer_norm_does(dtype, monkeypatch):
    """Blocks that do not divide the rows; values far from zero, where a careless variance fails; constant tokens."""
    monkeypatch.setattr(models, "_CACHED", 3 * 64)
    norm = torch.nn.LayerNorm(64, elementwise_affine=False)
    draws = torch.Generator().manual_seed(0)
    tokens = (torch.randn(4, 7, 64, generator=draws) + 300 * torch.arange(4)[:, None, None]).to(dtype)
    tokens[1, 2] = 5.0
    before = tokens.clone()
    expected = norm.double()(tokens.double())
    found = models.normalised(tokens, norm, torch.float32)
    assert found.dtype == torch.float32 and (found - expected).abs().max() < 1e-3  # 900 +- 1 in fp32: 1e-7 * 900
    assert (found - expected)[0].abs().max() < 2e-6 and torch.equal(tokens, before)
    assert torch.equal(found[1, 2], torch.zeros(64))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(models.normalised(tokens, norm, torch.float32), found.bfloat16())


def test_unknown_fusion():
    with pytest.raises(ValueError, match="weighted, moe"):
        Student(CHANNELS, 16, "sum")
