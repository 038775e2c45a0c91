"""Both stages on a tiny problem: they learn, stop, continue, refuse other settings; the checkpoint is safe."""

import os
import pickle
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from srlib import degrade
from srlib.config import UserError, load_config
from srlib.data.crops import Crops
from srlib.data.reading import read_pair
from srlib.degrade import to_tensor, upsample
from srlib.device import autocast_dtype
from srlib.sampler.network import Sampler, scan_statistics
from srlib.sampler.training import train_sampler
from srlib.trained import load_generator, save_weights
from srlib.training import adversarial, checkpoint, diagnostics, pretraining
from srlib.training.adversarial import train_srgan
from srlib.training.stage import make_generator, training_pairs, update
from srlib.training.validation import Validation
from srlib.upscaling import upscale

TINY = dict(
    crop=32, gan_crop=32, sampler_crop=32, batch=4, width=8, blocks=1, d_width=4, sampler_d_width=4, content_features="vgg19:relu1_2"
)
TINY |= dict(pretrain_steps=8, gan_steps=6, sampler_steps=6, validate_every=2, checkpoint_every=2)
TRAININGS = pytest.mark.parametrize(("train", "name"), [(train_sampler, "sampler"), (train_srgan, "srgan")])


def begin(config, folder):
    """`folder`/srresnet.pt of random weights, the last ones too: what the adversarial training starts from."""
    torch.manual_seed(0)
    net = make_generator(config)
    torch.nn.init.normal_(net.tail.weight, std=0.01)
    save_weights(folder / "srresnet.pt", net, name="srresnet")


def weights(path):
    return torch.load(path, weights_only=True)["weights"]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_pretraining_learns(images, tmp_path):
    config = load_config("smoke", **TINY | {"pretrain_steps": 120, "pretrain_lr": 3e-3, "validate_every": 40})
    history = pretraining.pretrain_generator(config, *images, tmp_path)
    assert history.step[0] == 0 and history.gain_db[0] == pytest.approx(0, abs=1e-3)  # the global skip's start is bicubic
    assert history.gain_db.iloc[-1] > 0.4
    assert history.drop(0).notna().all(axis=None) and np.isnan(history.loss[0])
    assert list(pd.read_csv(tmp_path / "pretrain/history.csv").step) == list(history.step)
    best = checkpoint.load(tmp_path / "pretrain/checkpoint.pt")["parts"]["best"]
    assert best["score"] == history.gain_db.max()


def test_black_and_white_are_drawn_anew(images):
    """HR is another by a straight line, black up to 0.3 and white down to 0.7; LR is its reduction."""
    lines = []
    for display in (0.0, 0.6):
        config = load_config("smoke", **TINY, display=display)
        lr, hr = next(training_pairs(images[0], config, torch.device("cpu"), 1, 0)(0))
        lines.append(hr.flatten(1)) if torch.equal(lr, degrade.downsample(hr)) else pytest.fail("LR is another reduction")
    for before, after in zip(*lines, strict=True):
        slope, black = np.polyfit(before, after, 1)
        assert 0 < black < 0.3 and 0.7 < black + slope < 1 and torch.allclose(after, before * slope + black, atol=1e-5)


def test_clipping_bounds_the_gradient(images, tmp_path):
    """Cut far below Adam's epsilon, gradients move nothing; uncut they do."""
    moved = {}
    for clip in (0.0, 1e-14):
        torch.manual_seed(0)
        config = load_config("smoke", **TINY, pretrain_clip=clip)
        start = make_generator(config).state_dict()
        pretraining.pretrain_generator(config, *images, tmp_path / str(clip))
        last = checkpoint.load(tmp_path / str(clip) / "pretrain/checkpoint.pt")["parts"]["generator"]
        moved[clip] = max((last[k] - v).abs().max().item() for k, v in start.items())
    assert moved[1e-14] < 1e-6 < 1e-4 < moved[0.0]


