#!/usr/bin/env bash
# test.sh [checks] [tests] [real] - every check and test, or only those parts; the last line sums up, and the exit
# status is 1 if anything failed.
#
# Tests of real guests, switches and hosts need root.  Each of their files has a throw-away host of its own,
# some at a time: they mostly wait for guests that boot.
set -uo pipefail
cd "$(dirname "$0")/.."
BIN=.venv/bin
unset PYTHONDONTWRITEBYTECODE # else each of some hundred processes compiles all of the code anew
# What tests write is in memory if there is room: a database waits for each commit to be on its disk.
room=$(df --output=avail -B1G /dev/shm 2>/dev/null | tail -n 1) # GiB
((${room:-0} >= 4)) && place=/dev/shm || place=${TMPDIR:-/tmp}
SCRATCH=$(mktemp -d "$place/kilonova-tests-XXXXXX")
RESULTS=$(mktemp -d)
trap 'rm -rf "$RESULTS" "$SCRATCH"' EXIT
AT_ONCE=3
# What takes longest, so that it does not begin last.
LONG=(tests/real/test_two_hosts{,_evacuate,_isolation,_unwired,_volumes}.py tests/real/test_{shelve,live_migration,live_faults}.py
      tests/real/moves/test_matrix.py tests/real/test_faults.py)

part() { # part NAME COMMAND...: run it, show what it says, and note how it went
    local name=$1
    shift
    echo "== $name"
    "$@" 2>&1 | tee "$RESULTS/$name.log"
    echo "${PIPESTATUS[0]}" >"$RESULTS/$name.status"
}

count() { # count WORD: the number before it in what pytest sums up at the end, of every part
    local log sum=0 found
    for log in "$RESULTS"/*.log; do
        found=$(grep -E ' in [0-9.]+s' "$log" | tail -n 1 | grep -oE "[0-9]+ $1" | cut -d' ' -f1)
        sum=$((sum + ${found:-0}))
    done
    echo "$sum"
}

look() { # find the tests with real guests; what is compiled for that, all others need not compile again
    $BIN/pytest -q --collect-only -m real tests >"$RESULTS/found" 2>&1
    echo $? >"$RESULTS/collecting.status"
}

real_files() { # those with such tests, the long ones first
    printf '%s\n' "${LONG[@]}" "$(<"$RESULTS/found")" | sed -n 's/\.py.*/.py/p' | awk '!seen[$0]++'
}

real_file() { # real_file PATH: what it says is shown when it is done, so that it stands together
    local log
    log="$RESULTS/${1//\//.}.log"
    tools/sandbox.sh $BIN/pytest -q -m real "$1" >"$log" 2>&1
    echo $? >"${log%.log}.status"
    printf '== %s\n%s\n' "$1" "$(<"$log")"
}

real_tests() {
    if [[ $EUID != 0 ]]; then
        part "tests with real guests need root" false
        return
    fi
    [[ $(<"$RESULTS/collecting.status") == 0 ]] || cat "$RESULTS/found"
    # What it is made of is fetched now: the tests' hosts have no way to the outside.
    part "guest image" tools/guest-image/build.sh "$RESULTS/guest.qcow2"
    export -f real_file
    export RESULTS BIN
    real_files | xargs -P "$AT_ONCE" -I{} bash -c 'real_file {}'
}

(($#)) || set -- checks tests real
look & # while the checks, which need one processor, are made
for chosen; do
    [[ $chosen == checks ]] || wait
    case $chosen in
        checks) part checks make -s check ;;
        # More of them than processors, as many wait; of files with as few tests, those of fleets first.
        tests) part tests $BIN/pytest -q -n 4 --dist loadfile -m "not real" --basetemp "$SCRATCH/tests" tests/fleet tests ;;
        real) real_tests ;;
        *) part "there is no part $chosen" false ;;
    esac
done

bad=$(grep -Lx 0 "$RESULTS"/*.status)
while read -r status; do
    [[ -z $status ]] || echo "failed: $(basename "$status" .status)"
done <<<"$bad"
failed=$(($(count failed) + $(count 'errors?')))
[[ -z $bad ]] || ((failed)) || failed=1
echo "$(count passed) passed, $failed failed, $(count skipped) skipped"
[[ -z $bad ]]
