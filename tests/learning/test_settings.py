"""Settings that several trainings have mean the same in each of them."""

import dataclasses

import numpy as np
import pytest

from rgb2pc_lib.deploy.compact import CompactConfig
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.learning.config import Config

OF_ITS_OWN = {"save_dir"}  # its help says where each training goes when nothing is given


def test_a_setting_of_two_trainings_has_one_help_and_the_same_limits():
    ours, theirs = ({f.name: f for f in dataclasses.fields(c)} for c in (Config, CompactConfig))
    both = ours.keys() & theirs.keys() - OF_ITS_OWN
    assert len(both) == 17 and {"tau", "loss_mse", "amp", "eval_every"} <= both
    for name in both:
        said = [{k: f.metadata[k] for k in ("help", "choices", "least", "most")} for f in (ours[name], theirs[name])]
        assert said[0] == said[1], name
        assert ours[name].type == theirs[name].type, name


@pytest.mark.parametrize("config", [Config, CompactConfig])
def test_limits_hold_wherever_a_shared_setting_stands(config):
    with pytest.raises(InputError, match="--batch_size: expected at least 2, found 1"):
        config(batch_size=1)
    with pytest.raises(InputError, match="--tau: expected at least 0.0001, found 0.0"):
        config(tau=0.0)
    assert config(batch_size=2).batch_size == 2


REFUSED = [  # settings that no training can work with, and what the message names
    (Config, {"fusion": "moe", "moe_top_k": 1}, "--moe_top_k 1"),
    (Config, {"held_out": 0.0}, "--held_out 0"),
    (Config, {"held_out": 1.0}, "--held_out 1"),
    (Config, {"fuse_dim": 2}, "--fuse_dim 2"),
    (Config, {"route": "geometric", "loss_consistency": 1.0, "student_tokens": 1}, "--student_tokens 1"),
    (Config, {"route": "geometric", "strict_pairing": False}, "--no_strict_pairing"),
    (Config, {"loss_consistency": 1.0}, "--loss_consistency"),
    (Config, {"seed": 2**32}, "--seed: expected at most"),
    (Config, {"lr": 1.0, "weight_decay": 1.0}, "--weight_decay 1"),
    (CompactConfig, {"lr": 20.0}, "--weight_decay 0.05"),
    (CompactConfig, {"photometric": 2.5}, "--photometric: expected at most 2"),
    (CompactConfig, {"size": 16}, "--size: expected at least 32"),
]


@pytest.mark.parametrize(("kind", "given", "named"), REFUSED, ids=lambda v: "-".join(v) if isinstance(v, dict) else "")
def test_settings_that_cannot_work_are_refused_when_given_and_open_when_stored(kind, given, named):
    with pytest.raises(InputError, match=named):
        kind(**given)
    with pytest.raises(InputError, match=named):
        dataclasses.replace(kind(), **given)
    if "expected" not in named:  # out of range is no setting at all
        assert kind(**given, stored=True).to_json() != kind().to_json()


@pytest.mark.parametrize("kind", [Config, CompactConfig])
def test_every_setting_has_its_type_and_says_so(kind):
    wrong = {"int": ("1", 1.5, True, None), "float": ("1", True, None, float("nan"), float("inf"), 10**400),
             "bool": ("yes", 1, None), "str": (1, None, ["a"]), "tuple[str, ...]": ("a", (1,), None),
             "dict[str, str]": ("a", {"a": 1}, [("a", "b")])}  # fmt: skip
    for f in dataclasses.fields(kind):
        for value in wrong[f.type]:
            with pytest.raises(InputError, match=f"--{f.name}: expected"):
                kind(**{f.name: value})


def test_numbers_of_numpy_and_lists_become_plain():
    made = Config(batch_size=np.int64(8), lr=np.float32(0.5), tasks=["push"])
    assert Config.from_json(made.to_json()) == made
    assert type(made.batch_size) is int and made.tasks == ("push",)
