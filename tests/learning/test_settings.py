"""Settings that several trainings have mean the same in each of them."""

import dataclasses

import pytest

from rgb2pc_lib.deploy.compact import CompactConfig
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.learning.runs import Config

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
