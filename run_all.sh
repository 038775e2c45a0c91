#!/usr/bin/env bash
# Make the environment from environment.yml's pins, then run the series, the tests or another command of srlib.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # as `sh run_all.sh`
set -euo pipefail

usage() {
  cat <<'EOF'
Usage:
  ./run_all.sh [OPTIONS]        make the environment and run the seven notebooks (profile quick)
  ./run_all.sh test [ARGS]      make the environment and run the tests (ARGS go to pytest; -m slow for the slow ones)
  ./run_all.sh lab              make the environment and open JupyterLab
  ./run_all.sh COMMAND ...      another command of srlib: upscale, evaluate, phantom, sweep, ...; COMMAND --help lists its options
  --conda                       environment by mamba or conda, in .conda, instead of .venv

The same command continues a run that was stopped. Exit status: 0, or that of the first failure.
EOF
}

here="$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)"
conda=false
args=()
for arg in "$@"; do
  case "$arg" in
    --conda) conda=true ;;
    *) args+=("$arg") ;;
  esac
done
set -- ${args[@]+"${args[@]}"}
help=false
case "${1:-}" in -h | --help | help) help=true ;; esac

pins() { sed -n 's/^ *- \([A-Za-z0-9_.-]*==[^ #]*\).*/\1/p' "$here/environment.yml"; }

say() { printf '%s\n' "$*" >&2; }

# True where the python $1 has every pin at its version.
matches() {
  "$1" -P - $(pins) <<'EOF' 2>/dev/null
import sys
from importlib.metadata import version
sys.exit(any(version(name) != pin for name, pin in (p.split("==") for p in sys.argv[1:])))
EOF
}

new_enough() { "$1" -P -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
  local name
  for name in python3 python3.13 python3.12 python3.11 python; do
    if command -v "$name" >/dev/null && new_enough "$name"; then command -v "$name"; return; fi
  done
  say "error: Python 3.11 or newer was not found; install it, or use ./run_all.sh --conda"
  exit 1
}

if [ ! -w "${HOME:-/}" ]; then # matplotlib and Jupyter keep files there
  export MPLCONFIGDIR="${MPLCONFIGDIR:-${TMPDIR:-/tmp}/matplotlib-$UID}" IPYTHONDIR="${IPYTHONDIR:-${TMPDIR:-/tmp}/ipython-$UID}"
  export JUPYTER_RUNTIME_DIR="${JUPYTER_RUNTIME_DIR:-${TMPDIR:-/tmp}/jupyter-$UID}"
fi

stamp="$(pins | cksum | tr ' ' '-')"
folder=.venv
if $conda; then folder=.conda; fi
python="$here/$folder/bin/python"
there=true
if [ -n "${KAGGLE_KERNEL_RUN_TYPE:-}" ]; then
  python="$(command -v python3)" # Kaggle's own packages, as they are
elif ! $conda && [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && matches python; then
  python="$(command -v python)"
elif [ "$(cat "$here/$folder/pins" 2>/dev/null)" != "$stamp" ]; then
  there=false
fi

# Run a module with srlib at hand, wherever this is called from (PYTHONPATH cannot hold a path with a colon). -P, here and above: a random.py of the
# current folder is not Python's.
module() {
  exec "$python" -P -c 'import runpy, sys; sys.path.insert(0, sys.argv.pop(1)); import srlib; runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)' "$here" "$@"
}

if $help; then
  usage
  if $there; then
    printf '\n%s\n\n' "The commands:"
    (module srlib --help)
    printf '\n%s\n\n' "The options for running the notebooks:"
    module srlib run --help
  fi
  printf '\n%s\n' "Once the environment is made, --help lists all commands and the options for running the notebooks."
  exit 0
fi

if ! $there; then
  making="making the environment $folder from environment.yml (7 GB, some minutes)"
  if $conda; then
    tool="$(command -v mamba || command -v micromamba || command -v conda || true)"
    [ -n "$tool" ] || { say "error: --conda needs mamba or conda on the PATH; leave it out to use a .venv"; exit 1; }
    say "$making"
    rm -rf "$here/.conda"
    "$tool" env create --yes --quiet --prefix "$here/.conda" --file "$here/environment.yml" >&2
  else
    case "$here" in
      *:*) say "error: $here: an environment cannot be in a folder with a colon in its path; rename it, or activate an environment with these versions"; exit 1 ;;
    esac
    base="$(find_python)"
    say "$making"
    { [ -x "$python" ] && new_enough "$python" && "$python" -P -m pip --version >/dev/null 2>&1; } || "$base" -P -m venv --clear "$here/.venv"
    "$python" -P -m pip install --quiet --disable-pip-version-check $(pins) >&2
  fi
  echo "$stamp" >"$here/$folder/pins"
fi

case "${1:-}" in
  test)
    shift
    cd "$here"
    module pytest "$@"
    ;;
  lab)
    shift
    cd "$here/notebooks"
    module jupyterlab "$@"
    ;;
  "" | -*) module srlib run "$@" ;;
  *) module srlib "$@" ;;
esac