def interrupt_at(step, monkeypatch, number=signal.SIGINT):
    """Send this process a signal while the training makes its `step`-th batch."""
    calls, original = [], degrade.downsample

    def counted(hr, *reduction):
        calls.append(hr.shape[0])
        if calls.count(TINY["batch"]) == step:
            os.kill(os.getpid(), number)
        return original(hr, *reduction)

    monkeypatch.setattr(degrade, "downsample", counted)


@TRAININGS
def test_stopped_and_continued_equals_uninterrupted(images, tmp_path, monkeypatch, train, name, capsys):
    """To the byte, whatever else takes random numbers: the pretraining, the sampler's training, and Ledig's."""
    config, number = load_config("smoke", **TINY), signal.SIGTERM if name == "srgan" else signal.SIGINT
    for stage, weights_file in ((pretraining.pretrain_generator, "srresnet.pt"), (train, f"{name}.pt")):
        whole = stage(config, *images, tmp_path / "whole")
        with monkeypatch.context() as patch:
            before = adversarial.CALIBRATION_BATCHES if stage is train_sampler else 0
            interrupt_at(before + 3, patch, number)
            with pytest.raises(KeyboardInterrupt):
                stage(config, *images, tmp_path / "cut")
        assert "saved at step 3" in capsys.readouterr().out
        assert not (tmp_path / "cut" / weights_file).exists()
        torch.rand(5)
        resumed = stage(config, *images, tmp_path / "cut")
        assert (tmp_path / "whole" / weights_file).read_bytes() == (tmp_path / "cut" / weights_file).read_bytes()
        columns = [c for c in whole if c not in ("seconds", "session")]
        assert resumed[columns].equals(whole[columns])
        assert list(resumed.session) == [1 if step <= 3 else 2 for step in resumed.step]
    discriminators = [checkpoint.load(tmp_path / f / name / "checkpoint.pt")["parts"]["discriminator"] for f in ("whole", "cut")]
    assert same(*discriminators) and ("contrast" in discriminators[0]) == (name == "sampler")


def test_a_training_goes_on_in_another_precision(images, tmp_path):
    """'auto' is float32 on one machine and fp16 on the next: the scaler that was off has no state, the new one begins anew; and the way back."""
    for steps, precision in ((2, "fp32"), (4, "fp16"), (6, "fp32")):
        changed = {"pretrain_steps": steps, "precision": precision, "pretrain_schedule": "constant"}
        history = pretraining.pretrain_generator(load_config("smoke", **TINY | changed), *images, tmp_path)
        scaler = checkpoint.load(tmp_path / "pretrain/checkpoint.pt")["parts"]["scaler"]
        assert history.step.iloc[-1] == steps and bool(scaler) == (precision == "fp16")


