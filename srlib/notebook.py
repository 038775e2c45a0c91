"""What every notebook begins with: `from srlib.notebook import *`.

The tools (np, pd, plt, torch, display, Markdown, HTML), the run folder (`open_run`), images and their measures, the networks of a run, and figures.
What a notebook is about it imports where it speaks of it.
"""

from __future__ import annotations

import ast
import inspect

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import HTML, Markdown, display
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from . import metrics
from .config import Config, departures
from .data.reading import read_image, read_pair
from .degrade import downsample, held_by, project, to_image, to_tensor, upsample
from .device import pick_device
from .figures import panels, plots
from .files import read_table
from .metrics.regions import valid_region
from .series.opening import open_run
from .trained import load_generator
from .upscaling import samples, upscale

__all__ = [
    "HTML", "Markdown", "answer", "departures_table", "display", "downsample", "fold", "held_by", "load_generator", "metrics", "np",
    "open_run", "panels", "pd", "pick_device", "plots", "plt", "project", "read_image", "read_pair", "read_table", "samples", "source", "to_image", "to_tensor", "torch", "upsample",
    "upscale", "valid_region",
]  # fmt: skip


def source(thing) -> HTML:
    """The code of a class or function as it stands in srlib, without docstrings."""
    style = HtmlFormatter(noclasses=True, prestyles="font-family: monospace; line-height: 1.35", style="friendly")
    return HTML(highlight(f"# {inspect.getmodule(thing).__name__}\n{plain_code(thing)}", PythonLexer(), style))


def plain_code(thing) -> str:
    """The source of a class or function without docstrings."""
    text = inspect.cleandoc("\n" + inspect.getsource(thing))
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node, clean=False):
            first = node.body[0]
            lines[first.lineno - 1 : first.end_lineno] = [None] * (first.end_lineno - first.lineno + 1)
    kept = [line for line in lines if line is not None]
    return "\n".join(line for k, line in enumerate(kept) if line or not (k and kept[k - 1].rstrip().endswith(":")))


def fold(table: pd.DataFrame, rows: int = 6) -> HTML:
    """A table that shows its first rows; the rest folds open."""
    with pd.option_context("display.max_colwidth", None):
        shown, rest = table.iloc[:rows].to_html(), table.iloc[rows:].to_html()
    more = len(table) - rows
    return HTML(shown + (f"<details><summary>{more} more rows</summary>{rest}</details>" if more > 0 else ""))


def departures_table(config: Config, *stages: str) -> HTML:
    """What departs from the paper in these stages: what the profile changes, and what no setting changes (`config.departures`)."""
    rows = [row for stage in stages for row in departures(config, stage)]
    table = pd.DataFrame(rows, columns=["setting", "paper", "here", "meaning"]).set_index("setting")
    with pd.option_context("display.max_colwidth", None):
        return HTML('<div style="text-align:left">' + table.to_html().replace("<td>", '<td style="text-align:left">') + "</div>")


def answer(yours, right) -> None:
    """Print an exercise's answer beside the right one; while it is None, that it is to come."""
    if yours is None:
        return print("your answer: not given yet")
    same = np.allclose(yours, right, rtol=1e-3, atol=1e-6)
    print(f"your answer: {yours}, right: {right:.5g}" + ("; well done" if same else ""))
