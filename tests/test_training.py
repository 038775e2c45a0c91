"""Both stages on a tiny problem: they learn, stop, continue, refuse other settings; the checkpoint is safe."""

import os
import pickle
import shutil
import signal

import pandas as pd
import pytest
import torch

from srlib import checkpoint, features, training
from srlib.config import UserError, load_config
from srlib.data import build_manifest
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


@pytest.fixture
def paths(scan_folder):
    table = build_manifest(scan_folder)
    return [[scan_folder / p for p in table.path[table.split == s]] for s in ("train", "val")]


def weights(path):
    return torch.load(path, weights_only=True)["weights"]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_pretraining_learns_and_repeats(paths, tmp_path):
    config = load_config("smoke", **TINY | {"pretrain_steps": 120, "pretrain_lr": 3e-3})
    history = training.pretrain_generator(config, *paths, tmp_path / "a")
    assert history.gain_db.iloc[0] < 0.1 < 0.4 < history.gain_db.iloc[-1]
    assert list(pd.read_csv(tmp_path / "a/pretrain/history.csv").step) == list(history.step)
    training.pretrain_generator(config, *paths, tmp_path / "b")
    assert same(weights(tmp_path / "a/srresnet.pt"), weights(tmp_path / "b/srresnet.pt"))
    best = checkpoint.load(tmp_path / "a/pretrain/checkpoint.pt")["parts"]["best"]
    assert best["score"] == history.gain_db.max()


def test_settings_of_the_machine_do_not_change_the_result(paths, tmp_path, monkeypatch):
    """Scans decoded into a mapped file, read by worker processes: the same weights."""
    monkeypatch.setattr(training, "data_home", lambda: tmp_path)
    for name, settings in {"plain": {}, "other": {"decoded_cache": True, "workers": 2}}.items():
        training.pretrain_generator(load_config("smoke", **TINY, **settings), *paths, tmp_path / name)
    assert list((tmp_path / "cache").glob("decoded-*.bin"))
    assert same(weights(tmp_path / "plain/srresnet.pt"), weights(tmp_path / "other/srresnet.pt"))


def test_clipping_bounds_the_gradient(paths, tmp_path):
    """Cut far below Adam's epsilon, gradients move nothing; uncut they do."""
    moved = {}
    for clip in (0.0, 1e-14):
        torch.manual_seed(0)
        config = load_config("smoke", **TINY, pretrain_clip=clip)
        start = training.make_generator(config).state_dict()
        training.pretrain_generator(config, *paths, tmp_path / str(clip))
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
def test_stopped_and_continued_equals_uninterrupted(paths, tmp_path, monkeypatch, number, capsys):
    config = load_config("smoke", **TINY)
    for stage, weights_file in ((training.pretrain_generator, "srresnet.pt"), (training.train_srgan, "srgan.pt")):
        whole = stage(config, *paths, tmp_path / "whole")
        with monkeypatch.context() as patch:
            before = training.CALIBRATION_BATCHES if stage is training.train_srgan else 0
            interrupt_at(before + 3, patch, number)
            with pytest.raises(KeyboardInterrupt):
                stage(config, *paths, tmp_path / "cut")
        assert "saved at step 3" in capsys.readouterr().out
        assert not (tmp_path / "cut" / weights_file).exists()
        resumed = stage(config, *paths, tmp_path / "cut")
        assert same(weights(tmp_path / "whole" / weights_file), weights(tmp_path / "cut" / weights_file))
        columns = [c for c in whole if c != "seconds"]
        assert resumed[columns].equals(whole[columns])


def test_a_finished_stage_is_not_repeated(paths, tmp_path, capsys):
    config = load_config("smoke", **TINY)
    first = training.pretrain_generator(config, *paths, tmp_path)
    before = (tmp_path / "pretrain/checkpoint.pt").stat().st_mtime_ns
    again = training.pretrain_generator(config, *paths, tmp_path)
    assert "finished earlier" in capsys.readouterr().out
    assert again.equals(first) and (tmp_path / "pretrain/checkpoint.pt").stat().st_mtime_ns == before


def test_other_settings_are_refused(paths, tmp_path):
    config = load_config("smoke", **TINY)
    training.pretrain_generator(config, *paths, tmp_path, fingerprint="one")
    with pytest.raises(UserError, match="other settings"):
        training.pretrain_generator(config, *paths, tmp_path, fingerprint="two")


def test_srgan_depends_on_the_extractor(paths, tmp_path, monkeypatch):
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
        training.pretrain_generator(config, *paths, tmp_path / name)
        monkeypatch.setattr(training, "feature_extractor", extractor)
        history = training.train_srgan(config, *paths, tmp_path / name)
        results.append((weights(tmp_path / name / "srgan.pt"), history.content.iloc[-1]))
    assert not same(results[0][0], results[1][0])
    assert results[0][1] > 0 == results[1][1]


