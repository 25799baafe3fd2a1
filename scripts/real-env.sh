#!/bin/sh
# scripts/real-env.sh DIR: a virtual environment in DIR for the tests under tests/real (see requirements-real.lock).
# Does nothing when DIR is already what the lock asks for. PYTHON names another interpreter than python3.
set -eu

dir=${1:?"usage: $0 DIR"}
python=${PYTHON:-python3}
root=$(cd "$(dirname "$0")/.." && pwd)

fail() {
    echo "real-env: $1" >&2
    exit 2
}

[ "$(uname -sm)" = "Linux x86_64" ] || fail "needs Linux on x86_64, this is $(uname -sm)"
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])') || fail "no $python; set PYTHON"
[ "$version" = 3.11 ] || fail "needs Python 3.11, $python is $version; set PYTHON"
"$python" -c 'import ensurepip, venv' || fail "$python has no venv: apt-get install python3.11-venv"
"$python" -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' || fail "vLLM needs libnuma: apt-get install libnuma1"
grep -qw avx2 /proc/cpuinfo || fail "vLLM's CPU build needs a processor with AVX2"

# A stamp is written last, so an interrupted build starts afresh.
lock=$(sha256sum <"$root/requirements-real.lock")
if [ ! -x "$dir/bin/python" ] || [ "$(cat "$dir/lock.stamp" 2>/dev/null)" != "$lock" ]; then
    "$python" -m venv --clear "$dir"
    "$dir/bin/pip" install --quiet --quiet --no-deps -r "$root/requirements-real.lock"
    echo "$lock" >"$dir/lock.stamp"
fi
project=$(cat "$root/pyproject.toml" "$dir/lock.stamp" | sha256sum)
if [ "$(cat "$dir/project.stamp" 2>/dev/null)" != "$project" ]; then
    "$dir/bin/pip" install --quiet --quiet --no-deps --no-build-isolation --editable "$root"
    echo "$project" >"$dir/project.stamp"
fi
