#!/bin/bash
# A guest whose disk is one drive of both hosts, as a LUN is, moves there and back. Each host has a page
# cache of its own over the drive, filled with what is there before the guest arrives, and writes
# nothing back before it is told to: then at the worst moment, when the other host has written since.
# The guest looks at each block before it writes it again.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/lib/linux.sh"

DRIVE=/dev/vda
BLOCKS=1024
# Writes that the guest is to do between two events.
BETWEEN=400

need_guest_kernel
for host in hosta hostb; do
    at $host "[ -b $DRIVE ]" || skip "$host has no $DRIVE; on the machine: scripts/lab down, scripts/lab up"
done
clear_guests
consoles

written() { tr -d '\r' 2>/dev/null <"$(console "$1")" | awk '/^writes [0-9]+ end$/ { count = $2 } END { print count + 0 }'; }
has_written() {
    [ -e "$(console "$1")" ] || return 1
    assert_no_trouble "$1"
    [ "$(written "$1")" -ge "$2" ]
}
writes_on() { wait_for "$1 to write on" has_written "$1" $(($(written "$2") + BETWEEN)); }

# old_cache HOST: the host has the drive as it is now in its page cache, and somebody keeps it open: the
# last who closes it would drop the cache.
old_cache() {
    at "$1" "exec 3<$DRIVE; dd if=$DRIVE of=/dev/null bs=1M 2>/dev/null
        setsid sleep 3600 <&3 >/dev/null 2>&1 & echo \$! >>/tmp/holders"
}

settings() {
    local host
    for host in hosta hostb; do
        at $host "echo $1 >/proc/sys/vm/dirty_writeback_centisecs; echo $2 >/proc/sys/vm/dirty_expire_centisecs"
    done
}
put_right() {
    settings 500 3000
    for host in hosta hostb; do at $host 'xargs -r kill </tmp/holders; rm -f /tmp/holders' || true; done
}

expect 0 dd if=/dev/zero of=$DRIVE bs=1M count=64 oflag=direct >/dev/null
for host in hosta hostb; do at $host "sync; echo 3 >/proc/sys/vm/drop_caches; rm -f /tmp/*.hvc /tmp/holders"; done
trap put_right EXIT
settings 0 360000

make_shell_initramfs "$CONSOLES/initrd.img" \
    "$(command -v lab-witness) storm --disk /dev/vda --writers 8 --blocks $BLOCKS --stop /stop >/dev/ttyS0 2>&1 &" \
    "$(command -v lab-witness)"
# The source's own cache is not dropped when its vmrun ends, either.
old_cache hosta
boot lun0 1 '' --initrd "$CONSOLES/initrd.img" --mem 96M --disk $DRIVE --virtio-console "unix:$(hvc lun0)"
wait_for "the guest to write" has_written lun0 $BETWEEN

here=hosta
for to in hostb hosta; do
    [ $to = hostb ] && from=lun0 name=lun1 || from=lun1 name=lun2
    old_cache $to
    # What was read into that cache is old by now.
    writes_on $from $from
    expect 0 at $here "mig-send $from exec:'ssh $to mig-recv -q --name $name --disk disk0=$DRIVE \
        --console file:$(console $name) --virtio-console unix:$(hvc $name)' -q --max-downtime $DOWNTIME \
        --report $CONSOLES/$name.json" >/dev/null
    if [ $from = lun0 ]; then vmrun_ends $from 0; else wait_for "the source's vmrun to end" is_state $here $from ''; fi
    writes_on $name $from
    # What the source still had would be written over what the guest has written since.
    at $here 'sync; blockdev --flushbufs /dev/vda' || fail "$here cannot write back"
    writes_on $name $name
    figures "$here to $to" "$CONSOLES/$name.json"
    here=$to
done

ask $name 'touch /stop' >/dev/null
wait_for "the guest to look at all blocks" said $name '^blocks whole'
assert_no_trouble $name
! complaints $name | grep . || fail "the kernel complains"
say "$(grep -a '^blocks whole' "$(console $name)" | tr -d '\r'), over two moves and two late writebacks"
expect 0 vmctl quit $name >/dev/null
