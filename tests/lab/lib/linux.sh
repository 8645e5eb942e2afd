# Stock Linux guests with a disk, a network card and randomness. Sourced after lib.sh by tests that
# have called `consoles`.

LAB_TESTS=$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")
GUEST=${LAB_GUEST:-/lab/guest}
GUEST_ADDRESS=10.77.0.50
GUEST_MAC=52:54:00:77:00:50

# Emulated AMD-V does not tell KVM of XSETBV, so that a kernel that uses XSAVE there finds sizes
# which do not fit, warns, and goes on without; it may as well not begin.
APPEND='console=ttyS0 panic=-1 quiet noxsave'

need_guest_kernel() {
    [ -s "$GUEST/vmlinuz" ] && [ -x "$GUEST/busybox" ] ||
        skip "no guest kernel and busybox in $GUEST; on the machine: scripts/lab down, scripts/lab up"
}

# said NAME REGEX: whether the guest has said it on this console.
said() { grep -aq "$2" "$(console "$1")" 2>/dev/null; }

assert_no_trouble() {
    ! grep -a '^trouble:\|^ERROR' "$(console "$1")" || fail "$1 complains"
}

# pack TREE FILE: an initramfs of it.
pack() { (cd "$1" && find . | "$GUEST/busybox" cpio -o -H newc 2>/dev/null | gzip -1) >"$2"; }

# make_initramfs FILE: the one that goes on from a disk.
make_initramfs() {
    local tree
    tree=$(mktemp -d)
    mkdir "$tree/bin"
    cp "$GUEST/busybox" "$tree/bin/"
    cp -r "$GUEST/modules" "$tree/modules"
    cp "$LAB_TESTS/guest/initramfs" "$tree/init"
    pack "$tree" "$1"
    rm -rf "$tree"
}

