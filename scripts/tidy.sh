#!/usr/bin/env bash
# Runs clang-tidy with the rules of .clang-tidy.
# usage: scripts/tidy.sh [FOLDER ...]    default: every folder
set -euo pipefail
cd "$(dirname "$0")/.."

# clang-tidy 14 recurses through the types of the Highway kernels deeper than 8 MB of stack.
ulimit -s 4194304 2>/dev/null || ulimit -s "$(ulimit -H -s)"
cmake --preset dev --log-level=WARNING
cmake --build build-dev --target pando_git_commit  # a header that it reads
# What is not built here, such as the host code of the CUDA part, has no compile command.
scripts/sources.sh --units "$@" |
  while read -r file; do ! grep -qF "$PWD/$file\"" build-dev/compile_commands.json || echo "$file"; done |
  xargs -r -n 1 -P "${PANDO_JOBS:-$(nproc)}" clang-tidy -p build-dev --quiet