def test_calibration_gives_the_stated_share(paths, tmp_path):
    config = load_config("smoke", **TINY | {"adversarial_share": 0.2, "pixel_share": 0.3, "validate_every": 1, "gan_steps": 2})
    training.pretrain_generator(config, *paths, tmp_path)
    history = training.train_srgan(config, *paths, tmp_path)
    shares = history.loc[0, ["content_share", "adversarial_share", "pixel_share"]]
    assert list(shares) == pytest.approx([0.5, 0.2, 0.3], abs=0.08)  # of one batch; the calibration took the mean of several
    assert shares.sum() + history.grid_share[0] == pytest.approx(1)
    assert 0 < history.grid_share[0] < 0.1
    assert checkpoint.load(tmp_path / "srgan/checkpoint.pt")["parts"]["weights"]["content"] > 0


def test_a_winning_discriminator_pauses(paths, tmp_path):
    """Where every loss is below `d_pause`, D's weights stay as they were made; where none is, they move."""
    config = load_config("smoke", **TINY)
    training.pretrain_generator(config, *paths, tmp_path)
    found = []
    for pause in (100.0, 100.0, 1e-9):
        training.train_srgan(load_config("smoke", **TINY | {"d_pause": pause, "gan_steps": len(found) + 2}), *paths, tmp_path)
        found.append(checkpoint.load(tmp_path / "srgan/checkpoint.pt")["parts"]["discriminator"]["features.0.weight"])
        shutil.rmtree(tmp_path / "srgan")
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_losses_see_both_images_moved_alike(paths, tmp_path, monkeypatch):
    """`loss_shift=5`: HR and SR come rolled by the same 0 to 4 pixels, another way in each step; with 0 they come as they are."""
    training.pretrain_generator(load_config("smoke", **TINY), *paths, tmp_path)
    seen = {}

    def run(shift):
        class Spy(training.ContentLoss):
            def forward(self, sr, hr):
                seen.setdefault(shift, []).append((sr.detach(), hr.detach()))
                return super().forward(sr, hr)

        monkeypatch.setattr(training, "ContentLoss", Spy)
        training.train_srgan(load_config("smoke", **TINY | {"loss_shift": shift, "gan_steps": 4}), *paths, tmp_path)
        shutil.rmtree(tmp_path / "srgan")

    original = training.ContentLoss
    run(0)
    monkeypatch.setattr(training, "ContentLoss", original)
    run(5)
    first = training.CALIBRATION_BATCHES  # then the steps, with other crops each; the first SR is still the pretrained one
    moves = [(dy, dx) for dy in range(5) for dx in range(5)]
    found = []
    for k in range(4):
        plain, moved = seen[0][first + k][1], seen[5][first + k][1]
        found.append(next(m for m in moves if torch.equal(plain.roll(m, (2, 3)), moved)))
    assert len(set(found)) > 1
    torch.testing.assert_close(seen[0][first][0].roll(found[0], (2, 3)), seen[5][first][0])


def test_released_srgan_is_the_average_of_the_steps(paths, tmp_path):
    config = load_config("smoke", **TINY | {"ema": 0.9})
    training.pretrain_generator(config, *paths, tmp_path)
    training.train_srgan(config, *paths, tmp_path)
    parts = checkpoint.load(tmp_path / "srgan/checkpoint.pt")["parts"]
    start, last, released = weights(tmp_path / "srresnet.pt"), parts["generator"], weights(tmp_path / "srgan.pt")
    name = "head.0.weight"
    drift = (last[name] - start[name]).abs().mean()
    assert 0 < (released[name] - start[name]).abs().mean() < drift  # behind the last weights: not inverted, not the last
    assert (released[name] - last[name]).abs().mean() < drift


def test_srgan_needs_matching_weights(paths, tmp_path):
    config = load_config("smoke", **TINY)
    with pytest.raises(UserError, match=r"srresnet\.pt: no such file"):
        training.train_srgan(config, *paths, tmp_path)
    training.pretrain_generator(config, *paths, tmp_path)
    with pytest.raises(UserError, match="another shape"):
        training.train_srgan(load_config("smoke", **TINY | {"width": 4}), *paths, tmp_path)


def test_not_a_number_stops_and_keeps_the_last_state(paths, tmp_path, monkeypatch):
    config = load_config("smoke", **TINY, pretrain_loss="mse")
    original = training.F.mse_loss
    calls = []

    def poisoned(*args):
        calls.append(1)
        return original(*args) * (float("nan") if len(calls) == 5 else 1)

    monkeypatch.setattr(training.F, "mse_loss", poisoned)
    with pytest.raises(UserError, match="not a number at step 6"):
        training.pretrain_generator(config, *paths, tmp_path)
    state = checkpoint.load(tmp_path / "pretrain/checkpoint.pt")
    assert state["step"] == 4 and all(v.isfinite().all() for v in state["parts"]["generator"].values())


def test_checkpoint_survives_damage(tmp_path, capsys):
    path = tmp_path / "checkpoint.pt"
    for step in (1, 2):
        checkpoint.save(path, {"step": step, "x": torch.ones(3)})
    assert checkpoint.load(path)["step"] == 2
    path.write_bytes(path.read_bytes()[:-20])
    assert checkpoint.load(path)["step"] == 1 and "damaged" in capsys.readouterr().out
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
    assert training.autocast_dtype("fp32", torch.device("cpu")) is None
    able = torch.cpu.get_capabilities()
    expected = torch.bfloat16 if able.get("avx512_bf16") or able.get("amx_bf16") else None
    assert training.autocast_dtype("auto", torch.device("cpu")) is expected
