"""The short kernel, "SRGAN on OCT in one notebook": data, model, both trainings and pictures, from the series' own code and cells."""

from __future__ import annotations

import textwrap

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell

from ..files import NOTEBOOK_FOLDER
from ..models import networks
from ..notebook import plain_code
from ..series.run_folder import NOTEBOOKS

TITLE = "SRGAN on OCT in one notebook"
USUAL = {"max_images": 3000, "width": 32, "pretrain_steps": 20_000, "gan_steps": 2_000}  # what the parameters of the notebook say

INTRO = """# {title}

![A synthetic scan, and a square of it at four times its size: LR, bicubic, SRResNet, SRGAN and HR](attachment:result.jpg)

Make a scan of the retina (optical coherence tomography, OCT) four times finer: scans, network, both trainings, and what came out. The picture is a phantom (a synthetic scan) by networks of the series' shortest profile. **SRResNet** has the least error and looks smooth; **SRGAN** draws the grain (*speckle*) that a low-resolution scan (LR) has lost. The grain is plausible, not true: **research only**.

{time} The whole series, with how and why and six methods measured on unseen patients, is [SRGAN for OCT]({series})."""

SCANS_TEXT = """## 1. The scans

`data`: `"kermany"` ([Kermany et al. 2018](https://data.mendeley.com/datasets/rscbjbr9sj)), a folder of yours, or `"phantom"`, synthetic scans that need no download. Patients are split before anything is trained: no patient stands in two splits."""

PAIR_TEXT = """LR is made from HR by a bicubic reduction, each LR pixel drawn large on the left. What it lost is what the networks have to make up."""

MODEL_TEXT = """## 2. SRResNet

The generator of [Ledig et al. 2017](https://arxiv.org/abs/1609.04802), as it stands in the series: residual blocks at LR size, then sub-pixel convolutions. Edit it here; it is what is trained."""

MSE_TEXT = """## 3. First training: squared error

The network that minimises the squared error gives the mean of all images that LR allows. The mean has no grain."""

GAME_TEXT = """## 4. Second training: the adversarial one

SRResNet is frozen. A small head adds texture drawn from noise, and a *projection* takes out of it what LR would see, so every draw reduces to LR again. The **discriminator** D learns to tell HR from SR, the generator G to be taken for HR. Two draws of one LR keep their *mean* where HR is, without punishing the grain for not being HR's. (The series also averages G's weights over the steps and lowers the penalty; both are left out here.)"""

STEP_TEXT = """One turn: first D, then G."""

RESULT_TEXT = """## 5. What came out

At exactly four times the size. One draw has HR's grain and pays with PSNR; the mean of eight draws wins it back. Power is SR's against HR's by band above the LR Nyquist frequency: 0 is right, -20 is no grain."""

END_TEXT = """## Change one thing

- `gan_steps`, `max_images`, `penalty` (in `drawing`): how does the power by band move?
- Another network: edit `ResidualBlock` or `Generator` above.
- {code} `!python -m srlib run --profile smoke` runs the six notebooks of the series in minutes."""

SET_UP = """import copy
import dataclasses

import torch.nn.functional as F
from srlib.notebook import *

settings = {"max_images": max_images, "width": width, "pretrain_steps": pretrain_steps, "gan_steps": gan_steps}
run = open_run("01", "quick", "runs/short", data, settings | overrides)
config, device = run.config, pick_device(run.config.device)
manifest = run.make_manifest()
print(f"{len(manifest)} scans of {manifest.patient.nunique()} patients, on {device}")"""

PAIR = """low, hr = read_pair(run.images("val")[0], config)
where = valid_region(hr)  # without white fill
bicubic = to_image(upsample(to_tensor(low), config.scale))
large = low.repeat(config.scale, 0).repeat(config.scale, 1)
run.show(panels.comparison({"nearest": large, "bicubic": bicubic, "hr": hr}, {}, "a validation scan"))"""

MODEL = """from torch import nn
from srlib.degrade import SCALES
from srlib.models.texture import RowConv2d


{code}"""

MSE = """from srlib.training.stage import training_pairs

shape = ("scale", "channels", "width", "blocks", "global_skip", "batch_norm", "smooth")
srresnet = Generator(**{name: getattr(config, name) for name in shape}).to(device)
print(srresnet.settings)
optimizer = torch.optim.Adam(srresnet.parameters())
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=pretrain_steps + 1, pct_start=0.1)
paths = run.images("train", config.crop)

for k, (lr, target) in enumerate(training_pairs(paths, config, device, pretrain_steps, config.seed)(0)):
    loss = F.mse_loss(2 * srresnet(lr) - 1, 2 * target - 1)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(srresnet.parameters(), config.pretrain_clip or torch.inf)
    optimizer.step()
    schedule.step()
    if k % max(1, pretrain_steps // 10) == 0:
        print(f"step {k}: MSE {loss.item():.5f}")
smooth = upscale(low, srresnet.eval())
gain = metrics.psnr(smooth, hr, region=where) - metrics.psnr(bicubic, hr, region=where)
print(f"a validation scan: {gain:+.2f} dB against bicubic")"""

