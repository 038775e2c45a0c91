"""How srlib is built: imports run one way, nothing private crosses a file, folders stay small."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from srlib.__main__ import COMMANDS
from srlib.files import REPOSITORY

SRLIB = REPOSITORY / "srlib"
# each room imports what stands before it, and itself
ORDER = ("profiles", "config", "files", "device", "degrade", "data", "models", "metrics", "sampler/network", "sampler/statistics", "trained", "upscaling", "training",
         "sampler", "evaluation", "sampler/evaluation", "figures", "series",
         "notebook", "commands", "__main__")  # fmt: skip
FILES = sorted(SRLIB.rglob("*.py"))
COMMAND_FILES = sorted((SRLIB / "commands").glob("*.py"))
CORE = [f for f in FILES if f not in COMMAND_FILES]
# What was reached; a feature that needs room says what leaves. Lines do not grow wider instead.
BUDGETS = {"srlib outside of commands": (CORE, 5_883, 323_210), "srlib/commands": (COMMAND_FILES, 1_684, 98_100),
           "tests": (sorted((REPOSITORY / "tests").glob("*.py")), 6_990, 365_400)}  # fmt: skip


def imports(file: Path):
    """(module below srlib, names) of each import of srlib in a file."""
    package = file.relative_to(SRLIB).parts[:-1]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            yield [*base, *(node.module or "").split(".")] if node.module else list(base), [a.name for a in node.names]


def modules(file: Path) -> set[Path]:
    """The files of srlib that a file imports, the faces of their folders among them."""
    found = set()
    for module, names in imports(file):
        found |= files_of(module, names)
    return found


def files_of(module: list[str], names: list[str]) -> set[Path]:
    """The files behind `from srlib.MODULE import NAMES`."""
    wanted = [SRLIB.joinpath(*module, name) for name in names] + [SRLIB.joinpath(*module[:k]) for k in range(len(module) + 1)]
    return {file for place in wanted for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()}


def test_srlib_is_what_a_notebook_imports():
    """Every file outside of commands/ is reached from a notebook's code cells; the two that `python -m` starts excepted."""
    reached: set[Path] = set()
    for notebook in (REPOSITORY / "notebooks").glob("*.ipynb"):
        for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
            for node in ast.walk(ast.parse("".join(cell["source"]))) if cell["cell_type"] == "code" else ():
                if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "srlib":
                    reached |= files_of(node.module.split(".")[1:], [a.name for a in node.names])
    waiting = list(reached)
    while waiting:
        new = modules(waiting.pop()) - reached
        reached |= new
        waiting += new
    assert not reached & set(COMMAND_FILES), "a notebook imports a command"
    unused = [f.relative_to(SRLIB).as_posix() for f in CORE if f not in reached and f.stem != "__main__"]
    assert not unused, f"no notebook imports {unused}: a command's own file belongs into srlib/commands"


def test_commands_are_imported_by_nothing_and_each_is_started_by_its_name():
    for file in CORE:
        if file != SRLIB / "__main__.py":
            assert not modules(file) & set(COMMAND_FILES), file
    with_main = {f.stem for f in COMMAND_FILES if re.search(r"^def main\(argv", f.read_text(encoding="utf-8"), re.M)}
    assert with_main == set(COMMANDS)
    assert len((SRLIB / "__main__.py").read_text().splitlines()) <= 25


@pytest.mark.parametrize("room", BUDGETS)
def test_budgets(room):
    files, lines, size = BUDGETS[room]
    counted = sum(len(f.read_text(encoding="utf-8").splitlines()) for f in files)
    assert counted <= lines, f"{room} has {counted} lines, {lines} were reached: what leaves for what came?"
    assert sum(f.stat().st_size for f in files) <= size, "lines grew wider"


def place(*path: str) -> int:
    """Where a file stands in ORDER: by its room, or by itself."""
    return ORDER.index("/".join(path[:2])) if "/".join(path[:2]) in ORDER else ORDER.index(path[0])


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.relative_to(SRLIB).as_posix())
def test_imports_run_one_way_and_nothing_private_crosses(file):
    parts = file.relative_to(SRLIB).with_suffix("").parts
    for module, names in imports(file):
        rooms = [module] if len(module) > 1 else [[*module, name] for name in names]
        for room in rooms:
            assert parts[-1] in ("__init__", "__main__") or place(*room) <= place(*parts), f"{'/'.join(parts)} imports {'/'.join(room)}"
        assert not [n for n in names if n.startswith("_") and not n.startswith("__")], f"{'/'.join(parts)} imports {names}"


def test_no_circle():
    """Within a room, too, whatever is imported at the top of a file or in a function."""
    names = {f.relative_to(SRLIB).with_suffix("").as_posix().removesuffix("/__init__"): f for f in FILES}
    arrows = {name: set() for name in names}
    for name, file in names.items():
        for module, found in imports(file):
            for target in ["/".join([*module, n]) for n in found] + ["/".join(module)]:
                if target in names and target != name:
                    arrows[name].add(target)
                    break
    while free := [name for name, targets in arrows.items() if not targets]:
        for name in free:
            del arrows[name]
        for targets in arrows.values():
            targets.difference_update(free)
    assert not arrows, arrows


def test_rooms_are_small():
    for folder in {f.parent for f in FILES}:
        files = [f for f in folder.iterdir() if f.suffix == ".py" and f.stem not in ("__init__", "__main__")]
        assert len(files) <= 14, folder


def test_pip_and_conda_name_the_same_packages():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    named = {name for names in (project["dependencies"], *project["optional-dependencies"].values()) for name in names}
    pins = set(re.findall(r"^ +- ([\w-]+)==", (REPOSITORY / "environment.yml").read_text(), re.M))
    assert named == pins


def test_every_room_is_installed():
    tool = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]
    rooms = {".".join(f.parent.relative_to(REPOSITORY).parts) for f in FILES}
    assert rooms == {p for p in tool["packages"] if p not in tool["package-dir"]}


@pytest.mark.slow
def test_an_installed_srlib_works_elsewhere(tmp_path):
    """`pip install`ed, without a clone: `srlib` draws a phantom, upscales it, finds the notebooks."""
    site, pip = tmp_path / "site", [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check"]
    done = subprocess.run([*pip, "--target", str(site), str(REPOSITORY)], capture_output=True, text=True)
    if done.returncode and ("No matching distribution" in done.stderr or "connection" in done.stderr.lower()):
        pytest.skip("pip cannot get setuptools: no network")
    assert done.returncode == 0, done.stderr
    around = {"PYTHONPATH": str(site), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}

    def srlib(*words):
        return subprocess.run(
            [sys.executable, str(site / "bin" / "srlib"), *words], cwd=tmp_path, env=around, capture_output=True, text=True
        )

    for words in (("phantom", "scan.png"), ("upscale", "scan.png", "sr.png")):
        done = srlib(*words)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "sr.png").exists()
    done = srlib("sweep", "features", "--list", "--profile", "smoke")
    assert done.returncode == 0 and str(tmp_path / "runs" / "sweeps") in done.stdout, done.stderr
