#!/bin/bash
# The stock Debian cloud kernel with a virtio console and a balloon: a shell answers on hvc0, memory
# that the guest frees or is asked for goes back to the host, and a move carries none of it.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/lib/linux.sh"

# What the guest has, and is asked to do with (MiB).
MEMORY=192
TARGET=112
# How fast it moves while it gives memory back.
SLOWLY=4M

need_guest_kernel
clear_guests
consoles
rm -f /tmp/*.hvc

# answers NAME WANTED COMMAND
answers() {
    local said
    said=$(ask "$1" "$3") || fail "hvc0 of $1 is dead"
    [ "$said" = "$2" ] || fail "'$3' in $1 says '$said' instead of '$2'"
}

pid_of() { vmctl --json status "$1" | grep -o '"pid":[0-9]*' | cut -d: -f2; }

# How much of the guest's memory this host has set apart, in MiB: the blocks of its memory files.
resident() {
    local fd
    for fd in /proc/"$(pid_of "$1")"/fd/*; do
        case $(readlink "$fd") in
        /memfd:guest-memory-*) stat -Lc '%i %b' "$fd" ;;
        esac
    done | sort -u | awk '{ blocks += $2 } END { print int(blocks / 2048) }'
}
# What a move has sent, in MiB.
sent_mib() { python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["totals"]["sent_bytes"] >> 20)' "$1"; }

sends_memory() { vmctl info "$1" 2>/dev/null | grep -q 'round'; }

is_below() { [ "$(resident "$1")" -lt "$2" ]; }

make_shell_initramfs "$CONSOLES/initrd.img" 'mkdir /mem; mount -t tmpfs -o size=80% tmpfs /mem'
began=$SECONDS
boot devices 1 '' --initrd "$CONSOLES/initrd.img" --mem ${MEMORY}M --virtio-console "unix:$(hvc devices)" --balloon
wait_for "the guest to come up" said devices '^guest up'
answers devices 42 'echo $((6 * 7))'
say "a shell answers on hvc0 after $((SECONDS - began)) s"

# Something that is there before and after, and something that goes.
ask devices 'cat /bin/busybox /bin/busybox >/mem/kept' >/dev/null
sum=$(ask devices 'md5sum </mem/kept')
ask devices 'for n in $(seq 28); do cat /bin/busybox; done >/mem/gone' >/dev/null
size=$(($(ask devices 'stat -c %s /mem/gone') / 1048576))
full=$(resident devices)
ask devices 'rm /mem/gone' >/dev/null
# The kernel reports blocks of 2 MiB and more; how many there are is chance, but a third is not.
wait_for "memory to come back of the $size MiB that the guest has freed" is_below devices $((full - size / 3))
freed=$(resident devices)
say "free page reporting: the guest freed $size MiB, and its memory file shrank from $full to $freed MiB"

expect 0 vmctl balloon devices ${TARGET}M >/dev/null
wait_for "the guest to do with $TARGET MiB" does_with_at_most devices $TARGET
asked=$(resident devices)
[ "$asked" -le $TARGET ] || fail "a guest that does with $TARGET MiB has $asked MiB of the host's memory"
answers devices "$sum" 'md5sum </mem/kept'
say "vmctl balloon: the guest does with $(does_with devices) of $MEMORY MiB, and has $asked MiB of the host's"

report=$CONSOLES/devices.json
expect 0 mig-send devices "exec:mig-recv -q --name there --console file:$(console there) \
    --virtio-console unix:$(hvc there)" -q --verify --max-downtime "$DOWNTIME" --report "$report" >/dev/null
vmrun_ends devices 0
figures "moved, with every byte compared" "$report"
sent=$(sent_mib "$report")
carried=$sent
[ "$sent" -lt "$freed" ] || fail "the move carried $sent MiB of a guest that has $asked MiB"
say "the move carried $sent MiB of the $full MiB that the guest had before it gave some back"

answers there "$sum" 'md5sum </mem/kept'
[ "$(does_with there)" -le $TARGET ] || fail "the balloon was lost on the way: $(does_with there) MiB"
expect 0 vmctl balloon there ${MEMORY}M >/dev/null
wait_for "the guest to have all again" does_with_at_least there $MEMORY
ask there 'for n in $(seq 28); do cat /bin/busybox; done >/mem/again' >/dev/null
answers there 28 'n=0; for n in $(seq 28); do head -c $(stat -c %s /bin/busybox) | cmp - /bin/busybox || break; done </mem/again; echo $n'

# What the guest gives back while it moves is not sent either: the move is slow enough for it to have
# most still before it.
full=$(resident there)
report=$CONSOLES/there.json
mig-send there "exec:mig-recv -q --name last --console file:$(console last) --virtio-console unix:$(hvc last)" \
    -q --verify --max-bandwidth $SLOWLY --max-downtime "$DOWNTIME" --report "$report" >"$CONSOLES/slow.log" 2>&1 &
sender=$!
wait_for "the move to begin" sends_memory there
ask there 'rm /mem/again' >/dev/null
wait $sender || fail "the slow move failed: $(cat "$CONSOLES/slow.log")"
figures "moved while memory went back, at $SLOWLY a second" "$report"
sent=$(sent_mib "$report")
# What the first move carried, and what was written since, would be all of it.
[ "$sent" -lt $((carried + size - size / 3)) ] ||
    fail "the move sent $sent MiB, of $((carried + size)), of which $size were freed"
say "of $((carried + size)) MiB to send the guest freed $size while it moved, and $sent were sent"
answers last "$sum" 'md5sum </mem/kept'
! complaints last | grep . || fail "the kernel complains"
for name in devices there last; do assert_no_trouble $name; done
say "after both: hvc0 answers, what was kept is whole, and what was given back is the guest's again"
expect 0 vmctl quit last >/dev/null
