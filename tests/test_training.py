"""Both stages on a tiny problem: they learn, stop, continue, refuse other settings; the checkpoint is safe."""

import os
import pickle
import shutil
import signal

import pandas as pd
import pytest
import torch

from srlib import checkpoint, features, health, steps, training
from srlib.config import UserError, load_config
from srlib.inference import load_generator

TINY = {
    "crop": 32,
    "batch": 4,
    "width": 8,
    "blocks": 1,
    "d_width": 4,
    "pretrain_steps": 8,
    "gan_steps": 6,
    "validate_every": 2,
    "checkpoint_every": 2,
}


def weights(path):
    return torch.load(path, weights_only=True)["weights"]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_pretraining_learns_and_repeats(images, tmp_path):
    config = load_config("smoke", **TINY | {"pretrain_steps": 120, "pretrain_lr": 3e-3})
    history = training.pretrain_generator(config, *images, tmp_path / "a")
    assert history.gain_db.iloc[0] < 0.1 < 0.4 < history.gain_db.iloc[-1]
    assert list(pd.read_csv(tmp_path / "a/pretrain/history.csv").step) == list(history.step)
    training.pretrain_generator(config, *images, tmp_path / "b")
    assert same(weights(tmp_path / "a/srresnet.pt"), weights(tmp_path / "b/srresnet.pt"))
    best = checkpoint.load(tmp_path / "a/pretrain/checkpoint.pt")["parts"]["best"]
    assert best["score"] == history.gain_db.max()


def test_settings_of_the_machine_do_not_change_the_result(images, tmp_path, monkeypatch):
    """Scans decoded into a mapped file, read by worker processes: the same weights."""
    monkeypatch.setattr(training, "data_home", lambda: tmp_path)
    for name, settings in {"plain": {}, "other": {"decoded_cache": True, "workers": 2}}.items():
        training.pretrain_generator(load_config("smoke", **TINY, **settings), *images, tmp_path / name)
    assert list((tmp_path / "cache").glob("decoded-*.bin"))
    assert same(weights(tmp_path / "plain/srresnet.pt"), weights(tmp_path / "other/srresnet.pt"))


def test_clipping_bounds_the_gradient(images, tmp_path):
    """Cut far below Adam's epsilon, gradients move nothing; uncut they do."""
    moved = {}
    for clip in (0.0, 1e-14):
        torch.manual_seed(0)
        config = load_config("smoke", **TINY, pretrain_clip=clip)
        start = steps.make_generator(config).state_dict()
        training.pretrain_generator(config, *images, tmp_path / str(clip))
        moved[clip] = max((weights(tmp_path / str(clip) / "srresnet.pt")[k] - v).abs().max().item() for k, v in start.items())
    assert moved[1e-14] < 1e-6 < 1e-4 < moved[0.0]


def interrupt_at(step, monkeypatch, number=signal.SIGINT):
    """Send this process a signal while the training makes its `step`-th batch."""
    calls, original = [], training.downsample

    def counted(hr, *reduction):
        calls.append(hr.shape[0])
        if calls.count(TINY["batch"]) == step:
            os.kill(os.getpid(), number)
        return original(hr, *reduction)

    monkeypatch.setattr(training, "downsample", counted)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_and_continued_equals_uninterrupted(images, tmp_path, monkeypatch, number, capsys):
    config = load_config("smoke", **TINY)
    for stage, weights_file in ((training.pretrain_generator, "srresnet.pt"), (training.train_srgan, "srgan.pt")):
        whole = stage(config, *images, tmp_path / "whole")
        with monkeypatch.context() as patch:
            before = steps.CALIBRATION_BATCHES if stage is training.train_srgan else 0
            interrupt_at(before + 3, patch, number)
            with pytest.raises(KeyboardInterrupt):
                stage(config, *images, tmp_path / "cut")
        assert "saved at step 3" in capsys.readouterr().out
        assert not (tmp_path / "cut" / weights_file).exists()
        resumed = stage(config, *images, tmp_path / "cut")
        assert same(weights(tmp_path / "whole" / weights_file), weights(tmp_path / "cut" / weights_file))
        columns = [c for c in whole if c not in ("seconds", "session")]
        assert resumed[columns].equals(whole[columns])
        assert list(resumed.session) == [1, *[2] * (len(resumed) - 1)]


def test_a_finished_stage_is_not_repeated(images, tmp_path, capsys):
    config = load_config("smoke", **TINY)
    first = training.pretrain_generator(config, *images, tmp_path)
    before = (tmp_path / "pretrain/checkpoint.pt").stat().st_mtime_ns
    again = training.pretrain_generator(config, *images, tmp_path)
    assert "finished earlier" in capsys.readouterr().out
    assert again.equals(first) and (tmp_path / "pretrain/checkpoint.pt").stat().st_mtime_ns == before


