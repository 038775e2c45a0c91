"""The released weights: which there are, in data/weights/released.json, and their files, checked by SHA-256 before they are read.

`python -m srlib release RUN` writes them. The list has an entry for each scale: the two networks' files, their SHA-256, the LR kind they
expect, what they were trained on, and the domain of that (`domain.describe`).
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import torch

from .config import UserError
from .files import WEIGHTS, released, write
from .models.networks import build
from .sampler.network import Sampler

NAMES = ("srresnet", "srgan")
LIST = "released.json"


def listed(folder: Path) -> dict[str, dict]:
    """The entries of a folder's list, by scale ('4'); {} where there is none. Raises UserError for a list that cannot be read."""
    try:
        return json.loads((folder / LIST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / LIST} cannot be read ({type(error).__name__}); get it from the repository again") from None


def pair(folder: Path | None = None, scale: int = 0) -> tuple[dict[str, Path], dict | None]:
    """({'srresnet': file, 'srgan': file}, entry) of a folder: of one that `release` wrote (None: data/weights) the pair of `scale` (0: 4, or the only
    one there is), each file checked by its SHA-256; of a run entry is None. UserError where there is none, or a file is not the released one."""
    folder = folder or WEIGHTS
    entries = listed(folder)
    if folder != WEIGHTS and not entries:
        return {name: folder / f"{name}.pt" for name in NAMES}, None
    key = str(scale) if scale else "4" if "4" in entries or len(entries) != 1 else next(iter(entries))
    if key not in entries:
        known = f"weights for x{', x'.join(entries)} only" if entries else "no released weights"
        raise UserError(f"{folder} holds {known}; choose with --scale, or name those of a run, --weights runs/quick/srgan.pt")
    return {name: released(folder / entries[key][name]["file"], entries[key][name]["sha256"]) for name in NAMES}, entries[key]


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


def rebuild(settings: dict) -> torch.nn.Module:
    """The generator of stored `settings` (`models.networks.build`), or, with `texture` and `kind`, a `Sampler` on one."""
    network = build({name: value for name, value in settings.items() if name not in ("texture", "kind", "amount")})
    return Sampler(network, settings["texture"], reduction(settings)) if "texture" in settings else network


def reduction(stored: dict, name: str = "kind") -> str:
    """The kind of `degrade` in stored settings; earlier versions kept its number apart, as `amount`."""
    amount = stored.get("amount")
    return f"{stored[name]}:{amount:g}" if amount else stored[name]


def load_generator(path: str | Path, device: str | torch.device = "cpu") -> torch.nn.Module:
    """A generator in eval mode, float32, from `srresnet.pt` or `srgan.pt` of a run; the names 'srresnet' and 'srgan' mean the released ones.
    Raises UserError for a file that is not one."""
    if path in NAMES:
        path = pair()[0][path]
    stored = load_weights(path)
    try:
        generator = rebuild(stored["settings"])
        generator.load_state_dict(stored["weights"])
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path}: its weights do not fit a generator of this version ({str(error).splitlines()[0]})") from None
    return generator.to(device, memory_format=torch.channels_last).eval()  # 1.5 times faster on a CPU


def choose(
    weights: str | Path = "srgan", scale: int = 0, device: str | torch.device = "cpu"
) -> tuple[torch.nn.Module, str, dict | None, str]:
    """(generator, what to call it, the domain that it was released for or None, the reduction that it learnt to undo).

    `weights`: 'srresnet' or 'srgan' (the released ones, of `scale` where there are several), a file, or a folder (its SRGAN): a run or
    what `release` wrote. The reduction is a kind of `degrade`, from the release, the run's folder or the network; bicubic where
    none of them says it. Raises UserError for weights that are not there, damaged, or of another scale.
    """
    named, path, entry = str(weights) in NAMES, Path(weights), None
    if named or path.is_dir():
        files, entry = pair(None if named else path, scale)
        path = files[str(weights) if named else "srgan"]
    elif path.exists():  # a released file by its name
        entry = next((e for e in listed(path.parent).values() if path.name in (e[n]["file"] for n in NAMES)), None)
    generator = load_generator(path, device)
    if scale and generator.settings["scale"] != scale:
        raise UserError(f"{weights} enlarges x{generator.settings['scale']}, not x{scale}; leave --scale out or name other weights")
    if entry:
        title = f"{path.name} (trained on phantoms)" if entry["phantom"] else path.name
        return generator, title, entry["domain"], reduction(entry, "reduction")
    try:
        config = json.loads((path.parent / "config.json").read_text(encoding="utf-8"))
        learnt = reduction({"kind": config["degradation"], "amount": config.get("degradation_amount")})
    except (OSError, ValueError, KeyError):  # a file alone
        learnt = generator.settings.get("kind", "bicubic") or "paired"  # '' for speckle, too
    return generator, path.name, None, learnt
