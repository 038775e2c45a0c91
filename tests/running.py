"""What tests share: files that they make, the command line, a generator of one's own."""

import subprocess
import sys

import numpy as np
from PIL import Image
from torch import nn

from srlib.data.phantom import PATHOLOGIES, bscan
from srlib.degrade import downsample, to_image, to_tensor, upsample
from srlib.files import REPOSITORY


def save(path, *pages, **options):
    """An image file, or a volume of several pages; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    first, *more = map(Image.fromarray, pages)
    first.save(path, **(dict(save_all=True, append_images=more) if more else {}), **options)
    return path


def save_patients(root, height, width):
    """Two phantoms of each of six patients, in Kermany's layout; returns the folder."""
    for eye in range(6):
        pathology = PATHOLOGIES[eye % 4]
        for number in (1, 2):
            name = f"{pathology.upper()}/{pathology.upper()}-{100 + eye}-{number}.png"
            save(root / name, bscan(eye, height, width, pathology, 0.5 * number))
    return root


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def reduced(hr, scale=4):
    """LR of an HR image."""
    return to_image(downsample(to_tensor(hr), scale))


def one_line(capsys) -> str:
    """The one line on stderr, progress bars left out."""
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "%|" not in line]
    return line


def srlib(*args, **kwargs):
    command = [sys.executable, "-m", "srlib", *map(str, args)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=1200, **kwargs)


def said(done) -> list[str]:
    """The lines on stderr; a kernel that dies while it is being stopped may add one of libzmq's own, which is nobody's error."""
    return [line for line in done.stderr.splitlines() if "(src/signaler.cpp" not in line]


class Plain(nn.Module):
    """A generator with nothing of SRResNet's: no `with_maps`."""

    def __init__(self, scale=4, channels=1, **_):
        super().__init__()
        self.settings = {"generator": "plain", "scale": scale, "channels": channels}
        self.body = nn.Conv2d(channels, channels * scale**2, 3, padding=1)

    def forward(self, lr):
        scale = self.settings["scale"]
        return upsample(lr, scale) + 0.1 * nn.functional.pixel_shuffle(self.body(lr).float(), scale)
