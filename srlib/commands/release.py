"""`release`: a finished run's sampler or SRGAN and its SRResNet in half precision, ONNX files, a model card (card.md filled in), and their entry in
released.json."""

import json
import shlex
import tempfile
from pathlib import Path
from string import Template

import numpy as np
import pandas as pd

from .. import trained
from ..config import FIELDS, Config, UserError, load_config, stage_of
from ..data.reading import read_pair
from ..evaluation import statistics
from ..evaluation.methods import METHODS, named
from ..evaluation.statistics import readable_samples, readable_tests, readable_unpaired
from ..files import WEIGHTS, file_hash, read_table, read_text, write, writing
from ..sampler.network import NOISES
from ..series.run_folder import Run, read_config
from ..trained import load_generator
from ..upscaling import upscale
from . import absolute, domain, given, parser
from .onnx import OPSET, export_onnx
from .report import markdown

LARGEST = 4_000_000  # bytes of a weights file
ROUNDING = 2  # grey levels by which half precision may change SR
SAMPLE = 400  # training images that the domain is measured on
CARD = Path(__file__).with_name("card.md")
KERMANY = (
    "D. Kermany, K. Zhang, M. Goldbaum: Labeled Optical Coherence Tomography (OCT) and Chest X-Ray Images for Classification, Mendeley Data, 2018, "
    "[doi:10.17632/rscbjbr9sj.2](https://data.mendeley.com/datasets/rscbjbr9sj/2), CC BY 4.0"
)
PHANTOM = "**Trained on phantoms (synthetic B-scans): not a result on OCT.**"
ABOUT = {
    "srgan": "SRGAN, `{file}`, of the same shape, is trained on from it against a discriminator, with the content loss {content}: its texture is "
    "sharper, its PSNR lower, and it is a function of LR.",
    "sampler": "The sampler, `{file}`, is not the paper's. It stands on SRResNet: frozen, with a head of {head:,} weights that samples texture from noise, "
    "trained against a discriminator. Every sample is projected onto LR, where its reduction allows it. `--seed` gives another sample, `--samples 8 --spread` "
    "several and where they differ, which shows what LR does not say; `--strength` is the texture's factor, 0 is SRResNet's image. The texture is like that of HR, "
    "it is not that of HR: one sample has a lower PSNR than SRResNet, by about 3 dB where the samples are right.",
}
PARTS = (
    "Samples beside what samples of the true posterior have:\n\n{samples}\n\nPatches of SR against patches of HR, of two unseen patients or more:"
    "\n\n{patches}\n\n"
)
NOISE_INPUT = (
    f"The sampler's has a second input `noise` ({NOISES} maps at SR's size, standard normal), and its `sr` is not projected yet "
    "(`srlib.degrade.project`). "
)


