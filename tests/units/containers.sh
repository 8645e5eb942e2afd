# Sourced by scripts/units and scripts/newcomer: two hosts, each a container with a systemd, a logind and
# an sshd of its own, an Ethernet between them, and guests of this machine's KVM. A script that uses it
# says with `me` what it is called.

HANG_TIMEOUT=${HANG_TIMEOUT:-600}

skip() {
    echo "SKIPPED $me: $*" >&2
    exit 77
}
say() { echo "$me: $*"; }
fail() {
    echo "$me: FAILED: $*" >&2
    exit 1
}

cache=${XDG_CACHE_HOME:-$HOME/.cache}/migpipe-units
codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
# What the hosts are made of.
debian=$cache/$codename-ssh
declare -A supervisor=()
declare -A address=([hosta]=10.77.0.1 [hostb]=10.77.0.2)

# begin [--keep]: what it takes to make hosts.
begin() {
    keep=
    [ "${1:-}" = --keep ] && keep=yes
    [ "$(id -u)" = 0 ] || skip "containers take root"
    [ -w /dev/kvm ] || skip "/dev/kvm is not there or not writable"
    need_rust
    need_packages mmdebstrap:mmdebstrap systemd-nspawn:systemd-container ip:iproute2 ssh-keygen:openssh-client
    command -v systemd-nspawn >/dev/null && command -v mmdebstrap >/dev/null || skip "no mmdebstrap or systemd-nspawn"
    work=$(mktemp -d)
    trap finish EXIT
    [ -d "$debian" ] && return
    say "making a Debian $codename"
    mkdir -p "$cache"
    local new
    new=$(mktemp -d "$cache/new.XXXXXX")
    mmdebstrap --quiet --variant=minbase --include=systemd,systemd-sysv,dbus,libpam-systemd,openssh-server,openssh-client \
        "$codename" "$new/root"
    mv -T "$new/root" "$debian"
    rmdir "$new"
}

finish() {
    local host
    for host in "${!supervisor[@]}"; do
        kill -KILL "$(leader "$host")" 2>/dev/null || true
        wait "${supervisor[$host]}" 2>/dev/null || true
    done
    if [ "$keep" ]; then say "kept: $work"; else rm -rf "$work"; fi
}

# The first process of a host.
leader() { pgrep -P "${supervisor[$1]}" -x systemd | head -n 1; }

# on HOST COMMAND...: runs a command there.
on() {
    local host=$1
    shift
    nsenter --target "$(leader "$host")" --mount --uts --ipc --net --pid --cgroup --root \
        env -i -C / PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin HOME=/root "$@"
}

# wait_for WHAT COMMAND...: until the command succeeds.
wait_for() {
    local what=$1 until=$((SECONDS + HANG_TIMEOUT))
    shift
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $until ] || fail "waited in vain for $what"
        sleep 0.2
    done
}

# make_host HOST [PACKAGE]: a host whose root may log in on both, with the package if it is there.
make_host() {
    local host=$1 root=$work/$1 name
    cp -a "$debian" "$root"
    if [ "${2:-}" ]; then
        cp "$2" "$root/migpipe.deb"
        chroot "$root" dpkg --install /migpipe.deb >/dev/null
    fi
    for name in "${!address[@]}"; do echo "${address[$name]} $name"; done >>"$root/etc/hosts"
    echo "$host" >"$root/etc/hostname"
    [ -f "$work/key" ] || ssh-keygen -q -t ed25519 -N '' -f "$work/key"
    mkdir -p -m 700 "$root/root/.ssh"
    cp "$work/key" "$root/root/.ssh/id_ed25519"
    cp "$work/key.pub" "$root/root/.ssh/authorized_keys"
    # They are of one Debian, and so is the key of their sshd.
    echo "hosta,hostb $(cut -d ' ' -f 1,2 "$root/etc/ssh/ssh_host_ed25519_key.pub")" >"$root/root/.ssh/known_hosts"
}

boot() {
    local host=$1
    systemd-nspawn --quiet --directory="$work/$host" --machine="$host" --boot --register=no --keep-unit \
        --private-network --bind="$work/shared:/shared" --bind=/dev/kvm --console=pipe \
        </dev/null >>"$work/$host.log" 2>&1 &
    supervisor[$host]=$!
    wait_for "$host to start" is_up "$host"
}
is_up() { on "$1" systemctl is-active -q multi-user.target; }

# power_off HOST: as its operator does, and waits.
power_off() {
    on "$1" systemctl poweroff
    wait "${supervisor[$1]}" || true
    unset "supervisor[$1]"
}

# An Ethernet from host to host; it goes with the first of them that goes down.
connect() {
    local host
    ip link add name eth0 netns "$(leader hosta)" type veth peer name eth0 netns "$(leader hostb)"
    for host in hosta hostb; do
        nsenter --target "$(leader "$host")" --net ip address add "${address[$host]}/24" dev eth0
        nsenter --target "$(leader "$host")" --net ip link set eth0 up
        nsenter --target "$(leader "$host")" --net ip link set lo up
    done
    wait_for "ssh to hostb" on hosta ssh -o BatchMode=yes hostb true
    wait_for "ssh to hosta" on hostb ssh -o BatchMode=yes hosta true
}

state() { on "$1" vmctl status "$2" 2>/dev/null | sed -n 's/^state *//p'; }
is_state() { [ "$(state "$1" "$2")" = "$3" ]; }
assert_state() { is_state "$@" || fail "$2 is '$(state "$1" "$2")' on $1 and not '$3'"; }
unit() { on "$1" systemctl show --property="$3" --value "vmrun@$2"; }
unit_is() { [ "$(unit "$1" "$2" "$3")" = "$4" ]; }
assert_unit() { unit_is "$@" || fail "vmrun@$2 on $1: $3=$(unit "$1" "$2" "$3") and not $4"; }
