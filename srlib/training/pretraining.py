"""The first stage: the generator alone, by MSE (Ledig et al. 2017, section 3.2) or another loss of `losses.PRETRAIN`."""

from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F

from ..config import Config, own_part
from ..device import autocast_dtype, pick_device
from ..trained import save_weights
from . import diagnostics, parallel
from .loop import Best, Stage, run_steps
from .losses import PRETRAIN
from .stage import adam, autocast, first_generator, make_generator, placed, training_pairs, update
from .validation import Validation


class Pretraining:
    """The `generator` alone (section 3.2; None: a new one of the settings). `step(k, lr, hr)` makes one update on a batch in [0, 1]
    and returns what is logged: loss (MSE on [-1, 1], whatever is minimised) and g_norm (of the gradient, before it is cut).
    `parts`: what a checkpoint needs."""

    def __init__(self, config: Config, device: torch.device, generator: torch.nn.Module | None = None):
        self.config, self.device = config, device
        self.generator = placed(generator or make_generator(config), device)
        self.optimizer = adam(self.generator, config.pretrain_lr, device)
        self.scheduler = _schedule(self.optimizer, config.pretrain_schedule, config.pretrain_steps)
        self.loss = PRETRAIN.get(config.pretrain_loss) or own_part(config.pretrain_loss)
        self.dtype = autocast_dtype(config.precision, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype is torch.float16)
        self.parts = {name: getattr(self, name) for name in ("generator", "optimizer", "scheduler", "scaler")}

    def step(self, k: int, lr: torch.Tensor, hr: torch.Tensor) -> dict[str, torch.Tensor]:
        with autocast(self.device, self.dtype):
            sr = self.generator(lr)
        mse = F.mse_loss(2 * sr.detach() - 1, 2 * hr - 1)
        loss = self.loss(sr, hr)
        norm = update(loss, self.generator, self.optimizer, self.scaler, self.config.pretrain_clip)
        self.scaler.update()
        self.scheduler.step()
        return {"loss": mse, "g_norm": norm}


def _schedule(optimizer, kind: str, total: int):
    if kind == "one-cycle":
        peak = optimizer.param_groups[0]["lr"]
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=total + 1, pct_start=0.1, cycle_momentum=False)
    return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)


def pretrain_generator(config: Config, train, val, folder, fingerprint: str = "") -> pd.DataFrame:
    """MSE pretraining (section 3.2), or another `pretrain_loss`: train on crops of the image files `train`, validate on `val`, write into `folder`.

    `folder/pretrain/` gets checkpoint.pt and history.csv, `folder/srresnet.pt` the weights with the best
    validation PSNR. A checkpoint with the same `fingerprint` is continued, on a machine with several GPUs in a process for each (`parallel.launch`).
    Returns the history: step, session, seconds, loss (MSE on [-1, 1], whatever is minimised), g_norm (of the gradient, before it is cut), gain_db
    (over bicubic, validation), consistency_db."""
    folder, device = Path(folder), pick_device(config.device)
    if count := parallel.processes(config, device):
        return parallel.launch("pretrain", count, config, folder)
    torch.manual_seed(config.seed)
    training, validation, best = Pretraining(config, device, first_generator(config, folder)), Validation(val, config), Best()

    def validate():
        measured = validation(training.generator)
        best.offer(measured["gain_db"], training.generator)
        return measured

    def finish():
        model = make_generator(config)
        model.load_state_dict(best.weights)
        save_weights(folder / "srresnet.pt", model, name="srresnet", validation_gain_db=best.score)

    stage = Stage(
        name="pretrain",
        total=config.pretrain_steps,
        parts=training.parts | {"best": best},
        stream=training_pairs(train, config, device, config.pretrain_steps, config.seed),
        step=training.step,
        validate=validate,
        finish=finish,
        warnings=diagnostics.pretraining_warnings,
    )
    return run_steps(stage, config, folder, fingerprint)
