"""The whole proof on a table of toys: what is told succeeds, it resumes, and it mixes nothing."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import toy

from rgb2pc_lib import InputError
from rgb2pc_lib.judging.loop import verdict
from rgb2pc_lib.judging.loop.heads import HeadSettings
from rgb2pc_lib.judging.loop.proof import ProofSettings, film_file, plan, prove, read_proof
from rgb2pc_lib.judging.loop.representations import Pooled, State
from rgb2pc_lib.judging.loop.rollouts import open_table

SMALL = ProofSettings(rollouts=6, heads=2, scenes=3, processes=1, training=HeadSettings(steps=600))
LINE_UP = {
    "full state": [State(("object", "goal", "joint"))],
    "proprioception": [State()],
    "daisy": [Pooled(("daisy",), 4)],
}


def run(source, folder, line_up=LINE_UP, settings=SMALL):
    return list(prove(line_up, source, toy.Table, folder, ["reach"], settings))


@pytest.fixture(scope="module")
def proved(recorded, tmp_path_factory):
    folder = tmp_path_factory.mktemp("proof")
    return folder, run(recorded, folder)


def test_what_knows_the_goal_succeeds(recorded, proved):
    folder, progress = proved
    table, baselines = read_proof(folder)
    assert len(table) == 3 * 2 * 6 and baselines == ["daisy"]
    assert progress[-1][:2] == (36, 36) and progress[0] == (0, 0, "features of full state")
    found = verdict.success_table(table).set_index(["look", "representation"])["success"]
    assert min(found["fixed", "full state"], found["random", "full state"]) > 0.8
    assert found["fixed", "proprioception"] < 0.5
    met = table.groupby("representation")["seed"].apply(lambda s: sorted(set(s)))
    assert met.map(tuple).nunique() == 1  # the same scenes for all
    assert set(table.loc[table["seed"] == 9001, "head"]) == {1}
    assert film_file(folder, "full state", "reach", "fixed", True).exists()
    errors = np.genfromtxt(folder / "heads.csv", delimiter=",", skip_header=1)[:, 3:]
    assert errors.shape == (6, 2) and np.isfinite(errors).all()


def test_it_goes_on_where_it_stopped_and_more_can_be_asked_for(recorded, proved, tmp_path):
    told = {name: LINE_UP[name] for name in ("full state", "proprioception")}
    first = read_proof(proved[0])[0].query("representation != 'daisy'")
    lines = (proved[0] / "rollouts.csv").read_text().splitlines(keepends=True)
    kept = [line for line in lines[1:] if "daisy" not in line]
    (tmp_path / "proof.json").write_bytes((proved[0] / "proof.json").read_bytes())
    (tmp_path / "rollouts.csv").write_text("".join([lines[0], *kept[:9]]) + kept[9][:9])  # killed here
    assert run(recorded, tmp_path, told)[-1][:2] == (15, 15)
    order = ["representation", "look", "seed"]
    again = open_table(tmp_path / "rollouts.csv").sort_values(order, ignore_index=True)
    assert again.equals(first.sort_values(order, ignore_index=True))  # to the same outcomes
    more = run(recorded, tmp_path, told, dataclasses.replace(SMALL, rollouts=7))
    assert more[-1][:2] == (4, 4) and len(read_proof(tmp_path)[0]) == 28
    assert [p for p in run(recorded, tmp_path, told) if p[1]] == []
    errors = pd.read_csv(tmp_path / "heads.csv")
    assert len(errors) == 4 and not errors.duplicated(["representation", "task", "head"]).any()


def test_nothing_is_mixed(recorded, proved):
    folder = proved[0]
    for change in ({"heads": 3}, {"head": "diffusion"}, {"training": HeadSettings(steps=7)}):
        with pytest.raises(InputError, match="found roll-outs made with others; choose another --out"):
            run(recorded, folder, settings=dataclasses.replace(SMALL, **change))
    with pytest.raises(InputError, match="found others of daisy"):
        run(recorded, folder, LINE_UP | {"daisy": [Pooled(("daisy",))]})
    with pytest.raises(InputError, match=r"expected seeds that no demonstration used, found \d of them, such as 20"):
        run(recorded, folder, settings=dataclasses.replace(SMALL, first_seed=20))
    with pytest.raises(InputError, match="--tasks: expected tasks among reach, found fly"):
        list(prove(LINE_UP, recorded, toy.Table, folder, ["fly"], SMALL))
    told = LINE_UP["full state"]
    for others in ({"full-state": told}, {"told!": told, "told?": told}):  # one of a name in the folder, two new ones
        with pytest.raises(InputError, match="expected names that differ in letters or digits, found '.*' and '.*'"):
            run(recorded, folder, others)
    with pytest.raises(InputError, match="--rollouts: expected at least 1, found 0"):
        dataclasses.replace(SMALL, rollouts=0)
    with pytest.raises(InputError, match="run: make proof"):
        read_proof(folder / "nowhere")


def test_an_interrupted_table_is_even(proved):
    empty = open_table(proved[0].parent / "none" / "rollouts.csv")
    units = plan(LINE_UP, ["a", "b"], empty, dataclasses.replace(SMALL, rollouts=5))
    assert [u.head for u in units] == [0] * 6 + [1] * 6
    assert [len(u.wanted) for u in units] == [2 * 3] * 6 + [2 * 2] * 6
    assert {seed for u in units if u.head for _, seed in u.wanted} == {9001, 9003}


def test_two_processes_agree_with_one(recorded, proved, tmp_path):
    run(recorded, tmp_path, {"full state": LINE_UP["full state"]}, dataclasses.replace(SMALL, processes=2))
    found = read_proof(tmp_path)[0].sort_values(["look", "seed"])
    alone = read_proof(proved[0])[0].query("representation == 'full state'").sort_values(["look", "seed"])
    assert found["length"].tolist() == alone["length"].tolist()
