#!/bin/bash
# The stock Debian cloud kernel on vmrun: it boots with 1 and 2 vCPUs to a script of its own,
# resets and switches itself off, and moves to another vmrun of this host while it counts time.
. "$(dirname "$0")/lib.sh"

# A kernel boots in 10 s on an idle lab, and in several times that on a busy one.
[ "$PATIENCE" -ge 180 ] || PATIENCE=180

GUEST=${LAB_GUEST:-/lab/guest}
[ -s "$GUEST/vmlinuz" ] && [ -x "$GUEST/busybox" ] ||
    skip "no guest kernel and busybox in $GUEST; on the machine: scripts/lab down, scripts/lab up"

# Emulated AMD-V does not tell KVM of XSETBV, so that a kernel that uses XSAVE there finds sizes
# which do not fit, warns, and goes on without; it may as well not begin.
APPEND='console=ttyS0 panic=-1 quiet noxsave'

clear_guests
consoles
console() { echo "$CONSOLES/$1.console"; }

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
    (cd "$tree" && find . | ./bin/busybox cpio -o -H newc 2>/dev/null | gzip -1) >"$CONSOLES/initrd.img"
    rm -rf "$tree"
}

# start NAME CPUS COUNT END: the guest, in the background; its vmrun is $vmrun.
start() {
    setsid vmrun --name "$1" --kernel "$GUEST/vmlinuz" --initrd "$CONSOLES/initrd.img" \
        --append "$APPEND count=$3 end=$4" --mem 128M --cpus "$2" --console "file:$(console "$1")" \
        </dev/null >"$CONSOLES/$1.log" 2>&1 &
    vmrun=$!
}

said() { grep -aq "$2" "$(console "$1")" 2>/dev/null; }

# The whole lines of a counter on a console, as: number, uptime, wall clock.
counted() {
    tr -d '\r' <"$(console "$1")" | awk '/^count [0-9]+ uptime [0-9.]+ wall [0-9]+$/ { print $2, $4, $6 }'
}
has_counted() { [ "$(counted "$1" 2>/dev/null | wc -l)" -ge "$2" ]; }

# ends NAME STATUS: vmrun ends with it, and the guest had nothing to complain about.
ends() {
    local until=$((SECONDS + PATIENCE)) status=0
    while kill -0 $vmrun 2>/dev/null; do
        [ $SECONDS -lt $until ] || fail "vmrun of $1 does not end: $(tail -3 "$(console "$1")")"
        sleep 0.2
    done
    wait $vmrun || status=$?
    [ $status = "$2" ] || fail "vmrun of $1 ended with $status: $(cat "$CONSOLES/$1.log")"
    said "$1" '^guest done' || fail "$1 did not come to its end: $(tail -3 "$(console "$1")")"
    assert_no_trouble "$1"
}

assert_no_trouble() {
    ! grep -a '^trouble:' "$(console "$1")" || fail "the kernel of $1 complains"
}

make_initrd

for cpus in 1 2; do
    start "boot$cpus" $cpus 3 poweroff
    wait_for "boot$cpus to reach its script" said "boot$cpus" '^guest up'
    said "boot$cpus" "^guest up: $cpus cpus, clock kvm-clock, serial 4-edge" ||
        fail "not the machine that was asked for: $(grep -a '^guest up' "$(console "boot$cpus")")"
    ends "boot$cpus" 0
    say "$cpus vCPU(s): booted, and powered off with status 0"
done

start reset 1 1 reboot
ends reset 3
say "reboot: vmrun says so by status 3"

for cpus in 1 2; do
    name=move$cpus
    start $name $cpus 80 poweroff
    wait_for "$name to count" has_counted $name 20
    report=$CONSOLES/$name.json
    # The source's socket has the name, so the destination gets another here.
    expect 0 mig-send $name "exec:mig-recv -q --name $name-there --console file:$(console $name-there)" \
        -q --max-downtime "$DOWNTIME" --report "$report" >/dev/null
    status=0
    wait $vmrun || status=$?
    [ $status = 0 ] || fail "the source's vmrun ended with $status: $(cat "$CONSOLES/$name.log")"
    wait_for "$name to go on" has_counted $name-there 20
    wait_for "$name to come to its end" said $name-there '^guest done'
    said $name-there '^guest end: clock kvm-clock' || fail "$name has changed its clock"
    assert_no_trouble $name-there
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
