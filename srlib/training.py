"""The two training stages of Ledig et al. 2017: pretraining of the generator, then the adversarial game, from image files to weights.

What a step computes stands in `steps`; how steps are repeated, saved, stopped and continued stands in `loop`.
"""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
from PIL import Image
from tqdm import tqdm

from . import checkpoint, health, metrics, parallel
from .classify import tuned_vgg
from .config import Config, OutOfTime, UserError
from .data import Crops, batches, held_batches, read_pair, valid_region
from .degrade import downsample, to_image, to_tensor, upsample
from .features import feature_extractor
from .loop import Best, run_steps
from .sources import data_home
from .steps import FASTEST, Game, Pretraining, make_generator
from .texture import draw


def pick_device(name: str = "auto") -> torch.device:
    """'auto' takes cuda, then mps, then cpu; a name that this machine lacks raises UserError."""
    have = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    name = next(k for k, there in have.items() if there) if name == "auto" else name
    if not have.get(name):
        raise UserError(f"device={name!r} is not on this machine; it has {', '.join(k for k in have if have[k])}")
    if name == "cuda" and "LOCAL_RANK" in os.environ:  # started by torchrun: one of several processes, each with its GPU
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        return torch.device(name, int(os.environ["LOCAL_RANK"]))
    return torch.device(name)