def test_the_history_begins_before_the_first_step(images, tmp_path):
    """Row 0 has what is validated, of the projected trunk; all later numbers are finite; SR is consistent with LR from the start on; what is
    released are averaged weights, on the trunk as it was."""
    config = load_config("smoke", **TINY | {"validate_every": 1})
    begin(config, tmp_path)
    history = train_sampler(config, *images, tmp_path)
    validated = {"gain_db", "consistency_db", "stripe_db", *(f"band{k}_db" for k in range(1, 5))}
    assert list(history.step) == list(range(7)) and set(history) >= validated
    assert set(history.columns[history.loc[0].notna()]) == validated | {"step", "session", "seconds"}
    assert np.isfinite(history.drop(0).to_numpy(float)).all()
    assert (history.consistency_db > 55).all()
    assert (history.drop(0)[["g_norm", "d_norm", "penalty"]] > 0).all(axis=None) and history.d_right.drop(0).between(0, 1).all()
    expected = Validation(images[1], config)(Sampler(start := load_generator(tmp_path / "srresnet.pt"), 4))
    assert {name: history[name][0] for name in validated} == pytest.approx(expected)
    released = torch.load(tmp_path / "sampler.pt", weights_only=True)
    assert released["settings"] == start.settings | {"texture": 4, "kind": "bicubic"}
    assert released["loss_weights"]["content"] > 0 < released["loss_weights"]["pixel"]
    assert all(torch.equal(released["weights"][f"trunk.{name}"], value) for name, value in start.state_dict().items())
    parts = checkpoint.load(tmp_path / "sampler/checkpoint.pt")["parts"]
    assert all(torch.equal(value, parts["averaged"][name]) for name, value in released["weights"].items())
    assert not same(released["weights"], parts["generator"])


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"scale": 2, "channels": 3}, "bicubic"),
        ({"scale": 8}, "bicubic"),
        ({"degradation": "gaussian:2"}, "gaussian:2"),
        ({"degradation": "frame"}, ""),
        ({"degradation": "paired"}, ""),
    ],
)
def test_other_scales_colour_and_reductions(images, tmp_path, settings, kind):
    """Two steps each; where LR is not HR reduced, SR is not projected, and its consistency is no measure."""
    config = load_config("smoke", **TINY | {"sampler_steps": 2}, **settings)
    if config.degradation == "paired":
        images = [[paired(path, tmp_path) for path in split] for split in images]
    begin(config, tmp_path)
    history = train_sampler(config, *images, tmp_path)
    columns = [c for c in history if kind or c != "consistency_db"]
    assert np.isfinite(history[columns].iloc[-1].to_numpy(float)).all()
    assert len([c for c in history if c.startswith("band")]) == {2: 2, 4: 4, 8: 6}[config.scale]
    generator = load_generator(tmp_path / "sampler.pt")
    assert generator.settings["kind"] == kind
    assert (history.consistency_db > 55).all() if kind else history.consistency_db.isna().all()
    assert (generator.scale, generator.settings["channels"]) == (config.scale, config.channels)


def paired(path, folder):
    """A scan's copy in hr/ with its LR, reduced and darkened, in lr/."""
    hr, target = Image.open(path), folder / "hr" / Path(path).name
    for place, image in (("hr", hr), ("lr", hr.reduce(4).point(lambda level: 0.9 * level))):
        (folder / place).mkdir(exist_ok=True)
        image.save(folder / place / target.name)
    return target


def test_a_finished_stage_is_not_repeated_and_other_settings_are_refused(images, tmp_path, capsys):
    config = load_config("smoke", **TINY)
    first = pretraining.pretrain_generator(config, *images, tmp_path, fingerprint="one")
    before = (tmp_path / "pretrain/checkpoint.pt").stat().st_mtime_ns
    again = pretraining.pretrain_generator(config, *images, tmp_path, fingerprint="one")
    assert "finished earlier" in capsys.readouterr().out
    assert again.equals(first) and (tmp_path / "pretrain/checkpoint.pt").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="other settings"):
        pretraining.pretrain_generator(config, *images, tmp_path, fingerprint="two")


def test_each_stage_has_its_crop(images, tmp_path, monkeypatch):
    """And its steps."""
    config, sides = load_config("smoke", **TINY | {"gan_crop": 48, "sampler_crop": 24, "gan_steps": 2, "sampler_steps": 3}), []
    begin(config, tmp_path)

    def spy(paths, config, device, steps, *more):
        sides.append((config.crop, steps))
        return training_pairs(paths, config, device, steps, *more)

    for train, module in ((train_srgan, "training.adversarial"), (train_sampler, "sampler.training")):
        monkeypatch.setattr(f"srlib.{module}.training_pairs", spy)
        train(config, *images, tmp_path)
    assert sides == [(48, 2), (24, 3)]


