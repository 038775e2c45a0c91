"""The two training stages of Ledig et al. 2017: MSE pretraining of the generator, then the adversarial game.

Both run through one loop that keeps a history (CSV), validates, writes checkpoints, and can be stopped and continued: an
interrupt lets the step end, saves, and only then stops.
"""

from __future__ import annotations

import copy
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from . import checkpoint, metrics
from .config import Config, UserError
from .data import Crops, batches, read_image, valid_region
from .degrade import crop_to_multiple, downsample, to_image, to_tensor, upsample
from .features import feature_extractor
from .losses import ContentLoss, adversarial_loss, discriminator_loss
from .models import Discriminator, Generator


def pick_device(name: str = "auto") -> torch.device:
    """'auto' takes cuda, then mps, then cpu; a name that this machine lacks raises UserError."""
    have = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(k for k, there in have.items() if there))
    if not have.get(name):
        raise UserError(f"device={name!r} is not on this machine; it has {', '.join(k for k in have if have[k])}")
    return torch.device(name)


def make_generator(config: Config) -> Generator:
    return Generator(config.scale, config.channels, config.width, config.blocks, config.global_skip, config.batch_norm, config.smooth)


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The type for autocast, None for float32. 'auto': bf16 where the hardware computes it, fp16 on an older GPU."""
    if precision != "auto":
        return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "cpu":
        able = torch.cpu.get_capabilities()
        return torch.bfloat16 if able.get("avx512_bf16") or able.get("amx_bf16") else None
    return None


class Validation:
    """PSNR gain over bicubic on centre crops of validation scans, valid region, in eval mode and float32."""

    def __init__(self, paths, config: Config, device: torch.device, count: int = 12, side: int = 256):
        self.device, self.pairs = device, []
        paths = list(paths)
        for path in paths[:: max(1, -(-len(paths) // count))]:
            hr = read_image(path, config.channels)
            top, left = (max(0, (n - side) // 2) for n in hr.shape[:2])
            hr = crop_to_multiple(hr[top : top + side, left : left + side], config.scale)
            lr = downsample(to_tensor(hr), config.scale)
            self.pairs.append((hr, lr, valid_region(hr)))
        self.bicubic = float(np.nanmean([metrics.psnr(to_image(upsample(lr, config.scale)), hr, region=r) for hr, lr, r in self.pairs]))

    @torch.inference_mode()
    def __call__(self, generator: torch.nn.Module) -> float:
        was_training = generator.training
        generator.eval()
        scores = [metrics.psnr(to_image(generator(lr.to(self.device))), hr, region=r) for hr, lr, r in self.pairs]
        generator.train(was_training)
        return float(np.nanmean(scores)) - self.bicubic


class _Stop:
    """Turn SIGINT and SIGTERM into a flag that the loop reads between steps (only in the main thread)."""

    def __enter__(self):
        self.asked, self.old = None, {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.old[number] = signal.signal(number, self._ask)
        return self

    def _ask(self, number, frame):
        self.asked = number

    def __exit__(self, *_):
        for number, handler in self.old.items():
            signal.signal(number, handler)


def _loop(name, config, folder, fingerprint, total, parts, step, validate, done, show):
    """Run `step(k)` for k from the checkpoint on to `total`; return the history.

    `parts`: name to object with state_dict, all that a checkpoint needs. `step(k, batch)` returns a dict of numbers (0-d tensors).
    `validate()` returns a dict of numbers and may keep a best copy among `parts`. `done()` writes the released weights.
    """
    folder = Path(folder)
    file = folder / "checkpoint.pt"
    state = checkpoint.load(file)
    rows: list[dict] = []
    first = 0
    if state is not None:
        if state["fingerprint"] != fingerprint:
            raise UserError(f"{file} belongs to other settings; choose another run_dir, or delete {folder} to train again")
        for key, part in parts.items():
            part.load_state_dict(state["parts"][key])
        rows, first = state["history"], state["step"]
        if first:
            print(f"{name}: continuing at step {first} of {total}" if first < total else f"{name}: finished earlier, {total} steps")
    saved_at, started = first, time.monotonic()
    spent = rows[-1]["seconds"] if rows else 0.0

    def save(k):
        state = {"fingerprint": fingerprint, "step": k, "history": rows, "parts": {key: p.state_dict() for key, p in parts.items()}}
        checkpoint.save(file, state)
        pd.DataFrame(rows).to_csv(folder / "history.csv", index=False)

    bar = tqdm(total=total, initial=first, desc=name, unit="step", mininterval=1.0, dynamic_ncols=False, ncols=100)
    sums: dict[str, torch.Tensor] = {}
    count = 0
    with _Stop() as stop, bar:
        stream = step.stream(first)
        for k in range(first, total):
            logs = step(k, next(stream))
            for key, value in logs.items():
                sums[key] = sums.get(key, 0) + value.detach()
            count += 1
            last = k + 1 == total
            if (k + 1) % config.validate_every == 0 or last:
                row = {"step": k + 1, "seconds": round(spent + time.monotonic() - started, 1)}
                row |= {key: float(value) / count for key, value in sums.items()}
                row |= validate()
                bad = [key for key, value in row.items() if not np.isfinite(value)]
                if bad:
                    raise UserError(
                        f"{name}: {bad[0]} is not a number at step {k + 1}; the last good state is {file}, a lower learning rate may help"
                    )
                rows.append(row)
                sums, count = {}, 0
                bar.set_postfix_str(" ".join(f"{key} {row[key]:.4g}" for key in ("loss", "gain_db") if key in row), refresh=False)
                show(pd.DataFrame(rows))
            bar.update()
            if (k + 1) % config.checkpoint_every == 0 or last or stop.asked:
                save(k + 1)
                saved_at = k + 1
            if stop.asked and not last:
                bar.close()
                print(f"{name}: stopped and saved at step {saved_at}; run the same again to continue")
                raise KeyboardInterrupt
    done()
    return pd.DataFrame(rows)


class _Step:
    """A stage's step with its stream of batches (crops read and batched ahead of it)."""

    def __init__(self, crops, config, device, function):
        self.crops, self.config, self.device, self.function = crops, config, device, function

    def stream(self, first):
        for hr in batches(self.crops, self.config.batch, first, self.config.workers):
            yield hr.to(self.device, non_blocking=True)

    def __call__(self, k, hr):
        return self.function(k, downsample(hr, self.config.scale), hr)