class Validation:
    """What is measured on centre crops of validation scans, in eval mode and float32; of a network that draws, with one draw, the same noise
    each time."""

    def __init__(self, paths, config: Config, device: torch.device, count: int = 12, side: int = 256):
        self.device, self.reduction, self.pairs, self.held = device, config.reduction, [], config.holds_lr
        paths = list(paths)
        for path in paths[:: max(1, -(-len(paths) // count))]:
            lr, hr = read_pair(path, config)
            top, left = (max(0, (n - side) // 2) // config.scale for n in hr.shape[:2])
            lr = to_tensor(lr[top : top + side // config.scale, left : left + side // config.scale])
            top, left, height, width = (n * config.scale for n in (top, left, *lr.shape[-2:]))
            hr = hr[top : top + height, left : left + width]
            region = valid_region(hr)
            start = metrics.psnr(to_image(upsample(lr, config.scale)), hr, region=region)
            if np.isfinite(start):  # an empty valid region or a flat square says nothing
                self.pairs.append((hr, lr, region, start, metrics.spectrum(hr, region)))
        if not self.pairs:
            raise UserError("no validation image has a valid region to measure; give other images or a larger val_share")

    @torch.inference_mode()
    def __call__(self, generator: torch.nn.Module) -> dict[str, float]:
        """{gain_db (valid region), consistency_db (nan where not even HR `holds_lr`), stripe_db, band1_db, ...}, means over the crops."""
        was_training, found, scale = generator.training, [], self.reduction[0]
        generator.eval()
        for k, (hr, lr, region, start, power) in enumerate(self.pairs):
            sr = to_image(draw(generator, lr.to(self.device), seed=k))
            same = metrics.consistency(sr, to_image(lr), *self.reduction) if self.held else np.nan
            sr_power = metrics.spectrum(sr, region)
            stripe, powers = metrics.stripe_index(sr_power, power, scale), metrics.band_power_db(sr_power, power, scale)
            found.append((metrics.psnr(sr, hr, region=region) - start, same, stripe, *powers))
            if k == 0:
                self.picture = sr
        generator.train(was_training)
        names = ("gain_db", "consistency_db", "stripe_db", *(f"band{b}_db" for b in range(1, len(found[0]) - 2)))
        return dict(zip(names, np.mean(found, 0).tolist(), strict=True))

    def keep(self, history: pd.DataFrame, folder: Path) -> None:
        """Write SR of the first crop, as it was validated last, to `folder`/frames/STEP.png, for the animation of a training."""
        if parallel.rank() == 0:
            buffer = io.BytesIO()
            Image.fromarray(self.picture).save(buffer, "PNG")
            checkpoint.write(folder / "frames" / f"{history.step.iloc[-1]:07d}.png", buffer.getvalue())


def _teller(stage: str, find):
    """A function of a history that prints what `find` warns of, each kind once."""
    told = set()

    def tell(history: pd.DataFrame) -> None:
        for kind, sentence in find(history).items():
            if kind not in told:
                tqdm.write(f"{stage}: warning at step {history.step.iloc[-1]}: {sentence}", file=sys.stdout)
                told.add(kind)

    return tell


def training_pairs(paths, config: Config, device: torch.device, steps: int, seed: int):
    """A function from the first step to the stream of (lr, hr) batches from there on; LR is made on the device, or read.

    On a GPU crops are cut there too, from scans that stay in up to a quarter of its memory."""
    paired = config.scale if config.degradation == "paired" else 0
    decoded = data_home() / "cache" if config.decoded_cache else ""
    readers = parallel.size() * (max(1, config.workers) if device.type != "cuda" else 1)
    crops = Crops(paths, config.crop, steps * config.batch, config.channels, seed, paired, decoded, (4 << 30) // readers)
    part = parallel.share(config.batch)

    def source(first: int):
        if device.type != "cuda":
            return batches(crops, config.batch, first, config.workers, part)
        return held_batches(crops, config.batch, first, device, torch.cuda.get_device_properties(device).total_memory // 4, part)

    def stream(first: int):
        for item in source(first):
            given, hr = item if paired else (None, item)
            hr = hr.to(device, non_blocking=True, memory_format=FASTEST)
            yield downsample(hr, *config.reduction) if given is None else given.to(device, memory_format=FASTEST), hr

    return stream


def first_generator(config: Config, folder: Path) -> torch.nn.Module:
    """The generator before its first step: random, or with the weights in `folder`/start.pt, which `Run` puts there for the setting `start`."""
    generator = make_generator(config)
    if config.start:
        generator.load_state_dict(checkpoint.load_weights(folder / "start.pt")["weights"])
    return generator


def pretrain_generator(config: Config, train, val, folder, fingerprint: str = "", show=lambda history: None) -> pd.DataFrame:
    """MSE pretraining (section 3.2), or another `pretrain_loss`: train on crops of the image files `train`, validate on `val`, write into `folder`.

    `folder/pretrain/` gets checkpoint.pt, history.csv and frames/ (a validation crop over the steps), `folder/srresnet.pt` the weights with the best validation PSNR.
    A checkpoint with the same `fingerprint` is continued. `show(history)` is called after each validation. On a machine with several
    GPUs `parallel.launch` starts a process for each, and `show` is called after checkpoints. Returns the history:
    step, session, seconds, loss (MSE on [-1, 1], whatever is minimised), g_norm (of the gradient, before it is cut), gain_db (over
    bicubic, validation), consistency_db.
    """
    folder, device = Path(folder), pick_device(config.device)
    if count := parallel.processes(config, device):
        return parallel.launch("pretrain_generator", count, config, train, val, folder, fingerprint, show)
    torch.manual_seed(config.seed)
    stage, validation, best = Pretraining(config, device, first_generator(config, folder)), Validation(val, config, device), Best()
    warn = _teller("pretrain", health.pretraining_warnings)

    def validate():
        found = validation(stage.generator)
        best.offer(found["gain_db"], stage.generator)
        return found

    def done():
        model = make_generator(config)
        model.load_state_dict(best.weights)
        checkpoint.save_weights(folder / "srresnet.pt", model, name="srresnet", validation_gain_db=best.score)

    def watched(history):
        warn(history)
        validation.keep(history, folder / "pretrain")
        show(history)

    stream = training_pairs(train, config, device, config.pretrain_steps, config.seed)
    parts = stage.parts | {"best": best}
    return run_steps("pretrain", config, folder, fingerprint, config.pretrain_steps, parts, stream, stage.step, validate, done, watched)


def train_srgan(config: Config, train, val, folder, fingerprint: str = "", show=lambda history: None) -> pd.DataFrame:
    """The adversarial stage (sections 2.1 and 2.2), from `folder/srresnet.pt`: D and G in turn, one step each.

    `folder/srgan/` gets checkpoint.pt, history.csv and frames/, `folder/srgan.pt` the averaged weights (EMA; the last ones where `ema` is 0), never
    chosen by PSNR, and the factors of the loss terms, given or calibrated. Returns the history, from step 0 on, where only
    what is validated has a value: step, session, seconds; loss and its terms adversarial, content and pixel (weighted, as they enter
    it), each with its share; d_loss, penalty (weighted), d_hr and d_sr (D's mean logits for HR and SR), d_right (the mean probability that D gives
    to the truth); the gradients' norms g_norm and d_norm; of the averaged weights gain_db, consistency_db, stripe_db and band1_db to
    bandN_db. What `health.warnings` says of it is printed, each warning once.
    """
    folder, device, weights = Path(folder), pick_device(config.device), config.feature_weights
    if config.content_features.partition(":")[0] == "oct-vgg":
        weights = tuned_vgg(config, train, val, folder, device)  # here, so that several processes find it made
    if count := parallel.processes(config, device):
        return parallel.launch("train_srgan", count, config, train, val, folder, fingerprint, show)
    pretrained = checkpoint.load_weights(folder / "srresnet.pt")
    generator = make_generator(config)
    if generator.settings != {"generator": "srresnet"} | pretrained["settings"]:
        raise UserError(f"{folder / 'srresnet.pt'} has another shape than the settings; run notebook 03 again or choose another run_dir")
    generator.load_state_dict(pretrained["weights"])
    stream = training_pairs(train, dataclasses.replace(config, crop=config.gan_crop), device, config.gan_steps, config.seed + 1)
    extractor = feature_extractor(config.content_features, weights)
    game, validation = Game(config, device, generator, extractor, lambda: stream(0)), Validation(val, config, device)
    warn = _teller("srgan", health.warnings)

    def validate():
        return validation(game.released())

    def watched(history):
        warn(history)
        validation.keep(history, folder / "srgan")
        show(history)

    def done():
        model = copy.deepcopy(game.released()).eval()
        checkpoint.save_weights(folder / "srgan.pt", model, name="srgan", loss_weights=game.weights.state_dict())

    often = dataclasses.replace(config, validate_every=min(config.validate_every, -(-config.gan_steps // 4)))  # four times at least
    return run_steps("srgan", often, folder, fingerprint, config.gan_steps, game.parts, stream, game.step, validate, done, watched)


def main(job: str) -> int:
    """What each process of `parallel.launch` does: join the group, run the stage. Its mistakes go to `job.error`, which `launch` reads."""
    facts = json.loads(Path(job).read_text())
    config = Config(**facts["config"])
    device = pick_device(config.device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    if parallel.rank():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (for the whole process)
    try:
        paths = [[Path(p) for p in facts[name]] for name in ("train", "val")]
        globals()[facts["stage"]](config, *paths, facts["folder"], facts["fingerprint"])
    except UserError as error:
        part = Path(job).with_name(f"job.error.{parallel.rank()}")
        part.write_text(json.dumps([isinstance(error, OutOfTime), str(error)]))
        part.replace(Path(job).with_name("job.error"))
        return 1  # torchrun then ends the others, which may wait for this one
    except KeyboardInterrupt:
        return 130
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