@pytest.mark.parametrize("kind", ["mse", "l1", "psnr"])
def test_pretrain_loss_is_what_its_name_says(images, tmp_path, monkeypatch, kind):
    """At the start SR is bicubic, so that the first loss can be computed without the generator; the history has the MSE of all."""
    config = load_config("smoke", **TINY | {"pretrain_steps": 1}, pretrain_loss=kind)
    lr, hr = next(training_pairs(images[0], config, torch.device("cpu"), 1, config.seed)(0))
    gap = upsample(lr, config.scale) - hr
    expected = {
        "mse": (2 * gap).pow(2).mean(),
        "l1": (2 * gap).abs().mean(),
        "psnr": (10 * (gap.pow(2).mean((1, 2, 3)) + 2.5e-6).log10()).mean(),
    }
    losses = []
    monkeypatch.setattr(pretraining, "update", lambda loss, *rest: losses.append(loss.item()) or update(loss, *rest))
    history = pretraining.pretrain_generator(config, *images, tmp_path)
    assert losses[0] == pytest.approx(expected[kind].item(), rel=1e-4)
    assert history.loss[1] == pytest.approx(expected["mse"].item(), rel=1e-4)


@TRAININGS
def test_batch_norm_rests_in_validation_and_release(images, tmp_path, train, name):
    """Validation changes no running mean and leaves the generator training; what is released answers for one image alone."""
    config = load_config("smoke", **TINY | {"pretrain_steps": 1, "gan_steps": 1, "sampler_steps": 1}, batch_norm=True, global_skip=False)
    generator = make_generator(config).train()
    generator(torch.rand(4, 1, 8, 8))  # other statistics than at the start
    generator = Sampler(generator, 4).train() if name == "sampler" else generator
    before = {k: v.clone() for k, v in generator.state_dict().items()}
    validation = Validation(images[1], config)
    assert validation(generator) == validation(generator)
    assert same(before, generator.state_dict()) and generator.training
    pretraining.pretrain_generator(config, *images, tmp_path)
    train(config, *images, tmp_path)
    for file in ("srresnet", name):
        network = load_generator(tmp_path / f"{file}.pt")
        given = [torch.rand(2, 1, 16, 16), *([torch.randn(2, 4, 64, 64)] if isinstance(network, Sampler) else [])]
        torch.testing.assert_close(network(*given)[:1], network(*(x[:1] for x in given)))


def test_validation_takes_the_same_noise_each_time(images, monkeypatch):
    """One sample of each crop, by what the whole scan says; the global generator has no part in it."""
    config, seen = load_config("smoke", **TINY), []
    monkeypatch.setattr("srlib.training.validation.upscale", lambda lr, net, scan: seen.append((lr, scan)) or upscale(lr, net, scan=scan))
    generator = Sampler(make_generator(config), 4)
    torch.nn.init.normal_(generator.head.tail.weight, std=0.05)
    validation = Validation(images[1], config, side=64)
    first = validation(generator)
    torch.rand(5)
    assert validation(generator) == first and len(validation.pairs) > 1
    for path, (lr, scan) in zip(images[1], seen, strict=False):
        assert lr.shape == (16, 16) and torch.equal(scan, scan_statistics(to_tensor(read_pair(path, config)[0])))
    generator.head.tail.weight.data.zero_()
    assert validation(generator)["band4_db"] < first["band4_db"] - 3  # the sample is what is measured


def test_a_crop_comes_with_what_its_whole_scan_says(images):
    """Of the scan that LR is read from or made of, for every part of the stream; of the crop, where LR is made of that anew."""
    config = load_config("smoke", **TINY)
    scans = torch.cat([scan_statistics(to_tensor(read_pair(path, config)[0])) for path in images[0]])
    for first in (0, 2):
        *_, found = next(training_pairs(images[0], config, torch.device("cpu"), 6, 0, scan_statistics)(first))
        crops = Crops(images[0], config.crop, 6 * config.batch, config.channels, 0)
        assert torch.equal(found, scans[[crops.place(first * config.batch + k)[0] for k in range(config.batch)]])
    noisy = load_config("smoke", **TINY | {"degradation": "frame"})
    lr, _, found = next(training_pairs(images[0], noisy, torch.device("cpu"), 6, 0, scan_statistics)(0))
    assert torch.equal(found, scan_statistics(lr))


