#!/bin/sh
# Measure backbones on this machine's card within eight minutes and write the page about it.
#
#     tools/gpu_check.sh                            # docs/gpu-benchmarks.md and .json
#     tools/gpu_check.sh --write elsewhere/page.md  # and whatever else benchmarks/gpu.py takes
#
# Needs torch, torchvision, timm and what trunkline itself needs; no network, no installation.
set -eu
cd "$(dirname "$0")/.."
export PYTHONPATH="src${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" -u benchmarks/gpu.py --write docs/gpu-benchmarks.md "$@"
