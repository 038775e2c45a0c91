"""The card of a released pair: what it is, how it was trained, what it measures, where it fails."""

from __future__ import annotations

import dataclasses
import io
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from ..config import FIELDS, STAGES, Config, load_config
from ..data.phantom import bscan
from ..degrade import crop_to_multiple, downsample, to_image, to_tensor
from ..evaluation import statistics
from ..evaluation.drawn import DRAWS
from ..figures import panels
from ..files import file_hash, read_table
from ..inference.export import CHECKED, OPSET
from ..inference.upscaling import upscale
from ..models import weights
from ..models.texture import NOISES
from ..series.report import markdown, readable_draws, readable_tests, readable_unpaired
from ..series.run_folder import Run
from ..training import diagnostics

CURVE = 9  # points of a training's curve
BY_PART = ("gain_db", "ssim", "ms_ssim", "texture_error_db", *(f"band{k}_db" for k in range(1, 7)), "stripe_db", "consistency")
KERMANY = (
    "D. Kermany, K. Zhang, M. Goldbaum: Labeled Optical Coherence Tomography (OCT) and Chest X-Ray Images for Classification, Mendeley Data, 2018, "
    "[doi:10.17632/rscbjbr9sj.2](https://data.mendeley.com/datasets/rscbjbr9sj/2), CC BY 4.0"
)
PHANTOM = "**Trained on phantoms (synthetic B-scans): not a result on OCT.**"


def model_card(run: Run, table: pd.DataFrame, source: str, entry: dict, facts: dict, chosen: str = "") -> str:
    """The card of the pair as Markdown, from the run's records: what a user must know before trusting an output. `chosen`: how the settings were
    chosen, as Markdown."""
    config, manifest, known = run.config, run.manifest, entry["domain"]
    counts = ", ".join(
        f"{len(rows)} of {rows.patient.nunique()} patients ({split})" for split, rows in manifest.groupby("split", sort=False)
    )
    sizes = " x ".join(f"{a} to {b}" if a < b else f"{a}" for a, b in (known["width"], known["height"]))
    colour = "grey, 8 or 16 bit" if config.channels == 1 else "colour"
    shape = ", ".join(f"{k} {v}" for k, v in facts["settings"].items())
    made, sections = run.provenance.get("made_by", {}), []
    stages = {run.provenance["stages"][s].get("git") or made.get("git") or "unknown": s for s in reversed(STAGES)}
    commits = ", ".join(f"{git} (from {stage} on)" for git, stage in reversed(stages.items())) if len(stages) > 1 else next(iter(stages))
    if entry["phantom"]:
        sections.append(PHANTOM)
    sections += [
        "**Research only.** What super-resolution adds is synthetic: not for diagnosis, not for measuring lesions or layers.",
        "## What it is",
        f"SRResNet of Ledig et al. 2017 ([arXiv 1609.04802](https://arxiv.org/abs/1609.04802); {shape}; {facts['parameters']:,} weights), "
        f"x{config.scale}: `{entry['srresnet']['file']}`, trained on {config.pretrain_loss}, has the higher PSNR. {_srgan(config, entry, facts)} "
        "Licence of the weights: MIT, as the code.",
        _commands(config),
        "## What it expects",
        f"LR as it was made in training: {_reduction(config)}, {colour}, {sizes} pixels. A scan at an instrument's full resolution is not such an image: the "
        "networks enlarge it too, but what they add there was never compared with a truth. `upscale` warns of images unlike the training set (size, colour, "
        f"grey levels, spectrum; {known['images']} training images); it did so for {facts['warned']} of {facts['tested']} unseen test scans.",
        "## Data",
        f"{source}. Images: {counts}; no patient stands in two splits. SHA-256 of the manifest: `{file_hash(run.folder / 'manifest.csv')}`.",
        "## Training",
        *_training(run),
        f"Made by git {commits}, " + ", ".join(f"{k} {v}" for k, v in made.get("versions", {}).items()) + ".",
        "<details><summary>all settings</summary>\n\n" + markdown(_settings(config)) + "\n\n</details>",
        "To make the pair again (`SCANS`: the images above" + "; `START`: the weights that it began with" * bool(config.start) + "):",
        f"```\n{_command(config)}\n./run_all.sh release RUN\n```",
        "## How the settings were chosen",
        chosen or "Not recorded.",
        "## Measures on unseen patients",
        f"Valid region, mean over patients [95 % interval]. {statistics.caution(table)}",
        markdown(statistics.titled(statistics.with_intervals(statistics.summarise(table))).rename_axis("measure").reset_index()),
        *_draws_and_patches(run.folder / "evaluation"),
        *(
            f"<details><summary>by {name}</summary>\n\n"
            + markdown(statistics.parts(table, column, BY_PART).rename_axis([name, "measure"]).reset_index())
            + "\n\n</details>"
            for column, name in (("label", "class"), ("size", "size of the scan"))
        ),
        "Differences patient by patient, with paired Wilcoxon tests (p by Holm, for all rows of its table), first PSNR, then the texture error:",
        markdown(readable_tests(table, "psnr")),
        markdown(readable_tests(table, "texture_error_db")),
        "## Where it fails",
        "\n".join(f"- {line}" for line in failures(table, config)),
        f"![A phantom by both networks]({entry['picture']})",
        "*A phantom, at four times its size: what the networks make of an image that they were not trained on; their grain may be wrong there.*",
        "## Files",
        f"Half precision changes SR by at most {facts['rounding']} grey levels (first test scan). The ONNX files hold the same weights (made by `srlib.inference.export.export_onnx`, torch's "
        f"exporter, opset {OPSET}; any batch, height and width; input `lr`, output `sr`, float32 in [0, 1]); onnxruntime and torch differ by at most {facts['onnx']:.0e} in [0, 1] (batch x height x width {', '.join(' x '.join(map(str, size)) for size in CHECKED)}). {_left(config)}",
        "\n".join(
            f"- `{entry[n][kind]}`: SHA-256 `{entry[n][sha]}`"
            for n in weights.NAMES
            for kind, sha in (("file", "sha256"), ("onnx", "onnx_sha256"))
        ),
    ]
    return f"# SRResNet and SRGAN for OCT, x{config.scale}\n\n" + "\n\n".join(sections) + "\n"


