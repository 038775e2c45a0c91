"""In a headless Chromium: the notebooks in the real JupyterLab (Run All, outputs, pictures, links), and the
report of what they made at three widths, light and dark."""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest

from srlib.commands.report import build_report
from srlib.files import REPOSITORY
from srlib.series.run_folder import NOTEBOOKS

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not BROWSER, reason="needs chromium on the PATH, which this machine lacks")]
FLAGS = ("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking", "disable-component-update",
         "disable-sync", "disable-dev-shm-usage", "remote-debugging-port=0", "window-size=1400,1000")  # fmt: skip


class Page:
    """One tab of the browser; `js` gives the value of an expression, which may be a promise."""

    def __init__(self, url: str):
        import websocket  # websocket-client comes with jupyter-server

        self.socket, self.count = websocket.create_connection(url, timeout=300, suppress_origin=True), 0

    def call(self, method: str, **params):
        self.count += 1
        self.socket.send(json.dumps({"id": self.count, "method": method, "params": params}))
        while (answer := json.loads(self.socket.recv())).get("id") != self.count:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def js(self, expression: str):
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, expression: str, seconds: float):
        """The expression's value once it is true."""
        deadline = time.monotonic() + seconds
        while not (value := self.js(expression)):
            assert time.monotonic() < deadline, f"not in {seconds} s: {expression}"
            time.sleep(0.5)
        return value


