"""Two processes under torchrun, on the CPU through gloo: the same training as one, stopped, killed and continued."""

import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch
from test_training import LEDIG, TINY, begin, same, weights

from srlib.config import OutOfTime, UserError, load_config
from srlib.files import REPOSITORY
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


FIRST = (  # as a notebook calls it
    "import json, sys; from srlib.training import adversarial, pretraining; from srlib.config import load_config\n"
    "stage, folder, images, settings = *sys.argv[1:3], *map(json.loads, sys.argv[3:])\n"
    "train = {'pretrain': pretraining.pretrain_generator, 'srgan': adversarial.train_srgan}[stage]\n"
    "train(load_config('smoke', **settings), *images, folder)"
)


@pytest.fixture
def hosts(images, tmp_path):
    """Two hosts, as two torchrun on loopback with one process each, by the documented commands: a function that starts one, 'first' or 'further'."""
    started = []
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    rendezvous = f"--nnodes=2 --rdzv-backend=c10d --rdzv-endpoint=127.0.0.1:{port} --local-addr=127.0.0.1"

    def start(which, settings, stage="pretrain"):
        first = [sys.executable, "-c", FIRST, stage, str(tmp_path), json.dumps(images), json.dumps(settings | {"torchrun": rendezvous})]
        further = [sys.executable, "-m", "srlib", "join", str(tmp_path / stage / "job.json")]
        options = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=REPOSITORY)
        started.append(subprocess.Popen(first if which == "first" else further, **options))
        return started[-1]

    yield start
    for process in started:
        for pid in (*(grand for child in children(process.pid) for grand in children(child)), *children(process.pid), process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def test_two_hosts_train_as_one(images, tmp_path, hosts):
    """Either stage, the further host first or last: the same weights as one host with two processes. An ended stage is joined no more."""
    settings = SETTINGS | {"pretrain_steps": 8, "penalty": 8.0}
    for stage, order, weight in (("pretrain", ("further", "first"), "srresnet.pt"), ("srgan", ("first", "further"), "srgan.pt")):
        both = [hosts(which, settings, stage) for which in order]
        said = [process.communicate(timeout=120)[0] for process in both]
        assert [process.returncode for process in both] == [0, 0], said
        assert "8/8" in "".join(said) or stage == "srgan"
        assert not (tmp_path / stage / "job.json").exists()
        again = hosts("further", settings, stage)
        assert "the stage has ended" in again.communicate(timeout=60)[0] and again.returncode == 0
        (tmp_path / "one").mkdir(exist_ok=True)
        parallel.launch(stage, 2, load_config("smoke", **settings), *images, tmp_path / "one", "")
        assert same(weights(tmp_path / weight), weights(tmp_path / "one" / weight))


@pytest.mark.slow
@pytest.mark.parametrize("killed", ["further", "first"])
def test_a_host_that_dies_ends_the_other_in_words(tmp_path, hosts, killed):
    """Killed with all it started: the other ends with a sentence, and the same commands, the first host's first, go on from the checkpoint."""
    settings = SETTINGS | {"pretrain_steps": 100_000, "checkpoint_every": 5}
    both = {which: hosts(which, settings) for which in ("further", "first")}
    deadline = time.monotonic() + 120
    while step(tmp_path) < 4 and time.monotonic() < deadline:
        time.sleep(0.2)
    dead = both.pop(killed)
    (other,) = both.values()
    (torchrun,) = children(dead.pid)
    for pid in (dead.pid, torchrun, *children(torchrun)):
        os.kill(pid, signal.SIGKILL)
    said = other.communicate(timeout=120)[0]
    assert other.returncode and "a training process, here or on another host, died" in said and "to continue" in said, said
    before, stale = step(tmp_path), time.time()
    first, job = hosts("first", settings), tmp_path / "pretrain/job.json"
    while not (job.exists() and job.stat().st_mtime > stale) and time.monotonic() < deadline + 60:
        time.sleep(0.2)
    hosts("further", settings)
    while step(tmp_path) <= before and time.monotonic() < deadline + 200:
        time.sleep(0.2)
    first.send_signal(signal.SIGINT)
    assert step(tmp_path) > before and "KeyboardInterrupt" in first.communicate(timeout=120)[0]


def test_a_further_host_says_what_another_one_raised(images, tmp_path, hosts, capfd):
    """A limit of time, or a mistake, ends both with its sentence; a host that is asked to stop leaves nothing running."""
    settings = SETTINGS | {"pretrain_steps": 100_000, "max_hours": 1e-9}
    both = [hosts(which, settings) for which in ("further", "first")]
    said = [process.communicate(timeout=120)[0] for process in both]
    assert all(process.returncode for process in both) and all("max_hours=1e-09 are over" in words for words in said), said
    job = tmp_path / "pretrain/job.json"
    config = dataclasses.asdict(load_config("smoke", **settings, torchrun="--nnodes=2 --rdzv-backend=c10d --rdzv-endpoint=127.0.0.1:9"))
    job.write_text(json.dumps({"config": config}))
    waiting = hosts("further", settings)
    while not children(waiting.pid) and waiting.poll() is None:
        time.sleep(0.2)
    (torchrun,) = children(waiting.pid)
    waiting.terminate()
    waiting.communicate(timeout=60)
    with pytest.raises(ProcessLookupError):
        os.kill(torchrun, 0)


def test_what_is_no_job(tmp_path):
    job = tmp_path / "run/pretrain/job.json"
    for wrong in (job.with_name("config.json"), tmp_path / "job.json", tmp_path / "none/run/pretrain/job.json"):
        with pytest.raises(UserError, match="is no job; it is RUN/pretrain/"):
            parallel.join(wrong)
    job.parent.mkdir(parents=True)
    for text in ("{", "{}", '{"config": {"colour": 1}}'):
        job.write_text(text)
        with pytest.raises(UserError, match="another version of srlib"):
            parallel.join(job)
    job.write_text(json.dumps({"config": dataclasses.asdict(load_config("smoke"))}))
    with pytest.raises(UserError, match="is for one host; start the first one with -p torchrun '--nnodes=2"):
        parallel.join(job)


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
    assert parallel.processes(load_config("smoke", gpus=1, torchrun="--nnodes=2"), gpu) == 1
    assert parallel.processes(load_config("smoke"), torch.device("cpu")) == 0
    assert parallel.processes(load_config("smoke", torchrun="--nnodes=2"), torch.device("cpu")) == 1
    with pytest.raises(UserError, match="gpus=4, but this machine has 2"):
        parallel.processes(load_config("smoke", gpus=4), gpu)


def test_sync_batch_norm_is_for_gpus(images, tmp_path):
    with pytest.raises(UserError, match="sync_batch_norm=True needs GPUs"):
        pretraining.pretrain_generator(load_config("smoke", **SETTINGS, sync_batch_norm=True), *images, tmp_path)


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