def test_other_settings_are_refused(images, tmp_path):
    config = load_config("smoke", **TINY)
    training.pretrain_generator(config, *images, tmp_path, fingerprint="one")
    with pytest.raises(UserError, match="other settings"):
        training.pretrain_generator(config, *images, tmp_path, fingerprint="two")


def test_srgan_depends_on_the_extractor(images, tmp_path, monkeypatch):
    """Features of zeros give another SRGAN: the content loss really reaches the generator (a dead gradient would not)."""
    config = load_config("smoke", **TINY | {"content_weight": 50.0, "pixel_share": 0.0})
    original = features.feature_extractor

    def zeroed(*args):
        net = original(*args)
        for p in net.parameters():
            p.zero_()
        return net

    results = []
    for name, extractor in (("as released", original), ("zeroed", zeroed)):
        training.pretrain_generator(config, *images, tmp_path / name)
        monkeypatch.setattr(training, "feature_extractor", extractor)
        history = training.train_srgan(config, *images, tmp_path / name)
        results.append((weights(tmp_path / name / "srgan.pt"), history.content.iloc[-1]))
    assert not same(results[0][0], results[1][0])
    assert results[0][1] > 0 == results[1][1]


def test_calibration_gives_the_stated_share(images, tmp_path):
    config = load_config("smoke", **TINY | {"adversarial_share": 0.2, "pixel_share": 0.3, "validate_every": 1, "gan_steps": 2})
    training.pretrain_generator(config, *images, tmp_path)
    history = training.train_srgan(config, *images, tmp_path)
    shares = history.loc[0, ["content_share", "adversarial_share", "pixel_share"]]
    assert list(shares) == pytest.approx([0.5, 0.2, 0.3], abs=0.08)  # of one batch; the calibration took the mean of several
    assert shares.sum() + history.grid_share[0] == pytest.approx(1)
    assert 0 < history.grid_share[0] < 0.1
    assert checkpoint.load(tmp_path / "srgan/checkpoint.pt")["parts"]["weights"]["content"] > 0


def test_lr_weight_holds_sr_to_lr(images, tmp_path):
    """Its term is logged as any other, and a strong one leaves SR nearer to LR than the same game without it."""
    game = TINY | {
        "gan_steps": 60,
        "gan_lr": 1e-3,
        "validate_every": 20,
        "content_features": "none",
        "content_weight": 1e-6,
        "ema": 0.0,
        "pixel_share": 0.0,
    }
    training.pretrain_generator(load_config("smoke", **game), *images, tmp_path)
    found = []
    for factor in (0.0, 100.0):
        history = training.train_srgan(load_config("smoke", **game, lr_weight=factor), *images, tmp_path)
        found.append(history.consistency_db.iloc[-1])
        shutil.rmtree(tmp_path / "srgan")
    assert found[1] > found[0] + 2
    shares = history[[c for c in history if c.endswith("_share")]]
    assert (history.lr_share > 0).all() and shares.sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-5)
    with pytest.raises(UserError, match="lr_weight needs a degradation"):
        load_config("smoke", lr_weight=1.0, degradation="speckle")


def first_step(monkeypatch, stage, config, images, folder):
    """The losses that the first step went down, the generator's last, and the history."""
    losses, update = [], steps._update

    def spy(loss, *args):
        losses.append(loss.item())
        return update(loss, *args)

    with monkeypatch.context() as patch:
        patch.setattr(steps, "_update", spy)
        history = stage(config, *images, folder)
    return losses, history


@pytest.mark.parametrize("kind", ["mse", "l1", "psnr"])
def test_pretrain_loss_is_what_its_name_says(images, tmp_path, monkeypatch, kind):
    """At the start SR is bicubic, so that the first loss can be computed without the generator; the history has the MSE of all."""
    config = load_config("smoke", **TINY | {"pretrain_steps": 1}, pretrain_loss=kind)
    lr, hr = next(training.training_pairs(images[0], config, torch.device("cpu"), 1, config.seed)(0))
    gap = training.upsample(lr, config.scale) - hr
    expected = {
        "mse": (2 * gap).pow(2).mean(),
        "l1": (2 * gap).abs().mean(),
        "psnr": (10 * (gap.pow(2).mean((1, 2, 3)) + 2.5e-6).log10()).mean(),
    }
    losses, history = first_step(monkeypatch, training.pretrain_generator, config, images, tmp_path)
    assert losses[0] == pytest.approx(expected[kind].item(), rel=1e-4)
    assert history.loss[0] == pytest.approx(expected["mse"].item(), rel=1e-4)


