import io

import pandas as pd
import pytest
from matplotlib.figure import Figure

from rgb2pc_lib.views.paper import LEAST, WIDTH, column_width, save_table
from rgb2pc_lib.views.plots import save_figure


@pytest.fixture
def figure():
    figure = Figure(figsize=(14, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([0, 1], [1, 3], "o-", label="loss", lw=2)
    left.legend(fontsize=8)
    left.set(xlabel="step", title="Loss")
    right.scatter([0, 1], [2, 1], s=80)
    return figure


def test_a_figure_is_as_wide_as_a_page_and_then_as_it_was(figure):
    line, title = figure.axes[0].lines[0], figure.axes[0].title
    before = line.get_linewidth(), title.get_fontsize(), figure.axes[1].collections[0].get_sizes().tolist()
    with column_width(figure):
        assert figure.get_size_inches()[0] == WIDTH and line.get_linewidth() == pytest.approx(1)
        figure.savefig(io.BytesIO(), format="pdf")
        shown = [t for t in figure.findobj(lambda a: hasattr(a, "get_fontsize")) if t.get_text()]
        assert min(t.get_fontsize() for t in shown) >= LEAST
    assert figure.get_size_inches().tolist() == [14, 5]
    assert before == (line.get_linewidth(), title.get_fontsize(), figure.axes[1].collections[0].get_sizes().tolist())


def test_a_figure_and_a_table_in_all_kinds(figure, tmp_path):
    save_figure(figure, "loss", tmp_path / "figures", run="here")
    save_table(pd.DataFrame({"R2_a": [0.12345]}, index=["50 % of x"]), "loss", tmp_path / "figures")
    assert sorted(p.suffix for p in (tmp_path / "figures").iterdir()) == [
        ".csv", ".json", ".pdf", ".png", ".svg", ".tex",
    ]  # fmt: skip
    assert (tmp_path / "figures" / "loss.pdf").read_bytes().startswith(b"%PDF")
    text = (tmp_path / "figures" / "loss.tex").read_text()
    assert "0.123" in text and r"50 \% of x" in text and r"R2\_a" in text
