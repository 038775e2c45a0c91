"""What each command does: from its arguments, as `__main__` has read them, to what it prints and its exit status.

What a command needs is imported in it, so that `--help` and errors come at once.
"""

from __future__ import annotations

import ast
import os
import signal
import sys
from pathlib import Path

from .config import UserError


def _path(text: str) -> str:
    """A path as the user meant it, from where the command was given; names of data sets and '' stay."""
    return text if text in ("", "phantom", "kermany", "released") else str(Path(text).expanduser().absolute())


def _value(text: str):
    """'0.1' a float, '3' an int, 'true' a bool, anything else text."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return value if isinstance(value, int | float | bool) else text


def _overrides(args) -> tuple[str, dict]:
    """(data, overrides) of --data and the -p."""
    overrides = {name: _value(value) for name, value in args.p}
    for name in {"feature_weights", "networks", "start"} & overrides.keys():
        overrides[name] = _path(str(overrides[name]))
    return str(overrides.pop("data", args.data)), overrides


def run(args) -> int:
    from .series.runner import NotebookError, run_series

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # TERM stops as Ctrl-C does, between notebooks too
    data, overrides = _overrides(args)
    if args.gpus is not None:
        overrides["gpus"] = args.gpus
    try:
        report = run_series(args.profile, _path(args.run_dir), _path(data), overrides, args.start, args.only)
    except NotebookError as error:  # its executed copy holds the traceback
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"report: {report}")
    return 0


def sweep(args) -> int:
    from .series.sweep import sweep

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    data, overrides = _overrides(args)
    failed = sweep(args.sweep, args.profile, args.seeds, _path(data), overrides, _path(args.run_dir), args.again, args.list)
    return 1 if failed else 0


def downstream(args) -> None:
    from .series.downstream import downstream

    print(downstream(_path(args.run_dir), args.seeds, args.steps))


def upscale(args) -> int:
    from .device import pick_device
    from .inference.files import upscale_files
    from .inference.upscaling import in_words
    from .models.weights import choose

    generator, name, known, learnt = choose(args.weights, args.scale, pick_device())
    consistent = None if args.consistent is None else learnt if args.consistent in ("", learnt[0]) else (args.consistent, 0.0)
    options = dict(seed=args.seed, draws=args.draws, strength=args.strength, spread=args.spread, consistent=consistent)
    options |= dict(bits=args.bits)
    written, there, failed, warned = upscale_files(args.source, args.out, generator, name, args.ensemble, known, **options)
    for line in warned:
        print(f"warning: {line}", file=sys.stderr)
    for line in failed:
        print(f"error: {line}", file=sys.stderr)
    for path in written[:5]:
        print(path)
    made = f", {len(there)} made earlier" if there else ""
    doubts = f", {len(warned)} warning(s)" if warned else ""
    by = ", ".join(filter(None, [name, in_words(generator, consistent)]))
    print(f"{len(written)} image(s) written{made}, {len(failed)} failed{doubts}; by {by}")
    return 1 if failed or not written + there else 0


def phantom(args) -> None:
    import numpy as np
    from PIL import Image

    from .data.phantom import bscan
    from .data.reading import read_image
    from .degrade import downsample, to_image, to_tensor
    from .files import write_image

    if Path(args.out).suffix.lower() != ".png":
        raise UserError(f"{args.out}: a phantom is a PNG file; call it {Path(args.out).stem}.png")
    if args.seed < 0:
        raise UserError(f"seed cannot be {args.seed}; it is 0 or more")
    image = bscan(args.seed)
    image = image if args.scale == 1 else to_image(downsample(to_tensor(image), args.scale))
    if os.path.isfile(args.out):
        try:
            same = np.array_equal(read_image(args.out), image)
        except UserError:  # whatever it is
            same = False
        if not same:
            raise UserError(f"{args.out} is there, and is another image; give another name")
    write_image(args.out, Image.fromarray(image))


def _is_table(file: Path) -> bool:
    """Whether evaluate may write there: no file is there, or an empty one, or an earlier table of it."""
    if not os.path.isfile(file) or not os.path.getsize(file):
        return True
    try:
        with open(file, "rb") as content:
            return content.read(25) == b"image,method,region,psnr,"
    except OSError:  # it will be said when it is written
        return True


def evaluate(args) -> int:
    from .evaluation.folders import as_text, evaluate_folders
    from .files import write

    wanted = tuple(name for name in ("lpips", "dists") if getattr(args, name))
    options = dict(channels=args.channels, bscan=not args.no_retina, wanted=wanted, steps=args.steps, bits=args.bits)
    if args.out and not _is_table(Path(args.out)):
        raise UserError(f"{args.out}: is no table that evaluate wrote; give a new name that ends in .csv")
    found = evaluate_folders(args.sr_dir, args.hr_dir, args.scale, **options)
    for line in found.warned:
        print(f"warning: {line}", file=sys.stderr)
    print(as_text(found))
    wrong = list(found.failed)
    if args.out:
        try:
            write(args.out, found.table.to_csv(index=False).encode(errors="backslashreplace"))  # (a name may be no UTF-8)
        except UserError as error:  # the work is not lost: it was printed
            wrong.append(str(error))
    for line in wrong:
        print(f"error: {line}", file=sys.stderr)
    return 1 if wrong else 0


def calibrate(args) -> None:
    from .evaluation.calibration import compare, one_of_each

    images = one_of_each(args.folder) if args.folder else []
    print(compare(images, f"{args.folder} ({len(images)} scans)").round(3).to_string())


def train_encoder(args) -> None:
    from .files import WEIGHTS
    from .tools.encoder import train_encoders

    for name, facts in train_encoders(args.out or WEIGHTS).items():
        print(name, facts)
    print("set SHA256 in srlib/models/encoders.py to these values to use the files")


def bench(args) -> None:
    from .tools.bench import bench

    print(bench(args.device))


def kaggle(args) -> int:
    from .kaggle import dataset, kernels, push

    settings = dict(profile=args.profile, vgg=args.vgg, public=args.public, overrides={name: _value(value) for name, value in args.p})
    if args.action == "push":
        print(push.push(args.user, args.kind, args.wait, args.again, **settings))
    elif args.action == "pull":
        print(push.pull(args.user, args.kind))
    elif args.action == "status":
        kernels.check_user(args.user)
        code = f"{args.user}/{dataset.SLUG}"
        print(f"{code}: {push.dataset_status(code) or 'not there'}")
        for title in kernels.titles(args.kind):
            name = f"{args.user}/{kernels.slug(title)}"
            print(f"{name}: {push.status(name).lower() or 'not there'}")
    elif args.action == "build":
        for folder in (*kernels.build(args.user, args.kind, **settings), dataset.build_dataset(args.user)):
            print(folder)
    else:
        wrong = dataset.check_dataset(kernels.OUT / dataset.SLUG)
        wrong += [sentence for title in kernels.titles(args.kind) for sentence in kernels.check(kernels.OUT / kernels.slug(title))]
        for sentence in wrong:
            print(f"error: {sentence}", file=sys.stderr)
        return 1 if wrong else print("nothing to object to") or 0
    return 0


def join(args) -> int:
    from .training import parallel

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    return parallel.join(Path(args.job).absolute())


def colab(args) -> None:
    from .kaggle import colab

    for path in colab.build():
        print(f"{path}: {colab.badge(colab.ADDRESS, path.name)}")


def release(args) -> None:
    from .tools.release import release

    for path in release(_path(args.run_dir), _path(args.out), _path(args.data), args.source, args.allow_phantom, _path(args.chosen)):
        print(path)


def pictures(args) -> None:
    from .tools.pictures import update_pictures

    for path in update_pictures(_path(args.run_dir)):
        print(path)
