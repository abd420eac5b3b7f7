"""A real JupyterLab in headless Chromium. A test takes the fixture `nb`:

    def test_something(nb):
        nb.open("02_weighted_vs_moe.ipynb")  # a copy of notebooks/; the originals are never written to
        nb.run_all()                         # every cell, to the end, without an error
        nb.kernel("print(1 + 1)")            # ask the kernel; returns what it printed
        nb.page.locator(".jupyter-button", has_text="Start").click()
        nb.until(lambda: "finished" in nb.text(".rgb2pc-status"))
        nb.theme("Dark")
        nb.shot("running", ".rgb2pc-panel")  # a PNG in $RGB2PC_SHOTS or a temporary folder

Notebooks run with RGB2PC_FAST=1, and keep their runs in a temporary folder that all tests of a session share. For
pictures of the real profile, with the project's own runs: RGB2PC_FAST=0 RGB2PC_SHOTS=figures.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import nbformat
import pytest

from rgb2pc_lib.data.workspace import PROJECT

PATIENCE = 120  # seconds that anything may take on a busy machine
_CHROMIUM = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--use-gl=angle", "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
]  # fmt: skip
_LAB = [
    "--no-browser", "--allow-root", "--ip=127.0.0.1", "--IdentityProvider.token=t", "--ServerApp.password=",
    "--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    "--LabApp.extension_manager=readonly", "--LabApp.expose_app_in_browser=True",
]  # fmt: skip
_SETTINGS = {
    "notebook-extension/tracker": '{"windowingMode": "none"}',
    "apputils-extension/notification": '{"fetchNews": "false"}',
}


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    """The address of a JupyterLab server on a copy of the notebooks."""
    home = tmp_path_factory.mktemp("lab")
    shutil.copytree(PROJECT / "notebooks", home / "notebooks", ignore=shutil.ignore_patterns(".*"))
    for name, body in _SETTINGS.items():
        file = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(body)
    folders = {"JUPYTER_CONFIG_DIR": "config", "JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTER_RUNTIME_DIR": "runtime",
               "JUPYTERLAB_WORKSPACES_DIR": "workspaces"}  # fmt: skip
    fast = os.environ.get("RGB2PC_FAST", "1")
    if fast == "1":
        folders["RGB2PC_RUNS"] = "runs"
    environment = os.environ | {k: str(home / v) for k, v in folders.items()}
    environment |= {"RGB2PC_FAST": fast, "OMP_NUM_THREADS": "1"}
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-m", "jupyter", "lab", f"--port={port}", f"--ServerApp.root_dir={home / 'notebooks'}"]
    with open(home / "lab.log", "w") as log:
        server = subprocess.Popen([*command, *_LAB], env=environment, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    deadline = time.time() + PATIENCE
    while True:
        try:
            urllib.request.urlopen(f"{url}/api?token=t", timeout=5)
            break
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            if server.poll() is not None or time.time() > deadline:
                pytest.fail(f"JupyterLab did not start:\n{(home / 'lab.log').read_text()[-2000:]}")
            time.sleep(0.25)
    yield url
    server.terminate()
    server.wait(60)


@pytest.fixture(scope="module")
def chromium():
    """A browser; closed after each file, as its event loop runs in this thread, where other tests start their own."""
    from playwright.sync_api import Error, sync_playwright

    with sync_playwright() as playwright:
        try:
            found = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
            browser = playwright.chromium.launch(executable_path=found, args=_CHROMIUM)
        except Error as e:
            pytest.fail(f"no Chromium: apt install chromium, or name one in $CHROMIUM ({e})")
        yield browser
        browser.close()


@pytest.fixture
def nb(lab, chromium, request, tmp_path):
    context = chromium.new_context(viewport={"width": 1460, "height": 1000})
    page = context.new_page()
    page.set_default_timeout(PATIENCE * 1000)
    page.on("console", lambda m: m.type == "error" and print("console:", m.text[:300]))
    page.on("pageerror", lambda e: print("page error:", str(e)[:300]))
    notebook = Notebook(page, lab, Path(os.environ.get("RGB2PC_SHOTS") or tmp_path))
    yield notebook
    notebook.shot(f"end-of-{request.node.name}")
    page.evaluate("async () => { await window.__nb?.sessionContext.shutdown() }")
    context.close()


class Notebook:
    """A notebook in the browser. It asks the application and the kernel, not the page, wherever they know better."""

    def __init__(self, page, url: str, shots: Path):
        self.page, self.url, self.shots = page, url, shots

    def open(self, path: str) -> None:
        """Open a notebook (its path below notebooks/) with a fresh kernel, and nothing beside it."""
        self.page.goto(f"{self.url}/lab?reset&token=t")
        self.page.wait_for_function("() => window.jupyterapp")
        self.page.evaluate(_OPEN, path)

    def reload(self) -> None:
        """Save the notebook and load the page anew, as a person does; the kernel lives on."""
        self.page.evaluate("async () => { await window.__nb.context.save() }")
        path = self.page.evaluate("() => window.__nb.context.path")
        self.page.goto(f"{self.url}/lab?token=t")
        self.page.wait_for_function("() => window.jupyterapp")
        self.page.evaluate(_OPEN, path)

    def write(self, path: str, cells: list[str]) -> None:
        """A notebook of these code cells, below notebooks/."""
        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
        book.metadata.kernelspec = {"display_name": "Python 3", "language": "python", "name": "python3"}
        body = json.dumps({"type": "notebook", "format": "json", "content": book}).encode()
        headers = {"Authorization": "token t", "Content-Type": "application/json"}
        urllib.request.urlopen(urllib.request.Request(f"{self.url}/api/contents/{path}", body, headers, method="PUT"))

    def theme(self, name: str) -> None:
        """Light or Dark, as the menu does."""
        self.page.evaluate(_THEME, f"JupyterLab {name}")

    def without_kernel(self) -> None:
        """Save the notebook, end its kernel, and open it anew with none: what a reader finds."""
        self.page.evaluate(
            "async () => { await window.__nb.context.save(); await window.__nb.sessionContext.shutdown() }"
        )
        path = self.page.evaluate("() => window.__nb.context.path")
        self.page.goto(f"{self.url}/lab?reset&token=t")
        self.page.wait_for_function("() => window.jupyterapp")
        self.page.evaluate(_OPEN_DEAD, path)

    def run_all(self) -> None:
        """Run all cells to the end; every one must have run, without an error."""
        cells = self.page.evaluate(_RUN_ALL)
        assert cells and all(count and not errors for count, errors in cells), [e for _, e in cells]

    def run_cell(self, containing: str) -> None:
        """Run the first code cell whose source contains this text, to its end."""
        assert self.page.evaluate(_RUN_CELL, containing), f"no cell contains {containing!r}, or it failed"

    def kernel(self, code: str) -> str:
        """What this code prints in the notebook's kernel, errors included; the history stays as it is."""
        return self.page.evaluate(_EXECUTE, code)

    def restart(self) -> None:
        """Restart the kernel, as the menu does."""
        self.page.evaluate("async () => { await window.__nb.sessionContext.session.kernel.restart() }")

    def text(self, selector: str) -> str:
        """The visible text of the first element that matches."""
        return self.page.locator(selector).first.inner_text()

    def until(self, true, seconds: float = PATIENCE):
        """Poll until `true()` is; returns its value."""
        deadline = time.time() + seconds
        while not (value := true()):
            assert time.time() < deadline, f"not within {seconds} s"
            self.page.wait_for_timeout(50)
        return value

    def shot(self, name: str, selector: str | None = None) -> Path:
        """Screenshot of the page, or of one element, for which the window grows until the whole of it is seen."""
        path = self.shots / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not selector:
            self.page.screenshot(path=path)
            return path
        part, window = self.page.locator(selector).first, self.page.viewport_size
        tall = int(part.bounding_box()["height"]) + 250  # what stands above and below it
        self.page.set_viewport_size(window | {"height": max(window["height"], tall)})
        part.screenshot(path=path)
        self.page.set_viewport_size(window)
        return path


