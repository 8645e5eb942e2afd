#!/bin/bash
# The stock Debian cloud kernel with a virtio console and a balloon: a shell answers on hvc0, memory
# that the guest frees or is asked for goes back to the host, and a move carries none of it.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/lib/linux.sh"

# What the guest has, and is asked to do with (MiB).
MEMORY=192
TARGET=112

need_guest_kernel
clear_guests
consoles
# A socket cannot be on what the two hosts share.
hvc() { echo "/tmp/$1.hvc"; }
rm -f /tmp/*.hvc

# What the guest runs: a shell on hvc0 that begins again when it ends.
make_initrd() {
    local tree
    tree=$(mktemp -d)
    mkdir -p "$tree/bin"
    cp "$GUEST/busybox" "$tree/bin/busybox"
    cp -r "$GUEST/modules" "$tree/modules"
    cat >"$tree/init" <<'END'
#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /mem
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t tmpfs -o size=80% tmpfs /mem
export PATH=/bin
/bin/busybox --install -s /bin
while read -r module; do insmod "/modules/$module.ko" || echo "trouble: no module $module"; done </modules/order
until [ -c /dev/hvc0 ]; do sleep 0.1; done
echo "guest up"
while :; do setsid -c sh </dev/hvc0 >/dev/hvc0 2>&1; done
END
    chmod +x "$tree/init"
    pack "$tree" "$CONSOLES/initrd.img"
    rm -rf "$tree"
}

# ask NAME COMMAND: what the shell on the guest's hvc0 answers.
ask() {
    PATIENCE=$PATIENCE python3 - "$(hvc "$1")" "$2" <<'END'
import os, re, socket, sys
path, command = sys.argv[1:]
shell = socket.socket(socket.AF_UNIX)
shell.settimeout(int(os.environ["PATIENCE"]))
shell.connect(path)
number = os.getpid()
# The sums are the shell's: its echo of what is typed does not have them.
shell.sendall(f"echo from-$(({number}+1)); {command}; echo to-$(({number}+1))\n".encode())
text, answer = b"", None
while not answer:
    try:
        piece = shell.recv(65536)
    except TimeoutError:
        piece = b""
    if not piece:
        sys.exit(f"no answer to '{command}': {text!r}")
    text += piece
    answer = re.search(rb"from-%d\r?\n(.*)to-%d\r?\n" % (number + 1, number + 1), text, re.DOTALL)
print(answer[1].decode().replace("\r", "").strip())
END
}

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
is_below() { [ "$(resident "$1")" -lt "$2" ]; }

# What the guest says that it does with, in MiB.
does_with() { vmctl --json status "$1" | grep -o '"actual_bytes":[0-9]*' | awk -F: '{ print int($2 / 2^20) }'; }
has_given() { [ "$(does_with "$1")" -le "$2" ]; }
has_again() { [ "$(does_with "$1")" -ge "$2" ]; }

make_initrd
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
wait_for "the guest to do with $TARGET MiB" has_given devices $TARGET
asked=$(resident devices)
[ "$asked" -le $TARGET ] || fail "a guest that does with $TARGET MiB has $asked MiB of the host's memory"
answers devices "$sum" 'md5sum </mem/kept'
say "vmctl balloon: the guest does with $(does_with devices) of $MEMORY MiB, and has $asked MiB of the host's"

report=$CONSOLES/devices.json
expect 0 mig-send devices "exec:mig-recv -q --name there --console file:$(console there) \
    --virtio-console unix:$(hvc there)" -q --verify --max-downtime "$DOWNTIME" --report "$report" >/dev/null
vmrun_ends devices 0
figures "moved, with every byte compared" "$report"
sent=$(grep -o '"sent_bytes":[ ]*[0-9]*' "$report" | awk -F: '{ if ($2 > most) most = $2 } END { print int(most / 2^20) }')
[ "$sent" -lt "$freed" ] || fail "the move carried $sent MiB of a guest that has $asked MiB"
say "the move carried $sent MiB of the $full MiB that the guest had before it gave some back"

answers there "$sum" 'md5sum </mem/kept'
[ "$(does_with there)" -le $TARGET ] || fail "the balloon was lost on the way: $(does_with there) MiB"
expect 0 vmctl balloon there ${MEMORY}M >/dev/null
wait_for "the guest to have all again" has_again there $MEMORY
ask there 'for n in $(seq 28); do cat /bin/busybox; done >/mem/again' >/dev/null
answers there 28 'n=0; for n in $(seq 28); do head -c $(stat -c %s /bin/busybox) | cmp - /bin/busybox || break; done </mem/again; echo $n'
! ask there 'dmesg -r | grep -E "^<[0-3]>" | grep -v "No config space access function"' | grep . ||
    fail "the kernel complains"
assert_no_trouble devices
assert_no_trouble there
say "there: hvc0 answers, what was kept is whole, and what was given back is the guest's again"
expect 0 vmctl quit there >/dev/null
