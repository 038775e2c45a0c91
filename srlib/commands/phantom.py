"""`phantom`: a synthetic scan as a PNG file, to try the series on."""

from pathlib import Path

from PIL import Image

from ..config import UserError
from ..data.phantom import bscan
from ..degrade import downsample, to_image, to_tensor
from ..files import write_image
from . import given, parser


def main(argv: list[str]) -> None:
    words = parser("phantom", "Write a synthetic scan to try upscale on.")
    words.add_argument("out", type=given, metavar="OUT.png")
    how = "reduced by so much, as a network takes it (default: 4)"
    words.add_argument("--scale", type=int, default=4, choices=(1, 2, 3, 4, 8), help=how)
    words.add_argument("--seed", type=int, default=0, help="another eye")
    args = words.parse_args(argv)
    if Path(args.out).suffix.lower() != ".png":
        raise UserError(f"{args.out}: a phantom is a PNG file; call it {Path(args.out).stem}.png")
    if args.seed < 0:
        raise UserError(f"seed cannot be {args.seed}; it is 0 or more")
    image = bscan(args.seed)
    write_image(args.out, Image.fromarray(image if args.scale == 1 else to_image(downsample(to_tensor(image), args.scale))))