def _draws_and_patches(evaluation: Path) -> list[str]:
    """Tables of the draws, of HR's rank among them, and of patches against HR's, as far as the run has measured them."""
    said, files = [], {name: evaluation / f"{name}.csv" for name in ("draws", "ranks", "unpaired")}
    if files["draws"].exists():
        ranks = read_table(files["ranks"]).pivot_table(index="region", columns="rank", values="share", sort=False)
        equal = 1 / len(ranks.columns)
        said += [
            f"Draws of SRGAN ({DRAWS}), mean over patients [95 % interval], beside what draws of the true posterior have:",
            markdown(readable_draws(read_table(files["draws"])).reset_index()),
            f"Share of pixels at each rank of HR among the draws (right: {equal:.3f} each; more at the ends: HR lies outside of the draws too often):",
            markdown(ranks.map("{:.3f}".format).rename(columns=str).reset_index()),
        ]
    if files["unpaired"].exists() and len(unpaired := read_table(files["unpaired"])):  # empty with fewer than two patients
        table = readable_unpaired(unpaired).rename_axis("measure").reset_index()
        said += ["Patches of SR against patches of HR, of the same unseen patients:", markdown(table)]
    return said


def _srgan(config: Config, entry: dict, facts: dict) -> str:
    """What the card says SRGAN is: a head on SRResNet, or, without texture, a network of SRResNet's shape."""
    name = f"`{entry['srgan']['file']}`"
    if not config.texture:
        return f"{name}, of the same shape, trained on from it against a discriminator, has the more natural texture."
    agrees = "Every draw reduces to LR, as it is projected. " if config.holds_lr else ""
    return (
        f"SRGAN, {name}, stands on SRResNet: frozen, with a head of {facts['head']:,} weights that draws texture from noise, trained against a discriminator. {agrees}"
        "`--seed` gives another draw, `--draws` several, whose spread shows what LR does not say; `--strength` is the texture's factor, 0 is SRResNet's image. "
        "The texture is like that of HR, it is not that of HR: one draw has a lower PSNR than SRResNet, by about 3 dB where the draws are right."
    )


