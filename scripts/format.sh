#!/usr/bin/env bash
# Formats every C++ file in place; with --check it changes nothing and fails on a difference.
set -euo pipefail
cd "$(dirname "$0")/.."

mode=(-i)
[[ ${1:-} != --check ]] || mode=(--dry-run --Werror)
scripts/sources.sh | xargs -r clang-format "${mode[@]}"
