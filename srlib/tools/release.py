"""`release`: a finished run's two networks in half precision, ONNX files, a model card, and their entry in released.json."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np

from ..config import STAGES, UserError
from ..data.reading import read_pair
from ..files import WEIGHTS, file_hash, read_table, read_text, write, write_image, writing
from ..inference import domain
from ..inference.export import export_onnx
from ..inference.upscaling import upscale
from ..models import weights
from ..models.weights import load_generator
from ..series.run_folder import MAKES, Run, read_config
from .card import KERMANY, PHANTOM, model_card, phantom_picture

LARGEST = 4_000_000  # bytes of a weights file
ROUNDING = 2  # grey levels by which half precision may change SR
SAMPLE = 400  # training images that the domain is measured on


def release(run_dir: str, out: str = "", data: str = "", source: str = "", allow_phantom: bool = False, chosen: str = "") -> list[Path]:
    """Package the run in `run_dir` into `out` ('': data/weights), in the place of an earlier release of its scale; returns the files.

    `data`: where the run's images are now ('': where they were); `source`: whose they are, with licence and citation (known for phantoms and for a
    folder OCT2017, Kermany's); `chosen`: a file of Markdown that says how the settings were chosen, for the card. Raises UserError for a run that is
    not finished, whose files are not those that were evaluated, of phantoms without `allow_phantom`, of unknown source, and for weights that are too
    large or need more than half precision."""
    folder, out = Path(run_dir), Path(out or WEIGHTS)
    run = _finished(folder)
    if run.is_phantom and not allow_phantom:
        raise UserError(f"{folder} was trained on phantoms, which is no result on OCT; release a run on scans, or say --allow-phantom")
    root = Path(data) if data else run.root
    source = source or (PHANTOM if run.is_phantom else KERMANY if "OCT2017" in (root.name.strip(), *root.parts) else "")
    if not source:
        raise UserError(f"{root}: whose scans are these? Say it for the model card: --source 'NAME, LICENCE, CITATION'")
    config, table = run.config, read_table(folder / "evaluation" / "metrics.csv")
    splits = {split: [root / p for p in rows.path] for split, rows in run.manifest.groupby("split")}
    test = [read_pair(root / p, config)[0] for p in table.image.unique()]
    train = splits["train"][:: -(-len(splits["train"]) // SAMPLE)]
    known = domain.describe(read_pair(path, config)[0] for path in train)
    _, kind, amount = config.reduction
    entry = {"scale": config.scale, "reduction": kind, "amount": amount, "phantom": run.is_phantom}
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    with writing(out), tempfile.TemporaryDirectory(dir=out, prefix=".release-") as part:
        facts = _networks(folder, Path(part), entry, test[0])
        facts |= {"warned": sum(bool(domain.warning(lr, known)) for lr in test), "tested": len(test)}
        entry |= {"card": f"card-x{config.scale}.md", "picture": f"card-x{config.scale}.jpg", "domain": known}
        said = read_text(chosen).strip() if chosen else ""
        write(Path(part) / entry["card"], model_card(run, table, source, entry, facts, said))
        networks = {name: load_generator(folder / f"{name}.pt") for name in weights.NAMES}
        write_image(Path(part) / entry["picture"], phantom_picture(networks, config.scale), quality=85)
        written = [file.replace(out / file.name) for file in sorted(Path(part).iterdir())]
    entries = weights.listed(out) | {str(config.scale): entry}
    write(out / weights.LIST, json.dumps(dict(sorted(entries.items())), indent=1) + "\n")
    return [*written, out / weights.LIST]


def _networks(folder: Path, part: Path, entry: dict, lr: np.ndarray) -> dict:
    """Write both networks, in half precision and as ONNX, into `part`, and add them to `entry`; returns what the card says of them."""
    facts = {"rounding": 0, "onnx": 0.0}
    for name in weights.NAMES:
        generator, path = load_generator(folder / f"{name}.pt"), part / f"{name}-x{entry['scale']}.pt"
        before = upscale(lr, generator).astype(int)
        weights.save_weights(path, generator.half(), name=name)
        generator = load_generator(path)
        facts["rounding"] = max(facts["rounding"], int(np.abs(upscale(lr, generator) - before).max()))
        if (size := path.stat().st_size) > LARGEST:
            raise UserError(
                f"{folder / name}.pt has {size:,} bytes in half precision, more than {LARGEST:,}; train with a smaller width or fewer blocks"
            )
        if facts["rounding"] > ROUNDING:
            raise UserError(
                f"{folder / name}.pt changes SR by {facts['rounding']} grey levels in half precision; train with batch_norm false"
            )
        onnx = path.with_suffix(".onnx")
        facts["onnx"] = max(facts["onnx"], export_onnx(generator, onnx))
        entry[name] = {"file": path.name, "sha256": file_hash(path), "onnx": onnx.name, "onnx_sha256": file_hash(onnx)}
    trunk = getattr(generator, "trunk", generator)
    sizes = {
        "parameters": sum(p.numel() for p in trunk.parameters()),
        "head": sum(p.numel() for p in generator.parameters() if p.requires_grad),
    }
    return facts | {"settings": trunk.settings} | sizes


def _finished(folder: Path) -> Run:
    """The run, where every stage has ended and its weights are those that were evaluated; else UserError."""
    if not (folder / "config.json").exists():
        raise UserError(f"{folder} holds no run; name the folder of one that is finished, as runs/quick")
    run = Run(folder, read_config(folder / "config.json"))
    again = f"./run_all.sh --profile {run.config.profile} --run-dir {folder}"
    for stage in STAGES:
        noted = run.provenance["stages"].get(stage, {})
        missing = next((file for file in MAKES[stage] if not (folder / file).exists()), None)
        if missing or not noted.get("finished"):
            raise UserError(f"{folder}: {missing or stage} is not finished; {again} goes on with it")
        if noted["fingerprint"] != run.fingerprint(stage):
            raise UserError(
                f"{folder}: settings, images or weights are not those that {stage} was made from; {again} --from 05 evaluates again"
                if stage == "evaluation"
                else f"{folder}: settings, images or weights are not those that {stage} was made from; train in another --run-dir"
            )
    return run
