"""What tests of the command line and of trainings share."""

import subprocess
import sys

from srlib.files import REPOSITORY
from srlib.sampler.training import train_sampler
from srlib.training.adversarial import train_srgan


def srlib(*args, **kwargs):
    command = [sys.executable, "-m", "srlib", *map(str, args)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=500, **kwargs)


def said(done) -> list[str]:
    """The lines on stderr; a kernel that dies while it is being stopped may add one of libzmq's own, which is nobody's error."""
    return [line for line in done.stderr.splitlines() if "(src/signaler.cpp" not in line]


def train_adversarially(config, *rest):
    """The adversarial training of the settings, the sampler's or Ledig's."""
    return (train_sampler if config.texture else train_srgan)(config, *rest)
