"""The series when something is wrong, or stops it: a sentence, the right exit status, nothing lost."""

import json
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import psutil  # comes with ipykernel
import pytest
from running import said, srlib

from srlib.config import UserError
from srlib.files import REPOSITORY
from srlib.series.opening import open_run
from srlib.series.run_folder import locked


def test_later_notebooks_name_the_missing_stage(tmp_path):
    with pytest.raises(UserError, match="run 01_explore_data first"):
        open_run("05", "smoke", str(tmp_path / "new"))
    run = open_run("01", "smoke", str(tmp_path / "new"))
    with run.stage("data"):
        run.make_manifest()
    with pytest.raises(UserError, match=r"srresnet\.pt is missing; run 03_pretrain_generator first"):
        open_run("05", "smoke", str(tmp_path / "new"))
    with pytest.raises(UserError, match="profile='smoke', not 'quick'"):
        open_run("03", "quick", str(tmp_path / "new"))
    changed = open_run("03", "smoke", str(tmp_path / "new"), overrides={"pretrain_steps": 5})
    assert changed.config.pretrain_steps == 5
    assert json.loads((tmp_path / "new/config.json").read_text())["pretrain_steps"] == 5


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda d: None, "is not a folder"),
        (lambda d: d.mkdir(), "holds no image"),
        (lambda d: (d.mkdir(), (d / "a.txt").write_text("x")), "holds no image"),
        (lambda d: (d.mkdir(), (d / "a.png").write_text("x")), "is not an image"),
    ],
)
def test_bad_data_is_one_sentence(tmp_path, make, words):
    make(tmp_path / "in")
    failed = srlib("run", "--profile", "smoke", "--data", tmp_path / "in", "--run-dir", tmp_path / "run")
    assert failed.returncode == 1 and words in failed.stderr and "01_explore_data, cell" in failed.stderr
    assert str(tmp_path / "in") in failed.stderr and len(said(failed)) == 1


def test_a_run_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    failed = srlib("run", "--profile", "smoke", "--run-dir", tmp_path / "file" / "run")
    assert failed.returncode == 1 and "cannot be written" in failed.stderr and len(said(failed)) == 1


def test_unknown_profile_and_notebook(tmp_path):
    failed = srlib("run", "--profile", "quik", "--run-dir", tmp_path / "run")
    assert failed.returncode == 1 and failed.stderr == "error: there is no profile 'quik'; did you mean 'quick'?\n"
    failed = srlib("run", "--only", "07", "--run-dir", tmp_path / "run")
    assert failed.returncode == 1 and "there is no notebook '07'" in failed.stderr


def test_one_process_at_a_time(tmp_path):
    run = open_run("01", "smoke", str(tmp_path / "run"))
    with locked(run.folder):
        failed = srlib("run", "--profile", "smoke", "--run-dir", tmp_path / "run")
    assert failed.returncode == 1 and "in use by another process" in failed.stderr


def test_stopped_by_a_signal_and_continued(tmp_path):
    """TERM, then Ctrl-C at the terminal, in the middle of pretraining: exit status 130, kernel gone, state saved; the same command
    goes on, and ends the run."""
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "srlib", "run", "--profile", "smoke", "--run-dir", str(folder), "-p", "pretrain_steps", "600"]
    history = folder / "pretrain/history.csv"
    rows = 0
    for stop in (lambda pid: os.kill(pid, signal.SIGTERM), lambda pid: os.killpg(pid, signal.SIGINT)):
        runner = subprocess.Popen(
            command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        deadline = time.monotonic() + 120
        while not (history.exists() and len(pd.read_csv(history)) > rows) and time.monotonic() < deadline:
            time.sleep(0.1)
        kernels = psutil.Process(runner.pid).children(recursive=True)
        assert any("ipykernel_launcher" in " ".join(k.cmdline()) for k in kernels)
        stop(runner.pid)
        out, err = runner.communicate(timeout=90)
        assert runner.returncode == 130, out + err
        assert "the same command continues" in err and not (folder / "srresnet.pt").exists()
        assert not [k for k in kernels if k.is_running() and k.status() != psutil.STATUS_ZOMBIE]
        rows = len(pd.read_csv(history))
    again = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    table = pd.read_csv(history)
    assert list(table.step) == list(range(0, 601, 5)) and table.session.max() == 3
    executed = (folder / "notebooks/03_pretrain_generator.ipynb").read_text()
    assert "continuing at step" in executed


def test_the_end_of_max_hours_is_no_failure(tmp_path):
    done = srlib("run", "--profile", "smoke", "--run-dir", tmp_path / "run", "-p", "max_hours", "1e-9")
    assert done.returncode == 130 and done.stderr == "stopped; the same command continues\n", done.stdout + done.stderr
    assert "pretrain: max_hours=1e-09 are over, saved at step 1; run the same again to continue\n" in done.stdout
    assert (tmp_path / "run/pretrain/checkpoint.pt").exists() and not (tmp_path / "run/srresnet.pt").exists()