def _schedule(optimizer, kind: str, total: int):
    if kind == "one-cycle":
        peak = optimizer.param_groups[0]["lr"]
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=total + 1, pct_start=0.1, cycle_momentum=False)
    return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)


class _Best:
    """The best validated weights so far, as a part of the checkpoint."""

    def __init__(self):
        self.score, self.weights = float("-inf"), {}

    def offer(self, score: float, model: torch.nn.Module):
        if score > self.score:
            self.score, self.weights = score, {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}

    def state_dict(self):
        return {"score": self.score, "weights": self.weights}

    def load_state_dict(self, state):
        self.score, self.weights = state["score"], state["weights"]


def pretrain_generator(config: Config, train, val, folder, fingerprint: str = "", show=lambda history: None) -> pd.DataFrame:
    """MSE pretraining (section 3.2): train on crops of the image files `train`, validate on `val`, write into `folder`.

    `folder/pretrain/` gets checkpoint.pt and history.csv, `folder/srresnet.pt` the weights with the best validation PSNR.
    A checkpoint with the same `fingerprint` is continued. `show(history)` is called after each validation. Returns the history:
    step, seconds, loss (MSE on [-1, 1]), gain_db (over bicubic, validation).
    """
    folder = Path(folder)
    device = pick_device(config.device)
    torch.manual_seed(config.seed)
    generator = make_generator(config).to(device).train()
    optimizer = torch.optim.Adam(generator.parameters(), config.pretrain_lr, betas=(0.9, 0.999))
    scheduler = _schedule(optimizer, config.pretrain_schedule, config.pretrain_steps)
    dtype = autocast_dtype(config.precision, device)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)
    validation, best = Validation(val, config, device), _Best()

    def step(k, lr, hr):
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            sr = generator(lr)
        loss = F.mse_loss(2 * sr - 1, 2 * hr - 1)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()
        return {"loss": loss}

    def validate():
        gain = validation(generator)
        best.offer(gain, generator)
        return {"gain_db": gain}

    def done():
        model = make_generator(config)
        model.load_state_dict(best.weights)
        checkpoint.save_weights(folder / "srresnet.pt", model, name="srresnet", validation_gain_db=best.score)

    crops = Crops(train, config.crop, config.pretrain_steps * config.batch, config.channels, config.seed)
    parts = {"generator": generator, "optimizer": optimizer, "scheduler": scheduler, "scaler": scaler, "best": best}
    return _loop(
        "pretrain", config, folder / "pretrain", fingerprint, config.pretrain_steps, parts,
        _Step(crops, config, device, step), validate, done, show,
    )  # fmt: skip


class Weights:
    """The factors of the loss terms: given by the settings, or calibrated so that the adversarial term (and the pixel term) has
    its stated share of the loss on the first batches. A part of the checkpoint, so that a calibration is made once."""

    def __init__(self, config: Config):
        self.adversarial, self.content, self.pixel = config.adversarial_weight, config.content_weight, 0.0

    def calibrate(self, config: Config, content: float, adversarial: float, pixel: float) -> None:
        unit = self.adversarial * adversarial / config.adversarial_share  # the whole loss at the start
        self.content = unit * (1 - config.adversarial_share - config.pixel_share) / max(content, 1e-12)
        self.pixel = unit * config.pixel_share / max(pixel, 1e-12)

    def state_dict(self):
        return dict(vars(self))

    def load_state_dict(self, state):
        vars(self).update(state)


