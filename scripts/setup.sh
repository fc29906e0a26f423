#!/usr/bin/env bash
# Installs the Debian packages that a job needs and this machine lacks.
# usage: scripts/setup.sh [ROLE ...]    roles: build (the default), cache, python, format, tidy, fuzz
set -euo pipefail

# What each role needs beyond a bare Debian 12.
declare -A packages=(
  [build]="make g++ cmake ninja-build git libhwy-dev libfmt-dev libcli11-dev nlohmann-json3-dev
           libgtest-dev libbenchmark-dev librapidcheck-dev"
  [cache]="ccache"
  [python]="python3 python3-venv"
  [format]="clang-format"
  [tidy]="clang-tidy"
  [fuzz]="clang libclang-rt-dev"
)

wanted=()
for role in "${@:-build}"; do
  if [[ -z ${packages[$role]:-} ]]; then
    echo "setup: unknown role \"$role\", want one of: ${!packages[*]}" >&2
    exit 2
  fi
  read -r -d '' -a names <<<"${packages[$role]}" || true
  wanted+=("${names[@]}")
done

if ! command -v dpkg-query >/dev/null; then
  echo "setup: this is no Debian system; the build needs the equivalents of: ${wanted[*]}"
  exit 0
fi

missing=()
for name in "${wanted[@]}"; do
  state=$(dpkg-query -W -f='${db:Status-Status}' "$name" 2>/dev/null || true)
  [[ $state == installed ]] || missing+=("$name")
done
[[ ${#missing[@]} -gt 0 ]] || exit 0

install=(apt-get install -y --no-install-recommends "${missing[@]}")
if [[ $(id -u) -ne 0 ]]; then
  echo "setup: missing packages: ${missing[*]}" >&2
  echo "setup: as root, run:  apt-get update && ${install[*]}" >&2
  exit 1
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT
# Runs a command quietly, and shows what it said only when it fails.
quietly() {
  if ! "$@" >"$log" 2>&1 </dev/null; then
    tail -n 30 "$log" >&2
    echo "setup: failed: $*" >&2
    exit 1
  fi
}
echo "setup: installing ${#missing[@]} packages: ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
# Debian's own lists are enough: a third-party source that is down must not stop the build.
apt-get update >"$log" 2>&1 </dev/null || echo "setup: apt-get update reported errors, going on"
quietly "${install[@]}"
echo "setup: done"
