#!/usr/bin/env bash
# The engine's table and two real runs on a CUDA machine, in one command and under ten minutes.
#
#   on a machine with a package index:    benchmarks/gpu.sh prepare DATA   (DATA: CIFAR-10 as Parquet)
#   on the CUDA machine, in the same tree: benchmarks/gpu.sh [OUT]
#
# The CUDA machine needs torch, numpy, pyarrow, pillow, safetensors, typer and rich, and no index:
# `prepare` leaves pydantic and what it needs as wheels, and CIFAR-10 as one uint8 file, in
# benchmarks/gpu-bundle (not committed; 180 MB). Results go to OUT (default ./gpu-results).
set -euo pipefail
cd "$(dirname "$0")/.."
bundle=benchmarks/gpu-bundle
if [ "${1:-}" = prepare ]; then
    rm -rf "$bundle/wheels"
    mkdir -p "$bundle/wheels"
    for python in 3.11 3.12; do
        pip download -q -d "$bundle/wheels" --only-binary :all: --python-version "$python" \
            pydantic # with the core that it pins
    done
    PYTHONPATH=.:publish:loaders python3 -m benchmarks.gpu pack "$2" "$bundle/cifar10.npz"
    du -sh "$bundle"
    exit
fi
out=${1:-gpu-results}
mkdir -p "$out"
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
python3 -c 'import pydantic' 2>/dev/null ||
    pip install -q --no-index --no-deps --find-links "$bundle/wheels" --target "$site" \
        pydantic pydantic-core annotated-types typing-inspection typing-extensions
export PYTHONPATH=.:publish:loaders:$site
export MOEDD_HOME=${MOEDD_HOME:-$out/home}
python3 -m benchmarks.engine --device "${DEVICE:-cuda}" --json ${ENGINE_ARGS:---quick} \
    >"$out/engine.json"
python3 -m benchmarks.gpu run "$bundle/cifar10.npz" "$out" --device "${DEVICE:-cuda}" ${GPU_ARGS:-}