# make_shell_initramfs FILE COMMANDS PROGRAM...: one whose guest loads its modules, runs COMMANDS, says
# that it is up, and answers by a shell on hvc0 that begins again when it ends. It has these programs.
make_shell_initramfs() {
    local tree file=$1 commands=$2
    shift 2
    tree=$(mktemp -d)
    mkdir -p "$tree/bin"
    cp "$GUEST/busybox" "$tree/bin/busybox"
    cp -r "$GUEST/modules" "$tree/modules"
    [ $# = 0 ] || with_libraries "$tree" "$@"
    cat >"$tree/init" <<END
#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
export PATH=/bin
/bin/busybox --install -s /bin
while read -r module; do insmod "/modules/\$module" || echo "trouble: no module \$module"; done </modules/order
until [ -c /dev/hvc0 ]; do sleep 0.1; done
$commands
echo "guest up"
while :; do setsid -c sh </dev/hvc0 >/dev/hvc0 2>&1; done
END
    chmod +x "$tree/init"
    pack "$tree" "$file"
    rm -rf "$tree"
}

# Where the virtio console of a guest on this host is: a socket cannot be on what the two hosts share.
hvc() { echo "/tmp/$1.hvc"; }

# ask NAME COMMAND: what the shell on that guest's hvc0 answers.
ask() { "$LAB_TESTS/lib/ask" "$(hvc "$1")" "$2" "$HANG_TIMEOUT"; }

# with_libraries TREE PROGRAM...: copies programs of this host with all that they load.
with_libraries() {
    local tree=$1 file
    shift
    for file in "$@" $(ldd "$@" | grep -o '/[^ ]*\.so[^ ]*' | sort -u); do
        mkdir -p "$tree$(dirname "$file")"
        cp -L "$file" "$tree$file"
    done
}

# make_disk IMAGE: a raw image with ext4 on it and a small system: busybox, a real sshd that takes
# this host's key, and the tests' witness.
make_disk() {
    local tree image
    tree=$(mktemp -d)
    mkdir -p "$tree"/{bin,sbin,usr/bin,usr/sbin,proc,sys,dev,run,tmp,etc/ssh,root/.ssh}
    cp "$GUEST/busybox" "$tree/bin/"
    chroot "$tree" /bin/busybox --install -s /bin
    with_libraries "$tree" /usr/sbin/sshd "$(command -v lab-witness)"
    ln -s "$(command -v lab-witness)" "$tree/usr/bin/lab-witness"
    install -m 755 "$LAB_TESTS/guest/init" "$tree/sbin/init"
    add_sshd "$tree"
    make_ext4 "$tree" "$1"
    rm -rf "$tree"
}

# add_sshd TREE: users, keys and configuration for a sshd in it.
add_sshd() {
    local tree=$1
    printf '%s\n' 'root:x:0:0:root:/root:/bin/sh' 'sshd:x:100:100::/run/sshd:/bin/false' >"$tree/etc/passwd"
    printf '%s\n' 'root:x:0:' 'sshd:x:100:' >"$tree/etc/group"
    echo 'passwd: files' >"$tree/etc/nsswitch.conf"
    install -d -m 700 "$tree/root" "$tree/root/.ssh"
    install -m 600 /root/.ssh/authorized_keys "$tree/root/.ssh/authorized_keys"
    install -m 600 /etc/ssh/lab_host_key "$tree/etc/ssh/lab_host_key"
    # The hosts' own configuration, without what it says of a host.
    grep -v '^SetEnv\|^Subsystem' /etc/ssh/lab_sshd_config >"$tree/etc/ssh/sshd_config"
    echo "SetEnv PATH=/bin:/sbin:/usr/bin:/usr/sbin" >>"$tree/etc/ssh/sshd_config"
    cat >"$CONSOLES/ssh_config" <<END_OF_CONFIG
Host web
    HostName $GUEST_ADDRESS
    HostKeyAlias hosta
    User root
    LogLevel ERROR
END_OF_CONFIG
}

# make_ext4 TREE IMAGE: built in memory, since a network file system is slow at small writes.
make_ext4() {
    local image
    image=$(mktemp)
    mke2fs -q -t ext4 -d "$1" "$image" 256M
    cp --sparse=always "$image" "$2"
    rm -f "$image"
}

# in_guest COMMAND: on the guest, by ssh, wherever it runs.
in_guest() { ssh -F "$CONSOLES/ssh_config" web "$@"; }

# boot NAME CPUS WORDS ARGUMENTS...: starts a guest with a kernel command line that ends in WORDS,
# in the background; its vmrun is $vmrun. Its kernel is the stock bzImage, or $KERNEL.
boot() {
    local name=$1 cpus=$2 words=$3
    shift 3
    setsid vmrun --name "$name" --kernel "${KERNEL:-$GUEST/vmlinuz}" --append "$APPEND $words" --cpus "$cpus" \
        --console "file:$(console "$name")" "$@" </dev/null >"$CONSOLES/$name.log" 2>&1 &
    vmrun=$!
}

# What the guest says that it does with, in MiB.
does_with() { vmctl --json status "$1" | grep -o '"actual_bytes":[0-9]*' | awk -F: '{ print int($2 / 2^20) }'; }
does_with_at_most() { [ "$(does_with "$1")" -le "$2" ]; }
does_with_at_least() { [ "$(does_with "$1")" -ge "$2" ]; }

# vmrun_ends NAME STATUS: the vmrun that was started last ends with it.
vmrun_ends() {
    local until=$((SECONDS + HANG_TIMEOUT)) status=0
    while kill -0 $vmrun 2>/dev/null; do
        [ $SECONDS -lt $until ] || fail "vmrun of $1 does not end: $(tail -3 "$(console "$1")")"
        sleep 0.2
    done
    wait $vmrun || status=$?
    [ $status = "$2" ] || fail "vmrun of $1 ended with $status: $(cat "$CONSOLES/$1.log")"
}

# complaints NAME: what the kernel of a guest with a shell on hvc0 has to complain of. That there is
# no PCI is an error to Linux.
complaints() {
    ask "$1" 'dmesg -r | grep -E "^<[0-3]>|rcu.*stall|soft lockup|Call Trace|I/O error" |
        grep -v "No config space access function"'
}

# the_end NAME: what the guest said at its end is on this console, and nothing is wrong.
the_end() {
    said "$1" '^guest done' || fail "$1 did not come to its end: $(tail -3 "$(console "$1")")"
    said "$1" '^guest end: clock kvm-clock' || fail "$1 has changed its clock"
    assert_no_trouble "$1"
}

# assert_clean IMAGE: the file system of a guest that is off, seen from outside.
assert_clean() {
    expect 0 e2fsck -fn "$1" >/dev/null
}

# assert_files IMAGE: the files that a guest wrote there, and their sums, read from outside.
assert_files() {
    local tree
    tree=$(mktemp -d)
    expect 0 debugfs -R "rdump /data $tree" "$1" >/dev/null
    [ -s "$tree/data/SUMS" ] || fail "there are no files on $1"
    (cd "$tree/data" && sha256sum -c --quiet SUMS) || fail "files on $1 are damaged"
    awk '$2 != NR - 1 { exit 1 }' "$tree/data/SUMS" || fail "files on $1 are missing or repeated"
    say "$(wc -l <"$tree/data/SUMS") files on the disk, all as they were written"
    rm -rf "$tree"
}
