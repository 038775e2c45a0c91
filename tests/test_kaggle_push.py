"""The official kaggle command line sends the built kernels to a recorder on loopback, which answers as Kaggle does, or does not."""

import hashlib
import io
import json
import os
import re
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from srlib import __main__ as command
from srlib.config import UserError
from srlib.files import REPOSITORY
from srlib.kaggle import dataset, kernels
from srlib.kaggle import push as push_module

KEY = "0123456789abcdef0123456789abcdef"
CODE = f"someone/{dataset.SLUG}"
SETTINGS = {"profile": "smoke", "overrides": {"data": "kermany"}}


class Recorder(ThreadingHTTPServer):
    """Kaggle's side: the kernels that were sent, their state and their output; `trouble` is what the next sending meets. The data sets: their
    state and the files of each version; `trouble_data` is what the next creation or version meets."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.calls, self.kernels, self.state, self.output, self.trouble = [], [], {}, {}, None
        self.data, self.versions, self.uploads, self.trouble_data = {}, [], {}, None

    def sent(self, slug: str) -> dict:
        return [k for k in self.kernels if k["slug"] == slug][-1]


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or "{}")
        what = self.path.rpartition("/")[2]
        self.server.calls.append((self.path, self.headers.get("Authorization", "")))
        name = f"{body.get('userName')}/{body.get('kernelSlug')}"
        if what == "SaveKernel":
            self.save(body)
        elif what == "GetKernelSessionStatus" and name in self.server.state:
            state, message = self.server.state[name]
            self.answer({"status": state} | ({"failureMessage": message} if message else {}))
        elif what == "ListKernelSessionOutput":
            files, log = self.server.output.get(name, ({}, ""))
            self.answer({"files": [{"url": f"http://localhost/file/{name}/{f}", "fileName": f} for f in files], "log": log})
        elif what in ("GetDatasetStatus", "ListDatasetFiles") and (
            state := self.server.data.get(f"{body['ownerSlug']}/{body['datasetSlug']}")
        ):
            files = [{"name": name, "totalBytes": 1} for name in (self.server.versions or [{"files": []}])[-1]["files"]]
            self.answer({"status": state} if what == "GetDatasetStatus" else {"datasetFiles": files})
        elif what == "StartBlobUpload":
            token = str(len(self.server.uploads))
            self.server.uploads[token] = [body["name"], b""]
            self.answer({"token": token, "createUrl": f"http://localhost/upload/{token}"})
        elif what in ("CreateDataset", "CreateDatasetVersion"):
            self.save_data(what, body)
        else:
            self.answer({"code": 404, "message": "404 Client Error: Not Found"}, 404)

    def do_PUT(self):
        self.server.calls.append((self.path, ""))
        self.server.uploads[self.path.rpartition("/")[2]][1] += self.rfile.read(int(self.headers["Content-Length"]))
        self.answer({})

    def save_data(self, what, body):
        if self.server.trouble_data:
            return self.answer(*self.server.trouble_data)
        inner = body.get("body", body)
        files = dict(self.server.uploads[f["token"]] for f in inner["files"])
        self.server.versions.append({"what": what, "body": inner, "files": files})
        owner, slug = body["ownerSlug"], body.get("datasetSlug") or body["slug"]
        self.server.data.setdefault(f"{owner}/{slug}", "ready")
        self.answer({"status": "ok", "url": f"https://www.kaggle.com/datasets/{owner}/{slug}"})

    def save(self, body):
        trouble = self.server.trouble
        if trouble == "drop":
            self.close_connection = True
            self.connection.close()
        elif isinstance(trouble, int):
            self.answer({"code": trouble, "message": f"{trouble} says the recorder"}, trouble)
        elif isinstance(trouble, dict):
            self.answer(trouble)
        else:
            self.server.kernels.append(body)
            self.server.state[body["slug"]] = ("running", "")
            self.answer({"url": f"https://www.kaggle.com/code/{body['slug']}", "versionNumber": len(self.server.kernels)})

    def do_GET(self):
        self.server.calls.append((self.path, ""))
        _, name, file = re.search(r"(/file/)([\w-]+/[\w-]+)/(.*)", self.path).groups()
        content = self.server.output[name][0][file]
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Last-Modified", "Tue, 24 Nov 2026 08:00:00 GMT")
        self.end_headers()
        self.wfile.write(content)

    def answer(self, content: dict, code: int = 200):
        text = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


@pytest.fixture
def recorder(monkeypatch, tmp_path):
    """The recorder, and an environment in which the command line reaches nothing else. Only LOCALHOST keeps it from the real service."""
    pytest.importorskip("kaggle", exc_type=ImportError)
    server = Recorder()
    for name in [n for n in os.environ if n.upper().startswith("KAGGLE") or n.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    here = f"http://127.0.0.1:{server.server_port}"
    for name, value in {
        "KAGGLE_API_ENVIRONMENT": "LOCALHOST", "http_proxy": here, "https_proxy": "http://127.0.0.1:9", "HOME": str(tmp_path),
        "KAGGLE_USERNAME": "someone", "KAGGLE_KEY": KEY,
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(kernels, "OUT", tmp_path / "built")
    monkeypatch.setattr(dataset, "OUT", tmp_path / "built")
    files = {name: path for name, path in dataset.content().items() if not name.startswith(("weights", "notebooks"))}  # enough to send
    monkeypatch.setattr(dataset, "content", lambda: files)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()
    assert server.calls and all(path.startswith("http://localhost/") for path, _ in server.calls)


def handed_over(finished: bool, **files: bytes) -> dict[str, bytes]:
    facts = {"finished": finished, "files": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}}
    return {f"runs/smoke/{n}": c for n, c in files.items()} | {"runs/smoke/handover.json": json.dumps(facts).encode()}


def push(*extra: str) -> int:
    return command.main(["kaggle", "push", "--user", "someone", "--profile", "smoke", "-p", "data", "kermany", *extra])


def test_what_kaggle_receives(recorder, tmp_path, capsys):
    assert push("--vgg", "someone/weights", "-p", "content_features", "vgg19:relu5_4") == 0
    said = capsys.readouterr()
    assert "Kernel version 1 successfully pushed. Please check progress at https://www.kaggle.com/code/someone/srgan-for-oct" in said.out
    (got,) = recorder.kernels
    notebook = json.loads(got.pop("text"))
    wanted = {
        "slug": "someone/srgan-for-oct", "newTitle": "SRGAN for OCT", "language": "python", "kernelType": "notebook", "isPrivate": True,
        "enableGpu": True, "enableInternet": False, "machineShape": "NvidiaTeslaT4",
        "datasetDataSources": [CODE, kernels.KERMANY, "someone/weights"],
    }  # fmt: skip
    assert {k: got.get(k) for k in wanted} == wanted and not got.get("kernelDataSources") and not got.get("enableTpu")
    built = json.loads((tmp_path / "built/srgan-for-oct/srgan-for-oct.ipynb").read_text())
    assert ["".join(c["source"]) for c in built["cells"]] == [c["source"] for c in notebook["cells"]]
    assert "open-in-kaggle.svg)](https://www.kaggle.com/code/someone/srgan-for-oct)" in said.out
    assert any(authorization for _, authorization in recorder.calls)  # the key went to the recorder, and nowhere else
    files = [p.read_text(errors="replace") for p in tmp_path.rglob("*") if p.is_file()]
    assert KEY not in said.out + said.err + "".join(files)
    assert push("--vgg", "someone/weights", "-p", "content_features", "vgg19:relu5_4") == 0
    assert "is running; call the same again" in capsys.readouterr().out and len(recorder.kernels) == 1


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        ({"error": "Maximum weekly GPU quota of 30.00 hours reached."}, "weekly GPU quota"),
        ({"url": "x", "versionNumber": 1, "invalidDatasetSources": ["paultimothymooney/kermany2018"]}, "not valid dataset sources .*kermany2018"),
        (429, "429"),
        (500, "500"),
        (403, "403"),
        ("drop", "Connection|Remote|closed"),
    ],
)  # fmt: skip
def test_what_kaggle_refuses(recorder, capsys, trouble, words):
    """Each ends non-zero in words that say why; nothing counts as sent, so that the same call sends it when the trouble is over."""
    recorder.trouble = trouble
    assert push() == 1
    said = capsys.readouterr()
    assert re.search(rf"error: someone/srgan-for-oct was not taken as it is: .*(?:{words})", said.err), said.err
    assert KEY not in said.out + said.err and "successfully" not in said.out
    assert recorder.calls[-1][0].endswith("SaveKernel") and not recorder.kernels and len(recorder.versions) == 1
    recorder.trouble = None
    assert push() == 0 and len(recorder.kernels) == 1


def test_chain_sends_the_next_that_is_ready(recorder, capsys):
    names = [f"someone/{kernels.slug(t)}" for t in kernels.titles("chain")]
    assert push("--chain") == 0 and [k["slug"] for k in recorder.kernels] == names[:1]
    assert push("--chain") == 0 and "is running" in capsys.readouterr().out and len(recorder.kernels) == 1
    for name in names[:2]:
        recorder.state[name], recorder.output[name] = ("complete", ""), (handed_over(True), "")
        assert push("--chain") == 0
    third = recorder.sent(names[2])
    assert third["kernelDataSources"] == [names[1]] and third["machineShape"] == "NvidiaTeslaT4"
    recorder.state[names[2]], recorder.output[names[2]] = ("complete", ""), (handed_over(False), "")  # max_hours ended it
    assert push("--chain") == 0 and "It goes on from its last version." in capsys.readouterr().out
    assert recorder.sent(names[2])["kernelDataSources"] == [names[2], names[1]] and len(recorder.kernels) == 4
    log = json.dumps(
        [{"stream_name": "stderr", "time": 1, "data": f"line {k}\n"} for k in range(99)] + [{"data": f"{KEY} UserError: no scans\n"}]
    )
    recorder.state[names[2]], recorder.output[names[2]] = ("error", "Your notebook failed"), ({}, log)
    assert push("--chain") == 1
    said = capsys.readouterr().err
    assert "ended with error" in said and "Your notebook failed" in said and "UserError: no scans" in said
    assert "line 98" in said and "line 9\n" not in said and KEY not in said and len(recorder.kernels) == 4
    assert "(from step 0: Kaggle attaches the output of this last version alone" in said  # it had gone on from one before
    assert push("--chain") == 0 and len(recorder.kernels) == 5 and recorder.kernels[-1]["slug"] == names[2]
    assert push("--chain", "-p", "seed", "3") == 0  # mended: another build, from the first on
    assert recorder.kernels[-1]["slug"] == names[0]


@pytest.mark.slow
def test_waiting_for_a_chain(recorder, monkeypatch):
    """--wait asks until the kernel has ended and sends the next one, to the last."""

    def pass_time(seconds):
        for name, (state, _) in list(recorder.state.items()):
            if state == "running":
                recorder.state[name], recorder.output[name] = ("complete", ""), (handed_over(True), "")

    monkeypatch.setattr(push_module.time, "sleep", pass_time)
    assert push_module.push("someone", "chain", wait=True, **SETTINGS).startswith("all finished")
    assert [k["slug"] for k in recorder.kernels] == [f"someone/{kernels.slug(t)}" for t in kernels.titles("chain")]


def test_status_and_pull(recorder, tmp_path, capsys):
    assert command.main(["kaggle", "status", "--user", "someone"]) == 0
    assert capsys.readouterr().out == f"{CODE}: not there\nsomeone/srgan-for-oct: not there\n"
    with pytest.raises(UserError, match="no kernel of someone has finished"):
        push_module.pull("someone")
    files = handed_over(True, **{"evaluation/metrics.csv": b"psnr\n1\n", "srgan.pt": b"weights"})
    recorder.state["someone/srgan-for-oct"], recorder.output["someone/srgan-for-oct"] = ("complete", ""), (files, "")
    run = push_module.pull("someone", out=tmp_path / "out")
    assert run == tmp_path / "out/srgan-for-oct/runs/smoke" and (run / "srgan.pt").read_bytes() == b"weights"
    files["runs/smoke/srgan.pt"] = b"torn"
    with pytest.raises(UserError, match=r"srgan\.pt of someone/srgan-for-oct did not arrive whole"):
        push_module.pull("someone", out=tmp_path / "out")
    other = {name.replace("runs/smoke", "runs/kaggle"): content for name, content in handed_over(True, **{"srgan.pt": b"other"}).items()}
    recorder.output["someone/srgan-for-oct"] = (other, "")
    again = push_module.pull("someone", out=tmp_path / "out")
    assert again == run.with_name("kaggle") and (run / "srgan.pt").read_bytes() == b"weights"  # the earlier one stays
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["srgan-for-oct"]


def test_what_the_command_line_says_is_understood(monkeypatch, tmp_path):
    """A number in a name is no error, a busy service no missing kernel; no user and no login are said so."""
    monkeypatch.setattr(push_module, "_call", lambda *args: (1, f"500 Server Error of {args[-1]}"))
    for ask in (push_module.status, push_module.dataset_status):
        with pytest.raises(UserError, match="cannot be had: 500 Server Error"):
            ask("bob404/kernel")
    monkeypatch.undo()
    for name in [n for n in os.environ if n.upper().startswith("KAGGLE")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match="is not logged in; run: kaggle auth login"):
        push_module.status("someone/kernel")
    for action in ("status", "pull"):
        assert command.main(["kaggle", action, "--user", ""]) == 1


def test_push_checks_before_it_sends(recorder, monkeypatch):
    monkeypatch.setattr(kernels, "check", lambda folder: [f"{folder.name}: something is wrong"])
    with pytest.raises(UserError, match="something is wrong"):
        push_module.push("someone", **SETTINGS)
    assert not recorder.calls
    push_module.status("someone/kernel")  # so that the recorder has been called


def test_the_data_set_is_created_versioned_or_left(recorder, monkeypatch, capsys):
    """Created where it is not there; left where the same content is; a new version of another; waited for while Kaggle makes it."""
    assert push() == 0 and f"Data set {CODE}: created, version-{dataset.version()}" in capsys.readouterr().out
    (first,) = recorder.versions
    assert first["what"] == "CreateDataset" and first["body"]["isPrivate"] and first["body"]["licenseName"] == "MIT"
    assert set(first["files"]) == {"srlib.zip", "LICENSE.txt", "README.md", f"version-{dataset.version()}.txt"}
    with zipfile.ZipFile(io.BytesIO(first["files"]["srlib.zip"])) as box:  # which Kaggle unpacks into srlib/
        assert box.read("models/networks.py") == (REPOSITORY / "srlib/models/networks.py").read_bytes()
    assert push() == 0 and len(recorder.versions) == 1 and len(recorder.kernels) == 1
    files = dataset.content()
    monkeypatch.setattr(dataset, "content", lambda: {k: v for k, v in files.items() if k != "home.py"})
    recorder.data[CODE] = "blobs_received"
    assert push() == 0 and f"the data set {CODE} is blobs_received; call the same again" in capsys.readouterr().out
    assert len(recorder.versions) == len(recorder.kernels) == 1
    recorder.data[CODE] = "ready"
    assert push("--public") == 0 and "a new version, version-" in capsys.readouterr().out
    assert recorder.versions[1]["what"] == "CreateDatasetVersion" and len(recorder.kernels) == 2  # the kernel names its version
    recorder.data[CODE] = "deleted"
    assert push() == 1 and f"the data set {CODE} is deleted" in capsys.readouterr().err


@pytest.mark.parametrize(
    "trouble", [({"status": "error", "error": "The title is taken."}, 200), ({"message": "403 Forbidden"}, 403), ({"message": "busy"}, 500)]
)
def test_a_data_set_that_is_refused(recorder, capsys, trouble):
    """No kernel is sent then."""
    recorder.trouble_data = trouble
    assert push() == 1
    said = capsys.readouterr()
    assert re.search(rf"error: the data set {CODE} was not taken: .*(?:title is taken|403|500|busy)", said.err), said.err
    assert KEY not in said.out + said.err and not recorder.kernels
    recorder.trouble_data = None
    assert push() == 0 and len(recorder.kernels) == 1


def push_short(*extra: str) -> int:
    return command.main(["kaggle", "push", "--short", "--user", "someone", *extra])


def test_the_short_kernel_is_sent_and_done(recorder, tmp_path, capsys):
    name = "someone/srgan-on-oct-in-one-notebook"
    assert push_short("--public") == 0 and recorder.kernels[0]["slug"] == name
    assert f"see that https://www.kaggle.com/datasets/{CODE} is public, too" in capsys.readouterr().out
    assert recorder.versions[0]["body"].get("isPrivate") is not True
    recorder.state[name] = ("complete", "")
    assert push_short("--public") == 0 and f"stand at https://www.kaggle.com/code/{name}" in capsys.readouterr().out
    (tmp_path / "built" / name.partition("/")[2] / "sent.txt").unlink()  # another clone
    assert push_short() == 1 and "has finished, but was not sent from here" in capsys.readouterr().err and len(recorder.kernels) == 1
    assert push_short("--again") == 0 and len(recorder.kernels) == 2
    assert command.main(["kaggle", "pull", "--short", "--user", "someone"]) == 1 and "leaves no run folder" in capsys.readouterr().err
