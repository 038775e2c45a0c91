"""Two processes under torchrun, on the CPU through gloo: the same training as one, stopped, killed and continued."""

import dataclasses
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch
from test_training import TINY, begin, weights

from srlib.config import OutOfTime, UserError, load_config
from srlib.files import REPOSITORY
from srlib.sampler.training import train_sampler
from srlib.series.run_folder import Run
from srlib.training import checkpoint, parallel, pretraining
from srlib.training.adversarial import train_srgan

SETTINGS = TINY | {"device": "cpu", "precision": "fp32"}


def new_run(folder, scans, **settings):
    """A run folder as notebook 01 leaves it, and the weights that an adversarial training starts from."""
    run = Run(folder, load_config("smoke", **SETTINGS | settings, data=str(scans)))
    folder.mkdir(parents=True)
    run.write_config()
    run.make_manifest()
    begin(run.config, folder)
    return run


def in_one(run, stage, training):
    """The training in this process."""
    return training(run.config, run.images("train"), run.images("val"), run.folder, run.fingerprint(stage))


def hosts(run, stage):
    """Plain torchrun, twice, as on two hosts that see one folder."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        place = f"localhost:{free.getsockname()[1]}"
    words = f"--nnodes 2 --nproc-per-node 1 --rdzv-backend c10d --rdzv-id {stage} --rdzv-endpoint {place} -m srlib.training".split()
    command, around = [sys.executable, "-m", "torch.distributed.run", *words, str(run.folder), stage], {"PYTHONPATH": str(REPOSITORY)}
    start = dict(env=os.environ | around, cwd=run.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return [subprocess.Popen(command, **start) for _ in range(2)]


def test_two_hosts_train_as_one(scan_folder, tmp_path):
    """1 process x 8 crops against 2 x 4: without BN the same loss curve and weights, to rounding. One is killed on the way: the
    other ends in a sentence, and the same command goes on."""
    often = dict(batch=8, pretrain_steps=60, checkpoint_every=5, validate_every=5)
    one, two = (new_run(tmp_path / name, scan_folder, **often) for name in ("one", "two"))
    expected = in_one(one, "pretrain", pretraining.pretrain_generator)
    both = hosts(two, "pretrain")
    while step(two.folder) < 10 and both[0].poll() is None:
        time.sleep(0.05)
    for pid in (*children(both[1].pid), both[1].pid):
        os.kill(pid, signal.SIGKILL)
    assert re.search("another process of this training has ended; give each host|saved at step", both[0].communicate(timeout=90)[0])
    assert both[0].returncode and 10 <= step(two.folder) < 60
    told = [host.communicate(timeout=90)[0] for host in hosts(two, "pretrain")]
    assert "60/60" in "".join(told) and "continuing at step" in "".join(told)
    history = pd.read_csv(two.folder / "pretrain/history.csv")
    columns = ["step", "loss", "g_norm", "gain_db", "consistency_db"]
    pd.testing.assert_frame_equal(expected[columns], history[columns], rtol=2e-3, atol=2e-4, check_dtype=False)
    a, b = (weights(run.folder / "srresnet.pt") for run in (one, two))
    assert all(torch.allclose(a[k], b[k], atol=2e-4) for k in a)


def test_two_processes_train_the_sampler_as_one_and_resume(scan_folder, tmp_path):
    """1 process x 8 crops against 2 x 4, stopped and continued, with D's penalty on: the same losses, contrast and weights to rounding, as
    neither network has BN and noise is the joint batch's."""
    one, two = (new_run(tmp_path / name, scan_folder, batch=8, sampler_lr=2e-3) for name in ("one", "two"))
    expected = in_one(one, "sampler", train_sampler)
    cut = Run(two.folder, dataclasses.replace(two.config, max_hours=1e-9))
    cut.write_config()
    with pytest.raises(OutOfTime, match="max_hours=1e-09 are over, saved;"):
        parallel.launch("sampler", 2, cut.config, cut.folder)
    two.write_config()
    history = parallel.launch("sampler", 2, two.config, two.folder)
    assert (history.penalty[1:] > 0).all() and list(history.session[1:]) == [1, 2, 2, 2, 2, 2]
    sums = [c for c in history if c not in ("seconds", "session") and not c.endswith("_share")]  # a share is the mean of each part's
    # a pixel that rounds the other way moves a band
    pd.testing.assert_frame_equal(expected[sums], history[sums], rtol=2e-3, atol=5e-3, check_dtype=False)
    states = [checkpoint.load(run.folder / "sampler/checkpoint.pt")["parts"] for run in (one, two)]
    for part in ("generator", "discriminator", "averaged"):
        a, b = (state[part] for state in states)
        # not weight by weight: Adam without momentum makes a whole step of a gradient near 0, whose sign rounding may turn
        assert all((a[k] - b[k]).float().norm() <= 5e-3 * a[k].float().norm() + 1e-3 for k in a), part
    assert states[0]["generator"]["head.tail.weight"].norm() > 2e-2  # it was 0: twenty times what it may differ by


