"""Trainings that are killed, out of disk or out of time: the same command goes on, and ends with the same weights."""

import itertools
import json
import random
import resource
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch
from jupyter_client.manager import start_new_kernel
from running import train_adversarially
from test_training import TINY, same, weights

from srlib.config import UserError, load_config
from srlib.training import loop, pretraining

CHILD = """
import json, os, sys, time
folder, images, settings = sys.argv[1], *map(json.loads, sys.argv[2:])
sys.path.insert(0, "tests")
import torch
torch.set_num_threads(1)
from srlib.config import load_config
from srlib.training import loop, pretraining
from running import train_adversarially
log, add, sync = open(folder + "/steps.log", "a", 1), loop.RunningMeans.add, os.fsync
def slow(file):  # a write long enough to be hit
    time.sleep(0.03)
    sync(file)
os.fsync = slow
for stage in (pretraining.pretrain_generator, train_adversarially):
    def logged(self, step, values, name=stage.__name__):
        add(self, step, values)
        print(name, step, file=log)
    loop.RunningMeans.add = logged
    stage(load_config("smoke", **settings), *images, folder)
"""


@pytest.mark.parametrize("kills", [3, pytest.param(25, marks=pytest.mark.slow)])
def test_killed_at_random_moments(images, tmp_path, kills):
    """kill -9, checkpoint writes included: the weights of the run that was never killed, and never more than one interval repeated."""
    settings = TINY | {"pretrain_steps": 8 + 7 * kills, "gan_steps": 12 + 7 * kills, "checkpoint_every": 3}
    rng = random.Random(kills)

    def start(folder):
        folder.mkdir(exist_ok=True)
        command = [sys.executable, "-c", CHILD, str(folder), json.dumps(images), json.dumps(settings)]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL)

    def steps(folder):
        file = folder / "steps.log"
        return [line.split() for line in file.read_text().splitlines()] if file.exists() else []

    whole, cut, hit = tmp_path / "whole", tmp_path / "cut", 0
    assert start(whole).wait() == 0
    while hit < kills:
        process, before = start(cut), len(steps(cut))
        while process.poll() is None and len(steps(cut)) <= before + settings["checkpoint_every"]:
            time.sleep(0.005)  # one checkpoint at least
        time.sleep(rng.uniform(0, 0.3))
        process.kill()
        assert process.wait(), "the training ended before it was killed often enough"
        hit += 1
    assert start(cut).wait() == 0
    done = steps(cut)
    for (stage, last), (next_stage, first) in itertools.pairwise(done):
        if stage == next_stage:
            assert 0 <= int(last) + 1 - int(first) <= settings["checkpoint_every"]
        else:
            assert int(first) == 1 and int(last) == settings["pretrain_steps"]
    for name in ("srresnet.pt", "srgan.pt"):
        assert same(weights(whole / name), weights(cut / name))
    sessions = []
    for name in ("pretrain", "srgan"):
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


def test_max_hours_ends_each_session_in_time(images, tmp_path, monkeypatch):
    """With no time left each session makes one step and saves it; as many sessions as steps give the same weights as one."""
    for stage, name in ((pretraining.pretrain_generator, "srresnet.pt"), (train_adversarially, "srgan.pt")):
        stage(load_config("smoke", **TINY), *images, tmp_path / "whole")
        short = load_config("smoke", **TINY, max_hours=1e-9)
        for step in range(1, TINY["pretrain_steps" if stage is pretraining.pretrain_generator else "gan_steps"]):
            with pytest.raises(UserError, match=f"max_hours=1e-09 are over, saved at step {step}; run the same again"):
                stage(short, *images, tmp_path / "cut")
        history = stage(short, *images, tmp_path / "cut")
        assert same(weights(tmp_path / "whole" / name), weights(tmp_path / "cut" / name))
        assert history.session.iloc[-1] == history.step.iloc[-1]
    monkeypatch.setenv("SRLIB_STARTED", str(time.time() - 7200))  # as a runner that began two hours ago tells its notebooks
    with pytest.raises(UserError, match="max_hours=1 are over, saved at step 1;"):
        pretraining.pretrain_generator(load_config("smoke", **TINY, max_hours=1.0), *images, tmp_path / "late")


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
            said, waiting = "", True
            request = client.execute(cell)
            while True:
                message = client.get_iopub_msg(timeout=60)
                if message["parent_header"].get("msg_id") != request:
                    continue
                said += message["content"].get("text", "") + " ".join(message["content"].get("traceback", []))
                if waiting and "step/s" in said:
                    time.sleep(0.3)
                    manager.interrupt_kernel()
                    waiting = False
                if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                    break
            assert "pretrain: stopped and saved at step" in said and "KeyboardInterrupt" in said
            assert ("continuing at step" in said) == (session == 2)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_resume_is_exact_at_any_number_of_workers(images, tmp_path):
    """N steps, a stop, N steps: bit for bit 2N steps of a run without workers; optimisers, schedules and averages included."""

    def parts(folder, name):
        return flat(torch.load(tmp_path / folder / name / "checkpoint.pt", weights_only=True)["parts"])

    for stage, name in ((pretraining.pretrain_generator, "pretrain"), (train_adversarially, "srgan")):
        stage(load_config("smoke", **TINY), *images, tmp_path / "whole")
        expected = parts("whole", name)
        for workers in (0, 1, 3):
            cut = f"cut{workers}"
            with pytest.raises(UserError, match="max_hours"):
                stage(load_config("smoke", **TINY, max_hours=1e-9), *images, tmp_path / cut)
            stage(load_config("smoke", **TINY, workers=workers), *images, tmp_path / cut)
            resumed = parts(cut, name)
            assert resumed.keys() == expected.keys()
            for key, value in expected.items():
                assert torch.equal(value, resumed[key]) if torch.is_tensor(value) else value == resumed[key], (workers, key)


def flat(tree, path=""):
    """A tree of dicts and lists as {path: leaf}."""
    if isinstance(tree, dict | list | tuple):
        pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return {k: v for key, value in pairs for k, v in flat(value, f"{path}{key}/").items()}
    return {path.rstrip("/"): tree}


def test_the_global_generators_go_on(tmp_path):
    state = loop.RandomState()
    stored = state.state_dict()
    torch.save(stored, tmp_path / "state.pt")

    def draw():
        return random.random(), np.random.rand(), torch.rand(()).item()

    first = draw()
    assert draw() != first
    state.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert draw() == first
