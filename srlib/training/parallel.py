"""Training on several GPUs: torchrun starts a process for each, their gradients are averaged, the first one writes.

In a process that torchrun did not start, every function here is that of a single process. On the CPU (for tests) the processes
talk through gloo.
"""

from __future__ import annotations

import codecs
import contextlib
import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import torch
import torch.distributed as dist
from torch import nn

from ..config import Config, OutOfTime, UserError
from ..device import pick_device
from ..files import REPOSITORY, read_table, write

GRACE_SECONDS = 90  # that the processes get to save when they are asked to stop


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def share(batch: int) -> slice:
    """This process's part of a joint batch; UserError where the processes do not divide it."""
    if batch % size():
        raise UserError(f"batch={batch} does not divide among {size()} processes; choose a multiple of {size()}, or another gpus")
    part = batch // size()
    return slice(rank() * part, (rank() + 1) * part)


def average_gradients(model: nn.Module) -> None:
    """Replace the gradients by their mean over the processes, as DDP would; DDP itself does not go with a gradient penalty (torch's
    documentation: it does not work with torch.autograd.grad). Buffers (BN's running statistics) stay each process's own."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    if size() == 1 or not gradients:
        return
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    flat /= size()
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def mean(value: torch.Tensor) -> torch.Tensor:
    """The mean of a tensor over the processes."""
    if size() == 1:
        return value
    value = value.detach().clone()
    dist.all_reduce(value)
    return value / size()


def largest(value: float) -> float:
    """The largest of a number over the processes (by gloo, so that a GPU is not waited for)."""
    if size() == 1:
        return value
    box = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(box, dist.ReduceOp.MAX)
    return box.item()


def from_first(value):
    """The first process's value, in every process."""
    if size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def processes(config: Config, device: torch.device) -> int:
    """How many to start for a training: one for each GPU that `gpus` asks for; 0 where one is enough, which is the training itself."""
    if "LOCAL_RANK" in os.environ:
        return 0
    count = 1
    if device.type == "cuda":
        have = torch.cuda.device_count()
        if config.gpus > have:
            raise UserError(f"gpus={config.gpus}, but this machine has {have}; set gpus to {have}, or 0 for all")
        count = config.gpus or have
    elif config.gpus > 1:
        raise UserError(f"gpus={config.gpus}, but this machine has no CUDA device; leave gpus out")
    return count if count > 1 else 0


def on_every_gpu(stage: str) -> Callable:
    """Makes a training function run in a process for each GPU (`launch`), where there are several; otherwise it runs here."""

    def decorate(train_stage: Callable) -> Callable:
        @functools.wraps(train_stage)
        def started(config: Config, train, val, folder, fingerprint: str = "", show=lambda history: None) -> pd.DataFrame:
            if count := processes(config, pick_device(config.device)):
                return launch(stage, count, config, train, val, folder, fingerprint, show)
            return train_stage(config, train, val, folder, fingerprint, show)

        return started

    return decorate


def launch(stage: str, count: int, config: Config, train, val, folder, fingerprint: str, show=lambda history: None) -> pd.DataFrame:
    """Run a stage, 'pretrain' or 'srgan', in `count` processes under torchrun (`srlib.training.__main__`), and return its history; `show` is called
    when a checkpoint adds to it.

    The processes read what to do from `job.json` in the stage's folder, which is there as long as they work. Raises what a single process would:
    UserError with its message, KeyboardInterrupt after an interrupt. A process that dies ends all of them, and a RuntimeError says so; the same call
    continues from the last checkpoint."""
    home = Path(folder) / stage
    job, failed, log, history = (home / name for name in ("job.json", "job.error", "job.log", "history.csv"))
    facts = {"stage": stage, "config": dataclasses.asdict(config), "folder": str(folder), "fingerprint": fingerprint}
    write(job, json.dumps(facts | {"train": [str(p) for p in train], "val": [str(p) for p in val]}))
    failed.unlink(missing_ok=True)
    process = _torchrun(job, count, log)
    seen, decoder = 0, codecs.getincrementaldecoder("utf-8")("replace")  # a chunk may end within a character
    try:
        with _ending(process):
            while text := os.read(process.stdout.fileno(), 1 << 14):
                sys.stdout.write(decoder.decode(text))
                sys.stdout.flush()
                if history.exists() and (when := history.stat().st_mtime_ns) != seen:
                    seen = when
                    show(read_table(history))
            status = process.wait()
    finally:
        job.unlink(missing_ok=True)
    _raise_what_a_process_said(failed)
    if status:
        raise RuntimeError(f"{home.name}: one of {count} training processes died ({log} says more); run the same again to continue")
    return read_table(history)


@contextlib.contextmanager
def _ending(process: subprocess.Popen) -> Iterator[None]:
    """What goes wrong within (an interrupt, a mistake in `show`) ends torchrun, which ends its processes, which save; after GRACE_SECONDS by force."""
    try:
        yield
    except BaseException:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            sys.stdout.write((process.communicate(timeout=GRACE_SECONDS)[0] or b"").decode(errors="replace"))
        raise
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()


def _raise_what_a_process_said(file: Path) -> None:
    """The UserError of a process that has ended all of them, where there was one."""
    if file.exists():
        late, text = json.loads(file.read_text(encoding="utf-8"))
        raise (OutOfTime if late else UserError)(text)


def _torchrun(job: Path, count: int, log: Path) -> subprocess.Popen:
    """torchrun, in a session of its own, with `count` processes that do a job; what it says of its own goes to `log`, what they say to its stdout."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    # not by PYTHONPATH, which cannot hold a path with a colon
    start = f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); from srlib.training.__main__ import main; sys.exit(main(sys.argv[1]))"
    command += ["--no-python", sys.executable, "-u", "-c", start, str(job)]
    threads, grace = max(1, (os.cpu_count() or 1) // count), GRACE_SECONDS - 30
    around = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(threads), "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(grace)}
    with open(log, "wb") as errors:
        return subprocess.Popen(command, env=os.environ | around, stdout=subprocess.PIPE, stderr=errors, start_new_session=True)
