"""The loop under both training stages: history, validation, checkpoints, stopping and continuing. It knows nothing of networks."""

from __future__ import annotations

import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from . import checkpoint
from .config import Config, UserError


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


def run_steps(name, config: Config, folder: Path, fingerprint: str, total: int, parts, stream, step, validate, done, show) -> pd.DataFrame:
    """Run the steps from the checkpoint in `folder`/`name` on to `total`, and return the history, a row for each validation.

    `parts`: name to object with state_dict and load_state_dict, all that a checkpoint needs. `stream(first)` gives the batches from
    step `first` on; `step(k, *batch)` returns a dict of 0-d tensors, which are averaged from validation to validation; `validate()`
    returns a dict of numbers; `done()` writes what the stage releases; `show(history)` draws.

    An interrupt lets the step end, saves, and raises KeyboardInterrupt; called again, the steps go on. Raises UserError for a
    checkpoint with another fingerprint, and where a logged number is not finite (the checkpoint before it is kept).
    """
    file = folder / name / "checkpoint.pt"
    state = checkpoint.load(file) or {"step": 0, "history": [], "sums": {}, "count": 0, "seconds": 0.0}
    first, rows, sums, count = state["step"], state["history"], state["sums"], state["count"]
    if first:
        if state["fingerprint"] != fingerprint:
            raise UserError(f"{file} belongs to other settings; choose another run_dir, or delete {file.parent} to train again")
        for key, part in parts.items():
            part.load_state_dict(state["parts"][key])
        print(f"{name}: " + (f"continuing at step {first} of {total}" if first < total else f"finished earlier, {total} steps"))
    started = time.monotonic() - state["seconds"]

    def checked() -> dict:
        means = {key: float(value) / count for key, value in sums.items()}
        for key, value in means.items():
            if not np.isfinite(value):
                raise UserError(
                    f"{name}: {key} is not a number at step {k + 1}; {file} holds the last good state, a lower learning rate may help"
                )
        return means

    with Stop() as stop, tqdm(total=total, initial=first, desc=name, unit="step", mininterval=1.0, ncols=100, file=sys.stdout) as bar:
        batches = stream(first)
        for k in range(first, total):
            for key, value in step(k, *next(batches)).items():
                sums[key] = sums.get(key, 0) + value.detach()
            count += 1
            last = k + 1 == total
            seconds = time.monotonic() - started
            if (k + 1) % config.validate_every == 0 or last:
                rows.append({"step": k + 1, "seconds": round(seconds, 1), **checked(), **validate()})
                sums, count = {}, 0
                bar.set_postfix_str(" ".join(f"{key} {rows[-1][key]:.4g}" for key in ("loss", "gain_db")), refresh=False)
                show(pd.DataFrame(rows))
            bar.update()
            if (k + 1) % config.checkpoint_every == 0 or last or stop.asked:
                checked()
                state = {"fingerprint": fingerprint, "step": k + 1, "history": rows, "sums": sums, "count": count, "seconds": seconds}
                checkpoint.save(file, state | {"parts": {key: part.state_dict() for key, part in parts.items()}})
                pd.DataFrame(rows).to_csv(file.with_name("history.csv"), index=False)
            if stop.asked and not last:
                bar.close()
                print(f"{name}: stopped and saved at step {k + 1}; run the same again to continue")
                raise KeyboardInterrupt
    done()
    return pd.DataFrame(rows)