def _command(config: Config) -> str:
    """The command that trained the pair: the settings in which the run differs from its profile."""
    usual = load_config(config.profile)
    changed = {k: v for k, v in vars(config).items() if v != getattr(usual, k) and k not in ("data", "profile")}
    changed |= {"start": "START"} if config.start else {}  # what a name means changes, 'released' with this very release
    parts = [f"--profile {config.profile}", *(["--data SCANS"] if config.data != "phantom" else []), "--run-dir RUN"]
    return " ".join(["./run_all.sh", *parts, *(f"-p {k} {shlex.quote(str(v))}" for k, v in changed.items())])


def phantom_picture(generators: dict[str, torch.nn.Module], scale: int) -> Image.Image:
    """A phantom reduced, super-resolved by each generator, and its HR: `panels.closeups`."""
    hr = crop_to_multiple(bscan(3, pathology="drusen"), scale)
    lr = to_image(downsample(to_tensor(hr), scale))
    squares = panels.closeups({name: upscale(lr, network) for name, network in generators.items()} | {"hr": hr})
    return Image.open(io.BytesIO(panels.png(squares, phantom=True))).convert("RGB")


def _commands(config: Config) -> str:
    command = "./run_all.sh upscale SCAN OUT" + f" --scale {config.scale}" * (config.scale != 4)  # 4 is what `upscale` takes without it
    lines = [f"{command}                       # SRGAN", f"{command} --weights srresnet"]
    if config.texture:
        lines += [f"{command} --draws 8 --spread    # eight draws and where they differ"]
        lines += [f"{command} --strength 0.5        # half of the texture"]
    return "\n".join(["```", *lines, "```"])


def _left(config: Config) -> str:
    """What is left to who uses the ONNX files."""
    noise = f"SRGAN's has a second input `noise` ({NOISES} maps at SR's size, standard normal), and its `sr` is not projected yet (`srlib.degrade.project`). "
    return noise * bool(config.texture) + "Rounding to 8 bit and tiles are left to the caller."


def _reduction(config: Config) -> str:
    kind = "antialiased bicubic" if config.degradation == "bicubic" else config.degradation
    return f"`{kind}` reduction by {config.scale}, rounded to 8 bit"


def _training(run: Run) -> list[str]:
    """What the card says of the two trainings, their curves in figures last."""
    said, curves = [], []
    begun = run.provenance.get("networks", {}).get("start") if run.config.start else None
    for stage, words in (("pretrain", "SRResNet"), ("srgan", "SRGAN")):
        history = read_table(run.folder / stage / "history.csv")
        device = run.provenance["stages"][stage].get("device", "hardware not recorded")
        last = history.iloc[-1]
        few = history.iloc[np.linspace(0, len(history) - 1, min(CURVE, len(history))).round().astype(int)]
        curve = [f"{words}, step", *(f"{step:,}" for step in few.step)], ["gain (dB)", *(f"{gain:+.2f}" for gain in few.gain_db)]
        curves.append(markdown(pd.DataFrame(curve[1:], columns=curve[0])))
        best = f"; best validation gain {history.gain_db.max():+.2f} dB" if stage == "pretrain" else ""
        best += (
            f", begun with the weights {Path(begun['file']).name} (SHA-256 `{begun['sha256']}`)" if begun and stage == "pretrain" else ""
        )
        said.append(
            f"- {words}: {last.step:,.0f} steps of {run.config.batch} crops of {run.config.crop if stage == 'pretrain' else run.config.gan_crop} pixels, {last.seconds / 3600:.2f} h in "
            f"{last.session:.0f} session(s) on {device}; at the end {last.gain_db:+.2f} dB against bicubic on validation scans{best}"
        )
    chosen = "state at the end" if run.config.train_on_val else "state with the best validation PSNR"
    released_by = f"SRResNet is the {chosen}; SRGAN the averaged weights (EMA) at the end, not chosen by any measure."
    seen = " (which were trained on, too)" * run.config.train_on_val
    return [
        "\n".join(said),
        f"{released_by} SRGAN's losses: {', '.join(_losses(run.config))}. Seed {run.config.seed}.",
        f"Gain over bicubic during the trainings, on crops of validation scans{seen}:",
        *curves,
    ]


