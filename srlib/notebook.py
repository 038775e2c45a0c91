"""What the notebooks show of srlib's code and settings, and how they ask."""

import ast
import inspect

import numpy as np
import pandas as pd
from IPython.display import HTML
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from .config import Config, departures


def source(thing) -> HTML:
    """The code of a class or function as it stands in srlib, without docstrings."""
    box = "font-family: monospace; padding: 8px; background: #f0f0f0; color: #222222"  # light in a dark notebook, too
    style = HtmlFormatter(noclasses=True, prestyles=box, style="friendly")
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
