#!/bin/bash
# The example of the KVM Forum 2007 talk: a guest serves http from its disk, and a client on the other
# side of the bridge loads it while it moves through ssh; there by the talk's three rules, back by a
# promise of downtime. No request is lost, and vmctl draws the talk's two figures.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/lib/linux.sh"
WORK=http,clock
# A server whose programs and pages do not find room in memory serves nobody.
MEMORY=160
TARGET=136
. "$(dirname "$0")/lib/moving.sh"

THREADS=${THREADS:-4}

requests() { wc -l 2>/dev/null <"$CONSOLES/requests" || echo 0; }
loaded() { [ "$(requests)" -ge "$1" ]; }

# tell_requests REPORT...: none was lost; how many there were, and how long none was answered: ever, and
# around the end of each move, which is when its report was written.
tell_requests() {
    ! grep -v ' ok$' "$CONSOLES/requests" | head -3 | grep . || fail "requests were lost"
    python3 - "$CONSOLES/requests" "$@" <<'END'
import os, sys
requests = [tuple(map(float, line.split()[:2])) for line in open(sys.argv[1])]
answered = sorted(began + took for began, took in requests)
gaps = [(after - before, before, after) for before, after in zip(answered, answered[1:])]
seconds = answered[-1] - requests[0][0]
print(f"{len(requests)} requests in {seconds:.0f} s, {len(requests) / seconds:.0f} a second: none lost;"
      f" the longest took {max(took for _, took in requests):.2f} s")
print(f"  the longest time without an answer: {max(gaps)[0]:.2f} s")
for report in sys.argv[2:]:
    end = os.stat(report).st_mtime
    around = [gap for gap, before, after in gaps if after > end - 5 and before < end + 2]
    print(f"  around the end of {os.path.basename(report)[:-5]}: {max(around):.2f} s")
END
}

# figures_of REPORT NAME: the talk's figures of that move.
figures_of() {
    expect 0 vmctl plot "$CONSOLES/$1.json" --out "$CONSOLES/http-$2"
    python3 - "$CONSOLES/$1.json" <<'END'
import json, sys
report = json.load(open(sys.argv[1]))
rounds = report["rounds"] + [report["blackout"]]
print("  pages per round:", ", ".join(f"{r['sent_pages'] + r['fill_pages']:,}" for r in rounds))
print("  pages sent once, twice, ...:", ", ".join(f"{n:,}" for n in report["sent_times_pages"]))
print("  ended by:", report["ended_by"]["text"])
END
}

need_guest_kernel
clear_guests
consoles
start_watched 1
at hostb "exec $LAB_TESTS/lib/load-http $GUEST_ADDRESS $THREADS $CONSOLES/requests $CONSOLES/stop-load" \
    >"$CONSOLES/load.log" 2>&1 &
client=$!
trap 'touch "$CONSOLES/stop" "$CONSOLES/stop-load"; kill $asker 2>/dev/null || true' EXIT
wait_for "the guest to be loaded" loaded 100

LIMITS=--classic
move both_ways hostb
figures_of move1 classic
wait_for "the load to go on" loaded $(($(requests) + 100))
LIMITS="--max-downtime $DOWNTIME"
move both_ways hosta
figures_of move2 promise
wait_for "the load to go on" loaded $(($(requests) + 100))

touch "$CONSOLES/stop-load"
wait $client || fail "the client failed: $(cat "$CONSOLES/load.log")"
say "$(tell_requests "$CONSOLES"/move[12].json)"
end_watched
