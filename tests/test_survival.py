"""Trainings that are killed, out of disk or out of time: the same command goes on, and ends with the same weights."""

import itertools
import multiprocessing
import os
import random
import resource
import time

import pandas as pd
import pytest
import torch
from jupyter_client.manager import start_new_kernel
from test_training import TINY, same, weights

from srlib.config import UserError, load_config
from srlib.sampler.training import train_sampler
from srlib.training import checkpoint, loop, pretraining

PROCESSES = multiprocessing.get_context("forkserver")  # they import torch once
PROCESSES.set_forkserver_preload(["srlib.sampler.training", "srlib.training.pretraining"])


def child(folder, images, settings):
    """Both stages, each step in a log, with writes that are long enough to be hit."""
    add, sync = loop.RunningMeans.add, os.fsync

    def slow(file):
        time.sleep(0.03)
        sync(file)

    os.fsync = slow
    for stage in (pretraining.pretrain_generator, train_sampler):

        def logged(self, step, values, name=stage.__name__):
            add(self, step, values)
            with open(folder / "steps.log", "a") as log:
                print(name, step, file=log)

        loop.RunningMeans.add = logged
        stage(load_config("smoke", **settings), *images, folder)


@pytest.mark.parametrize("kills", [3, pytest.param(25, marks=pytest.mark.slow)])
def test_killed_at_random_moments(images, tmp_path, kills):
    """kill -9, checkpoint writes included: the weights of the run that was never killed."""
    settings = TINY | {"pretrain_steps": 8 + 7 * kills, "sampler_steps": 12 + 7 * kills, "checkpoint_every": 3, "validate_every": 6}
    rng = random.Random(kills)

    def start(folder):
        folder.mkdir(exist_ok=True)
        process = PROCESSES.Process(target=child, args=(folder, images, settings))
        process.start()
        return process

    def steps(folder):
        file = folder / "steps.log"
        return [line.split() for line in file.read_text().splitlines()] if file.exists() else []

    def ended(process):
        process.join()
        return process.exitcode

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert ended(start(whole)) == 0
    for _ in range(kills):
        process, before = start(cut), len(steps(cut))
        while process.is_alive() and len(steps(cut)) <= before + settings["checkpoint_every"]:
            time.sleep(0.005)  # one checkpoint at least
        time.sleep(rng.uniform(0, 0.3))
        process.kill()
        assert ended(process), "the training ended before it was killed often enough"
    assert ended(start(cut)) == 0
    done = steps(cut)
    for (stage, last), (next_stage, first) in itertools.pairwise(done):
        if stage == next_stage:
            assert 0 <= int(last) + 1 - int(first) <= settings["checkpoint_every"]
        else:
            assert int(first) == 1 and int(last) == settings["pretrain_steps"]
    for name in ("srresnet.pt", "sampler.pt"):
        assert same(weights(whole / name), weights(cut / name))
    sessions = []
    for name in ("pretrain", "sampler"):
        history, expected = (pd.read_csv(folder / name / "history.csv") for folder in (cut, whole))
        assert history.drop(columns=["session", "seconds"]).equals(expected.drop(columns=["session", "seconds"]))
        assert history.session.is_monotonic_increasing
        sessions.append(history.session.iloc[-1])
    assert sum(sessions) > kills  # the one that went from stage to stage counts in both
    assert not list(cut.rglob("*.part"))


def test_a_full_disk_keeps_the_last_state(images, tmp_path, capsys):
    """A checkpoint that the system refuses to write: a clear message, the one before it sound; with room again it goes on."""
    config = load_config("smoke", **TINY)
    pretraining.pretrain_generator(config, *images, tmp_path / "whole")
    with pytest.raises(UserError, match="max_hours"):
        pretraining.pretrain_generator(load_config("smoke", **TINY, max_hours=1e-9), *images, tmp_path / "cut")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(UserError, match=r"checkpoint\.pt cannot be written .*free the disk"):
            pretraining.pretrain_generator(config, *images, tmp_path / "cut")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    pretraining.pretrain_generator(config, *images, tmp_path / "cut")
    assert "continuing at step 1 of" in capsys.readouterr().out
    assert same(weights(tmp_path / "whole/srresnet.pt"), weights(tmp_path / "cut/srresnet.pt"))
    assert not list(tmp_path.rglob("*.part"))


def test_max_hours_ends_a_session_and_resume_is_exact(images, tmp_path, monkeypatch):
    """With no time left one step is made and saved. What the next session leaves is to the bit that of one session:
    networks, optimisers, schedules and averages."""

    for stage, name in ((pretraining.pretrain_generator, "pretrain"), (train_sampler, "sampler")):
        stage(load_config("smoke", **TINY), *images, tmp_path / "whole")
        expected = leaves(checkpoint.load(tmp_path / "whole" / name / "checkpoint.pt")["parts"])
        with pytest.raises(UserError, match="max_hours=1e-09 are over, saved at step 1; run the same again"):
            stage(load_config("smoke", **TINY, max_hours=1e-9), *images, tmp_path / "cut")
        history = stage(load_config("smoke", **TINY), *images, tmp_path / "cut")
        assert history.session.iloc[-1] == 2
        resumed = leaves(checkpoint.load(tmp_path / "cut" / name / "checkpoint.pt")["parts"])
        torch.testing.assert_close(resumed, expected, rtol=0, atol=0, equal_nan=True)
    monkeypatch.setenv("SRLIB_STARTED", str(time.time() - 7200))  # as a runner that began two hours ago tells its notebooks
    with pytest.raises(UserError, match="max_hours=1 are over, saved at step 1;"):
        pretraining.pretrain_generator(load_config("smoke", **TINY, max_hours=1.0), *images, tmp_path / "late")


def leaves(tree):
    """What a tree of dicts and lists holds, but for words, which assert_close does not take."""
    if isinstance(tree, dict | list | tuple):
        return [leaf for branch in (tree.values() if isinstance(tree, dict) else tree) for leaf in leaves(branch)]
    return [] if isinstance(tree, str) else [tree]


def test_interrupt_of_a_kernel(images, tmp_path):
    """What JupyterLab's interrupt button sends: the step ends, the state is saved, and running the cell again goes on."""
    settings = TINY | {"pretrain_steps": 100_000, "checkpoint_every": 100_000}
    cell = (
        "import torch; torch.set_num_threads(1)\nfrom srlib.training.pretraining import pretrain_generator\nfrom srlib.config import load_config\n"
        f"pretrain_generator(load_config('smoke', **{settings}), *{images}, {str(tmp_path)!r})"
    )
    manager, client = start_new_kernel(kernel_name="python3")
    try:
        for session in (1, 2):
            text, waiting = "", True
            request = client.execute(cell)
            while True:
                message = client.get_iopub_msg(timeout=60)
                if message["parent_header"].get("msg_id") != request:
                    continue
                text += message["content"].get("text", "") + " ".join(message["content"].get("traceback", []))
                if waiting and "step/s" in text:
                    time.sleep(0.3)
                    manager.interrupt_kernel()
                    waiting = False
                if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                    break
            assert "pretrain: stopped and saved at step" in text and "KeyboardInterrupt" in text
            assert ("continuing at step" in text) == (session == 2)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
