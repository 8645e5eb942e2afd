#!/bin/bash
# The end-to-end tests of the built-in guest, as they are built for the machine, on real AMD-V
# semantics. What they say about pace is left out: an emulated host keeps none.
. "$(dirname "$0")/lib.sh"

# Whole test programs, or single tests of them: those whose guests the host has room for, and that
# hold no guest to milliseconds.
TESTS='
save_restore
migrate a_guest_moves_with_a_handover
migrate digests_of_the_whole_memory_agree
migrate a_paused_guest_arrives_paused
migrate any_elf_with_a_pvh_note_boots_and_moves
migrate two_hosts_share_nothing
kills a_destination_vmrun_killed_before_the_commit_leaves_the_source_running
kills a_guest_that_ends_while_it_is_sent_ends_everywhere
'
# Ends what hangs: a second of a quiet machine takes 20 to 40 s here, and more on a busy one.
LIMIT=${LIMIT:-1800}

# The test program of that name which was built last.
program() { ls -t /opt/migpipe/deps/"$1"-* 2>/dev/null | grep -E -- '-[0-9a-f]{16}$' | head -n 1; }

clear_guests
consoles
passed=0
while read -r name only; do
    [ -n "$name" ] || continue
    program=$(program "$name")
    [ -n "$program" ] || skip "no test program $name; on the machine: cargo test --release -p migpipe-tests --no-run"
    for test in ${only:-$("$program" --list | sed -n 's/: test$//p')}; do
        log=$CONSOLES/$name-$test.log began=${EPOCHREALTIME/./}
        timeout "$LIMIT" "$program" --exact "$test" --test-threads=1 --nocapture >"$log" 2>&1 </dev/null ||
            fail "$name: $test: $(tail -n 20 "$log")"
        took=$(((${EPOCHREALTIME/./} - began) / 100000))
        say "$name: $test, $((took / 10)).$((took % 10)) s$(grep -o 'SKIPPED.*' "$log" | head -n 1 | sed 's/^/ - /')"
        passed=$((passed + 1))
    done
done <<<"$TESTS"
say "$passed tests of the built-in guest passed on AMD-V"
