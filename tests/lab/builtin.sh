#!/bin/bash
# The built-in guest on real AMD-V semantics: it boots, and moves between two hosts through a real
# ssh, both ways and one way, there and back. Its own checksums say whether its memory came whole.
. "$(dirname "$0")/lib.sh"

SPEC=builtin:dirty,pages=64,rate=200,fill=random,fill-mb=16,tick-ms=100

for host in hosta hostb; do
    at $host 'test -c /dev/kvm && test -d /sys/module/kvm_amd' || fail "$host has no KVM on AMD-V"
    at $host 'grep -q "[Y1]" /sys/module/kvm_amd/parameters/npt' || fail "$host has no nested paging"
    say "$host: shmem huge pages $(at $host 'cat /sys/kernel/mm/transparent_hugepage/shmem_enabled')"
done
clear_guests
consoles

# both_ways FROM TO CONSOLE: with the handover; the source ends by itself.
both_ways() {
    local report=$CONSOLES/$3.json
    expect 0 at "$1" "mig-send web exec:'ssh $2 mig-recv -q --console file:$(console "$3")' \
        -q --max-downtime $DOWNTIME --report $report" >/dev/null
    wait_for "the source's vmrun to end" is_state "$1" web ''
    assert_state "$2" web running
    wait_ticks "$(console "$3")" 10
    figures "$1 to $2, both ways" "$report"
    say "  longest gap inside the guest: $(longest_gap "$(console "$3")") ms"
}

# one_way FROM TO CONSOLE: through a pipe; the source must not run again until it is resolved.
one_way() {
    local report=$CONSOLES/$3.json
    expect 0 at "$1" "set -o pipefail; mig-send web -q --max-downtime $DOWNTIME --report $report |
        ssh $2 mig-recv -q --console file:$(console "$3")" >/dev/null
    assert_state "$1" web handed-over
    assert_state "$2" web running
    wait_ticks "$(console "$3")" 10
    expect 1 at "$1" 'vmctl resume web' >/dev/null
    expect 1 at "$1" 'vmctl quit web' >/dev/null
    expect 0 at "$1" "mig-send -q --resolve web exec:'ssh $2 mig-recv'" >/dev/null
    wait_for "the source's vmrun to end" is_state "$1" web ''
    assert_state "$2" web running
    figures "$1 to $2, one way" "$report"
    say "  longest gap inside the guest: $(longest_gap "$(console "$3")") ms"
}

say "boot on hosta"
setsid vmrun --name web --kernel "$SPEC" --mem 64M --console "file:$(console 0)" \
    </dev/null >"$CONSOLES/vmrun.log" 2>&1 &
vmrun=$!
wait_ticks "$(console 0)" 10
assert_state hosta web running

both_ways hosta hostb 1
status=0
wait $vmrun || status=$?
[ $status = 0 ] || fail "the source's vmrun ended with $status: $(cat "$CONSOLES/vmrun.log")"
one_way hostb hosta 2
one_way hosta hostb 3
both_ways hostb hosta 4

vmctl quit web
assert_one_story "$(console 0)" "$(console 1)" "$(console 2)" "$(console 3)" "$(console 4)"
say "$(cat "$CONSOLES"/*.console | grep -ac '^tick') ticks on two hosts, five times running: one story"
