import dataclasses
import json
import re
import runpy
import shutil

import nbformat
import pandas as pd
import pytest
import tiny
from matplotlib.figure import Figure

from rgb2pc_lib.data.workspace import PROJECT
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.judging.evaluate import line_up, train_line_up
from rgb2pc_lib.judging.verdicts import SHUFFLED
from rgb2pc_lib.learning.config import Config
from rgb2pc_lib.learning.runs import Run
from rgb2pc_lib.views.report import Report, canonical, line_up_runs, table
from rgb2pc_lib.views.report_html import AUTHORS, NOTEBOOK, execute, static_copy, write_html

EVIL = "<script>alert(1)</script>"
TASK = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    workspace = tiny.make(tmp_path_factory.mktemp("data"), tasks=("pull", TASK), steps=6)
    small = Config(steps=2, batch_size=8, student_tokens=4, fuse_dim=8, moe_hidden=8, eval_every=0)
    return small.with_workspace(workspace)


@pytest.fixture(scope="module")
def out(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for _ in train_line_up(line_up(config, 2, folder)):
        pass
    return folder


@pytest.fixture(scope="module")
def report(config, out):
    return Report(line_up_runs(config, 2, out))


def test_students_are_called_as_in_the_judgement(config, report):
    for name, c in line_up(config, 1, report.main.folder, ablations=True):
        assert canonical(c, ["left", "right"]) == name
    three = ["a", "b", "c"]
    assert canonical(Config(fusion="moe", vis_roots={"a": "", "b": ""}), three) == "moe without c"
    assert canonical(Config(vis_roots={"a": ""}), ["a"]) == "weighted"


def test_the_line_up_is_recognised_moe_first(report):
    assert report.main.name == "moe-seed0" and len(report.runs) == 10
    assert set(report.names) == {"moe", "weighted", "left only", "right only", SHUFFLED} and report.complete
    assert report.judgement() is None  # no state, no probes
    assert isinstance(report.verdict(), Figure) and isinstance(report.gates(), Figure)
    assert len(report.curves().subfigs[1].axes) == 2  # moe and weighted
    assert report.overview().loc["moe-seed1", "seed"] == 1


def test_counts_and_words(report):
    card = report.data_card()
    assert card.loc["all tasks", ["training steps", "validation steps", "held-out steps"]].tolist() == [24, 12, 12]
    assert card.loc["pull", ["training episodes", "validation episodes", "held-out episodes"]].tolist() == [2, 1, 1]
    assert report.pairing_words().startswith("48 of 48 steps")
    words = report.words()
    assert words[0].startswith("Use ") and words[1].startswith(
        "12 held-out samples, 2 seed(s) of every student; R@1 by"
    )
    assert sum("against weighted" in w for w in words) == 4 and "nan" not in " ".join(words)


def test_the_card_repeats_the_run(report):
    card = report.reproducibility()["value"]
    assert card["data hash"] == report.main.summary["data_hash"] and card["seed"] == "0"
    assert "tools/train_rgb2pc_distill.py" in card["command"] and "--fusion moe" in card["command"]


def test_runs_outside_the_line_up_are_told_apart(config, out, tmp_path):
    other = dataclasses.replace(config, fusion="moe", lr=0.1, save_dir=str(tmp_path / "hot"))
    for _ in train_line_up([("hot", other)]):
        pass
    report = Report([Run.open(tmp_path / "hot"), Run.open(out / "moe-seed0")])
    assert report.names == ["hot", "moe-seed0"] and not report.complete
    assert report.verdict() is None and report.measures().shape[1] == 2
    assert any(w.startswith("moe-seed0: R@1") for w in report.words())


def test_only_common_seeds_are_compared(out):
    runs = [Run.open(out / name) for name in ("moe-seed0", "moe-seed1", "weighted-seed1")]
    report = Report(runs)
    assert set(report.compared["seed"]) == {1} and "nan" not in " ".join(report.words())
    apart = Report([runs[0], runs[2]])
    assert apart.verdict() is None and len(apart.words()) == 1 and apart.measures().shape[1] == 2


def test_two_runs_stand_side_by_side_and_students_seed_by_seed(config, out, report, tmp_path):
    a, b, found = report.versus
    assert (a, b) == ("weighted", "moe") and found.rank.shape[:2] == (2, 2)
    assert [[run.name for run in runs] for runs in found.runs] == [["weighted-seed0", "weighted-seed1"],
                                                                   ["moe-seed0", "moe-seed1"]]  # fmt: skip
    two = Report([Run.open(out / name) for name in ("moe-seed0", "weighted-seed0")])
    assert two.versus[:2] == ("moe-seed0", "weighted-seed0")
    assert two.versus_settings().loc["fusion"].tolist() == ["moe", "weighted"]
    assert two.versus_words().startswith("B (weighted-seed0) against A (moe-seed0): R@1")
    assert isinstance(two.versus_figure(), Figure)
    one = Report([Run.open(out / "moe-seed0")])
    assert one.versus is None and one.versus_figure() is None and one.versus_settings().empty
    assert one.versus_words() == "No two students of this report hold out the same steps."


def test_the_best_and_the_worst_retrievals_are_of_different_episodes(report):
    figure = report.retrievals(2)
    titles = [a.get_title() for a in figure.axes]
    assert sum(t.startswith("its own cloud: rank") for t in titles) == 4  # two of the best, two of the worst
    ranks = [int(t.split()[-1]) for t in titles if t.startswith("its own cloud")]
    table = report.spaces.table[report.spaces.held_out]
    assert min(ranks[:2]) == table["rank"].min() and max(ranks[2:]) == table["rank"].max()
    assert sum(t.startswith("found first") for t in titles) == 4


def test_runs_judged_on_other_steps_are_named(config, out, tmp_path):
    other = dataclasses.replace(config, split_seed=5, save_dir=str(tmp_path / "other-split"))
    for _ in train_line_up([("other", other)]):
        pass
    words = Report([Run.open(out / "moe-seed0"), Run.open(tmp_path / "other-split")]).words()
    assert words[-1] == "Not comparable with moe-seed0, as judged on other steps: other-split."


def test_a_view_of_the_future_is_said(config, out, tmp_path):
    shutil.copytree(out / "moe-seed0", tmp_path / "ahead")
    run = Run.open(tmp_path / "ahead")
    summary = run.summary
    summary["look_ahead"]["left"] |= {"mean": 3.5, "most": 7}
    run.file("summary.json").write_text(json.dumps(summary))
    words = Report([Run.open(out / "weighted-seed0"), run]).words()
    assert "moe: Trained with a view of the future: left sees 3.5 later frames on average, at most 7." in words[-1]
    assert (Report([run]).experts_card()["frames ahead"] == "none").all()  # its packs are those that do not look ahead


def test_nothing_and_unfinished_runs_are_refused(out, tmp_path):
    with pytest.raises(InputError, match="at least one run"):
        Report([])
    (tmp_path / "config.json").write_text((out / "moe-seed0" / "config.json").read_text())
    with pytest.raises(InputError, match="the run is unfinished"):
        Report([Run.open(tmp_path)])


def test_tables_escape_every_name():
    said = table(pd.DataFrame({EVIL: [EVIL, 0.12345]}, index=[EVIL, "x"])).data
    assert "<script" not in said and said.count("&lt;script&gt;") == 3 and "0.123" in said


def notebook(path, *cells):
    tagged = nbformat.v4.new_code_cell("NAME = 'unset'", metadata={"tags": ["parameters"]})
    nb = nbformat.v4.new_notebook(cells=[tagged, *map(nbformat.v4.new_code_cell, cells)])
    nb.metadata.kernelspec = {"display_name": "Python 3", "language": "python", "name": "python3"}
    nbformat.write(nb, path)
    return path


def test_a_page_is_one_file_that_fetches_nothing_and_runs_no_name(tmp_path):
    path = notebook(tmp_path / "n.ipynb", "print(NAME)", "import plotly.graph_objects as go",
                    "go.Figure(go.Scatter(y=[1, 2]), dict(title=NAME)).show()")  # fmt: skip
    out = write_html(execute(path, NAME=EVIL), tmp_path / "page.html", title=EVIL)
    page = out.read_text()
    assert EVIL not in page and "&lt;script&gt;alert(1)" in page
    assert "print(NAME)" not in page and "Plotly.newPlot" in page
    assert not re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=.https?:", page)
    assert "default-src 'none'" in page and out.stat().st_size < 8e6
    assert [p.name for p in tmp_path.iterdir() if "partial" in p.name] == []


def test_the_page_has_contents_and_leaves_out_what_its_authors_need(tmp_path):
    path = notebook(tmp_path / "n.ipynb", "print('for authors')", "print('for readers')",
                    "from matplotlib.figure import Figure; from rgb2pc_lib.views.notebook import show\n"
                    "figure = Figure(); figure.suptitle('seen'); show(figure)")  # fmt: skip
    nb = nbformat.read(path, 4)
    nb.cells.insert(0, nbformat.v4.new_markdown_cell("# Title\n\nWhat it is.\n\n| **Goal** | none |\n"))
    nb.cells += [nbformat.v4.new_markdown_cell(f"## Part {i}") for i in (1, 2)]
    nb.cells[2].metadata.tags = [AUTHORS]
    nbformat.write(nb, path)
    executed = execute(path)
    page = write_html(executed, tmp_path / "page.html").read_text()
    assert "for readers" in page and "for authors" not in page and "Goal" not in page and "What it is." in page
    assert re.findall(r'<li><a href="#([^"]+)">([^<]+)', page) == [("Part-1", "Part 1"), ("Part-2", "Part 2")]
    assert re.findall(r'<img alt="([^"]*)"', page) == ["seen"] and "No description" not in page
    assert "**Goal**" in executed.cells[0].source  # the notebook itself stays as it was


def test_the_static_copy_keeps_texts_tables_and_pictures_alone(tmp_path):
    path = notebook(tmp_path / "n.ipynb", "import sys; print('said'); print('bar', file=sys.stderr)",
                    "import pandas as pd; pd.DataFrame({'column': [1]})",
                    "import plotly.graph_objects as go; go.Figure(go.Scatter(y=[1, 2])).show()",
                    "from matplotlib.figure import Figure; from rgb2pc_lib.views.notebook import show; show(Figure())",
                    "import ipywidgets; ipywidgets.IntSlider()")  # fmt: skip
    executed = execute(path)
    kept = [[o.get("text") or sorted(o.data) for o in c.outputs] for c in static_copy(executed).cells]
    assert kept == [[], ["said\n"], [["text/html", "text/plain"]], [], [["image/png", "text/plain"]], []]
    assert len(executed.cells[1].outputs) == 2  # the notebook itself stays as it was


def test_the_copy_in_the_repository_is_of_this_notebook_and_shows_its_figures():
    kept = PROJECT / "figures" / "report.ipynb"
    nb = nbformat.read(kept, 4)
    sources = [c.source for c in nb.cells]
    assert all(c.source in sources for c in nbformat.read(NOTEBOOK, 4).cells), "run `make figures`, commit the copy"
    outputs = [o for c in nb.cells for o in c.get("outputs", [])]
    assert sum("image/png" in o.get("data", {}) for o in outputs) >= 9
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    assert static_copy(nb) == nb and kept.stat().st_size < 2e6


def test_a_failing_cell_and_an_unknown_setting_are_said(tmp_path):
    path = notebook(tmp_path / "n.ipynb", "from rgb2pc_lib.errors import InputError; raise InputError('no such thing')")
    with pytest.raises(InputError, match="InputError: no such thing"):
        execute(path)
    with pytest.raises(InputError, match="has no setting COLOUR"):
        execute(path, COLOUR=1)
    assert {"WORKSPACE", "RUN_FOLDERS", "SEEDS"} <= set(
        re.findall(r"^([A-Z_]+) = ", "\n".join(c.source for c in nbformat.read(NOTEBOOK, 4).cells), re.M)
    )


def test_the_tool_refuses_with_one_message(tmp_path, capsys):
    main = runpy.run_path(str(PROJECT / "tools" / "report.py"))["main"]
    assert main(["--runs", str(tmp_path), "--out", str(tmp_path / "r.html")]) == 2
    assert "holds no run" in capsys.readouterr().err and not (tmp_path / "r.html").exists()
    assert main(["--workspace", str(tmp_path / "none.toml")]) == 2
    assert "no such workspace file" in capsys.readouterr().err
