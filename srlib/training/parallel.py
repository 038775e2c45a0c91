"""Training on several GPUs: torchrun starts a process for each, their gradients are averaged, the first one writes.

In a process that torchrun did not start, every function here is that of a single process. On the CPU (for tests) the processes
talk through gloo.
"""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import torch
import torch.distributed as dist
from torch import nn

from ..config import Config, OutOfTime, UserError
from ..files import REPOSITORY, read_table

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


@contextlib.contextmanager
def _together():
    """Around what all processes do at once; UserError where one of them is gone. (NCCL ends the process itself.)"""
    try:
        yield
    except RuntimeError as error:
        gone = "another process of this training has ended; give each host the same command again, it continues from the last checkpoint"
        raise UserError(f"{gone} ({str(error).splitlines()[0]})") from None


def average_gradients(model: nn.Module) -> None:
    """Replace the gradients by their mean over the processes, as DDP would; DDP itself does not go with a gradient penalty (torch's
    documentation: it does not work with torch.autograd.grad). Buffers (BN's running statistics) stay each process's own."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    if size() == 1 or not gradients:
        return
    flat = torch.cat([g.flatten() for g in gradients])
    with _together():
        dist.all_reduce(flat)
    flat /= size()
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def mean(value: torch.Tensor) -> torch.Tensor:
    """The mean of a tensor over the processes."""
    if size() == 1:
        return value
    value = value.detach().clone()
    with _together():
        dist.all_reduce(value)
    return value / size()


def largest(value: float) -> float:
    """The largest of a number over the processes (by gloo, so that a GPU is not waited for)."""
    if size() == 1:
        return value
    box = torch.tensor(value, dtype=torch.float64)
    with _together():
        dist.all_reduce(box, dist.ReduceOp.MAX)
    return box.item()


def from_first(value):
    """The first process's value, in every process."""
    if size() == 1:
        return value
    box = [value]
    with _together():
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


def launch(stage: str, count: int, config: Config, folder: Path) -> pd.DataFrame:
    """Run a stage, 'pretrain', 'srgan' or 'sampler', of the run in `folder` in `count` processes: `torchrun -m srlib.training FOLDER STAGE`. Returns its history.

    What the processes print stands in this one's output. Raises UserError where one of them ended with an error (which is printed) or died, OutOfTime
    after `max_hours`, KeyboardInterrupt after an interrupt: the same call continues from the last checkpoint."""
    stored = folder / "config.json"  # from which the processes take their settings
    if not stored.exists() or json.loads(stored.read_text(encoding="utf-8")) != dataclasses.asdict(config):
        raise UserError(
            f"{stored} does not hold these settings, so {count} processes cannot train by them; set gpus=1, or train in a notebook"
        )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", "-m", "srlib.training"]
    places = [str(REPOSITORY), os.getcwd(), os.environ.get("PYTHONPATH", "")]  # own parts may lie in the current folder
    environment = {"PYTHONPATH": os.pathsep.join(filter(None, places)), "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(GRACE_SECONDS - 30)}
    end = session_end(config)
    environment["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // count))
    process = subprocess.Popen([*command, str(folder), stage], env=os.environ | environment, start_new_session=True)
    try:
        status = process.wait()
    except BaseException:  # an interrupt ends torchrun, which ends its processes, which save
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS)
        raise
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    if status:
        if time.time() > end:
            raise OutOfTime(f"{stage}: max_hours={config.max_hours:g} are over, saved; run the same again to continue")
        raise UserError(
            f"{stage}: one of {count} training processes ended with an error, which is printed above; run the same again to continue"
        )
    return read_table(folder / stage / "history.csv")


def session_end(config: Config) -> float:
    """When `max_hours` are over, on the clock of `time.time`; a runner tells its notebooks when it began."""
    begin = float(os.environ.get("SRLIB_STARTED", time.time()))
    return begin + 3600 * config.max_hours if config.max_hours else float("inf")