def test_a_relativistic_game_is_another_one(images, tmp_path, monkeypatch):
    """The first D loss is the relativistic one of the same logits, and D sees HR once more for the generator."""
    training.pretrain_generator(load_config("smoke", **TINY), *images, tmp_path)
    found = {}
    for kind in ("standard", "relativistic"):
        logits, forward = [], steps.Discriminator.forward

        def spy(self, image, logits=logits, forward=forward):
            logits.append(forward(self, image))
            return logits[-1]

        config = load_config("smoke", **TINY | {"gan_steps": 1, "content_weight": 1.0, "pixel_share": 0.0}, adversarial_loss=kind)
        with monkeypatch.context() as patch:
            patch.setattr(steps.Discriminator, "forward", spy)
            losses, _ = first_step(monkeypatch, training.train_srgan, config, images, tmp_path)
        shutil.rmtree(tmp_path / "srgan")
        found[kind] = losses[0], [x.detach() for x in logits]
    (plain, two), (relative, three) = found["standard"], found["relativistic"]
    assert len(two) == 3 and len(three) == 4
    assert all(torch.equal(a, b) for a, b in zip(two[:2], three[:2], strict=True))
    a, b = two[0] - two[1].mean(), two[1] - two[0].mean()
    assert relative == pytest.approx((steps.F.softplus(-a).mean() + steps.F.softplus(b).mean()).item(), rel=1e-4)
    assert plain != pytest.approx(relative, rel=1e-4)


def test_batch_norm_rests_in_validation_and_release(images, tmp_path):
    """Validation changes no running mean and leaves the generator training; what is released answers for one image alone."""
    config = load_config("smoke", **TINY, batch_norm=True, global_skip=False)
    generator = steps.make_generator(config).train()
    generator(torch.rand(4, 1, 8, 8))  # other statistics than at the start
    before = {k: v.clone() for k, v in generator.state_dict().items()}
    validation = training.Validation(images[1], config, torch.device("cpu"))
    assert validation(generator) == validation(generator)
    assert same(before, generator.state_dict()) and generator.training
    training.pretrain_generator(config, *images, tmp_path)
    training.train_srgan(config, *images, tmp_path)
    for name in ("srresnet", "srgan"):
        network = load_generator(tmp_path / f"{name}.pt")
        one, other = torch.rand(2, 1, 1, 16, 16)
        torch.testing.assert_close(network(torch.cat([one, other]))[:1], network(one))


def test_health_in_words():
    """Each sickness of the game is named at once, a sound game is left in peace."""
    sound = pd.DataFrame(
        {
            "step": [10, 20, 30, 40],
            "d_hr": [0.5, 0.6, 0.6, 0.65],
            "d_sr": [0.5, 0.45, 0.4, 0.4],
            "gain_db": 0.9,
            "consistency_db": 43.0,
            "adversarial_share": 0.2,
        }
    )
    assert health.warnings(sound) == {}
    for kind, change, words in (
        ("won", {"d_hr": 0.99, "d_sr": 0.01}, "D(HR) 0.99, D(SR) 0.01"),
        ("blind", {"d_hr": 0.5, "d_sr": 0.495}, "cannot tell"),
        ("collapse", {"gain_db": -6.0}, "collapsing (-6.0 dB"),
        ("collapse", {"adversarial_share": 0.99}, "99% of its loss"),
        ("inconsistent", {"consistency_db": 33.0}, "33.0 dB from LR"),
    ):
        found = health.warnings(sound.assign(**change))
        assert list(found) == [kind] and words in found[kind]
    won_once = sound.assign(d_hr=[0.5, 0.6, 0.6, 0.99], d_sr=[0.5, 0.4, 0.4, 0.01])
    assert health.warnings(won_once) == {} and health.warnings(sound[:1]) == {}


def test_a_pretraining_that_diverges_is_named():
    gains = pd.DataFrame({"step": [1, 2, 3], "gain_db": [0.1, 1.2, -14.6]})
    assert "(-14.6 dB against bicubic, it was at +1.2)" in health.pretraining_warnings(gains)["diverged"]
    rising = gains.assign(gain_db=[-9.0, -2.0, -2.5])  # without global skip it begins far below bicubic
    assert health.pretraining_warnings(rising) == {} == health.pretraining_warnings(gains[:1])


