"""The shareable summary of one or several runs: what `notebooks/report.ipynb` shows, and one HTML file of it.

The file needs no network and no kernel. Names from the data (tasks, episodes, experts, runs) are escaped.
"""

from __future__ import annotations

import functools
import html
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
from IPython.display import HTML
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rgb2pc_lib.checks.sources import pack_sizes, rgb_file, step_cloud
from rgb2pc_lib.data.pairing import OK, Pairing, pair
from rgb2pc_lib.data.pictures import read_image
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.judging.evaluate import Judgement, judge, judge_students, line_up
from rgb2pc_lib.judging.verdicts import SHUFFLED, advice, answer, compared, gap_closed, mean_table, verdict
from rgb2pc_lib.judging.versus import Versus
from rgb2pc_lib.learning.config import Config
from rgb2pc_lib.learning.runs import Run, left_out_words, look_ahead_words
from rgb2pc_lib.views.curves import curves_figure, verdict_figure
from rgb2pc_lib.views.look import draw_cloud, plain
from rgb2pc_lib.views.plots import colour, commit, judgement_figure
from rgb2pc_lib.views.runs import differences, versus_figure
from rgb2pc_lib.views.spaces import Spaces

PACKAGES = ("rgb2pc", "torch", "numpy", "pandas", "scipy", "scikit-learn", "umap-learn", "matplotlib", "plotly")
CURVES = 4  # runs whose curves are drawn; more are a thicket


def canonical(config: Config, experts: Sequence[str]) -> str:
    """What the judgement calls a student that was trained so, given all experts there are.

    >>> canonical(Config(fusion="moe", vis_roots={"a": "x"}), ["a", "b", "c"])
    'a only'
    """
    own = list(config.vis_roots)
    if config.shuffle_pairs:
        return SHUFFLED
    if len(own) == 1 < len(experts):
        return f"{own[0]} only"
    missing = sorted(set(experts) - set(own))
    return config.fusion + (f" without {', '.join(missing)}" if missing else "")


