#!/usr/bin/env bash
# test.sh - every check and test, one after the other; the last line sums up, the exit status is 1 if
# anything failed.
set -uo pipefail
cd "$(dirname "$0")/.."
BIN=.venv/bin
passed=0 failed=0 skipped=0 bad=()

part() { # part NAME COMMAND...
    local name=$1 out status
    shift
    echo "== $name"
    out=$(mktemp)
    "$@" 2>&1 | tee "$out"
    status=${PIPESTATUS[0]}
    count() { grep -oE "[0-9]+ $1" "$out" | tail -n 1 | cut -d' ' -f1; }
    passed=$((passed + $(count passed || true) + 0))
    failed=$((failed + $(count failed || true) + $(count 'errors?' || true) + 0))
    skipped=$((skipped + $(count skipped || true) + 0))
    rm -f "$out"
    ((status == 0)) || bad+=("$name")
}

part "checks" make -s check
part "tests" $BIN/pytest -q -n 2 --dist loadfile -m "not real" tests
if [[ $EUID == 0 ]]; then
    part "tests with real guests" tools/sandbox.sh $BIN/pytest -q -m real tests
else
    echo "== tests with real guests need root"
    bad+=("tests with real guests")
fi
if ((${#bad[@]})); then
    printf 'failed: %s\n' "${bad[@]}"
    ((failed)) || failed=1
fi
echo "$passed passed, $failed failed, $skipped skipped"
((${#bad[@]} == 0))
