"""The report as its reader gets it: a file opened from disk, without network, whose names try to be scripts."""

import pytest
import tiny

from rgb2pc_lib.judging.evaluate import line_up, train_line_up
from rgb2pc_lib.learning.config import Config
from rgb2pc_lib.views.report import Report, line_up_runs
from rgb2pc_lib.views.report_html import execute, write_html

TASKS = ("pull", "<img src=x onerror=alert(1)>", "<script>alert(2)<script>")
EVIL = "</script><script>alert(3)</script>"  # a title may hold what a folder's name cannot


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    workspace = tiny.make(tmp_path_factory.mktemp("data"), tasks=TASKS, steps=12)
    config = Config(validation=0.0, steps=5, batch_size=8, student_tokens=4, fuse_dim=8, moe_hidden=8, eval_every=0)
    out = tmp_path_factory.mktemp("runs")
    for _ in train_line_up(line_up(config.with_workspace(workspace), 2, out)):
        pass
    runs = line_up_runs(config.with_workspace(workspace), 2, out)
    assert Report(runs).complete
    return write_html(execute(RUN_FOLDERS=[str(r.folder) for r in runs]), out / "report.html", EVIL)


def test_report_opens_offline_with_every_figure(chromium, page_file, tmp_path):
    context = chromium.new_context(viewport={"width": 1200, "height": 900}, offline=True)
    page = context.new_page()
    problems, dialogs, asked = [], [], []
    page.on("console", lambda m: m.type == "error" and problems.append(m.text))
    page.on("pageerror", lambda e: problems.append(str(e)))
    page.on("dialog", lambda d: (dialogs.append(d.message), d.dismiss()))
    page.on("request", lambda r: asked.append(r.url[:80]))
    page.goto(page_file.as_uri())
    page.wait_for_function("() => document.querySelectorAll('.js-plotly-plot .scatterlayer .point').length > 0")
    page.wait_for_timeout(500)
    pictures = page.evaluate("() => [...document.images].map(i => [i.complete, i.naturalWidth, i.offsetWidth])")
    assert len(pictures) >= 8 and all(done and there > 100 and shown > 100 for done, there, shown in pictures)
    assert page.locator(".js-plotly-plot").count() == 1
    points = page.locator(".js-plotly-plot .scatterlayer .point").count()
    assert points == 2 * 4 * 12 * len(TASKS)  # every sample in both maps
    assert not problems and not dialogs
    assert [u for u in asked if not u.startswith(("file:", "data:", "blob:"))] == []
    assert page.title() == EVIL and page.evaluate("() => document.querySelectorAll('img[src=x]').length") == 0
    legend = page.locator(".js-plotly-plot .legendtext").all_text_contents()
    assert set(legend) == set(TASKS)  # as it is written
    assert all(name in page.locator("table.numbers").first.inner_text() for name in TASKS)
    assert page_file.stat().st_size < 8e6
    context.close()