def release(run_dir: str, network: str = "sampler", out: str = "", source: str = "", allow_phantom: bool = False) -> list[Path]:
    """Package `network` of the run in `run_dir`, and the SRResNet that it was trained from (`trained.BASES` has their names), into `out`
    ('': data/weights), in the place of an earlier release of its scale; returns the files.

    The arguments are the command's. Raises UserError for a run that is not finished or was not evaluated with these files, of phantoms without
    `allow_phantom`, of unknown source, and for weights that are too large or need more than half precision."""
    folder, out = Path(run_dir), Path(out or WEIGHTS)
    run = _finished(folder, network)
    if run.is_phantom and not allow_phantom:
        raise UserError(f"{folder} was trained on phantoms, which is no result on OCT; release a run on scans, or say --allow-phantom")
    root = run.root
    source = source or (PHANTOM if run.is_phantom else KERMANY if "OCT2017" in (root.name.strip(), *root.parts) else "")
    if not source:
        raise UserError(f"{root}: whose scans are these? Say it for the model card: --source 'NAME, LICENCE, CITATION'")
    config, base = run.config, trained.BASES[network]
    table = run.metrics if base else run.manifest[run.manifest.split == "test"].rename(columns={"path": "image"})
    others = {"srgan": ("sampler", "gaussian"), "sampler": ("srgan", "srgan_projected")}.get(network, ())  # of no concern to this card
    table = table[[METHODS[method].needs not in others for method in table.method]] if base else table
    train = [root / path for path in run.manifest.path[run.manifest.split == "train"]]
    test = [read_pair(root / path, config)[0] for path in table.image.unique()]
    known = domain.describe(read_pair(path, config)[0] for path in train[:: -(-len(train) // SAMPLE)])
    name = f"{network}-x{config.scale}"
    entry = {"scale": config.scale, "reduction": config.reduction[1], "phantom": run.is_phantom}
    entry |= {"card": f"card-{name}.md", "domain": known}
    out.mkdir(parents=True, exist_ok=True)
    with writing(out), tempfile.TemporaryDirectory(dir=out, prefix=".release-") as part:
        facts = _write_networks(folder, network, Path(part), entry, test[0])
        facts |= {"warned": sum(bool(domain.warning(lr, known)) for lr in test), "tested": len(test), "source": source}
        if base:  # the card of an SRResNet that is released alone is written by hand
            write(Path(part) / entry["card"], model_card(run, network, table, entry, facts))
        written = [file.replace(out / file.name) for file in sorted(Path(part).iterdir())]
    entries = trained.listed(out) | {name: entry}
    write(out / trained.LIST, json.dumps(dict(sorted(entries.items())), indent=1) + "\n")
    return [*written, out / trained.LIST]


def _finished(folder: Path, network: str) -> Run:
    """The run, where every stage that the network needs has ended and its weights are those that were evaluated; else UserError."""
    if not (folder / "config.json").exists():
        raise UserError(f"{folder} holds no run; name the folder of one that is finished, as runs/quick")
    run = Run(folder, read_config(folder / "config.json"))
    again = f"./run_all.sh --profile {run.config.profile} --run-dir {folder}"
    evaluated = (network, "evaluation", *(["samples"] if network == "sampler" else []))
    for stage in ("data", "pretrain", *(evaluated if trained.BASES[network] else ())):
        if not run.provenance["stages"].get(stage, {}).get("finished"):
            raise UserError(f"{folder}: {stage} is not finished; {again} goes on with it")
        if why := run.changed(stage):
            todo = f"{again} --from 05 evaluates again" if stage in ("evaluation", "samples") else "train in another --run-dir"
            raise UserError(f"{folder}: {stage} was made with {why}; {todo}")
    return run


def _write_networks(folder: Path, network: str, part: Path, entry: dict, lr: np.ndarray) -> dict:
    """Write SRResNet and `network`, in half precision and as ONNX, into `part`, and add them to `entry`; returns what the card says of them."""
    rounding, gap = 0, 0.0
    for stem, name in (("srresnet", trained.BASES[network] or network), *([(network, network)] if trained.BASES[network] else [])):
        generator, path = load_generator(folder / f"{stem}.pt"), part / f"{name}-x{entry['scale']}.pt"
        before = upscale(lr, generator).astype(int)
        for weight in generator.parameters():  # not BN's statistics and the usual scan's, which have small differences of large numbers
            weight.data = weight.data.half()
        trained.save_weights(path, generator, name=name)
        generator = load_generator(path)
        rounding = max(rounding, int(np.abs(upscale(lr, generator) - before).max()))
        if (size := path.stat().st_size) > LARGEST:
            todo = f"has {size:,} bytes in half precision, more than {LARGEST:,}; train with a smaller width or fewer blocks"
            raise UserError(f"{folder / stem}.pt {todo}")
        if rounding > ROUNDING:
            raise UserError(f"{folder / stem}.pt changes SR by {rounding} grey levels in half precision; train with batch_norm false")
        onnx = path.with_suffix(".onnx")
        gap = max(gap, export_onnx(generator, onnx))
        entry[name] = {"file": path.name, "sha256": file_hash(path), "onnx": onnx.name, "onnx_sha256": file_hash(onnx)}
    trunk = getattr(generator, "trunk", generator)
    head = sum(p.numel() for p in generator.parameters() if p.requires_grad)
    parameters = sum(p.numel() for p in trunk.parameters())
    levels = f"{rounding} grey level{'s' * (rounding != 1)}"
    return {"rounding": levels, "onnx": f"{gap:.0e}", "shape": trunk.settings, "parameters": f"{parameters:,}", "head": head}


# ------------------------------------------------------------------------------------------------ the card
def model_card(run: Run, network: str, table: pd.DataFrame, entry: dict, facts: dict) -> str:
    """card.md with what the run's records say of the network and its SRResNet."""
    config, known, made, base = run.config, entry["domain"], run.provenance["made_by"], trained.BASES[network]
    begun = run.provenance["networks"]["start"] if config.start else None
    commits = dict.fromkeys(stage["git"] for stage in run.provenance["stages"].values())
    measures = statistics.titled(statistics.with_intervals(statistics.summarise(table)))
    counts = (f"{len(rows)} of {rows.patient.nunique()} patients ({split})" for split, rows in run.manifest.groupby("split", sort=False))
    samples = ""
    if network == "sampler":
        samples, patches = (read_table(run.folder / "sampler" / f"{name}.csv") for name in ("samples", "unpaired"))
        patches = patches[patches.method.isin(["hr", *table.method])]
        patches = markdown(readable_unpaired(patches).rename_axis("measure").reset_index())
        samples = PARTS.format(samples=markdown(readable_samples(samples).reset_index()), patches=patches)
    content = config.content_features if network == "srgan" else "local-grain"
    words = _failures(table, network) | {
        "name": named(network),
        "network": network,
        "base": base,
        "notice": f"{PHANTOM}\n\n" if entry["phantom"] else "",
        "shape": ", ".join(f"{name} {value}" for name, value in facts["shape"].items()),
        "about": ABOUT[network].format(file=entry[network]["file"], head=facts["head"], content=content),
        "sizes": " x ".join(f"{low} to {high}" if low < high else f"{low}" for low, high in (known["width"], known["height"])),
        "images": known["images"],
        "counts": ", ".join(counts),
        "manifest": file_hash(run.folder / "manifest.csv"),
        "trainings": f"{_training(run, 'pretrain', config.crop)}\n{_training(run, network, config.gan_crop if network == 'srgan' else config.sampler_crop)}",
        "begun": f" SRResNet began with the weights {Path(begun['file']).name} (SHA-256 `{begun['sha256']}`)." if begun else "",
        "content": content,
        "colour": "grey" if config.channels == 1 else "colour",
        "made_by": ", ".join([f"git {' and '.join(commits)}", *(f"{name} {version}" for name, version in made["versions"].items())]),
        "settings": _settings(config),
        "command": training_command(config),
        "caution": statistics.caution(table),
        "measures": markdown(measures.rename_axis("measure").reset_index()),
        "aimed": statistics.AIMED,
        "samples": samples,
        "psnr_tests": markdown(readable_tests(table, "psnr")),
        "lpips_tests": markdown(readable_tests(table, "lpips")),
        "classes": markdown(statistics.parts(table, "label", ("gain_db", "ssim")).reset_index()),
        "opset": OPSET,
        "noise": NOISE_INPUT if network == "sampler" else "",
    }
    files = {f"{part}_{key}": value for part, name in (("base", base), ("network", network)) for key, value in entry[name].items()}
    return Template(read_text(CARD)).substitute(vars(config) | facts | entry | files | words)


def training_command(config: Config) -> str:
    """The command that trained the pair: the settings in which the run differs from its profile."""
    usual = load_config(config.profile)
    changed = {k: v for k, v in vars(config).items() if v != getattr(usual, k) and k not in ("data", "profile")}
    changed |= {"start": "START"} if config.start else {}  # what a name means changes, 'released' with this very release
    parts = [f"--profile {config.profile}", *(["--data SCANS"] if config.data != "phantom" else []), "--run-dir RUN"]
    return " ".join(["./run_all.sh", *parts, *(f"-p {k} {shlex.quote(str(v))}" for k, v in changed.items())])


def _training(run: Run, stage: str, crop: int) -> str:
    """A line on the length, the hardware and the end of one training."""
    history, config = read_table(run.folder / stage / "history.csv"), run.config
    last, device = history.iloc[-1], run.provenance["stages"][stage].get("device", "hardware not recorded")
    best = f"; best validation gain {history.gain_db.max():+.2f} dB" if stage == "pretrain" else ""
    return (
        f"- {named('srresnet' if stage == 'pretrain' else stage)}: {last.step:,.0f} steps of {config.batch} crops of {crop} pixels, "
        f"{last.seconds / 3600:.2f} h in {last.session:.0f} session{'s' if last.session > 1 else ''} on {device}; at the end {last.gain_db:+.2f} dB against bicubic on validation scans{best}"
    )


def _settings(config: Config) -> str:
    """A table of all settings but those of the machine, paths, and those of phantoms where there are none."""
    hidden = ("data", "feature_weights", "start", *(name for name in FIELDS if name.startswith("phantom") and config.data != "phantom"))
    shown = {k: v for k, v in vars(config).items() if k not in hidden and (k == "profile" or stage_of(k) != "machine")}
    return markdown(pd.DataFrame({"setting": shown.keys(), "value": [str(value).replace("|", r"\|") for value in shown.values()]}))


def _failures(table: pd.DataFrame, network: str) -> dict:
    """What went wrong on the test images, counted in the valid region, by its name in the card."""
    rows = table[table.region == "valid"].set_index(["image", "method"])
    gain = rows.psnr.unstack().pipe(lambda psnr: psnr.sub(psnr.bicubic, axis=0))
    own = rows.xs(network, level="method")
    least = {"least_base": f"{gain.srresnet.min():+.2f}", "least_network": f"{gain[network].min():+.2f}"}
    least |= {"least_consistency": f"{own.consistency.min():.1f}", "grids": (own.checkerboard > 5).sum()}
    return least | {"below": (gain.srresnet < 0).sum()}


def main(argv: list[str]) -> None:
    words = parser("release", "Package a finished run's sampler or SRGAN, and its SRResNet, with model card and ONNX.")
    words.add_argument("run_dir", type=given, metavar="RUN", help="folder of a run that was evaluated")
    words.add_argument("network", nargs="?", default="sampler", choices=sorted(trained.BASES), help="which one (default: sampler)")
    words.add_argument("--out", default="", metavar="DIR", help="folder to write to (default: data/weights)")
    words.add_argument("--source", default="", metavar="TEXT", help="whose scans these are, with licence and citation (known: Kermany's)")
    words.add_argument("--allow-phantom", action="store_true", help="package a run on phantoms, and say so wherever it is used")
    args = words.parse_args(argv)
    for file in release(absolute(args.run_dir), args.network, absolute(args.out), args.source, args.allow_phantom):
        print(file)
