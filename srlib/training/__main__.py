"""`torchrun --nproc-per-node=2 -m srlib.training RUN STAGE`: one process of several that train a stage of a run folder, on one host or more.

Notebook 01 has made the folder; each host has it under the same path. STAGE is pretrain, srgan or sampler."""

import os
import sys
from pathlib import Path

import torch.distributed as dist

from ..config import UserError
from ..device import pick_device
from ..sampler.training import train_sampler
from ..series.run_folder import Run, read_config
from . import parallel
from .adversarial import train_srgan
from .pretraining import pretrain_generator


def main(folder: str, stage: str) -> int:
    """Join the group and train; the exit status."""
    run = Run(Path(folder), read_config(Path(folder) / "config.json"))
    stages = {"pretrain": (pretrain_generator, "crop"), "srgan": (train_srgan, "gan_crop"), "sampler": (train_sampler, "sampler_crop")}
    train, crop = stages[stage]
    if "LOCAL_RANK" in os.environ:
        dist.init_process_group("cpu:gloo,cuda:nccl" if pick_device(run.config.device).type == "cuda" else "gloo")
    if parallel.rank():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (for the whole process)
    try:
        images = run.images("train", getattr(run.config, crop)), run.images("val")
        train(run.config, *images, run.folder, run.fingerprint(stage))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1  # torchrun then ends the others, which may wait for this one
    except KeyboardInterrupt:
        return 130
    if dist.is_initialized():
        dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
