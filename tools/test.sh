#!/usr/bin/env bash
# test.sh - every check and test; the last line sums up, the exit status is 1 if anything failed.
#
# Tests with real guests need root.  They run on two throw-away hosts at a time: one has the tests of the
# switch, the other those of guests.
set -uo pipefail
cd "$(dirname "$0")/.."
BIN=.venv/bin
RESULTS=$(mktemp -d)
trap 'rm -rf "$RESULTS"' EXIT
SWITCH=(tests/real/test_l2_*.py tests/real/test_vif.py)

part() { # part NAME COMMAND...: run it, show what it says, and note how it went
    local name=$1
    shift
    echo "== $name"
    "$@" 2>&1 | tee "$RESULTS/$name.log"
    echo "${PIPESTATUS[0]}" >"$RESULTS/$name.status"
}

quiet_part() { # the same for the background: it says nothing before it is done
    part "$@" >"$RESULTS/$1.whole"
}

count() { # count WORD: the last number before it, of every part
    local log sum=0 found
    for log in "$RESULTS"/*.log; do
        found=$(grep -oE "[0-9]+ $1" "$log" | tail -n 1 | cut -d' ' -f1)
        sum=$((sum + ${found:-0}))
    done
    echo "$sum"
}

real_tests() {
    local ignored=("${SWITCH[@]/#/--ignore=}")
    quiet_part "tests of a real switch" tools/sandbox.sh $BIN/pytest -q -m real "${SWITCH[@]}" &
    part "tests with real guests" tools/sandbox.sh $BIN/pytest -q -m real "${ignored[@]}" tests
    wait
    cat "$RESULTS/tests of a real switch.whole"
}

part "checks" make -s check
part "tests" $BIN/pytest -q -n 2 --dist loadfile -m "not real" tests
if [[ $EUID == 0 ]]; then
    real_tests
else
    part "tests with real guests need root" false
fi

bad=$(grep -Lx 0 "$RESULTS"/*.status)
while read -r status; do
    [[ -z $status ]] || echo "failed: $(basename "$status" .status)"
done <<<"$bad"
failed=$(($(count failed) + $(count 'errors?')))
[[ -z $bad ]] || ((failed)) || failed=1
echo "$(count passed) passed, $failed failed, $(count skipped) skipped"
[[ -z $bad ]]
