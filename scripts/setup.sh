#!/bin/sh
# Installs everything into .venv: the locked packages with their hashes, then the members of the workspace.
# Needs Python 3.11 or newer and a C++ compiler. Does nothing when .venv is up to date.
set -eu
cd "$(dirname "$0")/.."

MEMBERS="protos services/servicekit services/modelkit services/parameterkit services/workerkit services/task_service services/trainer_service
services/eval_service services/export_service gateway client deploy/local"
STAMP=.venv/.up-to-date

find_python() {
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "setup: Python 3.11 or newer was not found; install it, or name it with PYTHON=/path/to/python3 make setup" >&2
    exit 1
}

fingerprint() {
    for file in requirements.lock scripts/setup.sh pyproject.toml; do echo "$file"; done
    for member in $MEMBERS; do echo "$member/pyproject.toml"; done
}

wanted=$(cat $(fingerprint) | cksum)
if [ -f "$STAMP" ] && [ "$(cat "$STAMP")" = "$wanted" ]; then
    exit 0
fi
rm -f "$STAMP"

# The lock's own lines pin uv too, hashes included.
if ! .venv/bin/python -m uv --version >/dev/null 2>&1; then
    python=$(find_python)
    echo "setup: creating .venv with $($python --version)"
    "$python" -m venv --clear .venv || {
        echo "setup: '$python -m venv' failed; on Debian and Ubuntu install the package python3-venv" >&2
        exit 1
    }
    sed -n '/^uv==/,/[^\\]$/p' requirements.lock >.venv/uv.lock
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r .venv/uv.lock
fi

editable=""
for member in $MEMBERS; do editable="$editable -e $member"; done
export VIRTUAL_ENV="$PWD/.venv"
# llama.cpp is built from source: for any processor of this kind, since what it finds on some (AMX) makes it crash.
if ! command -v c++ >/dev/null && ! command -v clang++ >/dev/null; then
    echo "setup: a C++ compiler was not found; on Debian and Ubuntu install the package g++" >&2
    exit 1
fi
export CMAKE_ARGS="${CMAKE_ARGS:--DGGML_NATIVE=OFF -DLLAVA_BUILD=OFF}"
echo "setup: installing the locked packages (about 7 GB the first time; llama.cpp is built, some minutes)"
.venv/bin/python -m uv pip sync --require-hashes --compile-bytecode requirements.lock
.venv/bin/python -m uv pip install --quiet --no-deps --no-build-isolation $editable
echo "$wanted" >"$STAMP"
echo "setup: .venv is ready"
