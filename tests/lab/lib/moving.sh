# A Linux guest that is watched while it moves. Sourced after linux.sh.

# How far the guest's clock may stray from this host's over all moves, in milliseconds. The hosts'
# own clocks are some milliseconds apart, and more when the lab is busy.
TOLERANCE=${TOLERANCE:-100}

# The guest runs on $here; $moves counts them.
here=hosta
moves=0

# start_watched CPUS ARGUMENTS...: boots the guest here, and begins to talk to it.
start_watched() {
    local cpus=$1
    shift
    # Known by name and by place on both hosts: a shared disk needs no other.
    make_disk "$CONSOLES/web.raw"
    make_initramfs "$CONSOLES/initrd.img"
    boot web "$cpus" "net=$GUEST_ADDRESS/24 work=files,clock" --initrd "$CONSOLES/initrd.img" \
        --mem 96M --disk "$CONSOLES/web.raw" --net "tap=tap0,mac=$GUEST_MAC" --rng "$@"
    wait_for "the guest to come up" said web '^guest up'
    say "$(grep -a '^guest up' "$(console web)" | tr -d '\r')"
    said web "^guest up: $cpus cpus, clock kvm-clock, root /dev/vda ext4, eth0 up, random virtio_rng.0" ||
        fail "that is not the guest that was asked for"
    lab-witness ask --stop "$CONSOLES/stop" --log "$CONSOLES/talk" --tolerance "$TOLERANCE" \
        ssh -F "$CONSOLES/ssh_config" web lab-witness answer >"$CONSOLES/talk.result" 2>&1 &
    asker=$!
    trap 'kill $asker 2>/dev/null || true' EXIT
    wait_for "the guest to answer over ssh" talked 20
}

# The exchanges that were had so far.
exchanges() { wc -l 2>/dev/null <"$CONSOLES/talk" || echo 0; }
talked() {
    kill -0 $asker 2>/dev/null || fail "the ssh session to the guest ended: $(cat "$CONSOLES/talk.result")"
    [ "$(exchanges)" -ge "$1" ]
}

# after_move REPORT: the guest goes on here, says what it has to, and is as it was.
after_move() {
    here=$1
    moves=$((moves + 1))
    local before
    before=$(exchanges)
    assert_state "$here" web running
    wait_for "the same ssh session to go on" talked $((before + 40))
    assert_no_trouble "web$moves"
}

# The console of the guest after the move that comes next.
next_console() { console "web$((moves + 1))"; }

# both_ways TO: with the handover; the source ends by itself.
both_ways() {
    local from=$here report=$CONSOLES/move$((moves + 1)).json
    expect 0 at "$from" "mig-send web exec:'ssh $1 mig-recv -q --console file:$(next_console)' \
        -q --max-downtime $DOWNTIME --report $report" >/dev/null
    wait_for "the source's vmrun to end" is_state "$from" web ''
    after_move "$1"
    tell_move "$from to $1, both ways" "$report"
}

# one_way TO: through a pipe; the source waits to be told how it ended.
one_way() {
    local from=$here report=$CONSOLES/move$((moves + 1)).json
    expect 0 at "$from" "set -o pipefail; mig-send web -q --max-downtime $DOWNTIME --report $report |
        ssh $1 mig-recv -q --console file:$(next_console)" >/dev/null
    assert_state "$from" web handed-over
    expect 0 at "$from" "mig-send -q --resolve web exec:'ssh $1 mig-recv'" >/dev/null
    wait_for "the source's vmrun to end" is_state "$from" web ''
    after_move "$1"
    tell_move "$from to $1, one way" "$report"
}

tell_move() {
    figures "$1" "$2"
    say "  longest standstill by the guest's own clock: $(standstill "web$moves") ms; $(wall_clock)"
}

# clock_lines CONSOLE: number, both clocks, and the gap before, of each whole line.
clock_lines() {
    tr -d '\r' <"$(console "$1")" |
        awk '/^clock [0-9]+ monotonic [0-9]+ real [0-9]+ gap [0-9]+ end$/ { print $2, $4, $6, $8 }'
}

# The longest time that the guest did not see its clock, by that clock, since the last move.
standstill() { clock_lines "$1" | awk '$4 > most { most = $4 } END { printf "%.0f", most / 1e6 }'; }

# How late the guest's wall clock is by the quickest of its latest answers, and by how much
# that can be wrong.
wall_clock() {
    tail -n 30 "$CONSOLES/talk" | awk '
        NR == 1 || $3 < took { took = $3; late = $2 + $3 / 2 - $5 }
        END { printf "its wall clock is %+.1f ms late (+-%.1f)", late / 1e6, took / 2e6 }'
}

# end_watched: the guest is told to stop where it is; all that was watched must be well.
end_watched() {
    local status=0 names=web n
    touch "$CONSOLES/stop"
    wait $asker || status=$?
    say "$(cat "$CONSOLES/talk.result")"
    [ $status = 0 ] || fail "the connection to the guest was not well"
    in_guest touch /run/stop
    for n in $(seq $moves); do names="$names web$n"; done
    wait_for "the guest to come to its end" said "web$moves" '^guest done'
    wait_for "its vmrun to end" is_state "$here" web ''
    the_end "web$moves"
    assert_one_clock $names
    assert_clean "$CONSOLES/web.raw"
    assert_files "$CONSOLES/web.raw"
}

# assert_one_clock CONSOLE...: one story of time, host after host. A line may be cut in two by a
# move, and only that one.
assert_one_clock() {
    local name
    for name in "$@"; do clock_lines "$name"; done | awk -v moves=$moves '
        NR > 1 && $1 != last + 1 && !($1 == last + 2 && cut++ < moves) { print "line " $1 " follows " last; exit 1 }
        NR > 1 && $2 <= monotonic { print "the monotonic clock goes back at " $1; exit 1 }
        NR > 1 && $3 <= real { print "the wall clock goes back at " $1; exit 1 }
        { last = $1; monotonic = $2; real = $3 }
        END { if (NR == 0) { print "no line"; exit 1 } }' || fail "the clock of the guest is not one story"
}

# move_there_and_back CPUS: the whole story of a guest with so many vCPUs.
move_there_and_back() {
    need_guest_kernel
    clear_guests
    consoles
    start_watched "$1"
    both_ways hostb
    vmrun_ends web 0
    one_way hosta
    one_way hostb
    both_ways hosta
    end_watched
}
