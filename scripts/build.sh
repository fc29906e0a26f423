#!/usr/bin/env bash
# Configures and builds a preset of CMakePresets.json.
# usage: scripts/build.sh PRESET [TARGET ...]
set -euo pipefail
cd "$(dirname "$0")/.."

preset=$1
shift
# Takes effect at the first configure of a build directory.
if command -v ccache >/dev/null; then
  export CMAKE_CXX_COMPILER_LAUNCHER=${CMAKE_CXX_COMPILER_LAUNCHER-ccache}
fi
cmake --preset "$preset" --log-level=WARNING
cmake --build --preset "$preset" --parallel "${PANDO_JOBS:-$(nproc)}" ${@:+--target "$@"}