def test_warnings_are_said_once_while_training(images, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(health, "LEFT_LR", 90.0)
    monkeypatch.setattr(health, "DIVERGED", -1.0)
    config = load_config("smoke", **TINY)
    training.pretrain_generator(config, *images, tmp_path)
    assert capsys.readouterr().out.count("pretrain: warning at step 2: the training has left its way") == 1
    history = training.train_srgan(config, *images, tmp_path)
    assert capsys.readouterr().out.count("srgan: warning at step 2: SR brought down again") == 1
    assert len(history) == 3 and (history[["g_norm", "d_norm", "d_learnt"]] > 0).all().all()


def test_a_winning_discriminator_pauses(images, tmp_path):
    """Where every loss is below `d_pause`, D's weights stay as they were made; where none is, they move."""
    config = load_config("smoke", **TINY)
    training.pretrain_generator(config, *images, tmp_path)
    found = []
    for pause in (100.0, 100.0, 1e-9):
        training.train_srgan(load_config("smoke", **TINY | {"d_pause": pause, "gan_steps": len(found) + 2}), *images, tmp_path)
        found.append(checkpoint.load(tmp_path / "srgan/checkpoint.pt")["parts"]["discriminator"]["features.0.weight"])
        shutil.rmtree(tmp_path / "srgan")
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_losses_see_both_images_moved_alike(images, tmp_path, monkeypatch):
    """`loss_shift=5`: HR and SR come rolled by the same 0 to 4 pixels, another way in each step; with 0 they come as they are."""
    training.pretrain_generator(load_config("smoke", **TINY), *images, tmp_path)
    seen = {}

    def run(shift):
        class Spy(steps.ContentLoss):
            def forward(self, sr, hr):
                seen.setdefault(shift, []).append((sr.detach(), hr.detach()))
                return super().forward(sr, hr)

        monkeypatch.setattr(steps, "ContentLoss", Spy)
        training.train_srgan(load_config("smoke", **TINY | {"loss_shift": shift, "gan_steps": 4}), *images, tmp_path)
        shutil.rmtree(tmp_path / "srgan")

    original = steps.ContentLoss
    run(0)
    monkeypatch.setattr(steps, "ContentLoss", original)
    run(5)
    first = steps.CALIBRATION_BATCHES  # then the steps, with other crops each; the first SR is still the pretrained one
    moves = [(dy, dx) for dy in range(5) for dx in range(5)]
    found = []
    for k in range(4):
        plain, moved = seen[0][first + k][1], seen[5][first + k][1]
        found.append(next(m for m in moves if torch.equal(plain.roll(m, (2, 3)), moved)))
    assert len(set(found)) > 1
    torch.testing.assert_close(seen[0][first][0].roll(found[0], (2, 3)), seen[5][first][0])


def test_released_srgan_is_the_average_of_the_steps(images, tmp_path):
    config = load_config("smoke", **TINY | {"ema": 0.9})
    training.pretrain_generator(config, *images, tmp_path)
    training.train_srgan(config, *images, tmp_path)
    parts = checkpoint.load(tmp_path / "srgan/checkpoint.pt")["parts"]
    start, last, released = weights(tmp_path / "srresnet.pt"), parts["generator"], weights(tmp_path / "srgan.pt")
    name = "head.0.weight"
    drift = (last[name] - start[name]).abs().mean()
    assert 0 < (released[name] - start[name]).abs().mean() < drift  # behind the last weights: not inverted, not the last
    assert (released[name] - last[name]).abs().mean() < drift


def test_srgan_needs_matching_weights(images, tmp_path):
    config = load_config("smoke", **TINY)
    with pytest.raises(UserError, match=r"srresnet\.pt: no such file"):
        training.train_srgan(config, *images, tmp_path)
    training.pretrain_generator(config, *images, tmp_path)
    with pytest.raises(UserError, match="another shape"):
        training.train_srgan(load_config("smoke", **TINY | {"width": 4}), *images, tmp_path)


def test_not_a_number_stops_and_keeps_the_last_state(images, tmp_path, monkeypatch):
    config = load_config("smoke", **TINY, pretrain_loss="mse")
    original = steps.F.mse_loss
    calls = []

    def poisoned(*args):
        calls.append(1)
        return original(*args) * (float("nan") if len(calls) == 9 else 1)  # twice a step: what is logged, what is minimised

    monkeypatch.setattr(steps.F, "mse_loss", poisoned)
    with pytest.raises(UserError, match="loss is not a number at step 5"):
        training.pretrain_generator(config, *images, tmp_path)
    state = checkpoint.load(tmp_path / "pretrain/checkpoint.pt")
    assert state["step"] == 4 and all(v.isfinite().all() for v in state["parts"]["generator"].values())


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
    assert steps.autocast_dtype("fp32", torch.device("cpu")) is None
    able = torch.cpu.get_capabilities()
    expected = torch.bfloat16 if able.get("avx512_bf16") or able.get("amx_bf16") else None
    assert steps.autocast_dtype("auto", torch.device("cpu")) is expected
