#!/bin/bash
# A guest that keeps the queue of a slow disk full moves 20 times. It looks at each block before it
# writes it again, so it sees a write that was lost or came late; and the disk is a loop device,
# which counts what is written to it: as much as the guest has written, so nothing came twice.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/lib/linux.sh"

MOVES=${MOVES:-20}
# Writes that the guest is to do between two moves, and requests that are at the disk as it moves.
BETWEEN=300
AT_ONCE=64
# Reads, and writes, that the disk does in a second.
PACE=200

need_guest_kernel
[ -e /dev/loop-control ] || skip "this host has no loop devices; on the machine: scripts/lab down, scripts/lab up"
clear_guests
consoles
rm -f /tmp/*.hvc
backing=$(mktemp)
truncate -s 32M "$backing"
disk=$(losetup -f --show "$backing")
trap 'losetup -d "$disk"; rm -f "$backing"' EXIT

# pace N: the disk does so many reads and writes a second for all that is started from here on. Were
# it as fast as it can be, the guest's processor would do nothing else.
pace() { echo "$(cat "/sys/block/$(basename "$disk")/dev") riops=$1 wiops=$1" >"$group/io.max"; }
cgroups=/tmp/cgroups
group=$cgroups/full-ring
mkdir -p $cgroups
mountpoint -q $cgroups || mount -t cgroup2 none $cgroups
echo +io >$cgroups/cgroup.subtree_control
mkdir -p $group
echo $$ >$group/cgroup.procs
pace $PACE

# The 512-byte sectors that were written, by a line of /sys/block/NAME/stat.
sectors() { awk '{ print $7 }'; }
on_disk() { sectors <"/sys/block/$(basename "$disk")/stat"; }

written() { tr -d '\r' 2>/dev/null <"$(console "$1")" | awk '/^writes [0-9]+ end$/ { count = $2 } END { print count + 0 }'; }
has_written() {
    [ -e "$(console "$1")" ] || return 1
    assert_no_trouble "$1"
    [ "$(written "$1")" -ge "$2" ]
}

before=$(on_disk)
make_shell_initramfs "$CONSOLES/initrd.img" \
    "$(command -v lab-witness) storm --disk /dev/vda --blocks 2048 --stop /stop >/dev/ttyS0 2>&1 &" "$(command -v lab-witness)"
boot ring0 1 '' --initrd "$CONSOLES/initrd.img" --mem 96M --disk "$disk,direct" --virtio-console "unix:$(hvc ring0)"
wait_for "the guest to write" has_written ring0 $BETWEEN
say "the disk takes $(ask ring0 'cat /sys/block/vda/mq/0/nr_tags') requests at once"

began=$SECONDS
fewest=
for n in $(seq "$MOVES"); do
    from=ring$((n - 1)) to=ring$n
    # Reads and writes that the driver has given to the disk and not got back.
    flight=$(ask $from 'cat /sys/block/vda/inflight' | awk '{ print $1 + $2 }')
    [ "$flight" -ge $AT_ONCE ] || fail "only $flight requests are at the disk"
    [ -n "$fewest" ] && [ "$fewest" -le "$flight" ] || fewest=$flight
    expect 0 mig-send $from "exec:mig-recv -q --name $to --disk disk0=$disk --console file:$(console $to) \
        --virtio-console unix:$(hvc $to)" -q --max-downtime "$DOWNTIME" --report "$CONSOLES/$to.json" >/dev/null
    if [ $n = 1 ]; then vmrun_ends $from 0; else wait_for "the source's vmrun to end" is_state hosta $from ''; fi
    wait_for "$to to write on" has_written $to $(($(written $from) + BETWEEN))
done
figures "the last of $MOVES moves in $((SECONDS - began)) s" "$CONSOLES/$to.json"

ask $to 'touch /stop' >/dev/null
pace max
wait_for "the guest to look at all blocks" said $to '^blocks whole'
guest=$(ask $to 'cat /sys/block/vda/stat' | sectors)
host=$(($(on_disk) - before))
[ "$guest" = "$host" ] || fail "the guest wrote $guest sectors, and the disk got $host"
! complaints $to | grep . || fail "the kernel complains"
say "$(grep -a '^blocks whole' "$(console $to)" | tr -d '\r'); $guest sectors written, $host on the disk"
say "moved $MOVES times with $fewest or more requests at the disk: none lost, none repeated"
expect 0 vmctl quit $to >/dev/null
