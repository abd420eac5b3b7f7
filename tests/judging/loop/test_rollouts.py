"""Roll-outs on a table of toys: good policies arrive, bad ones do not, and the table on disk is whole."""

import numpy as np
import pytest
import toy

from rgb2pc_lib import InputError
from rgb2pc_lib.judging.loop.rollouts import Outcome, append, open_table, read_table, roll_outs

WANTED = [(look, seed) for look in ("fixed", "random") for seed in range(9000, 9007)]


def knowing(seen):
    """A policy that is told the goal: the first action of its chunk is right, and then it goes on."""
    away = np.stack([s.state["goal"][:2] - s.state["tcp"][:2] for s in seen])
    step = np.clip(away / toy.REACH / 3, -1, 1)
    return np.repeat(np.pad(step, ((0, 0), (0, 2)))[:, None], 3, 1)  # [B, 3, 4]


def test_every_wanted_roll_out_ends_once():
    scenes = [toy.Table("reach") for _ in range(3)]
    found = list(roll_outs(knowing, scenes, WANTED, horizon=40))
    assert sorted(found_of[:2] for found_of in found) == sorted(WANTED)
    assert all(success and 0 < length <= 40 for _, _, success, length, _ in found)
    by_seed = {(look, seed): length for look, seed, _, length, _ in found}
    for seed in range(9000, 9007):  # the look changes nothing for who is told the goal
        assert by_seed["fixed", seed] == by_seed["random", seed]
    for _, _, _, length, film in found:
        assert len(film) == -(-length // 3) + 1 and film[0].dtype == np.uint8


def test_a_chunk_is_carried_out_before_the_next_look_and_the_horizon_holds():
    looks = []

    def still(seen):
        looks.append(len(seen))
        return np.zeros((len(seen), 3, 4))

    found = list(roll_outs(still, [toy.Table("reach")] * 1, WANTED[:2], horizon=7))
    assert [f[2:4] for f in found] == [(False, 7)] * 2
    assert looks == [1] * 6  # after 0, 3 and 6 steps, twice
    assert len(list(roll_outs(still, [toy.Table("reach") for _ in range(9)], WANTED[:4], horizon=7))) == 4


def test_looks_draw_anew():
    a, b = toy.Table("reach"), toy.Table("reach")
    a.begin(5, False)
    b.begin(5, True)
    assert np.any(a.look(False).image != b.look(False).image) and np.array_equal(a.goal, b.goal)


def test_a_table_goes_on_after_a_kill(tmp_path):
    path = tmp_path / "loop" / "rollouts.csv"
    assert open_table(path).empty
    one = Outcome("experts concatenated 4x4, 256 PCs", "reach", "random", 9000, 0, True, 31)
    append(path, one)
    with path.open("a") as file:
        file.write('"weighted","reach","fix')  # killed here
    assert len(read_table(path)) == 1  # while it is being written
    table = open_table(path)
    assert table.iloc[0].to_dict() == vars(one)
    append(path, Outcome("weighted", "reach", "fixed", 9000, 0, False, 40))
    append(path, Outcome("weighted", "reach", "fixed", 9000, 0, True, 20))  # twice: the last one counts
    assert open_table(path)["length"].tolist() == [31, 20]
    assert read_table(path)["success"].dtype == bool


@pytest.mark.parametrize(
    "text",
    ["", "a,b\n1,2\n", "representation,task,look,seed,head,success,length\nw,t,fixed,1,0,2,3\n",
     "representation,task,look,seed,head,success,length\nw,t,odd,1,0,1,3\n",
     "representation,task,look,seed,head,success,length\nw,t,fixed,x,0,1,3\n"],
)  # fmt: skip
def test_other_files_are_refused(tmp_path, text):
    path = tmp_path / "rollouts.csv"
    path.write_text(text)
    with pytest.raises(InputError, match="rollouts.csv: expected roll-outs with representation, .* delete it"):
        read_table(path)
