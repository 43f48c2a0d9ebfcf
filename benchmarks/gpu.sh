#!/usr/bin/env bash
# The engine's table and two real runs on a CUDA machine, in one command and under ten minutes.
#
#   on a machine with a package index:     benchmarks/gpu.sh prepare DATA   (CIFAR-10 as Parquet)
#   on the CUDA machine, in the same tree: benchmarks/gpu.sh [OUT]
#
# The CUDA machine needs torch, torchvision, numpy, pyarrow, pillow, safetensors, typer, rich,
# filelock and matplotlib, and no index: `prepare` leaves pydantic and what it needs as wheels, and
# a copy of DATA, in benchmarks/gpu-bundle (not committed). Results go to OUT (./gpu-results):
# engine.json, cifar10.jsonl (IDM and IDC evaluated by their own recipes) and logs.
set -euo pipefail
cd "$(dirname "$0")/.."
bundle=benchmarks/gpu-bundle
if [ "${1:-}" = prepare ]; then
    rm -rf "$bundle"
    mkdir -p "$bundle/wheels" "$bundle/data"
    for python in 3.11 3.12; do
        pip download -q -d "$bundle/wheels" --only-binary :all: --python-version "$python" \
            pydantic # with the core that it pins
    done
    cp "$2"/*.parquet "$bundle/data"
    du -sh "$bundle"
    exit
fi
out=${1:-gpu-results}
device=${DEVICE:-cuda}
mkdir -p "$out"
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
python3 -c 'import pydantic' 2>/dev/null ||
    pip install -q --no-index --no-deps --find-links "$bundle/wheels" --target "$site" \
        pydantic pydantic-core annotated-types typing-inspection typing-extensions
export PYTHONPATH=.:publish:loaders:$site
export MOEDD_HOME=${MOEDD_HOME:-$out/home}
# A part that takes too long is cut off; what it has written stays.
timeout 200 python3 -m benchmarks.engine --device "$device" --json ${ENGINE_ARGS:---rounds 3} \
    >"$out/engine.json" || echo "the table is not whole" >&2
timeout 360 python3 -m benchmarks.ownrecipe cifar10 --data "$bundle/data" --out "$out" \
    --profile fast --jobs 2 ${RUN_ARGS:---methods idm,idc --hours 0.06 --epochs 300}
