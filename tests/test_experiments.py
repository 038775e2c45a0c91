"""What can be exchanged, and runs beside each other: registries, extractors, sweeps, noise between patients and seeds."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from running import srlib

from srlib.__main__ import main
from srlib.commands import sweep
from srlib.config import PROFILES, UserError, load_config
from srlib.files import REPOSITORY
from srlib.series import runs
from srlib.series.opening import open_run
from srlib.series.run_folder import Run
from srlib.trained import save_weights
from srlib.training import checkpoint
from srlib.training.stage import make_generator


# --------------------------------------------------------------------------------------------- sweep
@pytest.fixture
def series(monkeypatch):
    """`run_series` replaced by one that writes what the sweep asks of it: {folder name: how often}; names in `fails` fail."""
    ran, fails = [], {}

    def run_series(profile, run_dir, data, overrides, until):
        folder = Path(run_dir)
        ran.append(folder.name if until == "07" else f"{folder.name} until {until}")
        run = open_run("01", profile, run_dir, data, overrides)
        run.record("notebooks", "01", seconds=1)
        (folder / "manifest.csv").write_text("path,label,patient,split,sha256\na.png,x,1,test,a\n")
        if folder.name in fails:
            raise fails[folder.name]
        for stage in ("pretrain", "srgan"):
            (folder / stage).mkdir(exist_ok=True)
            (folder / stage / "history.csv").write_text("step,gain_db,content_share\n1,0.5,0.4\n")
        (folder / "evaluation").mkdir(exist_ok=True)
        psnr = {"bicubic": 28.0, "srresnet": 28.0 + run.config.seed, "srgan": 29.0 + run.config.seed}
        rows = [{"image": p, "patient": p, "label": "x", "method": m, "region": "valid", "psnr": psnr[m]}
                for p in "ab" for m in psnr]  # fmt: skip
        table = pd.DataFrame(rows).assign(ssim=0.5, lpips=0.3, texture_error_db=1.0)
        table.to_csv(folder / "evaluation/metrics.csv", index=False)

    monkeypatch.setattr(sweep, "run_series", run_series)
    return ran, fails


def written(path, points, **more):
    path.write_text(json.dumps({"about": "a test", "profile": "smoke", "points": points, "seeds": [0, 1]} | more))
    return str(path)


def go(file, home, *words) -> int:
    return sweep.main([file, "--run-dir", str(home), *map(str, words)])


def test_a_sweep_runs_skips_fails_and_continues(series, tmp_path, capsys):
    ran, fails = series
    file, home = written(tmp_path / "two.yaml", [{}, {"width": 4}], settings={"phantoms": 8}), tmp_path / "out"
    fails["base-seed1"] = RuntimeError("a bad moment")
    assert go(file, home) == 1
    names = ["base-seed0", "base-seed1", "width-4-seed0", "width-4-seed1"]
    assert ran == names  # the failed one does not end the loop
    said = capsys.readouterr().out
    assert "1 failed: base-seed1" in said and "a bad moment" in said and "3 finished" in said
    fails["base-seed1"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        go(file, home)
    assert ran[4:] == ["base-seed1"]
    go(file, home, "--list")
    assert "base-seed1: interrupted" in capsys.readouterr().out and len(ran) == 5
    fails.clear()
    file = written(tmp_path / "two.yaml", [{}, {"width": 4}], settings={"phantoms": 8}, until="06")
    names = [f"{point}-seed{seed} until 06" for point in ("base", "width-4") for seed in (0, 1)]  # another end is another setting
    assert go(file, home, "--again") == 0 and ran[5:] == names
    table = pd.read_csv(home / "table.csv")
    assert set(table.group) == {"base", "width-4"} and (table.seeds == 2).all()
    assert table.gain_db[table.method == "srgan"].tolist() == [1.0 + 0.5, 1.0 + 0.5]
    assert go(file, home, "--seeds", 0, 7) == 0 and ran[9:] == ["base-seed7 until 06", "width-4-seed7 until 06"]


def test_a_point_out_of_time_is_interrupted(series, tmp_path, capsys):
    """`max_hours` is a planned end: the points after it are run, and the whole ends as an interrupt does, exit status 130."""
    ran, fails = series
    fails["base-seed0"] = sweep.Paused()
    assert main(["sweep", written(tmp_path / "two.yaml", [{}]), "--run-dir", str(tmp_path / "out")]) == 130
    said = capsys.readouterr()
    assert ran == ["base-seed0", "base-seed1"] and "1 interrupted: base-seed0; 1 finished" in said.out and "error" not in said.err


def names(content, home, *words) -> list[str]:
    return [point.folder.name for point in sweep.make_points({"seeds": [0]} | content, home, *words)]


def test_a_point_that_the_profile_already_has_is_left_out(tmp_path, capsys):
    content = {"points": [{}, {"blocks": PROFILES["smoke"]["blocks"]}, {"width": 4}], "seeds": [0, 1]}
    assert names(content, tmp_path, "smoke") == ["base-seed0", "base-seed1", "width-4-seed0", "width-4-seed1"]
    assert capsys.readouterr().out.count("blocks-1-seed0 is base-seed0 under this profile") == 1


def test_a_point_may_have_a_name_and_seeds(tmp_path):
    points = [{"name": "an eighth", "width": 8}, {"name": "an eighth", "width": 16}]
    with pytest.raises(UserError, match="two points of the sweep would be the folder an-eighth-seed0"):
        names({"points": points}, tmp_path)
    points = [points[0], {"name": "a quarter", "width": 16, "seeds": [3, 4]}]
    assert names({"points": points}, tmp_path) == ["an-eighth-seed0", "a-quarter-seed3", "a-quarter-seed4"]


def test_changed_settings_make_points_stale(series, tmp_path, scan_folder, capsys):
    ran, _ = series
    file, home = written(tmp_path / "s.yaml", [{}], seeds=[0]), tmp_path / "out"

    def said(*words):
        go(file, home, "--data", scan_folder, *words)
        return capsys.readouterr().out

    said()
    assert "finished" in said() and "finished" in said("-p", "device", "cpu") and ran == ["base-seed0"]
    changed = "-p", "gan_lr", 1e-3
    text = said(*changed)
    assert "stale: settings changed" in text and "--again" in text and "gain_db" not in text and len(ran) == 1
    assert "stale" not in said(*changed, "--again").splitlines()[-1] and len(ran) == 2
    assert len(list((home / "stale").iterdir())) == 1 and (home / "base-seed0/evaluation/metrics.csv").exists()
    (home / "base-seed0/sweep.json").unlink()
    assert "stale: not made by a sweep" in said()


def test_runs_on_other_images_are_left_out(series, tmp_path):
    file, home = written(tmp_path / "s.yaml", [{}, {"width": 4}, {"max_test_images": 8}]), tmp_path / "out"
    go(file, home)
    (home / "width-4-seed1/manifest.csv").write_text("path,label,patient,split,sha256\na.png,x,1,test,b\n")
    means, facts, out = runs.read_runs(runs.find_runs(home), home / "base-seed1")
    assert list(facts.index) == ["base-seed1", "base-seed0", "width-4-seed0"] and facts.changed["width-4-seed0"] == {"width": 4}
    assert out.keys() == {"width-4-seed1", "max_test_images-8-seed0", "max_test_images-8-seed1"}
    assert "other test images" in out["width-4-seed1"]
    assert list(facts.group) == ["base", "base", "width-4"]
    assert set(means.run) == set(facts.index)
    table = pd.read_csv(home / "width-4-seed0/manifest.csv", dtype=str)  # the same images, their patients hashed with another salt
    table.assign(patient="x" + table.patient).to_csv(home / "width-4-seed0/manifest.csv", index=False)
    assert "other names for their patients" in runs.read_runs(runs.find_runs(home), home / "base-seed1")[2]["width-4-seed0"]


def test_points_whose_weights_are_missing_are_skipped(series, tmp_path, capsys):
    ran, _ = series
    file = written(tmp_path / "f.yaml", [{"content_features": "vgg16:relu5_3"}, {"content_features": "none"}], seeds=[0])
    assert go(file, tmp_path / "out", "-p", "feature_weights", tmp_path) == 0
    said = capsys.readouterr().out
    assert ran == ["content_features-none-seed0"] and "1 skipped" in said and "vgg16-397923af.pth" in said


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("points: {scale: 2}", "points must be a list"),
        ("points: [3]", "a point must be settings, such as '{blocks: 8}', not 3"),
        ("points: [{}]\nquick: 3", "quick must be settings"),
        ("- 1", "needs points"),
        ("points: [{}]\nseed: 1", "nothing else"),
        ("points: [", "is not YAML"),
        ("points: [{seed: 5}]", "seed is no setting of a point or of all; give them as 'seeds: "),
        ("points: [{}]\nsettings: {name: x}", "there is no setting 'name'"),
        ("points: [{}]\nseeds: 3", "seeds must be a list"),
        ("points: [{seeds: [true]}]", "seeds must be a list"),
        ("points: [{scal: 2}]", "did you mean 'scale'"),
        ("points: [{}]\nuntil: 6", "until must be the number of the last notebook"),
    ],
)
def test_wrong_sweeps_are_one_sentence(tmp_path, text, words):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(UserError, match=words):
        go(str(tmp_path / "x.yaml"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_sweeps_that_are_asked_for_wrongly(tmp_path):
    with pytest.raises(UserError, match="features"):
        go("feature", tmp_path)
    with pytest.raises(UserError, match="give --seeds in the place of -p seed"):
        go("features", tmp_path, "-p", "seed", 1)


def test_shipped_sweeps(tmp_path):
    contents = {path.stem: sweep.read_sweep(path.stem)[1] for path in sweep.EXPERIMENTS.glob("*.yaml")}
    assert set(contents) == {"scale", "features"}
    points = {name: sweep.make_points(content, tmp_path) for name, content in contents.items()}
    for name, rows in points.items():
        assert len(rows) == sum(len(point.get("seeds", contents[name]["seeds"])) for point in contents[name]["points"]), name
        assert all(p.config.profile == "quick" for p in rows) and sweep.make_points(contents[name], tmp_path, "paper")
    assert {p.config.scale for p in points["scale"]} == {2, 4, 8}
    assert all((p.until, p.config.sampler_lr) == ("05", PROFILES["quick"]["sampler_lr"]) for p in points["features"])
    shares = {p.folder.name.partition("-seed")[0]: p.config.content_weight for p in points["features"]}
    assert all((weight == 0) == name.endswith("-equal-share") for name, weight in shares.items())  # 0: calibrated
    assert {p.config.content_features.partition(":")[0] for p in points["features"]} == {"vgg19", "random-vgg19", "none"}
    assert len({str(Run(p.folder, p.config).settings("pretrain")) for p in points["features"]}) == 3  # a seed's points share theirs


def test_arguments_win_but_not_over_the_point(tmp_path):
    """Settings under a profile hold in that profile alone."""
    content = {"points": [{"width": 4}], "settings": {"blocks": 1, "batch": 4}, "quick": {"blocks": 3}, "profile": "smoke"}
    (point,) = sweep.make_points(content, tmp_path, "quick", [3], {"width": 99, "batch": 6})
    assert (point.config.width, point.config.batch, point.config.blocks, point.config.seed) == (4, 6, 3, 3)
    assert point.config.profile == "quick" and point.folder.name == "width-4-seed3"
    assert [sweep.make_points(content, tmp_path, p, [0])[0].config.blocks for p in ("", "kaggle")] == [1, 1]


def test_points_that_start_from_weights_share_their_pretraining(tmp_path, scan_folder, monkeypatch, capsys):
    """What the pretraining went on from is taken with it, and its record; so the next point's stage finds nothing changed."""
    save_weights(tmp_path / "first.pt", make_generator(load_config("smoke", width=8)), name="srresnet")

    def run_series(profile, run_dir, data, overrides, until):
        run = open_run("01", profile, run_dir, data, overrides)
        with run.stage("data"):
            run.make_manifest()
        with run.stage("pretrain"):
            if not run.is_trained("pretrain"):
                checkpoint.save(run.folder / "pretrain" / "checkpoint.pt", {})
                (run.folder / "srresnet.pt").write_bytes(b"weights")

    monkeypatch.setattr(sweep, "run_series", run_series)
    monkeypatch.setattr(sweep, "_table", lambda *_: None)
    settings = {"width": 8, "blocks": 1, "start": str(tmp_path / "first.pt")}
    file = written(tmp_path / "s.yaml", [{}, {"gan_lr": 1e-3}, {"gan_lr": 1e-4}], seeds=[0], settings=settings)
    assert go(file, tmp_path / "out", "--data", scan_folder) == 0
    said = capsys.readouterr().out
    assert "3 finished" in said and said.count("pretraining taken from base-seed0") == 2
    for name in ("gan_lr-0.001-seed0", "gan_lr-0.0001-seed0"):
        other = tmp_path / "out" / name
        assert Run(other, load_config("smoke")).provenance["stages"]["pretrain"]["taken_from"] == "base-seed0"
        assert (other / "start.pt").read_bytes() == (tmp_path / "first.pt").read_bytes()
        assert json.loads((other / "provenance.json").read_text())["networks"]["start"]["file"] == str(tmp_path / "first.pt")