class Report:
    """Everything a report says of these runs. Figures are matplotlib's, tables pandas'; nothing is drawn twice.

    The first run is looked at closely (gates, maps); all are compared. Raises InputError for an unfinished run.

    >>> Report([Run.open("runs/judge/moe-seed0")]).overview()  # doctest: +SKIP
    """

    def __init__(self, runs: Sequence[Run]):
        if not runs:
            raise InputError("a report needs at least one run; train one with tools/train_rgb2pc_distill.py")
        self.runs, self.main = list(runs), runs[0]
        self.configs = [run.config for run in runs]
        self.summaries = [run.summary for run in runs]  # unfinished runs are refused here, by name
        self.experts = sorted({e for c in self.configs for e in c.vis_roots})
        called = [(canonical(c, self.experts), c.seed) for c in self.configs]
        twice = {name for name, seed in called if called.count((name, seed)) > 1}
        self.names = [run.name if name in twice else name for run, (name, _) in zip(self.runs, called, strict=True)]
        self.rows = list(zip(self.names, self.configs, strict=True))

    # -- data and pairing

    @functools.cached_property
    def pairing(self) -> Pairing:
        """All sources of the run that uses most experts."""
        return pair(self._widest.workspace, list(self._widest.tasks) or None)

    @property
    def _widest(self) -> Config:
        return max(self.configs, key=lambda c: len(c.vis_roots))

    def data_card(self) -> pd.DataFrame:
        """What was trained, chosen and judged on, one row a task: episodes and steps, of every side."""
        e = self.main.embeddings_of_all()
        keys = pd.DataFrame({k: e[k] for k in ("task", "episode")})
        side = pd.Series(np.select([e["held_out"], e["validation"]], ["held-out", "validation"], "training"))
        steps = keys.groupby(["task", side]).size().unstack(fill_value=0)
        episodes = keys.drop_duplicates().groupby(["task", side.rename("side")]).size().unstack(fill_value=0)
        table = pd.concat({"episodes": episodes, "steps": steps}, axis=1)
        table.columns = [f"{side} {what}" for what, side in table.columns]
        table.loc["all tasks"] = table.sum()
        return table

    def experts_card(self) -> pd.DataFrame:
        """What every expert's packs hold, from their headers."""
        return pack_sizes(self.pairing, self.main.config.frame_copy).drop(index="total")

    def pairing_words(self) -> str:
        """How many steps can be used, in a sentence."""
        table = self.pairing.table
        usable = (table[[*self.pairing.experts, "teacher"]] == OK).all(axis=1).sum()
        here = f"{usable} of {len(table)} steps are in the teacher and in every expert ({len(self.experts)} of them)."
        return " ".join(filter(None, [here, left_out_words(self.summaries[0])]))

    # -- training

    def curves(self) -> Figure:
        """Loss, retrieval and mean gates of the first run of each kind, of those that have all experts."""
        first = {name: (run, c) for run, (name, c) in reversed(list(zip(self.runs, self.rows, strict=True)))}
        kinds = [first[name] for name in dict.fromkeys(self.names)]
        whole = [run for run, c in kinds if len(c.vis_roots) == len(self.experts) and not c.shuffle_pairs]
        return curves_figure((whole or self.runs)[:CURVES])

    def gates(self) -> Figure:
        """Mean gate of each expert on held-out samples, mean over seeds, of every student with several experts."""
        means = pd.DataFrame([s["gates"] for s in self.summaries], columns=self.experts).groupby(self.names, sort=False)
        table = means.mean().fillna(0.0)
        several = table[(table > 0).sum(axis=1) > 1]
        table = table if several.empty else several
        figure = Figure(figsize=(11, 1.4 + 0.5 * len(table)), layout="constrained")
        axes = figure.subplots()
        start = np.zeros(len(table))
        for expert in self.experts:
            wide = table[expert].to_numpy()
            axes.barh(range(len(table)), wide, left=start, color=colour(expert, self.experts), label=plain(expert))
            for i in np.flatnonzero(wide > 0.05).tolist():
                axes.text(start[i] + wide[i] / 2, i, f"{wide[i]:.2f}", ha="center", va="center", fontsize=9)
            start += wide
        axes.set_yticks(range(len(table)), [plain(n) for n in table.index])
        axes.invert_yaxis()
        axes.set(xlim=(0, 1), xlabel=f"mean gate on {self.n} held-out samples (a student's sum to 1)",
                 title="Which expert is trusted")  # fmt: skip
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
        return figure

    # -- verdict

    @property
    def complete(self) -> bool:
        """Whether the runs make the whole line-up: both fusions, each expert alone, the control."""
        return {"weighted", "moe", SHUFFLED, *(f"{e} only" for e in self.experts)} <= set(self.names)

    @functools.cached_property
    def judged(self) -> Judgement:
        """`evaluate.judge`'s table for a whole line-up, that of the students alone otherwise."""
        if self.complete:
            rows = [(n, c) for n, c in self.rows if set(c.vis_roots) == set(self.experts)]
            return judge(self._widest, rows + [row for row in self.rows if row not in rows])
        return judge_students(self.rows, self._widest.workspace.state)

    @property
    def long(self) -> pd.DataFrame:
        return self.judged.long

    @property
    def n(self) -> int:
        return self.summaries[0]["n_held_out"]

    @property
    def against(self) -> str:
        """The student that others are compared with: the plainest there is."""
        return next((n for n in ("uniform", "weighted") if n in self.names), self.names[0])

    @functools.cached_property
    def compared(self) -> pd.DataFrame:
        """The table without seeds that some student lacks: what is compared has the same seeds. It may be empty."""
        seeds = [{c.seed for n, c in self.rows if n == name} for name in dict.fromkeys(self.names)]
        return self.long[self.long["seed"].isin(set.intersection(*seeds))]

    def verdict(self, measure: str = "R@1") -> Figure | None:
        """Every student on retrieval, and against the plainest one.

        None where the students have no seed in common, or a name has no colour in the palette.
        """
        try:
            return (
                None
                if self.compared.empty
                else verdict_figure(self.compared, measure, self.against, self.experts, self.n)
            )
        except ValueError:
            return None

    @property
    def probed(self) -> bool:
        """Whether there are probes of the teacher and all experts to compare with."""
        return self.complete and self.long["measure"].str.startswith("R2 ").any()

    def judgement(self) -> Figure | None:
        """Probes and gap closed; None unless the line-up is whole and the state of the robot is known."""
        return judgement_figure(self.long, self.judged.episodes) if self.probed else None

    def gaps(self) -> pd.DataFrame:
        """`verdicts.gap_closed` of the probes and of retrieval, with intervals over seeds and episodes; or empty."""
        return gap_closed(self.long, episodes=self.judged.episodes) if self.probed else pd.DataFrame()

    def measures(self) -> pd.DataFrame:
        """Measures by models, mean over seeds."""
        return mean_table(self.long).T

    def words(self) -> list[str]:
        """The result in sentences, which say no more than their intervals allow; what to do comes first."""
        seeds = self.compared["seed"].nunique()
        said = [answer(self.long, self.names[0], self.judged.episodes)] if self.probed else []
        said += [advice(self.compared)] if seeds else []
        said.append(f"{self.n} held-out samples, {seeds} seed(s) of every student; R@1 by chance {1 / self.n:.3f}.")
        if seeds:
            result = verdict(self.compared, "R@1", self.against)
            others = [name for name in result.index if name != self.against]
            said.append(f"{self.against}: R@1 {result.loc[self.against, 'mean']:.3f}.")
            said += [compared(result, name, self.against) + "." for name in others]
        if self.probed:
            closed = self.gaps()
            probes = closed[closed["measure"].str.startswith("R2 ") & ~closed["measure"].str.contains(", ")]
            said += [_against_rivals(student, rows) for student, rows in probes.groupby("student", sort=False)]
        own = _held_out(self.main)
        futures: dict[str, dict[str, None]] = {}
        for name, summary in zip(self.names, self.summaries, strict=True):
            futures.setdefault(look_ahead_words(summary), {})[name] = None
        said += [f"{', '.join(names)}: {words}" for words, names in futures.items() if words]
        others = [run.name for run in self.runs if _held_out(run) != own]
        if others:
            said.append(f"Not comparable with {self.main.name}, as judged on other steps: {', '.join(others)}.")
        return said

    # -- step by step

    @functools.cached_property
    def versus(self) -> tuple[str, str, Versus] | None:
        """Names of A and B, and both step by step: the two runs, where there are two; else the plainest and the first.

        Of several seeds those that both have. None where there is one student, or nothing that both hold out.
        """
        if len(self.runs) == 2:
            sides = [([run], run.name) for run in self.runs]
        else:
            other = next((n for n in (self.against, *self.names) if n != self.names[0]), self.names[0])
            seeds = set.intersection(*({c.seed for n, c in self.rows if n == name} for name in (other, self.names[0])))
            runs = list(zip(self.runs, self.rows, strict=True))
            sides = [
                ([r for r, (n, c) in runs if n == name and c.seed in seeds], name) for name in (other, self.names[0])
            ]
        (a, name), (b, other) = sides
        try:
            return None if name == other or not a else (name, other, Versus.of(a, b))
        except InputError:  # other tasks, another split, or a space of its own
            return None

    def versus_words(self) -> str:
        """The comparison in a sentence."""
        if self.versus is None:
            return "No two students of this report hold out the same steps."
        a, b, found = self.versus
        return found.words(f"A ({a})", f"B ({b})")

    def versus_figure(self) -> Figure | None:
        """Ranks of A against those of B, and the steps that changed most; None without two that can be compared."""
        if self.versus is None:
            return None
        a, b = (runs[0] for runs in self.versus[2].runs)
        return versus_figure(self.versus[2], a, b)

    def versus_settings(self) -> pd.DataFrame:
        """Settings in which A and B differ; empty without two to be compared."""
        return differences(*(runs[0] for runs in self.versus[2].runs)) if self.versus else pd.DataFrame()

    def retrievals(self, count: int = 4) -> Figure:
        """The held-out steps of the first run whose own cloud is found best, and worst: each of another episode."""
        table = self.spaces.table[self.spaces.held_out].sort_values(["rank", "error"])
        best, worst = (t.drop_duplicates(["task", "episode"]).index[:count] for t in (table, table[::-1]))
        figure = Figure(figsize=(14, 5.9), layout="constrained")
        halves = np.asarray(figure.subfigures(1, 2))
        for part, rows, said in zip(halves, (best, worst), ("Found best", "Found worst"), strict=True):
            part.suptitle(f"{said}, of {len(table)} held-out steps")
            for column, row in zip(part.subplots(3, count, squeeze=False).T, rows, strict=False):
                self._retrieval(column, row)
        return figure

    def _retrieval(self, column: Sequence[Axes], row: int) -> None:
        """One step: its frame, its own cloud, and the cloud that the student finds first."""
        spaces, workspace = self.spaces, self.main.config.workspace
        (found,), (cosine,) = spaces.nearest(row, "student", 1)
        keys = [tuple(spaces.keys.loc[i, ["task", "episode", "step"]]) for i in (row, found)]
        file = rgb_file(workspace, *keys[0])
        own, first = (step_cloud(workspace, self.pairing, *key) for key in keys)
        for axes in column:
            axes.axis("off")
        if file:
            column[0].imshow(read_image(file))
        draw_cloud(column[1], own and own[0])
        draw_cloud(column[2], first and first[0])
        column[0].set_title(plain("\n".join(keys[0])), fontsize=8)
        column[1].set_title(f"its own cloud: rank {spaces.rank[row]}", fontsize=8)
        who = "its own" if found == row else plain(f"{keys[1][0]}\n{keys[1][1]} {keys[1][2]}")
        column[2].set_title(f"found first, cosine {cosine:.2f}:\n{who}", fontsize=8)

    # -- maps and reproducibility

    @functools.cached_property
    def spaces(self) -> Spaces:
        return Spaces.of(self.main)

    def overview(self) -> pd.DataFrame:
        """One row a run: what it is, how long it trained, and what it found."""
        lines = {}
        for run, name, config, s in zip(self.runs, self.names, self.configs, self.summaries, strict=True):
            lines[run.name] = {"student": name, "experts": ", ".join(config.vis_roots), "seed": config.seed,
                               "steps": config.steps, "R@1": s["held-out"]["R@1"], "CKA": s["held-out"]["CKA"],
                               "data hash": s["data_hash"]}  # fmt: skip
        return pd.DataFrame.from_dict(lines, orient="index")

    def reproducibility(self) -> pd.DataFrame:
        """Versions, commit, data hash, seed, and the command that trains the first run again."""
        config = self.main.config
        rows = {"run": self.main.name, "seed": config.seed, "data hash": self.summaries[0]["data_hash"],
                "commit of the code that reports": commit(), "Python": platform.python_version()}  # fmt: skip
        rows |= {name: version(name) for name in PACKAGES} | {"command": config.command()}
        return pd.DataFrame({"value": {k: str(v) for k, v in rows.items()}})