def _losses(config: Config) -> list[str]:
    content = [] if config.content_features == "none" and config.texture else [f"content ({config.content_features})"]
    return [f"adversarial ({config.adversarial_loss})", *content, *["pixels"] * bool(config.pixel_weight)]


def _settings(config: Config) -> pd.DataFrame:
    """Setting and value; without those of the machine, without paths, and without those of phantoms where there are none."""
    hidden = ("data", "feature_weights", "start", *(k for k in FIELDS if k.startswith("phantom") and config.data != "phantom"))
    shown = {k: v for k, v in dataclasses.asdict(config).items() if k not in hidden and FIELDS[k].metadata.get("stage") != "machine"}
    return pd.DataFrame({"setting": shown.keys(), "value": [str(v).replace("|", r"\|") for v in shown.values()]})


def failures(table: pd.DataFrame, config: Config) -> list[str]:
    """What went wrong on the test images, counted, and what must be expected to."""
    rows = table[table.region == "valid"]
    gain = rows.pivot_table(index="image", columns="method", values="psnr").pipe(lambda t: t.sub(t.bicubic, axis=0))
    worst, label = gain.srresnet.idxmin(), rows.drop_duplicates("image").set_index("image")
    classes = gain.srresnet.groupby([label.label, label.patient]).mean().groupby(level=0).mean().sort_values()
    srgan, far = rows[rows.method == "srgan"], 3.0 if config.texture else 1.5  # a right draw lies about 2 dB below bicubic
    found = [
        f"SRResNet is below bicubic in PSNR on {(gain.srresnet < 0).sum()} of {len(gain)} test scans; least gain {gain.srresnet.min():+.2f} dB "
        f"(class {label.label[worst]}, {label.width[worst]} x {label.height[worst]}).",
        f"It gains least in class {classes.index[0]} ({classes.iloc[0]:+.2f} dB) and most in {classes.index[-1]} ({classes.iloc[-1]:+.2f} dB).",
        f"{'A draw of ' * bool(config.texture)}SRGAN is more than {far:g} dB below bicubic on {(gain.srgan < -far).sum()} of {len(gain)}; its lowest gain is {gain.srgan.min():+.2f} dB.",
        f"SRGAN contradicts LR (LR consistency below {diagnostics.LEFT_LR:.0f} dB) on {(srgan.consistency < diagnostics.LEFT_LR).sum()} of {len(srgan)}; "
        f"lowest {srgan.consistency.min():.1f} dB. A grid is visible (checkerboard above 5) on {(srgan.checkerboard > 5).sum()}.",
        "Detail smaller than an LR pixel is drawn from what training scans show there: small lesions can be lost, thinned or made up, and speckle is not the eye's own"
        + (": another draw shows other grain." if config.texture else "."),
        "Another instrument (swept source, another wavelength or averaging), another reduction, noise, overlays, colour and photographs are outside of what was measured; "
        "the warning finds many of them, not all.",
    ]
    return found
