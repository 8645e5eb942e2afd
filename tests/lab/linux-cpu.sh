#!/bin/bash
# The processors of --cpu, as a stock Debian cloud kernel on AMD-V sees them: a level of x86-64, a
# feature taken away, and the baseline of both hosts, with which it moves to the other and goes on.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/lib/linux.sh"

need_guest_kernel
clear_guests
consoles

# A guest that says what it sees of its processor, and counts until it is told to stop.
tree=$(mktemp -d)
mkdir "$tree/bin"
cp "$GUEST/busybox" "$tree/bin/busybox"
cat >"$tree/init" <<'END'
#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs dev /dev
export PATH=/bin
/bin/busybox --install -s /bin
for word in $(cat /proc/cmdline); do
    case $word in count=*) eval "$word" ;; esac
done
echo "guest up: $(grep -m1 '^flags' /proc/cpuinfo) end"
n=0
while [ $n -lt "$count" ]; do
    echo "count $n"
    n=$((n + 1))
    sleep 0.1
done
dmesg -r | grep -E '^<[0-3]>' | grep -v 'No config space access function' | sed 's/^/trouble: /'
dmesg -r | grep -iE 'Call Trace|unchecked MSR' | sed 's/^/trouble: /'
echo "guest done"
poweroff -f
END
chmod +x "$tree/init"
pack "$tree" "$CONSOLES/initrd.img"
rm -rf "$tree"

# start NAME COUNT CPU: the guest, in the background.
start() { boot "$1" 1 "count=$2" --initrd "$CONSOLES/initrd.img" --mem 128M --cpu "$3"; }

# sees NAME FEATURE...: whether the guest has all of these; -FEATURE is one that it has not.
sees() {
    local name=$1 flags feature
    shift
    wait_for "$name to reach its script" said "$name" '^guest up: .* end'
    flags=$(grep -a '^guest up' "$(console "$name")" | tr -d '\r')
    for feature in "$@"; do
        case $feature in
            -*) case "$flags " in *" ${feature#-} "*) fail "$name has ${feature#-}: $flags" ;; esac ;;
            *) case "$flags " in *" $feature "*) ;; *) fail "$name has no $feature: $flags" ;; esac ;;
        esac
    done
}

# ends NAME: it switches itself off, and has nothing to complain of.
ends() {
    vmrun_ends "$1" 0
    said "$1" '^guest done' || fail "$1 did not come to its end: $(tail -3 "$(console "$1")")"
    assert_no_trouble "$1"
}

start host 1 host
sees host sse4_2 aes -svm
ends host
start level 1 x86-64-v2
sees level sse4_2 popcnt cx16 x2apic -aes -avx -svm -invtsc
ends level
start less 1 host,-aes
sees less sse4_2 -aes -vaes
ends less
start more 1 x86-64-v2,+aes
sees more sse4_2 aes -avx
ends more
say "a level, less and more: the guest has what it was given"

for host in hosta hostb; do
    at "$host" "vmctl cpu" >"$CONSOLES/$host.json"
done
vmctl cpu baseline "$CONSOLES"/host?.json >"$CONSOLES/fleet.json"
start moves 100000 "baseline:$CONSOLES/fleet.json,-aes"
sees moves sse4_2 -aes
expect 0 mig-send moves "exec:ssh hostb mig-recv -q --console file:$(console moves-there)" \
    -q --max-downtime "$DOWNTIME" >/dev/null
vmrun_ends moves 0
counts_there() { [ "$(grep -ac '^count' "$(console moves-there)")" -ge 20 ]; }
wait_for "the guest to count on" counts_there
assert_no_trouble moves-there
assert_state hostb moves running
at hostb "vmctl quit moves"
say "the baseline of both hosts: it moved and went on"