@pytest.mark.slow
def test_a_real_sweep(tmp_path):
    """Two points that share their pretraining, made through papermill, end as the plain run does, to the byte."""
    file = written(tmp_path / "real.yaml", [{"adversarial_weight": 0.5}, {}], seeds=[1])
    done = srlib("sweep", file, "--run-dir", tmp_path / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "pretraining taken from adversarial_weight-0.5-seed1" in done.stdout
    plain = srlib("run", "--profile", "smoke", "-p", "seed", 1, "--run-dir", tmp_path / "plain")
    assert plain.returncode == 0, plain.stderr
    metrics = [tmp_path / folder / "evaluation/metrics.csv" for folder in ("plain", "out/base-seed1", "out/adversarial_weight-0.5-seed1")]
    assert metrics[0].read_bytes() == metrics[1].read_bytes() != metrics[2].read_bytes()
    networks = {"srgan": "srgan", "srresnet": "srresnet", "sampler": "sampler", "mine_projected": "srgan", "gaussian_texture": "srresnet"}
    words = ["-m", "notebooks.experiments.table", tmp_path / "plain", *(f"{n}={tmp_path}/plain/{file}.pt" for n, file in networks.items())]
    subprocess.run([sys.executable, *words, "--steps", "1"], cwd=REPOSITORY, check=True)
    both = [pd.read_csv(tmp_path / "plain" / f).query("image == image.min() and region == 'valid'").set_index("method").psnr.to_dict()
            for f in ("evaluation/metrics.csv", "sampler/metrics.csv", "table-test/evaluation/metrics.csv")]  # fmt: skip
    same = both[0] | both[1]
    assert both[2] == {n: same["srgan_projected" if n == "mine_projected" else n] for n in ("bicubic", "linear", *networks)}
    again = srlib("sweep", file, "--run-dir", tmp_path / "out")
    assert again.returncode == 0 and "run folder" not in again.stdout and "2 finished" in again.stdout
