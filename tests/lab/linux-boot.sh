#!/bin/bash
# The stock Debian cloud kernel on vmrun: it boots with 1 and 2 vCPUs to a script of its own,
# resets and switches itself off, as a bzImage and as the ELF file in it, and moves to another vmrun of this host while it counts time.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/lib/linux.sh"

need_guest_kernel
clear_guests
consoles
# What the guest runs: a busybox that counts, and then does what the command line says.
make_initrd() {
    local tree
    tree=$(mktemp -d)
    mkdir "$tree/bin"
    cp "$GUEST/busybox" "$tree/bin/busybox"
    cat >"$tree/init" <<'END'
#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
export PATH=/bin
/bin/busybox --install -s /bin
for word in $(cat /proc/cmdline); do
    case $word in count=* | end=*) eval "$word" ;; esac
done
clock() { cat /sys/devices/system/clocksource/clocksource0/current_clocksource; }
echo "guest up: $(nproc) cpus, clock $(clock), serial $(awk '/ttyS0/ { print $(NF - 1) }' /proc/interrupts)"
# One process per processor has work to do, so that each of them is in the middle of something.
for cpu in $(seq $(nproc)); do while :; do sleep 0.01; done & done
n=0
while [ $n -lt "$count" ]; do
    echo "count $n uptime $(cut -d' ' -f1 /proc/uptime) wall $(date +%s)"
    n=$((n + 1))
    sleep 0.1
done
echo "guest end: clock $(clock)"
# Errors and worse. That there is no PCI is one to Linux.
dmesg -r | grep -E '^<[0-3]>' | grep -v 'No config space access function' | sed 's/^/trouble: /'
dmesg -r | grep -iE 'rcu.*stall|soft lockup|Marking clocksource|Call Trace' | sed 's/^/trouble: /'
echo "guest done"
$end -f
END
    chmod +x "$tree/init"
    pack "$tree" "$CONSOLES/initrd.img"
    rm -rf "$tree"
}

# start NAME CPUS COUNT END: the guest, in the background.
start() { boot "$1" "$2" "count=$3 end=$4" --initrd "$CONSOLES/initrd.img" --mem 128M; }

# The whole lines of a counter on a console, as: number, uptime, wall clock.
counted() {
    tr -d '\r' <"$(console "$1")" | awk '/^count [0-9]+ uptime [0-9.]+ wall [0-9]+$/ { print $2, $4, $6 }'
}
has_counted() { [ "$(counted "$1" 2>/dev/null | wc -l)" -ge "$2" ]; }

make_initrd

for cpus in 1 2; do
    start "boot$cpus" $cpus 3 poweroff
    wait_for "boot$cpus to reach its script" said "boot$cpus" '^guest up'
    said "boot$cpus" "^guest up: $cpus cpus, clock kvm-clock, serial 4-edge" ||
        fail "not the machine that was asked for: $(grep -a '^guest up' "$(console "boot$cpus")")"
    vmrun_ends "boot$cpus" 0
    the_end "boot$cpus"
    say "$cpus vCPU(s): booted, and powered off with status 0"
done

"$LAB_TESTS/lib/vmlinux" "$GUEST/vmlinuz" /tmp/vmlinux
KERNEL=/tmp/vmlinux start elf 1 3 poweroff
vmrun_ends elf 0
the_end elf
said elf '^guest up: 1 cpus, clock kvm-clock' || fail "the ELF kernel is not the machine that was asked for"
say "vmlinux, the same kernel as an ELF file: booted, and powered off with status 0"

start reset 1 1 reboot
vmrun_ends reset 3
the_end reset
say "reboot: vmrun says so by status 3"

for cpus in 1 2; do
    name=move$cpus
    start $name $cpus 80 poweroff
    wait_for "$name to count" has_counted $name 20
    report=$CONSOLES/$name.json
    # The source's socket has the name, so the destination gets another here.
    expect 0 mig-send $name "exec:mig-recv -q --name $name-there --console file:$(console $name-there)" \
        -q --max-downtime "$DOWNTIME" --report "$report" >/dev/null
    vmrun_ends $name 0
    wait_for "$name to go on" has_counted $name-there 20
    wait_for "$name to come to its end" said $name-there '^guest done'
    the_end $name-there
    wait_for "$name's second vmrun to end" is_state hosta $name-there ''
    # One counter on two consoles: a line may be cut in two by the move, and only that one.
    { counted $name && counted $name-there; } | awk '
        NR > 1 && $1 != last + 1 && !($1 == last + 2 && cut++ == 0) { print $1 " follows " last; exit 1 }
        NR > 1 && ($2 <= uptime || $3 < wall) { print "time goes back at " $1; exit 1 }
        NR > 1 && $2 - uptime > gap { gap = $2 - uptime }
        { last = $1; uptime = $2; wall = $3 }
        END { if (last != 79) { print "the last is " last; exit 1 }
              printf "  longest gap between two lines, by the guest: %.2f s\n", gap }' ||
        fail "the counter of $name is not one story"
    figures "$cpus vCPU(s), moved while counting" "$report"
done
say "Linux boots, moves, and ends by itself"
