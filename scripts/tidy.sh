#!/usr/bin/env bash
# Runs clang-tidy with the rules of .clang-tidy.
# usage: scripts/tidy.sh [FOLDER ...]    default: every folder
set -euo pipefail
cd "$(dirname "$0")/.."

cmake --preset dev --log-level=WARNING
scripts/sources.sh --units "$@" |
  xargs -r -n 1 -P "${PANDO_JOBS:-$(nproc)}" clang-tidy -p build-dev --quiet
