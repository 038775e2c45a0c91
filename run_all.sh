#!/usr/bin/env bash
# Make the environment from environment.yml's pins, then run the series, the tests or another command of srlib.
set -euo pipefail

usage() {
  cat <<'EOF'
Usage:
  ./run_all.sh [OPTIONS]        make the environment and run the six notebooks (profile quick)
  ./run_all.sh test [ARGS]      make the environment and run the tests (ARGS go to pytest; -m slow for the slow ones)
  ./run_all.sh lab              make the environment and open JupyterLab
  ./run_all.sh sweep NAME [--list]              one run for each of a list of settings (notebooks/experiments)
  ./run_all.sh downstream RUN                   does SR help a classifier? of a finished run
  ./run_all.sh upscale IN OUT                   super-resolve an image or a folder (--weights RUN_OR_FILE, --seed S, --draws N, --strength A)
  ./run_all.sh phantom OUT.png                  a synthetic scan to try that on
  ./run_all.sh evaluate SR_DIR HR_DIR           measure SR images under the series' protocol
  ./run_all.sh calibrate [DIR]                  how like real scans are the phantoms? statistics side by side
  ./run_all.sh train-encoder                    train the two small feature networks again
  ./run_all.sh release RUN                      package a finished run's networks into data/weights
  ./run_all.sh bench                            how fast this machine trains, reads and upscales
  ./run_all.sh kaggle ACTION --user NAME        the series as Kaggle kernels: build, check, push, status, pull

Options for running the notebooks:
  --profile quick|smoke|kaggle|paper   a complete set of settings (default: quick)
  --data DIR                           a folder of images, or 'phantom', or 'kermany' (default: the profile's)
  --run-dir DIR                        folder for everything the run writes (default: runs/PROFILE)
  --from NN                            begin with notebook NN, also where it is finished
  --only NN                            run notebook NN alone, also where it is finished
  -p NAME VALUE                        change one setting; repeatable (srlib/config.py lists them)
  --gpus N                             train on so many GPUs (default: all)
  --conda                              environment by mamba or conda, in .conda, instead of .venv
  --help

./run_all.sh COMMAND --help lists a command's own options. The same command continues a run that was stopped.
Exit status: 0, or that of the first failure.
EOF
}

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
start="$PWD"
conda=false
args=()
for arg in "$@"; do
  case "$arg" in
    --conda) conda=true ;;
    *) args+=("$arg") ;;
  esac
done
set -- ${args[@]+"${args[@]}"}
case "${1:-}" in -h | --help | help) usage; exit 0 ;; esac

pins() { sed -n 's/^ *- \([A-Za-z0-9_.-]*==[^ #]*\).*/\1/p' "$here/environment.yml"; }

say() { printf '%s\n' "$*" >&2; }

# True where the active python has every pin at its version.
matches() {
  "$1" - $(pins) <<'EOF' 2>/dev/null
import sys
from importlib.metadata import version
sys.exit(any(version(name) != pin for name, pin in (p.split("==") for p in sys.argv[1:])))
EOF
}

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
  local name
  for name in python3 python3.13 python3.12 python3.11 python; do
    if command -v "$name" >/dev/null && new_enough "$name"; then command -v "$name"; return; fi
  done
  say "error: Python 3.11 or newer was not found; install it, or use ./run_all.sh --conda"
  exit 1
}

stamp="$(pins | cksum | tr ' ' '-')"
if [ -n "${KAGGLE_KERNEL_RUN_TYPE:-}" ]; then
  python="$(command -v python3)" # Kaggle's own packages, as they are
elif $conda; then
  tool="$(command -v mamba || command -v micromamba || command -v conda || true)"
  [ -n "$tool" ] || { say "error: --conda needs mamba or conda on the PATH; leave it out to use a .venv"; exit 1; }
  python="$here/.conda/bin/python"
  if [ "$(cat "$here/.conda/pins" 2>/dev/null)" != "$stamp" ]; then
    say "making the environment .conda from environment.yml (about 6 GB, some minutes)"
    rm -rf "$here/.conda"
    "$tool" env create --yes --quiet --prefix "$here/.conda" --file "$here/environment.yml" >&2
    echo "$stamp" >"$here/.conda/pins"
  fi
elif [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && matches python; then
  python="$(command -v python)"
else
  python="$here/.venv/bin/python"
  if [ "$(cat "$here/.venv/pins" 2>/dev/null)" != "$stamp" ]; then
    base="$(find_python)"
    say "making the environment .venv from environment.yml (about 6 GB, some minutes)"
    { [ -x "$python" ] && new_enough "$python"; } || "$base" -m venv --clear "$here/.venv"
    "$python" -m pip install --quiet --disable-pip-version-check $(pins) >&2
    echo "$stamp" >"$here/.venv/pins"
  fi
fi

export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"
case "${1:-}" in
  test)
    shift
    cd "$here"
    exec "$python" -m pytest "$@"
    ;;
  lab)
    shift
    cd "$here/notebooks"
    exec "$python" -m jupyterlab "$@"
    ;;
  sweep | downstream | upscale | phantom | evaluate | calibrate | train-encoder | release | bench | kaggle)
    cd "$start"
    exec "$python" -m srlib "$@"
    ;;
  "" | -*)
    cd "$start"
    exec "$python" -m srlib run "$@"
    ;;
  *)
    say "error: unknown command '$1'; ./run_all.sh --help lists them"
    exit 2
    ;;
esac
