#!/usr/bin/env bash
# Configures and builds a preset of CMakePresets.json.
# usage: scripts/build.sh PRESET [TARGET ...]
# PANDO_PYTHON=on builds the Python package too, with the Python of build/venv (scripts/python.sh venv).
set -euo pipefail
cd "$(dirname "$0")/.."

preset=$1
shift
# Takes effect at the first configure of a build directory.
if command -v ccache >/dev/null; then
  export CMAKE_CXX_COMPILER_LAUNCHER=${CMAKE_CXX_COMPILER_LAUNCHER-ccache}
  export CMAKE_CUDA_COMPILER_LAUNCHER=${CMAKE_CUDA_COMPILER_LAUNCHER-ccache}
fi
python=()
if [[ ${PANDO_PYTHON:-} == on ]]; then
  python=(-D PANDO_BUILD_PYTHON=ON -D "Python_EXECUTABLE=$PWD/build/venv/bin/python")
fi
cmake --preset "$preset" --log-level=WARNING ${python[@]:+"${python[@]}"}
cmake --build --preset "$preset" --parallel "${PANDO_JOBS:-$(nproc)}" ${@:+--target "$@"}
