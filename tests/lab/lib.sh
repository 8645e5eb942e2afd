# What the lab's tests share. They run on hosta, as root, with ssh to hostb: source this first.
set -euo pipefail

TEST=$(basename "$0" .sh)
# The lab's hosts are emulated, on a machine that does other things too: they keep the order of
# things, not the pace. This ends what hangs, and measures nothing.
HANG_TIMEOUT=${HANG_TIMEOUT:-900}
# A blackout takes a few tenths of a second there, so the promise of 100 ms cannot be kept.
DOWNTIME=${DOWNTIME:-3000}

say() { echo "$TEST: $*"; }

fail() {
    echo "$TEST: FAILED: $*" >&2
    exit 1
}

skip() {
    echo "SKIPPED: $TEST: $*"
    exit 77
}

# at HOST COMMAND: runs a shell command line on one of the two hosts.
at() {
    local host=$1
    shift
    if [ "$host" = "$LAB_HOST" ]; then
        bash -c "$*"
    else
        ssh "$host" "$*"
    fi
}

# expect STATUS COMMAND...: the command ends with this status, and what it said is shown if not.
expect() {
    local wanted=$1 status=0 said
    shift
    said=$("$@" 2>&1) || status=$?
    [ "$status" = "$wanted" ] || fail "'$*' ended with $status instead of $wanted: $said"
    echo "$said"
}

# wait_for WHAT COMMAND...: until the command succeeds.
wait_for() {
    local what=$1 until=$((SECONDS + HANG_TIMEOUT))
    shift
    until "$@"; do
        [ $SECONDS -lt $until ] || fail "waited $HANG_TIMEOUT s in vain for $what"
        sleep 0.2
    done
}

# What vmctl says of a guest: running, handed-over, ..., or nothing if there is none.
state() { at "$1" "vmctl --json status $2 2>/dev/null" | grep -o '"state":"[^"]*"' | cut -d'"' -f4; }

is_state() { [ "$(state "$1" "$2")" = "$3" ]; }

assert_state() {
    local is
    is=$(state "$1" "$2") || true
    [ "$is" = "$3" ] || fail "$2 on $1 is '${is:-not there}' and should be '${3:-not there}'"
}

# Ends every guest of an earlier test on both hosts, whatever state it is in.
clear_guests() {
    local host
    for host in hosta hostb; do
        at "$host" "vmctl list | awk 'NR > 1 { print \$2 }' | xargs -r kill -9;
            rm -f /run/vmrun/*.sock /tmp/*.console"
    done
}

# The consoles of guests are /shared/TEST/NAME.console: seen from both hosts.
consoles() {
    CONSOLES=$LAB_SHARED/$TEST
    rm -rf "$CONSOLES"
    mkdir -p "$CONSOLES"
}

# The console of that name.
console() { echo "$CONSOLES/$1.console"; }

# The whole tick lines of a console: the last line may still be being written.
ticks() { grep -a '^tick .*max-gap-us [0-9]*.$\|^tick .*max-gap-us [0-9]*$' "$1" 2>/dev/null | tr -d '\r'; }

count_ticks() { ticks "$1" | wc -l; }

has_ticks() { [ "$(count_ticks "$1")" -ge "$2" ]; }

# wait_ticks CONSOLE N: until the guest has ticked N more times.
wait_ticks() {
    local more=$(($(count_ticks "$1") + $2))
    wait_for "$2 ticks on $1" has_ticks "$1" "$more"
    assert_no_error "$1"
}

assert_no_error() {
    ! grep -a ERROR "$1" || fail "the guest found an error in its memory: $1"
}

# What the guest itself counted as its longest standstill, in milliseconds, on this console.
longest_gap() {
    ticks "$1" | awk '{ for (i = 1; i < NF; i++) if ($i == "gap-us" && $(i + 1) > most) most = $(i + 1) }
        END { print most / 1000 }'
}

# assert_one_story CONSOLE...: the ticks of a guest, host after host, miss none and repeat none,
# and what it counts never goes back.
assert_one_story() {
    local console
    for console in "$@"; do
        assert_no_error "$console"
        ticks "$console"
    done | awk '
        { for (i = 1; i < NF; i++) value[$i] = $(i + 1)
          if (NR > 1 && value["tick"] != tick + 1) { print "tick " value["tick"] " follows " tick; exit 1 }
          if (value["writes"] < writes) { print "writes went back at tick " value["tick"]; exit 1 }
          if (value["checked"] < checked) { print "checked went back at tick " value["tick"]; exit 1 }
          tick = value["tick"]; writes = value["writes"]; checked = value["checked"] }
        END { if (NR == 0) { print "no tick at all"; exit 1 } }' ||
        fail "the consoles are not one story: $*"
}

# figures WHAT REPORT: the figures of a migration, in one line.
figures() {
    python3 - "$1" "$2" <<'END'
import json, sys
what, path = sys.argv[1:]
report = json.load(open(path))
down, totals = report["downtime"], report["totals"]
ms = lambda ns: "?" if ns is None else f"{ns / 1e6:.0f} ms"
phases = ", ".join(f"{name[:-3].replace('_', ' ')} {ms(down[name])}" for name in down if name != "total_ns")
rate = totals["sent_bytes"] / totals["duration_ns"] * 1e9 / 2**20
print(f"{what}: downtime {ms(down['total_ns'])} ({phases}); {totals['sent_bytes'] / 2**20:.1f} MiB"
      f" in {totals['duration_ns'] / 1e9:.1f} s, {rate:.1f} MiB/s, {len(report['rounds'])} rounds")
END
}