def line_up_runs(config: Config, seeds: int, out: Path) -> list[Run]:
    """The judged runs, MoE first: the line-up (all must be finished), and the ablations that have every seed."""
    core = line_up(config, seeds, out)
    extra = [row for row in line_up(config, seeds, out, ablations=True) if row not in core]
    unfinished = {name for name, c in extra if not Run(c.folder).holds(c)}
    rows = core + [row for row in extra if row[0] not in unfinished]
    rows.sort(key=lambda row: (row[0] != "moe", row[0] != "weighted"))
    return [Run.open(c.folder) for _, c in rows]


def _against_rivals(student: str, rows: pd.DataFrame) -> str:
    """What the probes' lines of `gap_closed` say of a student where the teacher is better than the best rival."""
    gaps = rows[rows["a gap"] == "yes"]
    ahead = f"Probes: the teacher is better than the best rival on {len(gaps)} of {len(rows)}"
    if gaps.empty:
        return f"{ahead}, so there is no gap that {student} could close."
    by = gaps["measure"].str.removeprefix("R2 ").groupby(gaps["student is"]).agg(", ".join)
    return f"{ahead}; there {student} is " + "; ".join(f"{said} on {names}" for said, names in by.items()) + "."


def _held_out(run: Run) -> set:
    e = run.embeddings()
    return set(zip(*(e[k][e["held_out"]].tolist() for k in ("task", "episode", "step")), strict=True))


def table(frame: pd.DataFrame, digits: int = 3, kind: str = "numbers") -> HTML:
    """A table whose every name is escaped; `kind` "texts" lets long texts wrap.

    >>> "<b>" in table(pd.DataFrame({"<b>": ["<b>"]})).data
    False
    """
    frame = frame.rename_axis(None).rename_axis(None, axis=1)
    style = {"border": 0, "classes": kind, "na_rep": "-", "float_format": lambda v: f"{v:.{digits}f}"}
    return HTML(frame.to_html(escape=True, **style))


def bullets(sentences: Sequence[str]) -> HTML:
    """A list whose every sentence is escaped.

    >>> bullets(["a < b"]).data
    '<ul><li>a &lt; b</li></ul>'
    """
    return HTML("<ul>" + "".join(f"<li>{html.escape(s)}</li>" for s in sentences) + "</ul>")