def test_health_in_words():
    """Each sickness is named at once, a sound training is left in peace."""
    rows = dict(step=[0, 10, 20, 30, 40], d_hr=1.0, d_sr=-1.0, d_right=[np.nan, 0.5, 0.6, 0.7, 0.7], gain_db=0.9, consistency_db=63.0)
    sound = pd.DataFrame(rows | {"adversarial_share": [np.nan, 0.4, 0.4, 0.4, 0.4]})
    for kind, change, words in (
        ("won", {"d_right": 0.99}, "right with probability 0.99"),
        ("blind", {"d_right": 0.505}, "cannot tell"),
        ("collapse", {"gain_db": -7.0}, "collapsing (-7.0 dB"),
        ("collapse", {"adversarial_share": 0.99}, "99% of its loss"),
        ("inconsistent", {"consistency_db": 33.0}, "33.0 dB from LR"),
    ):
        warnings = diagnostics.adversarial_warnings(sound.assign(**change))
        assert list(warnings) == [kind] and words in warnings[kind]
    long = pd.concat([sound, sound.drop(0).assign(step=sound.step.drop(0) + 40)]).assign(band4_db=-1.0, penalty=0.01)
    assert diagnostics.adversarial_warnings(long) == {}
    moving, steep = [-9.0] * 8 + [-1.0], [0.01] * 8 + [0.03]
    for kind, change in (("moving", {"band4_db": moving}), ("steep", {"penalty": steep}), ("drift", {"d_hr": 28.0, "d_sr": 27.0})):
        assert list(diagnostics.adversarial_warnings(long.assign(**change))) == [kind]
    ledig = long.drop(columns="penalty").assign(d_hr=8.0, d_sr=-7.0, d_right=0.98)
    assert (
        "mean logit is 8.0 for HR and -7.0 for SR, and it is right with probability 0.98" in diagnostics.adversarial_warnings(ledig)["won"]
    )
    too_early = sound[:1], sound[:2], sound[1:].assign(d_right=0.505)[:3]
    unmeasured = sound.assign(consistency_db=np.nan)  # frame, given pairs
    samples, won_once = sound.assign(gain_db=-2.0), sound.assign(d_right=[np.nan, 0.5, 0.6, 0.7, 0.99])  # right samples lie 2 dB below
    for history in (sound, *too_early, unmeasured, samples, won_once):
        assert diagnostics.adversarial_warnings(history) == {}


def test_a_pretraining_that_diverges_is_named():
    gains = pd.DataFrame({"step": [1, 2, 3], "gain_db": [0.1, 1.2, -14.6]})
    assert "(-14.6 dB against bicubic, it was at +1.2)" in diagnostics.pretraining_warnings(gains)["diverged"]
    rising = gains.assign(gain_db=[-9.0, -2.0, -2.5])  # without global skip it begins far below bicubic
    assert diagnostics.pretraining_warnings(rising) == {} == diagnostics.pretraining_warnings(gains[:1])


