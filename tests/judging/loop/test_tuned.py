"""A network tuned with its policy beats a blind one, from a compact student and from random weights."""

import numpy as np
import toy

from rgb2pc_lib import CompactConfig, train_compact
from rgb2pc_lib.judging.loop.heads import action_error, action_spread
from rgb2pc_lib.judging.loop.representations import features_file, prepare, read_features
from rgb2pc_lib.judging.loop.scenes import own_state
from rgb2pc_lib.judging.loop.tuned import Tuned


def test_tuned_with_its_policy(recorded, tmp_path):
    settings = CompactConfig(
        run=str(recorded.config.folder), save_dir=str(tmp_path / "compact"), size=32, steps=2, batch_size=16
    )
    list(train_compact(settings))
    demonstrations, digests = recorded.demonstrations, set()
    for pretrained in (True, False):
        one = Tuned(settings.folder, pretrained, steps=6)
        digests.add(prepare("tuned", one, recorded, tmp_path))
        fitted = read_features(features_file(tmp_path, "tuned"))
        policy = one.policy(demonstrations, fitted, demonstrations.training, 0, recorded.recorder)
        table = toy.Table("reach")
        table.begin(9000, False)
        seen = [table.look(False)]
        found = policy(seen)
        assert found.shape == (1, 5, 4) and np.isfinite(found).all() and own_state(seen).shape == (1, 4)
        spread = action_spread(demonstrations.actions)
        assert action_error(found, np.repeat(toy.expert(table)[None, None], 5, 1), spread).mean() < 3
    again = one.policy(demonstrations, fitted, demonstrations.training, 0, recorded.recorder)
    np.testing.assert_array_equal(again(seen), found)
    assert len(digests) == 2
