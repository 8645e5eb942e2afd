# Starting, reaching and ending the two hosts: sourced by scripts/lab.

HOSTS="hosta hostb"
# What a real host needs and an emulated one only pays for.
KERNEL_WORDS="mitigations=off nowatchdog no_timer_check tsc=reliable ipv6.disable=1 net.ifnames=0"

peer_of() {
    case $1 in hosta) echo hostb ;; *) echo hosta ;; esac
}

# The process of a host, if it runs; a stale file that names another process does not count.
host_pid() {
    local pid
    pid=$(cat "$LAB_DIR/$1/pid" 2>/dev/null) || return 1
    grep -qsaF "$LAB_DIR/$1/" "/proc/$pid/cmdline" || return 1
    echo "$pid"
}

make_keys() {
    local keys=$LAB_DIR/export/keys host
    mkdir -p "$keys"
    ssh-keygen -q -t ed25519 -N '' -C lab -f "$keys/user"
    for host in $HOSTS; do
        ssh-keygen -q -t ed25519 -N '' -C "$host" -f "$keys/$host"
        echo "$host,$(host_address "$host") $(cut -d' ' -f1,2 "$keys/$host.pub")"
    done >"$keys/known_hosts"
    cat >"$LAB_DIR/ssh_config" <<END
Host hosta hostb
    User root
    IdentityFile $keys/user
    IdentitiesOnly yes
    UserKnownHostsFile $keys/known_hosts
    GlobalKnownHostsFile /dev/null
    StrictHostKeyChecking yes
    ProxyCommand $LAB_CODE/port connect $LAB_DIR/%h/port
    ProxyUseFdpass yes
    ControlPath $LAB_DIR/%h/ssh
    LogLevel ERROR
    ServerAliveInterval 0
END
}

host_address() {
    case $1 in hosta) echo 10.77.0.1 ;; *) echo 10.77.0.2 ;; esac
}

make_initrd() {
    local tree=$LAB_DIR/initrd
    mkdir -p "$tree/bin" "$tree/etc"
    cp "$BUSYBOX" "$tree/bin/busybox"
    cp -r "$CACHE/modules" "$tree/modules"
    cp "$LAB_CODE/init" "$tree/init"
    cp "$LAB_CODE/inittab" "$tree/etc/inittab"
    (cd "$tree" && find . | "$BUSYBOX" cpio -o -H newc 2>/dev/null) >"$LAB_DIR/initrd.img"
    rm -rf "$tree"
}

# What both hosts are made from. Nothing here is written while they run.
prepare() {
    mkdir -p "$LAB_DIR/export" "$LAB_DIR/shared" "$LAB_DIR/logs"
    cp -r "$LAB_CODE" "$LAB_DIR/export/code"
    cp -r "$SSHD_TREE" "$LAB_DIR/export/sshd"
    cp -r "$GUEST" "$LAB_DIR/export/guest"
    cat >"$LAB_DIR/export/config" <<END
REPO='$REPO'
LAB_MTU='$LAB_MTU'
LAB_SHMEM_HUGE='$LAB_SHMEM_HUGE'
END
    truncate -s 64M "$LAB_DIR/drive.raw"
    make_keys
    make_initrd
}

