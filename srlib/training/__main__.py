"""What each process that torchrun starts for `parallel.launch` does."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch.distributed as dist

from ..config import Config, OutOfTime, UserError
from ..device import pick_device
from . import parallel
from .adversarial import train_srgan
from .pretraining import pretrain_generator

STAGES = {"pretrain": pretrain_generator, "srgan": train_srgan}


def main(job: str) -> int:
    """What each process of `parallel.launch` does: join the group, run the stage. Its mistakes go to `job.error`, which `launch` reads."""
    facts = json.loads(Path(job).read_text(encoding="utf-8"))
    config = Config(**facts["config"])
    device = pick_device(config.device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    if parallel.rank():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (for the whole process)
    try:
        paths = [[Path(p) for p in facts[name]] for name in ("train", "val")]
        STAGES[facts["stage"]](config, *paths, facts["folder"], facts["fingerprint"])
    except UserError as error:
        part = Path(job).with_name(f"job.error.{parallel.rank()}")
        part.write_text(json.dumps([isinstance(error, OutOfTime), str(error)]), encoding="utf-8")
        part.replace(Path(job).with_name("job.error"))
        return 1  # torchrun then ends the others, which may wait for this one
    except KeyboardInterrupt:
        return 130
    dist.destroy_process_group()
    return 0
