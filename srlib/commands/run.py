"""`run`: the notebooks in order through papermill, into a run folder; stop and continue cleanly."""

import logging
import os
import re
import signal
import sys
import time
import warnings
from pathlib import Path
from unittest import mock

from ..config import OutOfTime, UserError, load_config
from ..files import NOTEBOOK_FOLDER
from ..series.opening import open_run
from ..series.run_folder import NOTEBOOKS, TRAININGS, Run, locked, run_path
from . import absolute, add_settings, parser, read_settings

STOP_SECONDS = 60  # that an interrupted cell gets to save
LOG_SECONDS = 15  # between progress lines where the output is no terminal


class Paused(KeyboardInterrupt):
    """`max_hours` ended a training as planned, saved. A caller that does not tell it apart sees an interrupt: exit status 130."""


def run_series(profile="quick", run_dir="", data="", overrides: dict | None = None, start="", only="", until="07") -> Path:
    """Run the notebooks that are not finished; `start` begins at one, `only` runs one, finished or not, `until` is the last. Returns the report's path.
    Raises UserError for wrong settings and where a notebook fails, KeyboardInterrupt on SIGINT and SIGTERM (saved), Paused after `max_hours`."""
    from .report import build_report

    if (begin := start or only or "01") not in NOTEBOOKS or begin > until:
        raise UserError(f"there is no notebook {begin!r} up to {until}; there are {', '.join(NOTEBOOKS)}")
    numbers = [only] if only else [n for n in NOTEBOOKS if begin <= n <= until]
    load_config(profile, **(overrides or {}))  # a wrong setting is refused before there is a folder
    folder = run_path(profile, run_dir).resolve()
    parameters = {"profile": profile, "run_dir": str(folder), "data": data, "overrides": overrides or {}}
    # a session that is older than this call: `max_hours` counts from there
    around = {"SRLIB_LOCKED": str(folder), "SRLIB_STARTED": os.environ.get("SRLIB_STARTED") or str(time.time())}
    with locked(folder), mock.patch.dict(os.environ, around):
        run = open_run(begin, **parameters)
        print(f"run folder: {folder}", flush=True)
        for number in numbers:
            _run_notebook(run, number, parameters, bool(start or only), number == begin)
        return build_report(folder)


def _run_notebook(run: Run, number: str, parameters: dict, asked: bool, first: bool) -> None:
    """Execute a notebook, where it is asked for or not finished; a training that is not to go on (the `first`'s) is kept under another name."""
    name, stages, _ = NOTEBOOKS[number]
    out = run.folder / "notebooks" / f"{name}.ipynb"
    depends = (stages or ("data" if number == "02" else "evaluation",))[-1]
    training = next((stage for stage in stages if stage in TRAININGS and run.is_trained(stage)), "")
    finished = out.exists() and run.provenance["notebooks"].get(number, {}).get("fingerprint") == run.fingerprint(depends)
    if finished and not asked:
        print(f"[{number}/07] {name}: finished earlier, skipped (--from {number} does it again)", flush=True)
        return
    if asked and training and ((finished and first) or run.changed(training)):
        kept = (run.folder / training).rename(run.folder / f"{training}-{time.strftime('%Y%m%d-%H%M%S')}")
        print(f"        the earlier training is kept in {kept}", flush=True)
    print(f"[{number}/07] {name}", flush=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    run.record("notebooks", number, fingerprint=None)  # until it has ended
    begin = time.monotonic()
    _execute(NOTEBOOK_FOLDER / f"{name}.ipynb", out, parameters)
    seconds = round(time.monotonic() - begin, 1)
    run.record("notebooks", number, seconds=seconds, fingerprint=run.fingerprint(depends))
    print(f"        done in {seconds:.0f} s", flush=True)


def _execute(notebook: Path, out: Path, parameters: dict) -> None:
    """papermill, whose kernel gets the signals: the first one interrupts the cell, which saves; a second one, or STOP_SECONDS, ends the kernel."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import papermill
    from jupyter_client import AsyncKernelManager

    logging.getLogger("papermill").setLevel(logging.ERROR)
    kernels, asked = [], []

    class Kernel(AsyncKernelManager):
        """A kernel of this Python, not that of a kernelspec "python3" of the user's; without a word on its transport, nor on the interrupt."""

        def format_kernel_cmd(self, extra_arguments=None):
            kernels.append(self)
            return [sys.executable, "-m", "ipykernel_launcher", "-f", self.connection_file, "--IPKernelApp.log_level=50"]

    def stop(*_):
        asked.append(True)
        if not kernels or not kernels[0].has_kernel:
            raise KeyboardInterrupt
        if len(asked) == 1:
            print("\n        stopping: waiting for the notebook to save", flush=True)
            signal.alarm(STOP_SECONDS)
        os.killpg(kernels[0].provisioner.pid, signal.SIGINT if len(asked) == 1 else signal.SIGKILL)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)}
    try:
        paths = (str(path).replace("{", "{{").replace("}", "}}") for path in (notebook, out))  # papermill would fill them in
        papermill.execute_notebook(
            *paths, parameters, kernel_name="python3", kernel_manager_class=Kernel, cwd=str(NOTEBOOK_FOLDER),
            progress_bar=False, coalesce_streams=True, stdout_file=_Progress(False), stderr_file=_Progress(True),
        )  # fmt: skip
    except Exception as error:
        if not asked:
            raise _explain(notebook, error) from None
    finally:
        signal.alarm(0)
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked:
        raise KeyboardInterrupt


