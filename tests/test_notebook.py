"""What the notebooks show of code and tables, and how they show figures."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from PIL import Image

from srlib import notebook
from srlib.config import load_config
from srlib.figures import panels
from srlib.models.networks import ResidualBlock
from srlib.series.run_folder import Run


def test_source_has_the_code_and_no_docstring():
    html = notebook.source(ResidualBlock).data
    assert "srlib.models.networks" in html and "ResidualBlock" in html and "departure" not in html
    code = notebook.plain_code(ResidualBlock)
    scope = {"nn": __import__("torch").nn, "torch": __import__("torch")}
    exec(code, scope)
    block, own = ResidualBlock(4, False), scope["ResidualBlock"](4, False)
    own.load_state_dict(block.state_dict())
    x = scope["torch"].rand(1, 4, 5, 5)
    assert scope["torch"].equal(block(x), own(x))


def test_fold_shows_six_rows():
    html = notebook.fold(pd.DataFrame({"a": range(17)})).data
    first, _, rest = html.partition("<details>")
    assert first.count("<tr>") == 6 and "11 more rows" in rest and rest.count("<tr>") == 11  # the heads have a style
    assert "details" not in notebook.fold(pd.DataFrame({"a": range(4)})).data


def test_answer(capsys):
    notebook.answer(None, 2.5)
    notebook.answer(2.5004, 2.5)
    notebook.answer(3, 2.5)
    said = capsys.readouterr().out.splitlines()
    assert said == ["your answer: not given yet", "your answer: 2.5004, right: 2.5; well done", "your answer: 3, right: 2.5"]


def test_departures_are_left_aligned_and_whole():
    html = notebook.departures_table(load_config("quick"), "srgan").data
    assert "gan_steps" in html and "text-align:left" in html and "..." not in html.replace("...;", "")


def test_a_figure_is_shown_marked_and_kept(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    run = Run(tmp_path, load_config("smoke"))
    fig, ax = plt.subplots()
    ax.plot([1, 2])
    run.show(fig, "plot")
    run.show(Image.new("L", (40, 30), 90), "image")
    run.show(Image.new("L", (40, 30), 90), phantom=False)
    assert [s.data[:4] for s in shown] == [b"\x89PNG"] * 3 and not plt.get_fignums()
    assert sorted(p.name for p in (tmp_path / "figures").iterdir()) == ["image.png", "plot.png"]
    assert Image.open(tmp_path / "figures/image.png").size == (40, 54)  # a strip says that it is a phantom's
    scan = 255 - np.pad(np.full((128, 88), 165, "u1"), ((0, 0), (40, 0)))
    page = panels.comparison({"hr": scan}, {}, side=48)
    assert page.crop((200, panels.HEAD, 392, 192 + panels.HEAD)).getextrema()[0][1] < 255
