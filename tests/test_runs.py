"""A run folder: what a stage's validity is, the lock; and what a runner says of a notebook that ends early."""

import dataclasses
import os
import re

import nbformat
import pytest

from srlib.commands import report
from srlib.commands import run as runner
from srlib.config import UserError, load_config
from srlib.files import REPOSITORY, file_hash
from srlib.series.opening import open_run
from srlib.series.run_folder import Run, locked
from srlib.trained import save_weights
from srlib.training.stage import make_generator

TINY = dict(crop=32, gan_crop=32, pretrain_steps=4, gan_steps=2, validate_every=2, checkpoint_every=2)


def trained(folder, **settings) -> Run:
    """A run folder where both trainings have ended, with files that stand for theirs."""
    run = open_run("01", "smoke", str(folder), "", TINY | settings)
    with run.stage("data"):
        (folder / "manifest.csv").write_text("path,split\na.png,train\n")
    for stage, weights in (("pretrain", "srresnet.pt"), ("srgan", "srgan.pt")):
        with run.stage(stage):
            (folder / stage).mkdir()
            (folder / stage / "checkpoint.pt").write_bytes(b"state")
            (folder / weights).write_bytes(stage.encode())
    return run


# --------------------------------------------------------------------------------------------- settings and inputs
def test_what_changed_is_named(tmp_path):
    run = trained(tmp_path / "run")
    longer = Run(run.folder, dataclasses.replace(run.config, pretrain_steps=300))
    with (
        pytest.raises(UserError, match=r"pretrain was trained with pretrain_steps 4, now 300; --from 03 trains it again, or .*--run-dir"),
        longer.stage("pretrain"),
    ):
        pass
    assert run.changed("pretrain") == run.changed("srgan") == "" and longer.changed("srgan") == "pretrain_steps 4, now 300"
    (run.folder / "srresnet.pt").write_bytes(b"another")
    with pytest.raises(UserError, match=r"srgan was trained with another srresnet\.pt; --from 04"), run.stage("srgan"):
        pass
    with pytest.raises(UserError, match=r"srgan\.pt was made with another srresnet\.pt; --from 04 makes it again"):
        open_run("05", "smoke", str(run.folder))
    (run.folder / "manifest.csv").write_text("path,split\nb.png,train\n")
    with pytest.raises(UserError, match="pretrain was trained with other images; --from 03"), run.stage("pretrain"):
        pass
    assert longer.changed("srgan") == "pretrain_steps 4, now 300 and other images and another srresnet.pt"


# --------------------------------------------------------------------------------------------- start, lock
def test_start_is_taken_again_where_it_is_missing(tmp_path):
    torch_file = tmp_path / "first.pt"
    save_weights(torch_file, make_generator(load_config("smoke")), name="srresnet")
    run = trained(tmp_path / "run", start=str(torch_file))
    (run.folder / "start.pt").unlink()
    again = open_run("01", "smoke", str(run.folder), "", TINY | {"start": str(torch_file)})
    with again.stage("pretrain"):
        assert file_hash(run.folder / "start.pt") == file_hash(torch_file)
    (run.folder / "start.pt").write_bytes(b"another")
    with pytest.raises(UserError, match=r"pretrain was trained with another start\.pt; --from 03"), again.stage("pretrain"):
        pass


def test_settings_are_written_under_the_lock(tmp_path):
    run = open_run("01", "smoke", str(tmp_path / "run"))
    (run.folder / "manifest.csv").touch()
    before = {name: (run.folder / name).read_bytes() for name in ("config.json", "manifest.csv")}
    with locked(run.folder):
        for notebook, overrides in (("01", {"width": 4}), ("03", {"pretrain_steps": 5})):
            with pytest.raises(UserError, match="in use by another process"):
                open_run(notebook, "smoke", str(run.folder), overrides=overrides)
        assert open_run("02", "smoke", str(run.folder)).config == run.config  # reading goes on
    assert before == {name: (run.folder / name).read_bytes() for name in before}
    assert open_run("03", "smoke", str(run.folder), overrides={"pretrain_steps": 5}).config.pretrain_steps == 5


# --------------------------------------------------------------------------------------------- the runner
@pytest.mark.parametrize("began", [None, "1000.5"])
def test_the_time_that_a_session_began_is_kept(tmp_path, monkeypatch, began):
    seen = []
    monkeypatch.delenv("SRLIB_STARTED", raising=False)
    if began:
        monkeypatch.setenv("SRLIB_STARTED", began)
    monkeypatch.setattr(runner, "_run_notebook", lambda *_, **__: seen.append(os.environ["SRLIB_STARTED"]))
    monkeypatch.setattr(report, "build_report", lambda folder: folder)
    runner.run_series("smoke", str(tmp_path / "run"))
    assert len(seen) == 7 and set(seen) == {began or seen[0]}
    assert os.environ.get("SRLIB_STARTED") == began and "SRLIB_LOCKED" not in os.environ


@pytest.mark.parametrize(
    ("ending", "raised", "words"),
    [
        (
            "class Missing(UserError): pass\nraise Missing('no weights there')",
            UserError,
            r"^short, cell \[\d\]: no weights there$",
        ),
        ("raise ValueError('no weights there')", UserError, r"^short, cell \[\d\]: ValueError: no weights there$"),
        ("raise OutOfTime('max_hours=9 are over, saved')", runner.Paused, r"^$"),
    ],
)
def test_how_a_notebook_ended_early(tmp_path, capsys, ending, raised, words):
    """A mistake of the user's, of any class, is its sentence alone; the planned end of a session is no failure."""
    begin = f"import sys\nsys.path.insert(0, {str(REPOSITORY)!r})\nfrom srlib.config import OutOfTime, UserError"
    cells = [nbformat.v4.new_code_cell(text) for text in (begin, ending)]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), tmp_path / "short.ipynb")
    with pytest.raises(raised) as error:
        runner._execute(tmp_path / "short.ipynb", tmp_path / "out.ipynb", {})
    assert re.search(words, str(error.value))
    assert ("max_hours=9 are over, saved" in capsys.readouterr().out) == (raised is runner.Paused)
