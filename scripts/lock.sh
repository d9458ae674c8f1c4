#!/bin/sh
# Resolves every member's dependencies into requirements.lock: versions and hashes for all platforms, no registry named.
# What is locked stays as it is where it still fits; pass --upgrade or --upgrade-package NAME to move it.
set -eu
cd "$(dirname "$0")/.."

own=""
for name in $(sed -n 's/^name = "\(tunesmith.*\)"/\1/p' protos/pyproject.toml services/*/pyproject.toml gateway/pyproject.toml \
    client/pyproject.toml deploy/local/pyproject.toml); do
    own="$own --no-emit-package $name"
done
exec .venv/bin/python -m uv pip compile --universal --generate-hashes --no-header --no-annotate $own \
    --group dev pyproject.toml -o requirements.lock "$@" >/dev/null
