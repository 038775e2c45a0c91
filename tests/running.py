"""What tests share: the command line, the adversarial training of the settings, a generator of one's own."""

import subprocess
import sys

from torch import nn

from srlib.degrade import upsample
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


class Plain(nn.Module):
    """A generator with nothing of SRResNet's: no `with_maps`."""

    def __init__(self, scale=4, channels=1, **_):
        super().__init__()
        self.settings = {"generator": "plain", "scale": scale, "channels": channels}
        self.body = nn.Conv2d(channels, channels * scale**2, 3, padding=1)

    def forward(self, lr):
        scale = self.settings["scale"]
        return upsample(lr, scale) + 0.1 * nn.functional.pixel_shuffle(self.body(lr).float(), scale)
