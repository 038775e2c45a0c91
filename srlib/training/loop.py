"""The loop under all trainings: history, validation, checkpoints, stopping and continuing. It knows nothing of networks."""

import dataclasses
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from ..config import Config, OutOfTime, UserError
from ..files import write
from . import checkpoint, parallel


class Best:
    """The best validated weights so far, as a part of the checkpoint."""

    def __init__(self):
        self.score, self.weights = float("-inf"), {}

    def offer(self, score: float, model: torch.nn.Module) -> None:
        if score > self.score:
            self.score, self.weights = score, {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}

    def state_dict(self):
        return dict(vars(self))

    def load_state_dict(self, state):
        vars(self).update(state)


class Stop:
    """Within it, SIGINT and SIGTERM only set `asked`, which the loop reads between steps (in the main thread; elsewhere nothing)."""

    def __enter__(self):
        self.asked, self.old = False, {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.old[number] = signal.signal(number, self._ask)
        return self

    def _ask(self, number, frame):
        self.asked = True

    def __exit__(self, *_):
        for number, handler in self.old.items():
            signal.signal(number, handler)


class RunningMeans:
    """Running means of the logged numbers, on the device: a step does not wait for them. Remembers the first step that was not finite."""

    def __init__(self, sums: dict | None = None, count: int = 0):
        self.sums, self.count, self.bad = dict(sums or {}), count, {}

    def add(self, step: int, values: dict[str, torch.Tensor]) -> None:
        self.count += 1
        for key, value in values.items():
            value = value.detach().float()
            self.sums[key] = self.sums.get(key, 0) + value
            when = torch.where(value.isfinite(), torch.inf, float(step))
            self.bad[key] = torch.minimum(self.bad[key], when) if key in self.bad else when

    def joint(self, advice: Callable[[], str]) -> dict[str, torch.Tensor]:
        """The sums, averaged over all processes. Raises UserError, which ends with `advice()`, for the first number that was not finite."""
        first = {key: -parallel.largest(-float(step)) for key, step in self.bad.items()}
        key = min(first, key=first.get, default="")
        if key and first[key] < np.inf:
            raise UserError(f"{key} is not a number at step {int(first[key])}; {advice()}")
        return {key: parallel.mean(value) for key, value in self.sums.items()}

    def take(self, advice: Callable[[], str]) -> dict[str, float]:
        """{name: mean}, over all processes; then it begins anew."""
        means = {key: float(value) / self.count for key, value in self.joint(advice).items()}
        self.__init__()
        return means


@dataclasses.dataclass
class Stage:
    """What a training stage gives to the loop. `step(k, *batch)` makes update k and returns numbers to log, 0-d tensors, which are averaged from
    validation to validation."""

    name: str  # of its folder
    total: int  # steps
    parts: dict  # name to object with state_dict and load_state_dict: all that a checkpoint needs
    stream: Callable[[int], Iterator]  # the batches from a step on
    step: Callable[..., dict[str, torch.Tensor]]
    validate: Callable[[], dict[str, float]]
    finish: Callable[[], None]  # writes what the stage releases
    warnings: Callable[[pd.DataFrame], dict[str, str]]  # {kind: sentence} of what is wrong by the history (`diagnostics`)


def run_steps(stage: Stage, config: Config, folder: Path, fingerprint: str) -> pd.DataFrame:
    """Run the steps from the checkpoint in `folder`/`stage.name` on to the last, and return the history, a row for each validation, the first before
    any step; its `session` counts the starts of the stage: a row of session 2 was computed after the first continuation.

    An interrupt, or the end of `max_hours`, lets the step end, saves, and raises KeyboardInterrupt or OutOfTime; called again, the
    steps go on. Raises UserError for a checkpoint with another fingerprint, and where a logged number is not finite (the
    checkpoint before it is kept).
    """
    name, total, file = stage.name, stage.total, folder / stage.name / "checkpoint.pt"
    state = _restored(file, stage.parts, fingerprint)
    first, rows, means = state["step"], state["history"], RunningMeans(state["sums"], state["count"])
    session, warned = state["session"] + 1, set()
    if first:
        print(f"{name}: " + (f"continuing at step {first} of {total}" if first < total else f"finished earlier, {total} steps"))
    rate = {"pretrain": "pretrain_lr", "srgan": "gan_lr"}.get(name, "sampler_lr")

    def advice() -> str:
        return f"set {rate} lower" + (f", with another run_dir ({file} holds the last good state of this one)" if file.exists() else "")

    started, end = time.monotonic() - state["seconds"], parallel.session_end(config)
    show = dict(unit="step", mininterval=1.0, ncols=100, file=sys.stdout, disable=parallel.rank() > 0)
    with Stop() as stop, tqdm(total=total, initial=first, desc=name, **show) as bar:
        if not first:
            rows.append({"step": 0, "session": session, "seconds": 0.0, **stage.validate()})
        batches = stage.stream(first)
        for k in range(first, total):
            means.add(k + 1, stage.step(k, *next(batches)))
            last, seconds = k + 1 == total, time.monotonic() - started
            if (k + 1) % config.validate_every == 0 or last:
                rows.append({"step": k + 1, "session": session, "seconds": round(seconds, 1), **means.take(advice), **stage.validate()})
                bar.set_postfix_str(" ".join(f"{key} {rows[-1][key]:.4g}" for key in ("loss", "gain_db")), refresh=False)
                for kind, sentence in stage.warnings(pd.DataFrame(rows)).items():
                    if kind not in warned:
                        tqdm.write(f"{name}: warning at step {k + 1}: {sentence}", file=sys.stdout)
                        warned.add(kind)
            bar.update()
            late = time.time() > end
            ends = parallel.largest(2.0 if late else float(stop.asked))  # all processes end at one step
            if (k + 1) % config.checkpoint_every == 0 or last or ends:
                if (scaler := stage.parts.get("scaler")) and scaler.is_enabled() and scaler.get_scale() < 1:
                    raise UserError(
                        f"{name}: every step overflows in float16 and is left out; set precision to 'fp32' with another run_dir, or {advice()}"
                    )
                state = {"fingerprint": fingerprint, "step": k + 1, "history": rows, "sums": means.joint(advice), "count": means.count}
                _save(file, state | {"seconds": seconds, "session": session}, stage.parts)
            if ends and not last:
                parallel.largest(0.0)  # all wait for the first one's files
                bar.close()
                if ends > 1:
                    raise OutOfTime(
                        f"{name}: max_hours={config.max_hours:g} are over, saved at step {k + 1}; run the same again to continue"
                    )
                print(f"{name}: stopped and saved at step {k + 1}; run the same again to continue")
                raise KeyboardInterrupt
    if parallel.rank() == 0:
        _write_history(file, rows)  # once more: an earlier session may have ended between the last checkpoint and its history
        stage.finish()
    return pd.DataFrame(rows)


def _restored(file: Path, parts: dict, fingerprint: str) -> dict:
    """The state in the checkpoint, loaded into `parts`, or a first one. UserError for a checkpoint of other settings or another version."""
    if parallel.rank() == 0:
        for left in (*file.parent.rglob("*.part"), *file.parents[1].glob("*.part")):  # of a session that was killed while it wrote
            left.unlink(missing_ok=True)
    state = parallel.from_first(checkpoint.load(file) if parallel.rank() == 0 else None)
    if not state:
        return {"step": 0, "history": [], "sums": {}, "count": 0, "seconds": 0.0, "session": 0}
    if state["fingerprint"] != fingerprint or parts.keys() != state["parts"].keys():
        raise UserError(
            f"{file} is of other settings or another version of srlib; choose another run_dir, or delete {file.parent} to train again"
        )
    for key, part in parts.items():
        if kept := state["parts"][key]:  # a GradScaler that was off, in bf16 or float32, kept nothing; one of fp16 begins anew
            part.load_state_dict(kept)
    return state


def _save(file: Path, state: dict, parts: dict) -> None:
    state["parts"] = {key: part.state_dict() for key, part in parts.items()}
    if parallel.rank() == 0:
        checkpoint.save(file, state)
        _write_history(file, state["history"])


def _write_history(file: Path, rows: list[dict]) -> None:
    write(file.with_name("history.csv"), pd.DataFrame(rows).to_csv(index=False))
