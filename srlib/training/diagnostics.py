"""The health of the trainings, read from their histories and said in words."""

import pandas as pd

WON = 0.95  # D's mean probability for the truth, twice in a row; chance has 0.5
BLIND = 0.51  # the same, never above, in at least four rows
DRIFTED = 5.0  # mean of both logits of a D whose loss sees their difference alone
STEEPER = 2.0  # times the median of the penalty before
MOVING = 2.0  # dB that a band moves in the last third of the rows
LEFT_LR = 38.0  # dB of data consistency; a sound network has more on OCT (bicubic has 40, on single scans 34)
COLLAPSE = -6.0  # dB of PSNR against bicubic
DIVERGED = 3.0  # dB below the best validation


def adversarial_warnings(history: pd.DataFrame) -> dict[str, str]:
    """{kind: sentence} of what is wrong at the end of the history of `train_srgan` or `train_sampler`; empty while it is sound.

    Kinds: `won` (D tells all SR from HR), `blind` (it cannot tell at all), `inconsistent` (SR reduced again is not LR), `collapse` (SR is far from HR, or
    all of G's loss is adversarial), `moving` (power by band has not come to rest), and of the sampler's D `drift` (of its logits), `steep` (its penalty rises).
    """
    history, warnings = history[history.step > 0], {}
    if history.empty:
        return warnings
    last, right, ours = history.iloc[-1], history.d_right, "penalty" in history
    rate = "sampler_lr" if ours else "gan_lr"
    if len(right) > 1 and right.iloc[-2:].min() > WON:
        cure = "a larger sampler_penalty keeps both learning" if ours else "a smaller gan_lr, or more pretraining, keeps both learning"
        warnings["won"] = (
            f"the discriminator has won: its mean logit is {last.d_hr:.1f} for HR and {last.d_sr:.1f} for SR, and it is right with probability "
            f"{last.d_right:.2f}, so its gradient teaches little; {cure}"
        )
    if len(right) > 3 and right.max() < BLIND:
        warnings["blind"] = f"the discriminator cannot tell SR from HR; a larger {rate} lets it learn"
    if ours and abs(drift := (last.d_hr + last.d_sr) / 2) > DRIFTED:
        warnings["drift"] = f"the discriminator's logits have drifted to {drift:.0f} together; a smaller sampler_lr holds them"
    if ours and len(history) > 3 and last.penalty > STEEPER * history.penalty.iloc[:-1].median():
        warnings["steep"] = (
            "the discriminator's penalty rises, so it becomes steep; a larger sampler_penalty or a smaller sampler_lr holds it"
        )
    third = history.filter(regex=r"^band\d").iloc[-max(2, len(history) // 3) :]
    if len(history) > 5 and ((moved := third.iloc[-1] - third.iloc[0]).abs() > MOVING).any():
        band = moved.abs().idxmax()
        warnings["moving"] = (
            f"power in band {band[4:-3]} still moves ({moved[band]:+.1f} dB in the last third), so the end is one of many; train longer"
        )
    if last.gain_db < COLLAPSE or 0.95 < last.adversarial_share < 1:  # (1: there is no other term)
        warnings["collapse"] = (
            f"the generator is collapsing ({last.gain_db:+.1f} dB against bicubic, {last.adversarial_share:.0%} of its loss adversarial); "
            f"a lower {rate} steadies it"
        )
    elif last.consistency_db < LEFT_LR:
        warnings["inconsistent"] = (
            f"SR reduced again is {last.consistency_db:.1f} dB from LR (sound: over {LEFT_LR:.0f}), so it contradicts LR; "
            "upscale --consistent projects it onto LR"
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
