"""Two processes under torchrun, on the CPU through gloo: the same training as one, stopped, killed and continued."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch
from test_training import LEDIG, TINY, begin, same, weights

from srlib.config import OutOfTime, UserError, load_config
from srlib.training import adversarial, checkpoint, parallel, pretraining

SETTINGS = TINY | {"device": "cpu", "precision": "fp32"}


def test_two_processes_train_as_one(images, tmp_path, capfd):
    """Without BN the same loss curve and weights, to rounding, as one process with the joint batch; crops of all of it."""
    config = load_config("smoke", **SETTINGS | {"pretrain_steps": 20})
    one = pretraining.pretrain_generator(config, *images, tmp_path / "one")
    shown = []
    two = parallel.launch("pretrain", 2, config, *images, tmp_path / "two", "", shown.append)
    columns = ["step", "loss", "g_norm", "gain_db", "consistency_db"]
    pd.testing.assert_frame_equal(one[columns], two[columns], rtol=2e-3, atol=2e-4, check_dtype=False)
    a, b = (weights(tmp_path / f / "srresnet.pt") for f in ("one", "two"))
    assert all(torch.allclose(a[k], b[k], atol=2e-4) for k in a)
    assert "20/20" in capfd.readouterr().out and len(shown[-1]) == 11


def test_two_processes_play_the_game_as_one_and_resume(images, tmp_path):
    """1 process x 8 crops against 2 x 4, with D's penalty on: the same losses, contrast and weights to rounding, as neither network has BN and
    noise is the joint batch's. Stopped and continued the two end as they would have, to the bit."""
    config = load_config("smoke", **SETTINGS | {"batch": 8, "gan_lr": 3e-3, "penalty": 8.0})
    for name in ("one", "whole", "cut"):
        begin(config, tmp_path / name)
    one = adversarial.train_srgan(config, *images, tmp_path / "one")
    two = parallel.launch("srgan", 2, config, *images, tmp_path / "whole", "")
    columns = [c for c in two if c not in ("seconds", "session")]
    assert (two.penalty[1:] > 0).all()
    sums = [c for c in columns if not c.endswith("_share")]  # a share is the mean of each part's
    pd.testing.assert_frame_equal(
        one[sums], two[sums], rtol=2e-3, atol=5e-3, check_dtype=False
    )  # (a pixel that rounds the other way moves a band)
    states = [checkpoint.load(tmp_path / name / "srgan/checkpoint.pt")["parts"] for name in ("one", "whole")]
    for part in ("generator", "discriminator", "averaged"):
        a, b = (state[part] for state in states)
        # not weight by weight: Adam without momentum makes a whole step of a gradient near 0, whose sign rounding may turn
        assert all((a[k] - b[k]).float().norm() <= 5e-3 * a[k].float().norm() + 1e-3 for k in a), part
    assert states[0]["generator"]["head.tail.weight"].norm() > 2e-2  # it was 0: twenty times what it may differ by
    with pytest.raises(OutOfTime, match="max_hours=1e-09 are over, saved at step 1;"):
        parallel.launch("srgan", 2, dataclasses.replace(config, max_hours=1e-9), *images, tmp_path / "cut", "")
    again = parallel.launch("srgan", 2, config, *images, tmp_path / "cut", "")
    pd.testing.assert_frame_equal(two[columns], again[columns])
    assert same(weights(tmp_path / "whole/srgan.pt"), weights(tmp_path / "cut/srgan.pt"))


def test_two_processes_play_ledigs_game(images, tmp_path):
    """D has BN: every process its own part's statistics, so that the losses are near those of one process, and both have one D and G."""
    config = load_config("smoke", **SETTINGS | LEDIG | {"batch": 8, "gan_lr": 1e-3})
    for name in ("one", "two"):
        begin(config, tmp_path / name)
    one = adversarial.train_srgan(config, *images, tmp_path / "one")
    two = parallel.launch("srgan", 2, config, *images, tmp_path / "two", "")
    assert two[["d_loss", "adversarial", "content"]].iloc[-1].tolist() == pytest.approx(
        one[["d_loss", "adversarial", "content"]].iloc[-1].tolist(), rel=0.3
    )
    a, b = (weights(tmp_path / name / "srgan.pt") for name in ("one", "two"))
    start = weights(tmp_path / "one/srresnet.pt")
    gap, moved = (torch.cat([(x[k] - y[k]).flatten() for k in a]).norm() for x, y in ((a, b), (a, start)))
    assert 0 < gap < moved


