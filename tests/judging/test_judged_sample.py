"""The main job on the bundled sample: real frames, real experts, held-out episodes."""

import numpy as np
import pytest

from rgb2pc_lib.data.workspace import CACHE, SAMPLE, Workspace
from rgb2pc_lib.judging.evaluate import judge, judged_config, line_up, train_line_up
from rgb2pc_lib.judging.probes import LOWER_IS_BETTER
from rgb2pc_lib.judging.verdicts import SHUFFLED, WIDTH, mean_table
from rgb2pc_lib.learning.prepare import Data

pytestmark = pytest.mark.skipif(
    not (CACHE / "sample" / "teacher").is_dir(), reason="the sample's features are not extracted: make features"
)


@pytest.fixture(scope="module")
def config():
    return judged_config(Workspace.load(SAMPLE))


def test_strict_pairing_is_strict_on_the_sample(config):
    samples = Data.open(config).samples
    assert len(samples) == 1024
    np.testing.assert_array_equal(samples.teacher_rows, samples.members)
    for rows in samples.expert_rows.values():
        np.testing.assert_array_equal(rows, samples.members)
    table = samples.pairing.table
    for i in (0, 500, 1023):  # and the names in the files are those of the table
        row = table.loc[samples.members[i, 0]]
        assert samples.pairing.teacher[row.task, row.episode][row.step].path.name.startswith(f"{row.step}.ply")


@pytest.mark.long
def test_fusion_beats_the_control_on_every_measure_and_the_weak_experts_on_retrieval(config, tmp_path):
    """Against the strongest expert alone the sample does not decide at one seed; the README gives the figures."""
    rows = line_up(config, 1, tmp_path)
    for _ in train_line_up(rows):
        pass
    table = mean_table(judge(config, rows).long)
    weak = ["xfeat only", "daisy only"]
    for fusion in ("weighted", "moe"):
        for measure in ("R@1", "R@5", "R@10"):
            assert table.loc[fusion, measure] > 0.03 + table.loc[weak, measure].max()
            assert table.loc[fusion, measure] > 0.3 + table.loc[SHUFFLED, measure]
        told = table.columns[table.loc[[fusion, SHUFFLED]].notna().all()].drop(WIDTH)
        for measure in [m for m in told if not m.endswith("look")]:  # of each look there are eight episodes
            ours, control = table.loc[fusion, measure], table.loc[SHUFFLED, measure]
            assert (ours < control) if measure.split(",")[0] in LOWER_IS_BETTER else (ours > control), measure