def _explain(notebook: Path, error: Exception) -> BaseException:
    """What papermill's error is to the runner: a planned end, or the notebook's failure in one sentence."""
    if not hasattr(error, "evalue"):  # a kernel that died, a notebook that cannot be read
        return UserError(f"{notebook.stem}: {type(error).__name__}: {error}")
    if error.ename == OutOfTime.__name__:
        print(f"        {error.evalue}", flush=True)
        return Paused()
    full = f"{error.ename}: {error.evalue}"
    message = error.evalue if error.traceback == [full] else full  # of a UserError, whatever its class, that is all a kernel shows
    return UserError(f"{notebook.stem}, cell [{error.exec_count}]: {message}")


class _Progress:
    """What a kernel prints: of stdout only the trainings' and the evaluation's lines ("name: ..."), of stderr everything. Progress
    bars are one updating line on a terminal, and now and then a line in a log."""

    def __init__(self, everything: bool):
        self.everything, self.shown = everything, 0.0

    def write(self, text: str) -> None:
        terminal = sys.stdout.isatty()
        for line in filter(str.strip, re.split(r"[\r\n]+", text)):
            bar, ended = "%|" in line, "100%|" in line
            if bar and not terminal and not ended and time.monotonic() - self.shown < LOG_SECONDS:
                continue
            if bar or self.everything or re.match(r"\w+: ", line):
                self.shown = time.monotonic() if bar else self.shown
                print(f"        {line}" + ("\x1b[K" if terminal else ""), end="\r" if bar and terminal and not ended else "\n", flush=True)

    def flush(self) -> None:
        sys.stdout.flush()


def main(argv: list[str]) -> None:
    words = parser("run", "Run the notebooks into a run folder; the same command continues a run that was stopped.")
    add_settings(words, "quick")
    words.add_argument("--run-dir", default="", help="folder for everything the run writes (default: runs/PROFILE)")
    which = words.add_mutually_exclusive_group()
    which.add_argument("--from", dest="start", default="", metavar="NN", help="begin with notebook NN, also where it is finished")
    which.add_argument("--only", default="", metavar="NN", help="run notebook NN alone, also where it is finished")
    words.add_argument("--until", default="07", metavar="NN", choices=[*NOTEBOOKS], help="end with notebook NN: 06 leaves the sampler out")
    words.add_argument("--gpus", type=int, metavar="N", help="train on so many GPUs (default: all), as -p gpus N")
    args = words.parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # TERM stops as Ctrl-C does, between notebooks too
    data, overrides = read_settings(args)
    if args.gpus is not None:
        overrides["gpus"] = args.gpus
    print(f"report: {run_series(args.profile, absolute(args.run_dir), data, overrides, args.start, args.only, args.until)}")
