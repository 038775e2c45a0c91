"""What a terminal starts: `python -m srlib NAME` runs NAME.py here, one file a command, each with its own arguments. Nothing else imports them."""

import argparse
import ast
import os
import sys
from collections.abc import Callable
from pathlib import Path

from ..config import UserError


def parser(command: str, about: str) -> argparse.ArgumentParser:
    """An empty parser of `python -m srlib COMMAND`."""
    return argparse.ArgumentParser(prog=f"python -m srlib {command}", description=about)


def add_settings(to: argparse.ArgumentParser, profile: str = "") -> None:
    """The arguments `--profile`, `--data` and `-p NAME VALUE`, which `read_settings` reads."""
    to.add_argument(
        "--profile", default=profile, help=f"a complete set of settings: smoke, quick, kaggle, paper (default: {profile or 'the file'}'s)"
    )
    to.add_argument("--data", default="", help="folder of images, 'phantom' or 'kermany' (default: the profile's)")
    to.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="change one setting (repeatable)")


def add_weights(to: argparse.ArgumentParser) -> None:
    """The arguments `--weights` and `--scale`, which `choose` takes."""
    which = "a released one: sampler (default, as it is faithful to LR and samples its texture), srgan, srresnet or srresnet-fast (single frames); a .pt file of a run; or its folder"
    to.add_argument("--weights", default="sampler", help=which)
    to.add_argument("--scale", type=int, default=0, metavar="N", help="which of the released scales, where there are several (default: 4)")


def choose(weights: str | Path = "sampler", scale: int = 0, device="cpu") -> tuple:
    """(generator, what to call it, the domain that it was released for or None, the reduction that it learnt to undo).

    `weights`: one of `trained.NAMES` (the released ones, of `scale` where there are several), a file, or a folder (its sampler): a run or
    what `release` wrote. The reduction is a kind of `degrade`, from the release, the run's folder or the network; bicubic where
    none of them says it. Raises UserError for weights that are not there, damaged, or of another scale.
    """
    from ..files import read_json
    from ..trained import NAMES, find, listed, load_generator  # torch: a command that has no network starts without it

    path, entry = Path(weights), None
    if str(weights) in NAMES:
        path, entry = find(str(weights), None, scale)
    elif path.is_dir():
        path, entry = find("sampler", path, scale) if listed(path) else (path / "sampler.pt", None)
    elif path.exists():  # a released file by its name
        entry = next((e for e in listed(path.parent).values() if path.name in (e[n]["file"] for n in NAMES if n in e)), None)
    generator = load_generator(path, device)
    if scale and generator.settings["scale"] != scale:
        raise UserError(f"{weights} enlarges x{generator.settings['scale']}, not x{scale}; leave --scale out or name other weights")
    if entry:
        title = f"{path.name} (trained on phantoms)" if entry["phantom"] else path.name
        return generator, title, entry["domain"], entry["reduction"]
    try:
        learnt = read_json(path.parent / "config.json")["degradation"]
    except (OSError, ValueError, KeyError):  # a file alone
        learnt = generator.settings.get("kind", "bicubic") or "paired"  # '' for frame, too
    return generator, path.name, None, learnt


def read_settings(args: argparse.Namespace) -> tuple[str, dict]:
    """(data, overrides) of --data and the -p; paths as the user meant them, from where the command was given."""
    overrides = {name: value(text) for name, text in args.p}
    for name in {"feature_weights", "start"} & overrides.keys():
        overrides[name] = absolute(str(overrides[name]))
    return absolute(str(overrides.pop("data", args.data))), overrides


def absolute(text: str) -> str:
    """An absolute path; names of data sets and '' stay."""
    return text if text in ("", "phantom", "kermany", "released") else str(Path(text).expanduser().absolute())


def given(text: str) -> str:
    """A path that is not empty, as that of an unset variable is: it would mean the current folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty; give a path ('.' for the current folder)")
    return text


def value(text: str):
    """'0.1' a float, '3' an int, 'true' a bool, anything else text."""
    try:
        number = ast.literal_eval(text.title() if text.lower() in ("true", "false") else text)
    except (ValueError, SyntaxError):
        return text
    return number if isinstance(number, int | float) else text


def memory_ran_out(error: BaseException) -> bool:
    """Whether Python, torch's allocator (a RuntimeError), a GPU or the loader of torch's libraries (an ImportError) had no memory left."""
    words, text = (
        ("can't allocate memory", "cannot allocate memory", "not enough memory", "out of memory", "failed to map segment"),
        str(error).lower(),
    )
    other = "static tls" in text or "not permitted" in text  # libraries that clash, a place where none may run
    known = isinstance(error, RuntimeError | ImportError) and any(word in text for word in words) and not other
    return isinstance(error, MemoryError) or known


def in_one_line(work: Callable[[], int | None]) -> int:
    """Run `work`; returns the exit status: 0 done, 1 a failure that the user can mend (one line on stderr), 130 interrupted. Other errors pass,
    with their traceback."""
    sys.stdout, sys.stderr = (stream or open(os.devnull, "w") for stream in (sys.stdout, sys.stderr))  # noqa: SIM115 (closed by the caller)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # one that cannot show a character loses the character, not the run
            stream.reconfigure(errors="replace")
    try:
        status = work() or 0
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        return 130
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:
        if error.errno is None and error.filename is None:
            raise
        if not isinstance(error, BrokenPipeError):  # `| head` has read enough
            where = error.filename if error.filename is not None else "a file or the output"  # (writing names no file)
            advice = "" if isinstance(error, FileNotFoundError) else "; choose another place or free it"
            print(f"error: {where}: {error.strerror}{advice}", file=sys.stderr)
        try:
            sys.stdout.flush()
        except OSError:  # what is left goes nowhere: Python would try again at its end and complain
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (MemoryError, RuntimeError, ImportError) as error:
        if not memory_ran_out(error):
            raise
        print("error: memory ran out; close other programs, or give smaller images or a smaller batch", file=sys.stderr)
    return 1