def test_warnings_are_said_once_while_training(images, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(diagnostics, "LEFT_LR", 90.0)
    monkeypatch.setattr(diagnostics, "DIVERGED", -1.0)
    config = load_config("smoke", **TINY)
    pretraining.pretrain_generator(config, *images, tmp_path)
    assert capsys.readouterr().out.count("pretrain: warning at step 2: the training has left its way") == 1
    train_srgan(config, *images, tmp_path)
    assert capsys.readouterr().out.count("srgan: warning at step 1: SR reduced again") == 1


def test_the_best_validated_weights_are_taken(images, tmp_path, monkeypatch):
    seen_weights, measure = {}, Validation.__call__

    def rising_and_falling(self, generator):
        seen_weights[len(seen_weights)] = {k: v.clone() for k, v in generator.state_dict().items()}
        return measure(self, generator) | {"gain_db": -abs(len(seen_weights) - 3.0)}

    monkeypatch.setattr(Validation, "__call__", rising_and_falling)
    pretraining.pretrain_generator(load_config("smoke", **TINY), *images, tmp_path)
    assert same(weights(tmp_path / "srresnet.pt"), seen_weights[2]) and len(seen_weights) == 5


def test_srgan_needs_matching_weights(images, tmp_path):
    config = load_config("smoke", **TINY)
    with pytest.raises(UserError, match=r"srresnet\.pt: no such file"):
        train_srgan(config, *images, tmp_path)
    begin(config, tmp_path)
    with pytest.raises(UserError, match="another shape"):
        train_srgan(load_config("smoke", **TINY | {"width": 4}), *images, tmp_path)


def test_not_a_number_stops_and_keeps_the_last_state(images, tmp_path, monkeypatch):
    config = load_config("smoke", **TINY, pretrain_loss="mse")
    original = F.mse_loss
    calls = []

    def poisoned(*args):
        calls.append(1)
        return original(*args) * (float("nan") if len(calls) == 9 else 1)  # twice a step: what is logged, what is minimised

    monkeypatch.setattr(F, "mse_loss", poisoned)
    with pytest.raises(
        UserError, match=r"loss is not a number at step 5; set pretrain_lr lower, with another run_dir \(.*holds the last good"
    ):
        pretraining.pretrain_generator(config, *images, tmp_path)
    state = checkpoint.load(tmp_path / "pretrain/checkpoint.pt")
    assert state["step"] == 4 and all(v.isfinite().all() for v in state["parts"]["generator"].values())


def test_steps_that_all_overflow_in_float16_are_said(images, tmp_path, monkeypatch):
    """The scaler leaves them out without a word, and halves its scale, 65536 at first."""
    monkeypatch.setattr(pretraining, "PRETRAIN", {"mse": lambda sr, hr: (sr - hr).square().mean() / 0})
    config = load_config("smoke", **TINY | {"precision": "fp16", "pretrain_loss": "mse", "pretrain_steps": 18, "checkpoint_every": 18})
    with pytest.raises(
        UserError, match=r"overflows in float16 and is left out; set precision to 'fp32' with another run_dir, or set pretrain_lr lower$"
    ):
        pretraining.pretrain_generator(config, *images, tmp_path)


def test_checkpoint_survives_damage(tmp_path, capsys):
    path = tmp_path / "checkpoint.pt"
    for step in (1, 2):
        checkpoint.save(path, {"step": step, "x": torch.ones(3)})
    assert checkpoint.load(path)["step"] == 2
    path.write_bytes(path.read_bytes()[:-20])
    assert checkpoint.load(path)["step"] == 1 and "damaged" in capsys.readouterr().out
    assert not path.exists() and (tmp_path / "checkpoint.damaged.pt").exists()
    checkpoint.save(path, {"step": 3})
    path.unlink()
    assert checkpoint.load(path)["step"] == 1
    checkpoint.previous(path).write_bytes(b"something else")
    with pytest.raises(UserError, match="damaged or was not written"):
        checkpoint.load(path)
    assert checkpoint.load(tmp_path / "none.pt") is None
    assert not list(tmp_path.glob("*.part"))


class Bomb:
    def __reduce__(self):
        return (os.mkdir, ("pickled-code-ran",))


def test_pickled_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"settings": {}, "weights": {}, "bomb": Bomb()}, tmp_path / "srgan.pt")
    with open(tmp_path / "plain.pt", "wb") as file:
        pickle.dump(Bomb(), file)
    for name in ("srgan.pt", "plain.pt"):
        with pytest.raises(UserError, match="holds no weights"):
            load_generator(tmp_path / name)
    assert not (tmp_path / "pickled-code-ran").exists()


def test_cpu_autocast_only_where_the_hardware_has_it():
    assert autocast_dtype("fp32", torch.device("cpu")) is None
    able = torch.cpu.get_capabilities()
    expected = torch.bfloat16 if able.get("avx512_bf16") or able.get("amx_bf16") else None
    assert autocast_dtype("auto", torch.device("cpu")) is expected