_OPENED = """
  await nb.context.ready; await nb.sessionContext.ready; await nb.revealed;
  if (!app.shell.leftCollapsed) app.shell.collapseLeft();
  if (!app.shell.rightCollapsed) app.shell.collapseRight();
  window.__nb = nb;
"""
_OPEN = f"""async (path) => {{
  const app = window.jupyterapp;
  await app.restored;
  const nb = await app.commands.execute('docmanager:open', {{path, factory: 'Notebook', kernel: {{name: 'python3'}}}});
  {_OPENED}
  await nb.sessionContext.session.kernel.info;
}}"""
_OPEN_DEAD = f"""async (path) => {{
  const app = window.jupyterapp, asked = app.docRegistry.getKernelPreference.bind(app.docRegistry);
  await app.restored;
  app.docRegistry.getKernelPreference = (...a) => ({{...asked(...a), shouldStart: false, canStart: false}});
  const nb = await app.commands.execute('docmanager:open', {{path, factory: 'Notebook'}});
  {_OPENED}
}}"""
_THEME = """async (theme) => {
  await window.jupyterapp.commands.execute('apputils:change-theme', {theme});
  const light = String(!theme.includes('Dark'));
  while (document.body.dataset.jpThemeLight !== light) await new Promise(done => setTimeout(done, 50));
}"""
_RUN_ALL = """async () => {
  const nb = window.__nb;
  window.jupyterapp.shell.activateById(nb.id);
  await window.jupyterapp.commands.execute('notebook:run-all-cells');
  return nb.content.model.sharedModel.toJSON().cells.filter(c => c.cell_type === 'code').map(
    c => [c.execution_count, c.outputs.filter(o => o.output_type === 'error').map(o => o.ename + ': ' + o.evalue)]);
}"""
_RUN_CELL = """async (text) => {
  const nb = window.__nb, cells = nb.content.model.sharedModel.cells;
  const i = cells.findIndex(c => c.cell_type === 'code' && c.source.includes(text));
  if (i < 0) return false;
  nb.content.activeCellIndex = i;
  nb.content.deselectAll();
  window.jupyterapp.shell.activateById(nb.id);
  await window.jupyterapp.commands.execute('notebook:run-cell');
  return !cells[i].toJSON().outputs.some(o => o.output_type === 'error');
}"""
_EXECUTE = """async (code) => {
  const kernel = window.__nb.sessionContext.session.kernel;
  const future = kernel.requestExecute({code, store_history: false});
  let text = '';
  future.onIOPub = m => {
    if (m.header.msg_type === 'stream') text += m.content.text;
    if (m.header.msg_type === 'error') text += m.content.ename + ': ' + m.content.evalue;
  };
  await future.done;
  return text;
}"""