def test_two_processes_train_ledigs_srgan(scan_folder, tmp_path):
    """On two hosts. D has BN: every process its own part's statistics, so that the losses are near those of one process, and both have one D and G."""
    one, two = (new_run(tmp_path / name, scan_folder, batch=8, gan_lr=1e-3) for name in ("one", "two"))
    assert [host.wait(90) for host in hosts(two, "srgan")] == [0, 0]
    histories = in_one(one, "srgan", train_srgan), pd.read_csv(two.folder / "srgan/history.csv")
    a, b = (history[["d_loss", "adversarial", "content"]].iloc[-1].tolist() for history in histories)
    assert b == pytest.approx(a, rel=0.3)
    a, b = (weights(run.folder / "srgan.pt") for run in (one, two))
    start = weights(one.folder / "srresnet.pt")
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


def test_a_process_that_dies_ends_the_run(scan_folder, tmp_path):
    """One of two killed: a message within seconds, a checkpoint, and the same call goes on."""
    run = new_run(tmp_path / "run", scan_folder, pretrain_steps=100_000, checkpoint_every=5)
    code = (
        "import pathlib, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it\n"
        "from srlib.series.run_folder import read_config; from srlib.training import parallel\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "parallel.launch('pretrain', 2, read_config(folder / 'config.json'), folder)"
    )
    for number, words in ((signal.SIGKILL, "one of 2 training processes ended with an error"), (signal.SIGINT, "KeyboardInterrupt")):
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(run.folder)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        before, torchrun = step(run.folder), 0
        try:
            while step(run.folder) <= before and process.poll() is None:
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
    assert step(run.folder) > 5


def test_a_mistake_in_a_process_is_a_sentence(scan_folder, tmp_path, capfd):
    run = new_run(tmp_path / "run", scan_folder)
    (run.folder / "srresnet.pt").write_bytes(b"torn")
    with pytest.raises(UserError, match="ended with an error, which is printed above"):
        parallel.launch("srgan", 2, run.config, run.folder)
    assert "error: " in (err := capfd.readouterr().err) and "srresnet.pt: holds no weights of this project" in err


def children(pid):
    return [int(p) for p in subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False).stdout.split()]


def step(folder):
    """The last validated step of the last checkpoint."""
    file = folder / "pretrain/history.csv"
    return pd.read_csv(file).step.iloc[-1] if file.exists() else 0


def test_what_cannot_be_divided_or_had(monkeypatch):
    monkeypatch.setattr(parallel, "size", lambda: 3)
    with pytest.raises(UserError, match="batch=4 does not divide among 3 processes"):
        parallel.share(4)
    with pytest.raises(UserError, match="gpus=2, but this machine has no CUDA device"):
        parallel.processes(load_config("smoke", gpus=2), torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    gpu = torch.device("cuda")
    assert parallel.processes(load_config("smoke"), gpu) == 2 and parallel.processes(load_config("smoke", gpus=1), gpu) == 0
    assert parallel.processes(load_config("smoke"), torch.device("cpu")) == 0
    with pytest.raises(UserError, match="gpus=4, but this machine has 2"):
        parallel.processes(load_config("smoke", gpus=4), gpu)
