"""The released weights: which there are, in data/weights/released.json, and their files, checked by SHA-256 before they are read.

`python -m srlib release RUN` writes them. The list has an entry for each network that was released with its base, such as "sampler-x4": the
files and their SHA-256, the scale and LR kind that they expect, what they were trained on, and the domain of that (`domain.describe`).
"""

import io
import json
from pathlib import Path

import torch

from .config import UserError
from .files import WEIGHTS, released, write
from .models.networks import build
from .sampler.network import Sampler

BASES = {"sampler": "srresnet", "srgan": "srresnet-paper", "srresnet-fast": ""}  # what is released: a network, and what it was trained from
NAMES = (*BASES, "srresnet", "srresnet-paper")
LIST = "released.json"


def listed(folder: Path) -> dict[str, dict]:
    """The entries of a folder's list, by name ('sampler-x4'); {} where there is none. Raises UserError for a list that cannot be read."""
    try:
        return json.loads((folder / LIST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / LIST} cannot be read ({type(error).__name__}); get it from the repository again") from None


def find(name: str, folder: Path | None = None, scale: int = 0) -> tuple[Path, dict]:
    """(file, entry) of the released network `name` in a folder that `release` wrote (None: data/weights), for `scale` (0: 4, or the only one there
    is). Raises UserError where there is none, or the file's SHA-256 is another."""
    folder = folder or WEIGHTS
    entries = {entry["scale"]: entry for entry in listed(folder).values() if name in entry}
    scale = scale or (next(iter(entries)) if len(entries) == 1 else 4)
    if scale not in entries:
        known = f"{name} for x{', x'.join(map(str, sorted(entries)))} only" if entries else f"no released {name}"
        raise UserError(f"{folder} holds {known}; choose another, or name weights of a run, as --weights runs/quick/srgan.pt")
    return released(folder / entries[scale][name]["file"], entries[scale][name]["sha256"]), entries[scale]


# ------------------------------------------------------------------------------------------------ any weights
def save_weights(path: str | Path, model: torch.nn.Module, **facts) -> None:
    """Write a network's weights with its `settings`, so that the file alone rebuilds it. Plain `torch.load` reads it."""
    buffer = io.BytesIO()
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    torch.save(dict(settings=model.settings, weights=state, **facts), buffer)
    write(Path(path), buffer.getvalue())


def load_weights(path: str | Path) -> dict:
    """What `save_weights` wrote: a dict with `settings` and `weights`. Raises UserError for a file that is missing or not one."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file; train first (./run_all.sh), or name the weights of a run")
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
        return {"settings": dict(stored["settings"]), "weights": dict(stored["weights"])}
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path}: holds no weights of this project ({reason})") from None


def load_generator(path: str | Path, device: str | torch.device = "cpu") -> torch.nn.Module:
    """A generator in eval mode, float32, from `srresnet.pt`, `srgan.pt` or `sampler.pt` of a run; the NAMES mean the released ones.
    Raises UserError for a file that is not one."""
    if path in NAMES:
        path = find(path)[0]
    stored = load_weights(path)
    settings = stored["settings"]
    try:
        generator = build({k: v for k, v in settings.items() if k not in ("texture", "kind")})
        if "texture" in settings:
            generator = Sampler(generator, settings["texture"], settings["kind"])
        generator.load_state_dict(stored["weights"])
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path}: its weights do not fit a generator of this version ({str(error).splitlines()[0]})") from None
    return generator.to(device, memory_format=torch.channels_last).eval()  # 1.5 times faster on a CPU
