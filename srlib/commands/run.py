"""Run the notebooks in order through papermill, into a run folder; stop and continue cleanly."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import sys
import threading
import time
import warnings
from pathlib import Path

from ..config import OutOfTime, UserError
from ..files import NOTEBOOK_FOLDER
from ..series.opening import UNTRAINED, open_run
from ..series.run_folder import NOTEBOOKS, Run, run_path
from . import absolute, add_settings, parser, read_settings
from .report import build_report

STOP_SECONDS = 60  # that an interrupted cell gets to save
LOG_SECONDS = 15  # between progress lines where the output is no terminal


class NotebookError(UserError):
    """A notebook failed: which, in which cell, and its message."""


class Paused(KeyboardInterrupt):
    """`max_hours` ended a training as planned, saved. A caller that does not tell it apart sees an interrupt: exit status 130."""


def run_series(
    profile: str = "quick",
    run_dir: str = "",
    data: str = "",
    overrides: dict | None = None,
    start: str | None = None,
    only: str | None = None,
) -> Path:
    """Run the notebooks that are not finished; `start` begins at one, `only` runs one, finished or not. Returns the report's path.

    Raises UserError for settings that cannot be, NotebookError where a notebook fails, KeyboardInterrupt on SIGINT and SIGTERM
    (the kernel was stopped, what it trained is saved), Paused where `max_hours` ended a training.
    """
    for number in (start, only):
        if number is not None and number not in NOTEBOOKS:
            raise UserError(f"there is no notebook {number!r}; there are {', '.join(NOTEBOOKS)}")
    numbers = [only] if only else [n for n in NOTEBOOKS if start is None or n >= start]
    folder = run_path(profile, run_dir).resolve()
    parameters = {"profile": profile, "run_dir": str(folder), "data": data, "overrides": overrides or {}}
    with Run(folder, None).lock():
        began = os.environ.get("SRLIB_STARTED")  # a session that is older than this call: `max_hours` counts from there
        os.environ |= {"SRLIB_LOCKED": str(folder), "SRLIB_STARTED": began or str(time.time())}
        try:
            run = open_run(numbers[0], **parameters)
            print(f"run folder: {folder}", flush=True)
            if run.config.networks:
                numbers = [n for n in numbers if n in UNTRAINED]
                print(f"nothing is trained, {run.config.networks} is measured: notebooks {', '.join(numbers)}", flush=True)
            for number in numbers:
                _run_notebook(run, number, parameters, asked=bool(start or only))
        finally:
            del os.environ["SRLIB_LOCKED"]
            if not began:
                del os.environ["SRLIB_STARTED"]
        return build_report(folder)


def _run_notebook(run: Run, number: str, parameters: dict, asked: bool) -> None:
    name, stage, _ = NOTEBOOKS[number]
    out = run.folder / "notebooks" / f"{name}.ipynb"
    depends = stage or ("data" if number == "02" else "evaluation")
    earlier = run.provenance["notebooks"].get(number, {})
    finished = out.exists() and earlier.get("fingerprint") == run.fingerprint(depends)
    if finished and not asked:
        print(f"[{number}/06] {name}: finished earlier, skipped (--from {number} does it again)", flush=True)
        return
    before = run.provenance["stages"].get(stage, {}).get("fingerprint")
    if run.is_trained(depends) and asked and (finished or before != run.fingerprint(depends)):  # train again, and keep the earlier one
        kept = run.folder / f"{stage}-{time.strftime('%Y%m%d-%H%M%S')}"
        (run.folder / stage).rename(kept)
        print(f"        the earlier training is kept in {kept}", flush=True)
    print(f"[{number}/06] {name}", flush=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    run.record("notebooks", number, fingerprint=None)  # until it has ended
    begin = time.monotonic()
    _execute(NOTEBOOK_FOLDER / f"{name}.ipynb", out, parameters)
    seconds = round(time.monotonic() - begin, 1)
    run.record("notebooks", number, seconds=seconds, fingerprint=run.fingerprint(depends))
    print(f"        done in {seconds:.0f} s", flush=True)


def _execute(notebook: Path, out: Path, parameters: dict) -> None:
    """papermill in a thread, so that the main thread can take signals and hand them to the kernel."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import papermill
        from papermill.clientwrap import PapermillNotebookClient
        from papermill.engines import NBClientEngine, papermill_engines

    logging.getLogger("papermill").setLevel(logging.ERROR)
    kernels, failure = [], []

    class Client(PapermillNotebookClient):
        def start_new_kernel(self, **kwargs):
            # this Python, not that of a kernelspec "python3" of the user's
            self.km.kernel_spec.argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
            super().start_new_kernel(**kwargs)
            kernels.append(self.km)

    class Engine(NBClientEngine):
        @classmethod
        def execute_managed_notebook(cls, nb_man, kernel_name, **kwargs):
            for unused in ("input_path", "timeout", "startup_timeout", "start_timeout", "execution_timeout"):
                kwargs.pop(unused, None)
            quiet = ["--IPKernelApp.log_level=50"]  # no word on loopback TCP, nor on the interrupt that ends it
            return Client(nb_man, kernel_name=kernel_name, extra_arguments=quiet, **kwargs).execute()

    papermill_engines.register("srlib", Engine)

    def work():
        try:
            paths = (str(path).replace("{", "{{").replace("}", "}}") for path in (notebook, out))  # papermill would fill them in
            papermill.execute_notebook(
                *paths, parameters, engine_name="srlib", kernel_name="python3", cwd=str(NOTEBOOK_FOLDER),
                progress_bar=False, coalesce_streams=True, stdout_file=_Progress(False), stderr_file=_Progress(True),
            )  # fmt: skip
        except BaseException as error:  # handed to the main thread
            failure.append(error)

    worker = threading.Thread(target=work, daemon=True)
    asked = []
    old = {s: signal.signal(s, lambda number, frame: asked.append(time.monotonic())) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        worker.start()
        told = 0
        while worker.is_alive():
            worker.join(0.2)
            if asked and kernels and not told:
                print("\n        stopping: waiting for the notebook to save", flush=True)
                asyncio.run(kernels[0].interrupt_kernel())
                told = 1
            if told == 1 and (len(asked) > 1 or time.monotonic() - asked[0] > STOP_SECONDS):
                asyncio.run(kernels[0].provisioner.kill())
                told = 2
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
    if asked:
        raise KeyboardInterrupt
    if failure:
        raise _explain(notebook, failure[0]) from None


def _explain(notebook: Path, error: BaseException) -> BaseException:
    if hasattr(error, "evalue"):  # papermill's PapermillExecutionError
        if error.ename == OutOfTime.__name__:
            print(f"        {error.evalue}", flush=True)
            return Paused()
        full = f"{error.ename}: {error.evalue}"
        message = error.evalue if error.traceback == [full] else full  # of a UserError, whatever its class, that is all a kernel shows
        return NotebookError(f"{notebook.stem}, cell [{error.exec_count}]: {message}")
    return NotebookError(f"{notebook.stem}: {type(error).__name__}: {error}")


class _Progress:
    """What a kernel prints: of stdout only the trainings' and the evaluation's lines ("name: ..."), of stderr everything. Progress
    bars are one updating line on a terminal, and now and then a line in a log."""

    def __init__(self, everything: bool):
        self.everything, self.shown, self.open = everything, 0.0, False

    def write(self, text: str) -> None:
        for line in re.split(r"[\r\n]+", text):
            if "%|" in line:
                self._bar(line)
            elif line.strip() and (self.everything or re.match(r"\w+: ", line)):
                self._end_bar()
                print(f"        {line}", flush=True)

    def _bar(self, line: str) -> None:
        ended = "100%|" in line
        if sys.stdout.isatty():
            print(f"\r        {line}\x1b[K", end="\n" if ended and self.open else "", flush=True)
            self.open = not ended
        elif ended or time.monotonic() - self.shown > LOG_SECONDS:
            self.shown = time.monotonic()
            print(f"        {line}", flush=True)

    def _end_bar(self) -> None:
        if self.open:
            print()
            self.open = False

    def flush(self) -> None:
        sys.stdout.flush()


def main(argv: list[str]) -> int:
    words = parser("run", "Run the notebooks into a run folder; the same command continues a run that was stopped.")
    add_settings(words, "quick")
    words.add_argument("--run-dir", default="", help="folder for everything the run writes (default: runs/PROFILE)")
    which = words.add_mutually_exclusive_group()
    which.add_argument("--from", dest="start", metavar="NN", help="begin with notebook NN, also where it is finished")
    which.add_argument("--only", metavar="NN", help="run notebook NN alone, also where it is finished")
    words.add_argument("--gpus", type=int, metavar="N", help="train on so many GPUs (default: all), as -p gpus N")
    args = words.parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # TERM stops as Ctrl-C does, between notebooks too
    data, overrides = read_settings(args)
    if args.gpus is not None:
        overrides["gpus"] = args.gpus
    try:
        report = run_series(args.profile, absolute(args.run_dir), data, overrides, args.start, args.only)
    except NotebookError as error:  # its executed copy holds the traceback
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"report: {report}")
    return 0
