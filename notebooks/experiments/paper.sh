#!/usr/bin/env bash
# The paper's SRGAN on OCT, to the letter but in its length: for a GPU, in an active environment.
#   notebooks/experiments/paper.sh SCANS RUN [-p NAME VALUE ...]
# 50,000 MSE and 15,000 SRGAN steps: some 15 minutes of an H200 by the counted work (estimated). The same command continues.
set -euo pipefail
scans=$(realpath "$1") run=$(realpath -m "$2")
shift 2
cd "$(dirname "$0")/../.."
python -m srlib run --profile paper --data "$scans" --run-dir "$run" -p channels 1 \
    -p pretrain_steps 50000 -p gan_steps 15000 -p max_test_images 200 --until 05 "$@"
