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


@pytest.mark.parametrize("pooling", ["blocks2", "blocks4", "attention"])
@pytest.mark.parametrize("fusion", ["weighted", "moe"])
def test_regions_pooled_before_the_last_linear_are_exact(fusion, pooling):
    """The textbook order: whole adapter per token, gate, sum over experts, then the mean of every region."""
    model = student(fusion, pooling=pooling).double()
    tokens, present, positions = batch(k=40)
    tokens, positions = {k: v.double() for k, v in tokens.items()}, positions.double()
    present[:, :9, 1] = False
    present[0, :5] = False
    out = model(tokens, present, positions)
    place = place_features(positions)
    hidden = model.hidden(tokens, positions)
    adapted = torch.stack([model.adapters[n].outer(model.adapters[n].hidden(tokens[n], place)) for n in CHANNELS], 2)
    fused = (out.gates[..., None] * adapted).sum(2)  # [B, K, D]
    seen = present.any(-1)
    if pooling == "attention":
        scores = sum(out.gates[..., m, None] * model.queries(hidden[n]) for m, n in enumerate(CHANNELS))
        shares = scores.masked_fill(~seen[..., None], -torch.inf).softmax(1)
    else:
        side = int(pooling[-1])
        cell = (positions * side).long()
        shares = torch.nn.functional.one_hot(cell[..., 1] * side + cell[..., 0], side * side) * seen[..., None]
        shares = shares / shares.sum(1, keepdim=True).clamp(min=1)
    regions = shares.double().mT @ fused  # [B, R, D]
    torch.testing.assert_close(out.embedding, model.projector(model.join(regions.flatten(1))), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "blocks2", "blocks4", "attention"])
def test_any_subset_of_experts_and_places_serves(pooling):
    model, (tokens, present, positions) = student("moe", pooling=pooling), batch(k=20)
    whole = model(tokens, present, positions).embedding
    absent = present.clone()
    absent[..., 1] = False
    without = model(tokens, absent, positions)
    left_out = model({k: v for k, v in tokens.items() if k != "b"}, present, positions)
    torch.testing.assert_close(without.embedding, left_out.embedding)
    assert not torch.allclose(whole, without.embedding)
    nothing = model(tokens, torch.zeros_like(present), positions).embedding
    assert nothing.isfinite().all()


def test_spatial_tokens_are_the_means_of_their_cells():
    model, (tokens, present, positions) = student("weighted"), batch(k=30)
    found, seen = model.spatial(tokens, present, positions, side=2)
    assert found.shape == (3, 4, 12) and seen.all()
    inside = (positions[0] * 2).long()[:, 0] == 1  # right half of the first sample
    upper = (positions[0] * 2).long()[:, 1] == 0
    only = (inside & upper)[None, :, None].expand(1, -1, 3)
    some = {k: v[:1] for k, v in tokens.items()}
    regions = {camera: only[..., :1] / only[..., 0].sum() for camera in model.cameras}
    alone = model._pooled(model.hidden(some, positions[:1]), model(some, only, positions[:1]).gates, regions)
    torch.testing.assert_close(found[0, 1], alone[0, 0], atol=1e-5, rtol=1e-5)
    empty, seen = model.spatial(tokens, present & (positions[..., :1] < 0.5), positions, side=2)
    assert seen[:, [0, 2]].all() and not seen[:, [1, 3]].any() and (empty[:, [1, 3]] == 0).all()