def test_gradients_are_averaged_whatever_their_order(monkeypatch):
    """By hand, with a stand-in for the other process: its gradients are three times ours; those that are missing stay so."""
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Linear(2, 1), torch.nn.Linear(3, 3))
    for k, p in enumerate(model[:2].parameters()):
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(k))
    model[0].weight.grad = model[0].weight.grad.to(memory_format=torch.channels_last)
    before = [p.grad.clone() for p in model[:2].parameters()]
    parallel.average_gradients(model)
    assert all(torch.equal(p.grad, g) for p, g in zip(model[:2].parameters(), before, strict=True))  # one process: as they are
    monkeypatch.setattr(parallel, "size", lambda: 2)
    monkeypatch.setattr(parallel.dist, "all_reduce", lambda flat: flat.mul_(4))
    parallel.average_gradients(model)
    for p, g in zip(model[:2].parameters(), before, strict=True):
        torch.testing.assert_close(p.grad, 2 * g)
    assert all(p.grad is None for p in model[2].parameters())


def test_a_process_that_dies_ends_the_run(images, tmp_path):
    """One of two killed: a message within seconds, a checkpoint, and the same call goes on."""
    settings = SETTINGS | {"pretrain_steps": 100_000, "checkpoint_every": 5}
    code = (
        "import json, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it\n"
        "from srlib.training import parallel; from srlib.config import load_config\n"
        "folder, images, settings = sys.argv[1], *map(json.loads, sys.argv[2:])\n"
        "parallel.launch('pretrain', 2, load_config('smoke', **settings), *images, folder, '')"
    )
    command = [sys.executable, "-c", code, str(tmp_path), json.dumps(images), json.dumps(settings)]
    for number, words in ((signal.SIGKILL, "one of 2 training processes died"), (signal.SIGINT, "KeyboardInterrupt")):
        process, before = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True), step(tmp_path)
        torchrun = 0
        try:
            while step(tmp_path) <= before and process.poll() is None:
                time.sleep(0.2)
            (torchrun,) = children(process.pid)
            workers = children(torchrun)
            assert len(workers) == 2
            os.kill(workers[1] if number == signal.SIGKILL else process.pid, number)
            out = process.communicate(timeout=90)[0]
        finally:
            if process.poll() is None:
                process.kill()
            if torchrun and torchrun in children(1):  # orphaned
                os.kill(torchrun, signal.SIGTERM)
        assert process.returncode and words in out
        if number == signal.SIGINT:
            assert "continuing at step" in out and "stopped and saved at step" in out
    assert step(tmp_path) > 5


def children(pid):
    return [int(p) for p in subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False).stdout.split()]


def step(folder):
    """The last validated step of the last checkpoint."""
    file = folder / "pretrain/history.csv"
    return pd.read_csv(file).step.iloc[-1] if file.exists() else 0


def test_a_character_on_the_edge_of_a_chunk_is_whole(tmp_path, monkeypatch, capsys):
    """What the processes print comes in pieces, which end anywhere, also within a progress bar's block."""
    (tmp_path / "pretrain").mkdir()
    pd.DataFrame({"step": [1]}).to_csv(tmp_path / "pretrain/history.csv")
    code = "import os, time; os.write(1, b'|\\xe2\\x96'); time.sleep(0.5); os.write(1, b'\\x88| \\xff')"
    start = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda command, **options: start([sys.executable, "-c", code], **options))
    parallel.launch("pretrain", 2, load_config("smoke"), [], [], tmp_path, "")
    assert capsys.readouterr().out == "|█| \ufffd"


def test_what_cannot_be_divided_or_had(monkeypatch):
    monkeypatch.setattr(parallel, "size", lambda: 3)
    with pytest.raises(UserError, match="batch=4 does not divide among 3 processes"):
        parallel.share(4)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    gpu = torch.device("cuda")
    assert parallel.processes(load_config("smoke"), gpu) == 2 and parallel.processes(load_config("smoke", gpus=1), gpu) == 0
    assert parallel.processes(load_config("smoke"), torch.device("cpu")) == 0
    with pytest.raises(UserError, match="gpus=4, but this machine has 2"):
        parallel.processes(load_config("smoke", gpus=4), gpu)


def test_more_gpus_than_there_are_is_a_sentence():
    with pytest.raises(UserError, match="gpus=2, but this machine has no CUDA device"):
        parallel.processes(load_config("smoke", gpus=2), torch.device("cpu"))


def test_an_interrupt_ends_a_process_that_will_not(monkeypatch):
    """What was raised within goes on, and the process is gone, whatever it does with SIGTERM."""
    monkeypatch.setattr(parallel, "GRACE_SECONDS", 0.5)
    deaf = [sys.executable, "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"]
    process = subprocess.Popen(deaf, stdout=subprocess.PIPE, start_new_session=True)
    process.stdout.readline()
    with pytest.raises(KeyboardInterrupt), parallel._ending(process):
        raise KeyboardInterrupt
    assert process.wait(5) == -signal.SIGKILL
