#!/usr/bin/env bash
# Installs mmcv, or its maintained fork, with its compiled operators into a virtual environment that
# has torch and, in constraints.txt, the version.
# The wheel is kept in the user's cache, keyed by what it was compiled against.
# Usage: build_mmcv.sh VENV
set -euo pipefail

python=$1/bin/python
export PATH="$(cd "$1/bin" && pwd):$PATH" # ninja
mmcv=$(grep -E '^(onedl-)?mmcv==' "$1/constraints.txt")
name=${mmcv%%==*}

# CUDA operators need a card, nvcc, and an nvcc of the major version torch was built with.
cuda=cpu
torch_cuda=$("$python" -c 'import torch; print(torch.version.cuda if torch.cuda.is_available() else "")')
if [ -n "$torch_cuda" ]; then
    # The toolkit torch's compiler would use, whether or not it is on PATH.
    cuda_home=$("$python" -c 'from torch.utils.cpp_extension import CUDA_HOME; print(CUDA_HOME or "")')
    nvcc_cuda=$("$cuda_home/bin/nvcc" --version 2>/dev/null | sed -n 's/.*release \([0-9.]*\),.*/\1/p' || true)
    if [ "${nvcc_cuda%%.*}" = "${torch_cuda%%.*}" ]; then
        cuda=cu$torch_cuda
    else
        echo "    An NVIDIA card was found, but nvcc is ${nvcc_cuda:-missing} and torch needs ${torch_cuda%%.*}.x:"
        echo "    mmcv's operators will run on the CPU only. To mend it, install the CUDA toolkit"
        echo "    ${torch_cuda}, remove $1 and run 'make setup' again."
    fi
fi

key=$("$python" -c 'import platform, sys, torch
print(f"py{sys.version_info[0]}{sys.version_info[1]}-torch{torch.__version__}-{platform.machine()}")')
cache="${XDG_CACHE_HOME:-$HOME/.cache}/mmivit/${mmcv/==/-}-$key-$cuda"
wheel=$(ls "$cache"/*.whl 2>/dev/null || true)

if [ -z "$wheel" ]; then
    echo "==> Compiling $mmcv's operators for $cuda (about 7 minutes on 2 cores, once per machine)"
    mkdir -p "$cache"
    build=$(mktemp -d "$cache/build.XXXXXX")
    trap 'rm -rf "$build"' EXIT
    if [ "$cuda" = cpu ]; then
        export CUDA_VISIBLE_DEVICES= FORCE_CUDA=0
    else
        export FORCE_CUDA=1
    fi
    # --no-cache-dir: pip's own cache forgets which torch a wheel was compiled for.
    # -g0: Python's own flags ask for debug symbols, which double the time and the size.
    if ! MMCV_WITH_OPS=1 CFLAGS="-g0 ${CFLAGS:-}" MAX_JOBS="${MAX_JOBS:-$(getconf _NPROCESSORS_ONLN)}" \
        TMPDIR=$build "$python" -m pip wheel --quiet --no-cache-dir --no-build-isolation --no-deps --no-binary "$name" \
        --wheel-dir "$build" "$mmcv" >"$cache/build.log" 2>&1; then
        tail -n 30 "$cache/build.log"
        echo "$mmcv did not compile; the end of its log is above, all of it in $cache/build.log."
        echo "With less than 2 GiB of memory per core try: make setup MAX_JOBS=1"
        exit 1
    fi
    mv "$build"/*.whl "$cache/"
    wheel=$(ls "$cache"/*.whl)
else
    echo "==> Installing $mmcv from the wheel compiled earlier (seconds)"
fi
"$python" -m pip install --quiet --no-deps --force-reinstall "$wheel"
"$python" -c 'from mmcv.ops import nms, roi_align'
