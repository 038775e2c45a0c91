"""`python -m srlib COMMAND ...`: starts srlib/commands/COMMAND.py, which has the arguments."""

import importlib
import sys

if __name__ == "__main__" and not sys.flags.safe_path:  # a random.py of the current folder is not Python's
    sys.path.append(sys.path.pop(0))
from .commands import in_one_line
from .config import nearest

COMMANDS = ("run", "upscale", "evaluate", "phantom", "sweep", "release", "onnx", "kaggle", "pages", "bench")


def main(argv: list[str] | None = None) -> int:
    """The exit status: 0 done, 1 a failure that the user can mend, 130 interrupted; 2 for arguments that cannot be."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in COMMANDS:
        return in_one_line(lambda: importlib.import_module(f".commands.{name}", __package__).main(rest))
    if name not in ("-h", "--help"):
        return print(f"error: there is no command {name!r}; {nearest(name, COMMANDS)}", file=sys.stderr) or 2
    return in_one_line(lambda: print("usage: python -m srlib COMMAND ... (or --help), one of", *COMMANDS, sep="\n  "))


if __name__ == "__main__":
    sys.exit(main())
