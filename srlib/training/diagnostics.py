"""The health of both trainings, read from their histories and said in words."""

from __future__ import annotations

import pandas as pd

WON = 0.95  # D's mean probability for the truth, twice in a row; chance has 0.5
BLIND = 0.51  # the same, never above, in at least four rows
LEFT_LR = 38.0  # dB of data consistency; a sound network has more on OCT (bicubic has 40, on single scans 34)
COLLAPSE = -4.0  # dB of PSNR against bicubic
DIVERGED = 3.0  # dB below the best validation


def adversarial_warnings(history: pd.DataFrame) -> dict[str, str]:
    """{kind: sentence} of what is wrong at the end of `train_srgan`'s history; empty while it is sound.

    Kinds: `won` (D tells all SR from HR, so that its gradient vanishes), `blind` (D cannot tell at all), `inconsistent` (SR reduced
    again is not LR), `collapse` (SR is far from HR, or all of the generator's loss is adversarial).
    """
    history, warnings = history[history.step > 0], {}
    if history.empty:
        return warnings
    last, right = history.iloc[-1], history.d_right
    if len(right) > 1 and right.iloc[-2:].min() > WON:
        warnings["won"] = (
            f"the discriminator has won (it is right with probability {last.d_right:.2f}) and teaches nothing; "
            "a larger penalty, or a smaller adversarial_share, keeps both learning"
        )
    if len(right) > 3 and right.max() < BLIND:
        warnings["blind"] = "the discriminator cannot tell SR from HR; a smaller penalty or a larger gan_lr lets it learn"
    if last.gain_db < COLLAPSE or 0.95 < last.adversarial_share < 1:  # (1: there is no other term)
        warnings["collapse"] = (
            f"the generator is collapsing ({last.gain_db:+.1f} dB against bicubic, {last.adversarial_share:.0%} of its loss adversarial); "
            "a smaller adversarial_share, a pixel_weight or a lower gan_lr steadies it"
        )
    elif last.consistency_db < LEFT_LR:
        warnings["inconsistent"] = (
            f"SR reduced again is {last.consistency_db:.1f} dB from LR (sound: over {LEFT_LR:.0f}), so it contradicts LR; "
            "use texture with a linear degradation, or a smaller adversarial_share"
        )
    return warnings


def pretraining_warnings(history: pd.DataFrame) -> dict[str, str]:
    """The same of `pretrain_generator`'s history; one kind, `diverged`: PSNR has fallen far below what it was."""
    last, best = history.gain_db.iloc[-1], history.gain_db.max()
    if last > best - DIVERGED:
        return {}
    return {
        "diverged": f"the training has left its way ({last:+.1f} dB against bicubic, it was at {best:+.1f}); the best weights are kept, "
        "but a smaller pretrain_lr or pretrain_clip would have held it"
    }