# Starts one host's machine. The link between the two is a pair of datagram sockets in the lab's
# directory: no port of this machine is opened, and either host can come back alone.
start_host() {
    local host=$1 peer number
    peer=$(peer_of "$host")
    case $host in hosta) number=1 ;; *) number=2 ;; esac
    mkdir -p "$LAB_DIR/$host/own"
    rm -f "$LAB_DIR/$host/own/up" "$LAB_DIR/$host/ssh"
    local share=security_model=none,multidevs=remap
    local machine=(
        qemu-system-x86_64 -name "$host" -nodefaults -display none -no-reboot
        -accel tcg,thread=multi -cpu EPYC-Milan,+svm,+npt -smp "$LAB_CPUS" -m "$LAB_MEM"
        -kernel "$KERNEL" -initrd "$LAB_DIR/initrd.img"
        -append "console=ttyS0 quiet panic=-1 $KERNEL_WORDS lab.host=$host lab.peer=$peer $LAB_APPEND"
        -serial "file:$LAB_DIR/$host/console.log"
        -monitor "unix:$LAB_DIR/$host/monitor,server=on,wait=off"
        -virtfs "local,path=/,mount_tag=root,readonly=on,$share"
        -virtfs "local,path=$LAB_DIR/export,mount_tag=lab,readonly=on,$share"
        -virtfs "local,path=$LAB_DIR/$host/own,mount_tag=own,$share"
        -virtfs "local,path=$LAB_DIR/shared,mount_tag=shared,$share"
        -virtfs "local,path=$MIGPIPE_BIN,mount_tag=bin,readonly=on,$share"
        -virtfs "local,path=$REPO,mount_tag=repo,readonly=on,$share"
        # One drive on both hosts, as a LUN is: each has a page cache of its own over it.
        -drive "file=$LAB_DIR/drive.raw,format=raw,if=none,id=drive,file.locking=off"
        -device virtio-blk-pci,drive=drive,share-rw=on
        -device virtio-serial-pci
        -chardev "socket,id=port,path=$LAB_DIR/$host/port,server=on,wait=off"
        -device virtserialport,chardev=port,name=lab
        -netdev "dgram,id=link,local.type=unix,local.path=$LAB_DIR/$host/link,remote.type=unix,remote.path=$LAB_DIR/$peer/link"
        -device "virtio-net-pci,netdev=link,romfile=,mac=52:54:00:77:00:0$number"
    )
    printf '%s\n' "${machine[@]}" >"$LAB_DIR/$host/command"
    setsid nice -n "$LAB_NICE" "${machine[@]}" </dev/null >"$LAB_DIR/$host/qemu.log" 2>&1 &
    echo $! >"$LAB_DIR/$host/pid"
}

# ssh to a host over its port: the first call makes the connection, all others share it.
on() {
    local host=$1
    shift
    ssh -F "$LAB_DIR/ssh_config" "$host" "$@"
}

wait_host() {
    local host=$1 until=$((SECONDS + LAB_TIMEOUT))
    until [ -e "$LAB_DIR/$host/own/up" ]; do
        # By its number alone: it may not have become QEMU yet.
        kill -0 "$(cat "$LAB_DIR/$host/pid")" 2>/dev/null ||
            die "$host ended while booting: $(why "$host")"
        [ $SECONDS -lt $until ] || die "$host is not up after $LAB_TIMEOUT s: $(why "$host")"
        sleep 0.1
    done
    connect "$host"
}

wait_hosts() {
    local host pids=() pid
    for host in $HOSTS; do
        wait_host "$host" &
        pids+=($!)
    done
    for pid in "${pids[@]}"; do wait "$pid" || exit 1; done
}

# One ssh connection a host, kept open in the background; the shells and jobs are its sessions.
connect() {
    ssh -F "$LAB_DIR/ssh_config" -O check "$1" 2>/dev/null && return
    rm -f "$LAB_DIR/$1/ssh"
    local until=$((SECONDS + LAB_TIMEOUT))
    until timeout "$LAB_TIMEOUT" ssh -F "$LAB_DIR/ssh_config" -o ControlMaster=yes \
        -o ControlPersist=yes -fN "$1" </dev/null >"$LAB_DIR/$1/ssh.log" 2>&1; do
        [ $SECONDS -lt $until ] ||
            die "no ssh connection to $1: $(tail -1 "$LAB_DIR/$1/ssh.log"); see $LAB_DIR/$1"
        sleep 0.5
    done
}

why() {
    tail -n 3 "$LAB_DIR/$1/console.log" "$LAB_DIR/$1/qemu.log" 2>/dev/null | tr '\n' ' '
}

running() {
    host_pid "$1" >/dev/null && [ -e "$LAB_DIR/$1/own/up" ]
}

# Takes the power from a host: nothing in it gets a chance to finish.
stop_host() {
    local pid
    ssh -F "$LAB_DIR/ssh_config" -O exit "$1" 2>/dev/null || true
    pid=$(host_pid "$1") || return 0
    kill -9 "$pid"
    while kill -0 "$pid" 2>/dev/null && host_pid "$1" >/dev/null; do sleep 0.05; done
    rm -f "$LAB_DIR/$1/pid" "$LAB_DIR/$1/own/up"
}
