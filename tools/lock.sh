#!/usr/bin/env bash
# lock.sh [--keep] - write the lock files anew from the extras in pyproject.toml: names and versions, nothing
# else.  --keep leaves the versions that are locked as they are: for one more package.
set -euo pipefail
cd "$(dirname "$0")/.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
PYTHON=${PYTHON:-/usr/bin/python3}

KEEP=${1:-}

lock() { # lock FILE EXTRAS CONSTRAINTS...
    local file=$1 extras=$2 constraints=() each
    shift 2
    [[ $KEEP != --keep || ! -e $file ]] || set -- "$@" "$file"
    for each; do constraints+=(-c "$each"); done
    "$PYTHON" -m venv "$scratch/$file"
    "$scratch/$file/bin/pip" install -q --upgrade pip setuptools
    "$scratch/$file/bin/pip" install -q "${constraints[@]}" ".${extras:+[$extras]}"
    {
        echo "# Written by tools/lock.sh from pyproject.toml: kilonova[$extras]"
        "$scratch/$file/bin/pip" freeze --exclude kilonova | grep -E '^[A-Za-z0-9._-]+==' | sort -f
    } >"$scratch/out"
    mv "$scratch/out" "$file"
    echo "$file: $(grep -c == "$file") packages"
}

lock requirements.lock ""
lock requirements-fleet.lock fleet requirements.lock
lock requirements-host.lock libvirt,agent requirements-fleet.lock
lock requirements-test.lock libvirt,fleet,client,test requirements-host.lock