def train_srgan(config: Config, train, val, folder, fingerprint: str = "", show=lambda history: None) -> pd.DataFrame:
    """The adversarial stage (sections 2.1 and 2.2), from `folder/srresnet.pt`: D and G in turn, one step each.

    `folder/srgan/` gets checkpoint.pt and history.csv, `folder/srgan.pt` the averaged weights (EMA; the last ones where
    `ema` is 0), never chosen by PSNR. Returns the history: step, seconds, loss, content, adversarial, pixel (each weighted, as they
    enter the loss), their shares, d_loss, d_hr and d_sr (D's mean probability for HR and SR), gain_db of the averaged weights.
    """
    folder = Path(folder)
    device = pick_device(config.device)
    pretrained = checkpoint.load_weights(folder / "srresnet.pt")
    generator = make_generator(config)
    if generator.settings != pretrained["settings"]:
        raise UserError(f"{folder / 'srresnet.pt'} has another shape than the settings; run notebook 03 again or choose another run_dir")
    generator.load_state_dict(pretrained["weights"])
    generator.to(device).train()
    torch.manual_seed(config.seed + 1)
    discriminator = Discriminator(config.channels, config.crop, config.d_width).to(device).train()
    content_loss = ContentLoss(feature_extractor(config.content_features, config.feature_weights)).to(device)
    averaged = AveragedModel(generator, multi_avg_fn=get_ema_multi_avg_fn(config.ema), use_buffers=False)
    g_optimizer = torch.optim.Adam(generator.parameters(), config.gan_lr, betas=(0.9, 0.999))
    d_optimizer = torch.optim.Adam(discriminator.parameters(), config.gan_lr, betas=(0.9, 0.999))
    drop = max(1, round(config.gan_lr_drop * config.gan_steps))
    schedulers = [torch.optim.lr_scheduler.StepLR(o, drop, 0.1) for o in (g_optimizer, d_optimizer)]
    dtype = autocast_dtype(config.precision, device)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)
    validation, weights = Validation(val, config, device), Weights(config)

    def autocast():
        return torch.autocast(device.type, dtype, enabled=dtype is not None)

    def view(image, k, call):
        """What D sees: the image in [-1, 1], with noise of its own for each step and call where `d_noise` asks for it."""
        if config.d_noise:
            chance = torch.Generator(device).manual_seed(1_000_003 * config.seed + 3 * k + call)
            image = image + config.d_noise * torch.randn(image.shape, generator=chance, device=device)
        return 2 * image - 1

    def step(k, lr, hr):
        with autocast():
            sr = generator(lr)
            discriminator.requires_grad_(True)
            d_hr, d_sr = discriminator(view(hr, k, 0)), discriminator(view(sr.detach(), k, 1))
            d_loss = discriminator_loss(d_hr, d_sr)
        d_optimizer.zero_grad(set_to_none=True)
        scaler.scale(d_loss).backward()
        scaler.step(d_optimizer)
        discriminator.requires_grad_(False)
        with autocast():
            adversarial = adversarial_loss(discriminator(view(sr, k, 2)))
            content = content_loss(sr, hr)
        pixel = F.mse_loss(2 * sr - 1, 2 * hr - 1)
        if k == 0 and not config.content_weight:
            weights.calibrate(config, content.item(), adversarial.item(), pixel.item())
        terms = {"content": weights.content * content, "adversarial": weights.adversarial * adversarial, "pixel": weights.pixel * pixel}
        loss = sum(terms.values())
        g_optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.step(g_optimizer)
        averaged.update_parameters(generator)
        scaler.update()
        for scheduler in schedulers:
            scheduler.step()
        shares = {f"{key}_share": value / loss for key, value in terms.items()}
        return dict(loss=loss, d_loss=d_loss, d_hr=d_hr.sigmoid().mean(), d_sr=d_sr.sigmoid().mean(), **terms, **shares)

    def released():
        if config.ema:
            averaged.module.train(generator.training)
            for own, other in zip(averaged.module.buffers(), generator.buffers(), strict=True):
                own.copy_(other)
            return averaged.module
        return generator

    def validate():
        return {"gain_db": validation(released())}

    def done():
        model = copy.deepcopy(released()).eval()
        checkpoint.save_weights(folder / "srgan.pt", model, name="srgan")

    crops = Crops(train, config.crop, config.gan_steps * config.batch, config.channels, config.seed + 1)
    parts = {
        "generator": generator, "discriminator": discriminator, "averaged": averaged, "g_optimizer": g_optimizer, "d_optimizer": d_optimizer,
        "g_schedule": schedulers[0], "d_schedule": schedulers[1], "scaler": scaler, "weights": weights,
    }  # fmt: skip
    return _loop(
        "srgan", config, folder / "srgan", fingerprint, config.gan_steps, parts,
        _Step(crops, config, device, step), validate, done, show,
    )  # fmt: skip