GAME = """from srlib.models.features import feature_extractor
from srlib.models.texture import normal_noise
from srlib.training.adversarial import Game

features = feature_extractor("local-grain").to(device)
lesson = dataclasses.replace(config, gan_crop=config.crop, ema=0.0, precision="fp32")
batches = list(training_pairs(paths, lesson, device, 4, config.seed)(0))
lr, target = batches[0]"""

LOOP = """for k, (lr, target) in enumerate(training_pairs(paths, lesson, device, gan_steps, config.seed + 1)(0)):
    rate = config.gan_lr * min(1, (k + 1) / 50, 3 * (1 - k / gan_steps))  # warmed up, and falling in the last third
    for group in [*g_optimizer.param_groups, *d_optimizer.param_groups]:
        group["lr"] = rate
{step}
    if k % max(1, gan_steps // 10) == 0:
        print(f"step {{k}}: D {{d_loss.item():.3f}}, penalty {{penalty.item():.3f}}, G {{g_loss.item():.3f}}")"""

RESULT = """G.eval()
eight = draws(low, G, range(8))
mean = np.round(np.mean([image.astype(float) for image in eight], 0)).astype(np.uint8)
shown = {"bicubic": bicubic, "srresnet": smooth, "mean of 8 draws": mean, "draw 1": eight[0], "hr": hr}
run.show(panels.closeups(shown))

power, rows = metrics.spectrum(hr, where), {}
for name, sr in shown.items():
    bands = metrics.band_power_db(metrics.spectrum(sr, where), power, config.scale)
    rows[name] = [metrics.psnr(sr, hr, region=where), metrics.consistency(sr, low, *config.reduction), *bands]
names = [f"power, {a:.3f} to {b:.3f} cycles per pixel (dB)" for a, b in metrics.bands(config.scale)]
pd.DataFrame(rows, index=["PSNR (dB)", "LR consistency (dB)", *names]).drop(columns="hr").round(1)"""


def cells(series: str, code: str, time: str, data: str, usual: dict, overrides: dict, picture: dict) -> list:
    """Its cells but for the second, which finds srlib. `series`: the address of the whole series there; `code`, `time`: sentences on where srlib's
    code is and how long it takes; `usual`: the values of USUAL; `picture`: the attachment of the first."""
    numbers = {"data": data, **usual, "overrides": overrides}
    parameters = "\n".join(f"{name} = {value!r}" for name, value in numbers.items())
    model = "\n\n\n".join(plain_code(part) for part in (networks.ResidualBlock, networks.upscale_stage, networks.Generator))
    functions, sizes, step = (_cell("04", text) for text in ("def two_draws(", "w_content, w_pixel =", "slopes = ["))
    functions = functions.replace("lesson, cpu, ", "lesson, device, ").replace("*smooth.shape[-2:])", "*smooth.shape[-2:]).to(device)", 1)
    step = textwrap.indent(step.replace("two_draws(lr)", "two_draws(lr, k)"), "    ")
    return [
        new_markdown_cell(INTRO.format(title=TITLE, time=time, series=series), attachments=picture, id="intro"),
        new_markdown_cell(SCANS_TEXT, id="scans-text"),
        new_code_cell(parameters, metadata={"tags": ["parameters"]}, id="parameters"),
        new_code_cell(SET_UP, id="set-up"),
        new_code_cell(_cell("01", '"classes")'), id="classes"),
        new_markdown_cell(PAIR_TEXT, id="pair-text"),
        new_code_cell(PAIR, id="pair"),
        new_markdown_cell(MODEL_TEXT, id="model-text"),
        new_code_cell(MODEL.format(code=model), id="model"),
        new_markdown_cell(MSE_TEXT, id="mse-text"),
        new_code_cell(MSE, id="mse"),
        new_markdown_cell(GAME_TEXT, id="game-text"),
        new_code_cell(GAME, id="game"),
        new_code_cell(functions, id="functions"),
        new_code_cell(sizes, id="sizes"),
        new_markdown_cell(STEP_TEXT, id="step-text"),
        new_code_cell(LOOP.format(step=step), id="loop"),
        new_markdown_cell(RESULT_TEXT, id="result-text"),
        new_code_cell(RESULT, id="result"),
        new_markdown_cell(END_TEXT.format(code=code), id="end-text"),
    ]


def _cell(number: str, text: str) -> str:
    """The one code cell of notebook `number` that has `text` in it."""
    notebook = nbformat.read(NOTEBOOK_FOLDER / f"{NOTEBOOKS[number][0]}.ipynb", as_version=4)
    (found,) = [c.source for c in notebook.cells if c.cell_type == "code" and text in c.source]
    return found
