"""Talk with Kaggle through its official command line: send the data set and the kernels, ask how they are, fetch what they made.

What the command line prints is read, because its exit status does not tell a refusal. Its own login is used; no token is read here,
and anything that looks like one is struck out of what is shown.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ..config import UserError
from ..files import REPOSITORY, file_hash, read_json, write, writing
from . import dataset, kernels
from .handover import LIST

WAITS = ("QUEUED", "RUNNING", "NEW_SCRIPT")
ENDED = ("ERROR", "CANCEL_REQUESTED", "CANCEL_ACKNOWLEDGED")
LOG_LINES = 30


def push(user: str, kind: str = "series", wait: bool = False, again: bool = False, every: float = 60.0, **settings) -> str:
    """Build, check, and send the data set with srlib, where Kaggle has another version or none, and the next kernel that is ready; returns a
    sentence that says what was done.

    A kernel is ready where the one before it has finished and it has not itself been sent as it is now built. One that `max_hours`
    ended is sent again, with its own output as a source. Call it again, or let it `wait` (asking `every` so many seconds) until all
    are through. Raises UserError, with the kernel's error and the end of its log, where one failed; for a refusal; and for a finished
    kernel that was not sent from here, unless it is to be sent `again`.
    """
    folders, code = kernels.build(user, kind, **settings), dataset.build_dataset(user)
    wrong = dataset.check_dataset(code) + [sentence for folder in folders for sentence in kernels.check(folder)]
    if wrong:
        raise UserError("; ".join(wrong))
    if said := _send_code(code, f"{user}/{code.name}", settings.get("public", False), every if wait else 0.0):
        return said
    built = ""
    for folder in folders:
        name = f"{user}/{folder.name}"
        built = hashlib.sha256(
            (built + file_hash(folder / f"{folder.name}.ipynb") + file_hash(folder / "kernel-metadata.json")).encode()
        ).hexdigest()
        while True:
            sent, resumed = _sent(folder)
            state = status(name) if sent in ("", built) else ""  # another build was sent: whatever became of it
            if state in WAITS:
                if not wait:
                    return f"{name} is {state.lower()}; call the same again when it has ended, or with --wait"
                time.sleep(every)
                continue
            if state in ENDED and sent:
                (folder / "sent.txt").unlink()  # said once; the next call sends it again
                anew = (
                    " (from step 0: Kaggle attaches the output of this last version alone, not of the one that it went on from)" * resumed
                )
                raise UserError(f"{name} ended with {state.lower()}:\n{log(name)}\nthe same call sends it again, mended or not{anew}")
            if state == "COMPLETE" and not sent and not again:
                raise UserError(f"{name} has finished, but was not sent from here; fetch what it made with pull, or send it with --again")
            unfinished = state == "COMPLETE" and sent and kind != "short" and not _handed_over(name)
            if state == "COMPLETE" and sent and not unfinished:
                break
            said = send_kernel(folder, name, resume=bool(unfinished))
            write(folder / "sent.txt", f"{built}\n{'resumed' * bool(unfinished)}\n")
            if kind != "chain":
                said += _badge(name)
            if settings.get("public"):
                said += f" Readers need its data set: see that https://www.kaggle.com/datasets/{user}/{code.name} is public, too."
            if not wait:
                return said
            print(said, flush=True)
            time.sleep(every)
    if kind == "short":
        return f"finished; its pictures and numbers stand at https://www.kaggle.com/code/{name}"
    return f"all finished; fetch the results with: python -m srlib kaggle pull --user {user}{' --chain' * (kind == 'chain')}"


def status(name: str) -> str:
    """The state of the kernel OWNER/SLUG, as Kaggle names it (QUEUED, RUNNING, COMPLETE, ERROR, ...); '' for one that is not there."""
    code, text = _call("kernels", "status", name)
    found = re.search(r'has status "(?:\w+\.)?(\w+)"', text)
    if found:
        return found[1]
    if _absent(text, name) or "Cannot access kernel" in text:
        return ""
    raise UserError(f"the state of {name} cannot be had: {_reason(code, text)}")


def log(name: str) -> str:
    """Why a kernel failed: what Kaggle says, and the last lines of its log."""
    said = re.search(r'Failure message: "(.*)"', _call("kernels", "status", name)[1])
    with tempfile.TemporaryDirectory() as place:
        _call("kernels", "output", name, "-p", place, "--file-pattern", "^$")
        text = "".join(file.read_text(encoding="utf-8") for file in Path(place).glob("*.log"))
    try:  # a list of pieces of the two streams
        text = "".join(piece["data"] for piece in json.loads(text))
    except (ValueError, TypeError, KeyError):
        pass
    return "\n".join([*([said[1]] if said else []), *_clean(text).splitlines()[-LOG_LINES:]])


def pull(user: str, kind: str = "series", out: Path = REPOSITORY / "runs" / "kaggle-output") -> Path:
    """Fetch what the last finished kernel wrote into a folder below `out`, check it by the kernel's list, and return the run folder.

    Raises UserError where none has finished, a file is missing or differs, and for the short kernel, which hands nothing over.
    """
    if kind == "short":
        raise UserError("the short kernel leaves no run folder; its pictures and numbers stand in the notebook on Kaggle")
    kernels.check_user(user)
    names = [f"{user}/{kernels.slug(title)}" for title in reversed(kernels.titles(kind))]
    name = next((name for name in names if status(name) == "COMPLETE"), None)
    if name is None:
        raise UserError(f"no kernel of {user} has finished; python -m srlib kaggle status says how they are")
    target = Path(out) / name.rpartition("/")[2]
    with writing(out):
        Path(out).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".pull-") as place:
        code, text = _call("kernels", "output", name, "-p", place)
        lists = list(Path(place).rglob(LIST))
        if code or len(lists) != 1:
            raise UserError(f"the output of {name} cannot be had: {_reason(code, text)}")
        for file, sha256 in read_json(lists[0])["files"].items():
            path = lists[0].parent / file
            if not path.exists() or file_hash(path) != sha256:
                raise UserError(f"{file} of {name} did not arrive whole; call the same again")
        run = target / lists[0].parent.relative_to(place)
        with writing(target):
            shutil.copytree(place, target, dirs_exist_ok=True)
    return run


def _handed_over(name: str) -> bool:
    """Whether a complete kernel did all that it should; False where `max_hours` ended it."""
    with tempfile.TemporaryDirectory() as place:
        code, text = _call("kernels", "output", name, "-p", place, "--file-pattern", rf"{re.escape(LIST)}$")
        found = sorted(Path(place).rglob(LIST))
        if not found:
            raise UserError(f"{name} is complete but its {LIST} cannot be had: {_reason(code, text)}")
        return read_json(found[0])["finished"]


def _send_code(folder: Path, name: str, public: bool, every: float) -> str:
    """Send the data set, and see that it is ready, asking each `every` seconds; with 0 a sentence is returned where it is not."""
    for done in ("", "ready", "failed"), ("ready",):  # an earlier version on its way, then what is sent now
        while (state := dataset_status(name)) not in done:
            if state in ("failed", "deleted"):
                raise UserError(f"the data set {name} is {state}; look at https://www.kaggle.com/datasets/{name}")
            said = f"the data set {name} is {state or 'not there yet'}"
            if not every:
                return f"{said}; call the same again in a minute, or with --wait"
            print(said, flush=True)
            time.sleep(every)
        if "" in done and (sent := send_dataset(folder, public)):
            print(sent, flush=True)
    return ""


def send_dataset(folder: Path, public: bool = False) -> str:
    """Create the data set in `folder`, or a new version of it where Kaggle has another content, known by its file version-HASH.txt; returns a
    sentence, '' where it is there already. Raises UserError for a refusal."""
    name, (version,) = read_json(folder / dataset.METADATA)["id"], [path.name for path in folder.glob("version-*.txt")]
    there = dataset_status(name)
    if there and version in _call("datasets", "files", name, "--page-size", "200")[1]:
        return ""
    if there:
        code, text = _call("datasets", "version", "-p", str(folder), "-m", version.removesuffix(".txt"), "--dir-mode", "zip")
    else:
        code, text = _call("datasets", "create", "-p", str(folder), "--dir-mode", "zip", *["--public"] * public)
    if code or "being created" not in text or "Upload unsuccessful" in text:
        raise UserError(f"the data set {name} was not taken: {_reason(code, text)}; call the same again when that is mended")
    return f"Data set {name}: {'a new version' if there else 'created'}, {version.removesuffix('.txt')}"


def dataset_status(name: str) -> str:
    """The state of the data set OWNER/SLUG, as Kaggle names it (ready, ...); '' for one that is not there."""
    code, text = _call("datasets", "status", name)
    state = text.strip().splitlines()[-1].strip() if text.strip() else ""
    if not code and re.fullmatch(r"\w+", state):
        return state
    if _absent(text, name):
        return ""
    raise UserError(f"the state of the data set {name} cannot be had: {_reason(code, text)}")


def send_kernel(folder: Path, name: str, resume: bool) -> str:
    """Send a built kernel, with its own last version as a source where it is to `resume`; returns what Kaggle says. UserError for a refusal."""
    file = folder / "kernel-metadata.json"
    if resume:
        metadata = read_json(file)
        metadata["kernel_sources"] = [name, *metadata["kernel_sources"]]
        write(file, json.dumps(metadata, indent=1) + "\n")
    code, text = _call("kernels", "push", "-p", str(folder))
    refused = re.search(r"not valid (?:\w+ )?(?:sources|tags)[^\n]*", text)
    if code or "successfully pushed" not in text or refused:
        raise UserError(
            f"{name} was not taken as it is: {refused[0] if refused else _reason(code, text)}; call the same again when that is mended"
        )
    return next(line for line in text.splitlines() if "successfully pushed" in line).replace("  ", " ") + (
        " It goes on from its last version." * resume
    )


def _sent(folder: Path) -> tuple[str, bool]:
    """The build of this kernel that was sent last from here ('' for none), and whether it went on from its last version."""
    file = folder / "sent.txt"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return (lines[0], "resumed" in lines) if lines else ("", False)


def _badge(name: str) -> str:
    """The line of Markdown that opens the kernel from a README."""
    link = f"https://www.kaggle.com/code/{name}"
    return f" A badge for your README: [![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)]({link})"


def _call(*args: str) -> tuple[int, str]:
    """`kaggle ARGS`: exit status, and what it printed."""
    if not importlib.util.find_spec("kaggle"):
        raise UserError("Kaggle's command line is not installed; pip install the kaggle and six that environment.yml names")
    command = [sys.executable, "-P", "-W", "ignore", "-m", "kaggle", "-W", *args]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    text = _clean(done.stdout + done.stderr)
    if "Authentication required" in text:
        raise UserError(
            "Kaggle's command line is not logged in; run: kaggle auth login, or save a token from https://www.kaggle.com/settings/api as ~/.kaggle/access_token"
        )
    return done.returncode, text


def _clean(text: str) -> str:
    """Without anything that looks like a token."""
    for secret in filter(None, map(os.environ.get, ("KAGGLE_KEY", "KAGGLE_API_TOKEN"))):
        text = text.replace(secret, "***")
    return re.sub(r"KGAT_\w+|\b[0-9a-f]{32}\b", "***", text)


def _absent(text: str, name: str) -> bool:
    """Whether an answer says that something is not there; the service says 403 of what is not there, too."""
    return bool(re.search(r"\b40[34]\b|Not Found|Forbidden", text.replace(name, "")))


def _reason(code: int, text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip() and "%|" not in line]  # no progress bars
    why = lines[-1].strip() if lines else f"the kaggle command said nothing (exit status {code})"
    return why + "; is --user your own name on Kaggle?" * bool(re.search(r"\b403\b|Forbidden", why))