@contextlib.contextmanager
def started(command, log: Path, **kwargs):
    with open(log, "w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, **kwargs)
    try:
        yield process
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        process.kill()


def answered(what, seconds: float = 90):
    """What `what()` returns, tried until it does not fail."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return what()
        except (OSError, ValueError):
            assert time.monotonic() < deadline
            time.sleep(0.3)


@contextlib.contextmanager
def browsing(folder: Path):
    """A tab of a new browser, whose files lie in `folder`."""
    browser = [BROWSER, *(f"--{flag}" for flag in FLAGS), f"--user-data-dir={folder / 'browser'}", "about:blank"]
    with started(browser, folder / "browser.log"):
        tools = answered(lambda: (folder / "browser/DevToolsActivePort").read_text().splitlines()[0])
        tabs = answered(lambda: json.load(urllib.request.urlopen(f"http://127.0.0.1:{tools}/json", timeout=5)))
        yield Page(next(t["webSocketDebuggerUrl"] for t in tabs if t["type"] == "page"))


@pytest.fixture
def lab(tmp_path):
    """A tab on JupyterLab, which serves copies of the notebooks with the smoke profile; (page, address)."""
    (tmp_path / "srlib").symlink_to(REPOSITORY / "srlib")  # found from the notebooks' folder, as in the repository
    (tmp_path / "notebooks").mkdir()
    for path in (REPOSITORY / "notebooks").glob("*.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        cell = next(c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
        cell.source = f'profile = "smoke"\nrun_dir = {str(tmp_path / "run")!r}\ndata = ""\noverrides = {{}}'
        nbformat.write(notebook, tmp_path / "notebooks" / path.name)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--ServerApp.port={port}", "--IdentityProvider.token=",
              "--expose-app-in-browser", f"--ServerApp.root_dir={tmp_path / 'notebooks'}"]  # fmt: skip
    own = {f"JUPYTER_{name}_DIR": str(tmp_path / name.lower()) for name in ("CONFIG", "RUNTIME")}
    with started(server, tmp_path / "lab.log", env=os.environ | own, cwd=tmp_path), browsing(tmp_path) as page:
        address = f"http://127.0.0.1:{port}"
        answered(lambda: urllib.request.urlopen(f"{address}/api", timeout=5).read())
        yield page, address


def test_run_all_in_jupyterlab_and_the_report(lab, tmp_path):
    """All seven notebooks, one after the other, by Run All; each link at the end opens the next. And the report."""
    page, address = lab
    page.call("Emulation.setFocusEmulationEnabled", enabled=True)  # a headless page has no focus, so that no tab would be the current one
    names = [name for name, _, _ in NOTEBOOKS.values()]
    page.call("Page.navigate", url=f"{address}/lab/tree/{names[0]}.ipynb")
    for name, following in zip(names, [*names[1:], names[0]], strict=True):
        opened = f"[...(window.jupyterapp?.shell?.widgets('main') ?? [])].find(w => w.context?.path === '{name}.ipynb')"
        page.wait(f"{opened}?.sessionContext.session?.kernel?.status === 'idle'", 120)
        page.js(f"jupyterapp.shell.activateById({opened}.id)")
        page.js("jupyterapp.commands.execute('notebook:run-all-cells').then(() => true)")
        cells = f"{opened}.content.model.toJSON().cells.filter(c => c.cell_type === 'code')"
        page.wait(f"{cells}.every(c => c.execution_count)", 280)
        outputs = json.loads(page.js(f"JSON.stringify({cells}.flatMap(c => c.outputs))"))
        assert "error" not in [o["output_type"] for o in outputs], name
        assert sum("image/png" in o.get("data", {}) for o in outputs) >= 2, name
        warned = ["".join(o["text"]) for o in outputs if o["output_type"] == "stream" and o["name"] == "stderr"]
        assert not [text for text in warned if "%|" not in text], warned  # progress bars aside
        page.js(f"{opened}.content.scrollToItem(0).then(() => true)")
        page.wait("[...document.querySelectorAll('.jp-Notebook img')].some(i => i.complete && i.naturalWidth > 100)", 30)
        page.js(f"{opened}.content.scrollToItem({opened}.content.widgets.length - 1).then(() => true)")
        link = f"[...document.querySelectorAll('.jp-RenderedMarkdown a[href*=\"{following}\"]')].find(a => a.offsetParent)"
        page.wait(f"!!{link}", 30)
        page.js(f"{link}.click()")
        page.wait(f"[...jupyterapp.shell.widgets('main')].some(w => w.context?.path === '{following}.ipynb')", 60)
        page.js(f"{opened}.sessionContext.shutdown().then(() => true)")
    (tmp_path / "second").mkdir()
    with browsing(tmp_path / "second") as page:  # JupyterLab would ask before it is left
        report_fits(page, build_report(tmp_path / "run"))


WIDER = """[...document.body.querySelectorAll('*')].filter(e => {
  for (let box = e.parentElement; box; box = box.parentElement) if (getComputedStyle(box).overflowX === 'auto') return false;
  return e.getBoundingClientRect().right > document.documentElement.clientWidth + 1 }).map(e => e.outerHTML.slice(0, 80))"""


def report_fits(page: Page, report: Path) -> None:
    """At three widths, light and dark: nothing is wider than the page, every picture is there, the links lead somewhere."""
    page.call("Page.enable")
    page.call(
        "Page.addScriptToEvaluateOnNewDocument", source="window.wrong = []; addEventListener('error', e => wrong.push(e.message), true)"
    )
    for width in (1280, 1024, 390):
        page.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500)
        for scheme in ("light", "dark"):
            page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
            page.call("Page.navigate", url=f"file://{report}?{width}{scheme}")
            page.wait(f"location.search === '?{width}{scheme}' && document.readyState === 'complete' && document.images.length > 5", 60)
            page.js("document.querySelectorAll('details').forEach(d => d.open = true)")
            assert not page.js(WIDER), (width, scheme)
            assert page.js("[...document.images].every(i => i.complete && i.naturalWidth > 10)") and not page.js("wrong")
            ink, paper = (page.js(f"getComputedStyle(document.body).{what}") for what in ("color", "backgroundColor"))
            assert (sum(map(int, re.findall(r"\d+", ink))) < sum(map(int, re.findall(r"\d+", paper)))) == (scheme == "light")
    anchors = page.js("[...document.querySelectorAll('nav a')].map(a => !!document.querySelector(a.getAttribute('href')))")
    assert len(anchors) == 7 and all(anchors)
