"""`python -m srlib`: the command line. What each command does stands in commands.py."""

from __future__ import annotations

import argparse
import os
import sys

from . import commands
from .config import PROFILES, UserError


def main(argv: list[str] | None = None) -> int:
    """Parse and run; returns the exit status: 0 done, 1 a failure that the user can mend (said in one line on stderr), 130 interrupted.
    Other errors pass, with their traceback."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # one that cannot show a character loses the character, not the run
            stream.reconfigure(errors="replace")
    args = make_parser().parse_args(argv)
    try:
        status = args.command(args) or 0
        print(end="", flush=True)
        return status
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        return 130
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
    except BrokenPipeError:  # `| head` has read enough
        _leave_output()
    except OSError as error:
        if error.errno is None and error.filename is None:
            raise
        where = error.filename if error.filename is not None else "a file or the output"  # (writing names no file)
        advice = "" if isinstance(error, FileNotFoundError) else "; choose another place or free it"
        print(f"error: {where}: {error.strerror or error}{advice}", file=sys.stderr)
        _leave_output()
    except (MemoryError, RuntimeError) as error:
        from .device import memory_ran_out

        if not memory_ran_out(error):
            raise
        print("error: memory ran out; close other programs, or give smaller images or a smaller batch", file=sys.stderr)
    return 1


def _leave_output() -> None:
    """Where the output takes no more, what is left goes nowhere: Python would try again at its end and complain."""
    try:
        print(end="", flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m srlib", description="SRGAN for OCT: the notebook series from the command line.")
    known = parser.add_subparsers(required=True, metavar="COMMAND")

    run = known.add_parser("run", help="run the six notebooks into a run folder")
    run.add_argument("--profile", default="quick", help=f"a complete set of settings: {', '.join(PROFILES)} (default: quick)")
    run.add_argument("--data", default="", help="folder of images, 'phantom' or 'kermany' (default: the profile's)")
    run.add_argument("--run-dir", default="", help="folder for everything the run writes (default: runs/PROFILE)")
    which = run.add_mutually_exclusive_group()
    which.add_argument("--from", dest="start", metavar="NN", help="begin with notebook NN, also where it is finished")
    which.add_argument("--only", metavar="NN", help="run notebook NN alone, also where it is finished")
    run.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="change one setting (repeatable)")
    run.add_argument("--gpus", type=int, metavar="N", help="train on so many GPUs (default: all), as -p gpus N")
    run.set_defaults(command=commands.run)

    sweep = known.add_parser("sweep", help="one run for each of a list of settings and seeds")
    sweep.add_argument("sweep", metavar="NAME", help="a YAML file, or the name of one in notebooks/experiments")
    sweep.add_argument("--profile", default="", help="another profile than the file's")
    sweep.add_argument("--data", default="", help="folder of images, 'phantom' or 'kermany' (default: the profile's)")
    sweep.add_argument("--seeds", nargs="+", type=int, metavar="N", help="other seeds than the file's")
    sweep.add_argument("--run-dir", default="", help="folder of the points (default: runs/sweeps/NAME)")
    sweep.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="change one setting of all (repeatable)")
    sweep.add_argument("--again", action="store_true", help="run stale points anew; the old ones are kept in stale/")
    sweep.add_argument("--list", action="store_true", help="say how each point stands and run nothing")
    sweep.set_defaults(command=commands.sweep)

    down = known.add_parser("downstream", help="does SR help a classifier of the classes? of a finished run")
    down.add_argument("run_dir", metavar="RUN")
    down.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="of the classifiers (default: 0 1 2)")
    down.add_argument("--steps", type=int, default=400, metavar="N", help="of each classifier (default: 400)")
    down.set_defaults(command=commands.downstream)

    up = known.add_parser("upscale", help="super-resolve an image or a folder of images")
    up.add_argument("source", type=_given, metavar="IN", help="an image, or a folder of images")
    up.add_argument("out", type=_given, metavar="OUT", help="folder for <folders>/<stem>.png, or a .png file for one image")
    up.add_argument(
        "--weights", default="srgan", help="srgan (default) or srresnet, the released ones; srgan.pt or srresnet.pt of a run; or its folder"
    )
    up.add_argument("--seed", type=int, default=0, metavar="S", help="SRGAN draws its texture: another seed, another draw (default: 0)")
    up.add_argument("--draws", type=int, default=1, metavar="N", help="several draws, <stem>_draw1.png, ...; draw k has the seed S + k - 1")
    up.add_argument("--strength", type=float, default=1.0, metavar="A", help="factor of the texture: 0 is SRResNet's image (default: 1)")
    up.add_argument(
        "--spread", action="store_true", help="also <stem>_spread.png: the draws' standard deviation at each pixel, in grey levels, rounded"
    )
    up.add_argument(
        "--consistent",
        nargs="?",
        const="",
        metavar="KIND",
        help="change SR as little as it takes to reduce to LR, as a draw does anyway; KIND: how LR was made (default: as in training)",
    )
    up.add_argument("--scale", type=int, default=0, metavar="N", help="which of the released scales, where there are several (default: 4)")
    _add_reading(up)
    up.add_argument("--ensemble", action="store_true", help="mean over the image and its mirror image: twice as long, a little better")
    up.set_defaults(command=commands.upscale)

    synthetic = known.add_parser("phantom", help="write a synthetic scan to try upscale on")
    synthetic.add_argument("out", type=_given, metavar="OUT.png")
    synthetic.add_argument(
        "--scale", type=int, default=4, choices=(1, 2, 3, 4, 8), help="reduced by so much, as a network takes it (default: 4)"
    )
    synthetic.add_argument("--seed", type=int, default=0, help="another eye")
    synthetic.set_defaults(command=commands.phantom)

    ev = known.add_parser("evaluate", help="measure SR images against HR images of the same path or name")
    ev.add_argument("sr_dir", type=_given, metavar="SR_DIR")
    ev.add_argument("hr_dir", type=_given, metavar="HR_DIR")
    ev.add_argument("--scale", type=int, default=4, choices=(2, 3, 4, 8))
    ev.add_argument("--channels", type=int, default=1, choices=(1, 3), help="3: colour, measured on luma (default: grey)")
    _add_reading(ev)
    ev.add_argument("--no-retina", action="store_true", help="the grey images are no B-scans: no region between inner surface and RPE")
    ev.add_argument("--lpips", action="store_true", help="measure LPIPS too (AlexNet's weights are downloaded once)")
    ev.add_argument("--dists", action="store_true", help="measure DISTS too (VGG-16's weights are downloaded once)")
    ev.add_argument(
        "--steps", type=int, default=200, help="steps of a classifier that learns to tell SR from HR; 0: not asked (default: 200)"
    )
    ev.add_argument("--out", type=_given, metavar="FILE.csv", help="write a row for each image and region")
    ev.set_defaults(command=commands.evaluate)

    like = known.add_parser("calibrate", help="how like real scans are the phantoms? statistics side by side")
    like.add_argument(
        "folder", nargs="?", default="", metavar="DIR", help="scans to measure too: one of each patient, at most 100, NORMAL ones if any"
    )
    like.set_defaults(command=commands.calibrate)

    encoder = known.add_parser("train-encoder", help="train oct-encoder and judge again (about six minutes)")
    encoder.add_argument("--out", default="", help="folder for the two .pt files (default: data/weights)")
    encoder.set_defaults(command=commands.train_encoder)

    bench = known.add_parser("bench", help="how fast this machine trains, reads and upscales, beside a plain SRGAN step")
    bench.add_argument("--device", default="auto", choices=("auto", "cuda", "mps", "cpu"))
    bench.set_defaults(command=commands.bench)

    _add_kaggle(known.add_parser("kaggle", help="the series as Kaggle kernels: build, check, send, ask, fetch"))
    joining = known.add_parser("join", help="take part in a training of several hosts that another one began (srlib/README.md)")
    joining.add_argument("job", type=_given, metavar="RUN/pretrain/job.json", help="or RUN/srgan/job.json; it is waited for")
    joining.set_defaults(command=commands.join)

    colab = known.add_parser("colab", help="the series and the short notebook for Google Colab, into notebooks/colab")
    colab.set_defaults(command=commands.colab)
    release = known.add_parser("release", help="package a finished run's two networks, with model card and ONNX")
    release.add_argument("run_dir", type=_given, metavar="RUN", help="folder of a run that was evaluated")
    release.add_argument("--out", default="", metavar="DIR", help="folder to write to (default: data/weights)")
    release.add_argument("--data", default="", metavar="DIR", help="where the run's scans are now (default: where they were)")
    release.add_argument(
        "--source", default="", metavar="TEXT", help="whose scans these are, with licence and citation (Kermany's are known)"
    )
    release.add_argument("--chosen", default="", metavar="FILE", help="Markdown for the card: how the settings were chosen")
    release.add_argument("--allow-phantom", action="store_true", help="package a run on phantoms, and say so wherever it is used")
    release.set_defaults(command=commands.release)

    pictures = known.add_parser("pictures", help="put a phantom run's figures into the notebooks and the README")
    pictures.add_argument("run_dir", metavar="RUN")
    pictures.set_defaults(command=commands.pictures)
    return parser


def _add_reading(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bits", type=int, default=0, metavar="N", help="of deep grey images, as 12 in files of 16 (default: the file's)")


def _add_kaggle(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("build", "check", "push", "status", "pull"), help="push builds and checks first")
    parser.add_argument("--user", default=os.environ.get("KAGGLE_USERNAME", ""), help="your name on Kaggle (default: KAGGLE_USERNAME)")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument(
        "--chain",
        dest="kind",
        action="store_const",
        const="chain",
        help="six kernels that follow each other, instead of one with all notebooks",
    )
    kind.add_argument("--short", dest="kind", action="store_const", const="short", help="SRGAN on OCT in one notebook, of 200 lines")
    parser.set_defaults(kind="series")
    parser.add_argument("--profile", default="kaggle", help="a complete set of settings (default: kaggle)")
    parser.add_argument("--vgg", default="", metavar="OWNER/SLUG", help="a data set with VGG-19's weights; without it they are downloaded")
    parser.add_argument("--public", action="store_true", help="everybody may see the kernels (default: private)")
    parser.add_argument("--wait", action="store_true", help="push: stay until all kernels have finished, sending each when it is ready")
    parser.add_argument("--again", action="store_true", help="push: send a finished kernel that was not sent from here, as a new version")
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="change one setting (repeatable)")
    parser.set_defaults(command=commands.kaggle)


def _given(text: str) -> str:
    """A path that is not empty, as that of an unset variable is: it would mean the current folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty; give a path ('.' for the current folder)")
    return text


if __name__ == "__main__":
    sys.exit(main())
