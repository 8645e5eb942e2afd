# A Linux guest that is watched while it moves. Sourced after linux.sh.

# How far the guest's clock may stray from this host's over all moves, in milliseconds. The hosts'
# own clocks are some milliseconds apart, and more when the lab is busy.
TOLERANCE=${TOLERANCE:-100}

# The guest runs on $here; $moves counts them.
here=hosta
moves=0

HVC=$(hvc web)

# What the guest does: see guest/init.
WORK=${WORK:-files,clock}
# Its memory, and what it is to do with while it moves, in MiB.
MEMORY=${MEMORY:-96}
TARGET=${TARGET:-80}
# What mig-send is to keep to.
LIMITS=${LIMITS:---max-downtime $DOWNTIME}

# start_watched CPUS: boots the guest here with every device that there is, has it give up some of
# its memory, and begins to talk to it.
start_watched() {
    # Known by name and by place on both hosts: a shared disk needs no other.
    make_disk "$CONSOLES/web.raw"
    make_initramfs "$CONSOLES/initrd.img"
    at hostb rm -f $HVC
    rm -f $HVC
    boot web "$1" "net=$GUEST_ADDRESS/24 work=$WORK" --initrd "$CONSOLES/initrd.img" --mem ${MEMORY}M \
        --disk "$CONSOLES/web.raw" --net "tap=tap0,mac=$GUEST_MAC" --rng --balloon --virtio-console unix:$HVC
    watch_bridges
    wait_for "the guest to come up" said web '^guest up'
    say "$(grep -a '^guest up' "$(console web)" | tr -d '\r')"
    said web "^guest up: $1 cpus, clock kvm-clock, root /dev/vda ext4, eth0 up, random virtio_rng.0" ||
        fail "that is not the guest that was asked for"
    lab-witness ask --stop "$CONSOLES/stop" --log "$CONSOLES/talk" --tolerance "$TOLERANCE" \
        ssh -F "$CONSOLES/ssh_config" web lab-witness answer >"$CONSOLES/talk.result" 2>&1 &
    asker=$!
    trap 'touch "$CONSOLES/stop"; kill $asker 2>/dev/null || true' EXIT
    wait_for "the guest to answer over ssh" talked 20
    assert_locked
    assert_console
    # What the boot has left behind need not be carried, and a file of the disk can be read again.
    ask web 'echo 1 >/proc/sys/vm/drop_caches' >/dev/null
    expect 0 vmctl balloon web ${TARGET}M >/dev/null
    wait_for "the guest to do with less" does_with_at_most web $TARGET
}

# watch_bridges: writes down on both hosts how the guest announces itself.
watch_bridges() {
    local host
    # They end when they see it.
    trap 'touch "$CONSOLES/stop"' EXIT
    for host in hosta hostb; do
        at $host "$LAB_TESTS/lib/announced br0 $GUEST_MAC $CONSOLES/$host.announced $CONSOLES/stop" \
            >"$CONSOLES/$host.witness" 2>&1 &
    done
    for host in hosta hostb; do
        wait_for "a witness on the bridge of $host" test -e "$CONSOLES/$host.announced"
    done
}

# announcements HOST KIND: how many that host has seen.
announcements() { grep -c "^$2 " "$CONSOLES/$1.announced" || true; }
announced() { [ "$(announcements "$1" "$2")" -ge "$3" ]; }

# assert_announced TO BEFORE: five frames of the host for the card and one of the guest for its
# address, where it has come to; and that the other host's bridge has learnt of it over the wire.
assert_announced() {
    local to=$1 host kind
    read -r -a before <<<"$2"
    wait_for "all announcements of the card on $to" announced "$to" rarp $((before[0] + 5))
    wait_for "the guest to announce its address on $to" announced "$to" arp $((before[1] + 1))
    wait_for "the other host to see the card announced" announced "$(other "$to")" rarp $((before[2] + 1))
    wait_for "the other host to see the address announced" announced "$(other "$to")" arp $((before[3] + 1))
    [ "$(announcements "$to" rarp)" = $((before[0] + 5)) ] || fail "the card was announced more than five times"
    say "  announced on $to: the card after $(gaps "$to"), the address by the guest; $(other "$to") saw both"
}

# What was seen on both bridges so far, in the order in which assert_announced takes it.
seen_before() {
    local host kind
    for host in "$1" "$(other "$1")"; do
        for kind in rarp arp; do announcements $host $kind; done
    done | xargs
}
other() { [ "$1" = hosta ] && echo hostb || echo hosta; }

# The times between the last five announcements of the card on a host's bridge.
gaps() {
    awk '$1 == "rarp" { print $2 }' "$CONSOLES/$1.announced" | tail -n 5 |
        awk 'NR > 1 { printf "%s%.0f", (NR > 2 ? ", " : ""), ($1 - last) * 1000 } { last = $1 } END { print " ms" }'
}

