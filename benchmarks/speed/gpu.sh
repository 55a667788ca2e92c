#!/usr/bin/env bash
# Measures parse, training and decoding on one GPU and writes one table, in at most eight minutes.
#
#   bash benchmarks/speed/gpu.sh [OUT.md] [further options of `python -m benchmarks.speed.gpu.table`]
#
# Python is the one on the path (or $PYTHON), with the packages of `pip install -e .`; nothing is fetched.
set -euo pipefail
cd "$(dirname "$0")/../.."
out="${1:-gpu.md}"
[ $# -gt 0 ] && shift
export HF_HUB_OFFLINE=1
exec timeout 480 "${PYTHON:-python3}" -W ignore -m benchmarks.speed.gpu.table --out "$out" "$@"