# assert_locked: no second vmrun on the guest's host gets its disk.
assert_locked() {
    local said
    said=$(expect 1 at $here "vmrun --name second --kernel builtin:dirty,pages=16,fill=random,fill-mb=2 --mem 32M --disk $CONSOLES/web.raw")
    [[ $said == *"$CONSOLES/web.raw"*locked* ]] || fail "the refusal does not name the image: $said"
}

# assert_console: a shell answers on the virtio console, wherever the guest runs.
assert_console() {
    local said
    said=$(at $here "$LAB_TESTS/lib/ask $HVC 'echo \$((6 * 7)) \$(hostname)' $HANG_TIMEOUT") || fail "hvc0 is dead: $said"
    [ "$said" = '42 web' ] || fail "hvc0 says '$said'"
}

# The exchanges that were had so far.
exchanges() { wc -l 2>/dev/null <"$CONSOLES/talk" || echo 0; }
talked() {
    kill -0 $asker 2>/dev/null || fail "the ssh session to the guest ended: $(cat "$CONSOLES/talk.result")"
    [ "$(exchanges)" -ge "$1" ]
}

# move HOW TO: the guest goes on there, says what it has to, and is as it was. How it goes is a
# function that has the receiver's command line in $receiver.
move() {
    local from=$here to=$2 before receiver report=$CONSOLES/move$((moves + 1)).json
    before=$(seen_before "$to")
    moves=$((moves + 1))
    await "$to"
    $1 "$from" "$to" "$report"
    if [ "$from" = hosta ]; then
        vmrun_ends web 0
    else
        wait_for "the source's vmrun to end" is_state "$from" web ''
    fi
    vmrun=$awaiting
    here=$to
    assert_state "$to" web running
    before_talk=$(exchanges)
    wait_for "the same ssh session to go on" talked $((before_talk + 40))
    assert_no_trouble "web$moves"
    assert_locked
    assert_console
    figures "$from to $to, ${1/_/ }" "$report"
    say "  longest standstill by the guest's own clock: $(standstill "web$moves") ms; $(wall_clock)"
    assert_announced "$to" "$before"
}

# await HOST: who is to receive the guest there. On hosta a vmrun of ours, whose end we see; on
# hostb one that mig-recv starts.
await() {
    local consoles="--console file:$(console "web$moves") --virtio-console unix:$HVC"
    # Its disk is at one place on both hosts.
    local files="--files-in $CONSOLES"
    receiver="mig-recv -q $consoles $files"
    awaiting=
    [ "$1" = hosta ] || return 0
    # What was there belongs to the vmrun that has just ended.
    rm -f $HVC
    setsid vmrun --name web --incoming $consoles $files </dev/null >"$CONSOLES/web$moves.log" 2>&1 &
    awaiting=$!
    wait_for "a vmrun that waits" is_state hosta web incoming
    receiver="mig-recv -q --vm web"
}

# With the handover; the source ends by itself.
both_ways() {
    expect 0 at "$1" "mig-send web exec:'ssh $2 $receiver' -q $LIMITS --report $3" >/dev/null
}

# Through a pipe; the source waits to be told how it ended.
one_way() {
    expect 0 at "$1" "set -o pipefail; mig-send web -q $LIMITS --report $3 | ssh $2 $receiver" >/dev/null
    assert_state "$1" web handed-over
    expect 0 at "$1" "mig-send -q --resolve web exec:'ssh $2 mig-recv'" >/dev/null
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

# end_watched: the guest, which is on hosta, gets all its memory again and is told to stop; all that
# was watched must be well.
end_watched() {
    local status=0 names=web n
    does_with_at_most web $TARGET || fail "the balloon was lost on the way"
    expect 0 vmctl balloon web ${MEMORY}M >/dev/null
    wait_for "the guest to have all again" does_with_at_least web $MEMORY
    touch "$CONSOLES/stop"
    wait $asker || status=$?
    say "$(cat "$CONSOLES/talk.result")"
    [ $status = 0 ] || fail "the connection to the guest was not well"
    in_guest touch /run/stop
    for n in $(seq $moves); do names="$names web$n"; done
    vmrun_ends "web$moves" 0
    the_end "web$moves"
    assert_one_clock $names
    assert_clean "$CONSOLES/web.raw"
    [[ $WORK != *files* ]] || assert_files "$CONSOLES/web.raw"
    say "powered off with status 0; its disk is clean, and its kernel has nothing to complain of"
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

# watched_moves CPUS HOW...: the whole story of a guest with so many vCPUs that goes there and back,
# each time in this way, and ends on hosta.
watched_moves() {
    local cpus=$1 how to=hostb
    shift
    need_guest_kernel
    clear_guests
    consoles
    start_watched "$cpus"
    for how in "$@"; do
        move "$how" $to
        to=$(other $to)
    done
    end_watched
}
