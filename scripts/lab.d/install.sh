# What the lab needs from the distribution, and how it comes: sourced by scripts/lab.
#
# QEMU is installed, since it has many libraries. The kernel, busybox and sshd are only unpacked
# into the cache: the machine gets no second kernel, no service and no user by this.

KERNEL=$CACHE/vmlinuz
BUSYBOX=$CACHE/busybox
SSHD_TREE=$CACHE/sshd
# What guests of the lab are made from: the stock cloud kernel, its modules for virtio, a busybox.
GUEST=$CACHE/guest

# In the order in which they are loaded; what is built into the cloud kernel is not missed.
GUEST_MODULES="virtio virtio_ring virtio_mmio virtio_blk failover net_failover virtio_net
virtio-rng virtio_console virtio_balloon"

# In the order in which they are loaded: each after what it needs.
MODULES="virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci netfs fscache
9pnet 9pnet_virtio 9p overlay irqbypass ccp kvm kvm-amd failover net_failover virtio_net
llc stp bridge tun virtio_console loop"

# What the cache holds when it is complete: it is made anew when that changes.
cached() { echo $MODULES / $GUEST_MODULES; }

installed() {
    command -v qemu-system-x86_64 >/dev/null && command -v ssh >/dev/null &&
        command -v ip >/dev/null && has_python && command -v mke2fs >/dev/null &&
        [ -s "$KERNEL" ] && [ -x "$BUSYBOX" ] && [ -x "$SSHD_TREE/usr/sbin/sshd" ] &&
        [ -s "$GUEST/vmlinuz" ] && [ -x "$GUEST/busybox" ] &&
        [ "$(cat "$CACHE/complete" 2>/dev/null)" = "$(cached)" ]
}

# The one of the distribution, with its standard library: the tests read reports with it.
has_python() { /usr/bin/python3 -c 'import json' 2>/dev/null; }

# apt-get, quietly; what it says is shown only when it fails.
apt() {
    DEBIAN_FRONTEND=noninteractive nice apt-get -qq "$@" >"$CACHE/apt.log" 2>&1
}

apt_install() {
    say "installing $* (apt-get install)"
    [ "$(id -u)" = 0 ] || skip "$* missing, and only root can install: apt-get install $*"
    apt install -y --no-install-recommends "$@" ||
        { apt update && apt install -y --no-install-recommends "$@"; } ||
        skip "apt-get install $* failed: $(tail -1 "$CACHE/apt.log")"
}

# Downloads one package and prints its file.
apt_file() {
    (cd "$CACHE/debs" && apt download "$1") ||
        { apt update && (cd "$CACHE/debs" && apt download "$1"); } ||
        skip "apt-get download $1 failed: $(tail -1 "$CACHE/apt.log")"
    ls -t "$CACHE/debs/$1"_*.deb | head -1
}

# kernel_package NAME: linux-image-amd64 and its like are names that depend on the current package.
kernel_package() {
    local name
    name=$(current_kernel "$1")
    if [ -z "$name" ]; then
        apt update || true
        name=$(current_kernel "$1")
    fi
    [ -n "$name" ] || skip "apt knows no $1"
    echo "$name"
}

current_kernel() {
    apt-cache depends "$1" 2>/dev/null | awk '/Depends: linux-image-/ { print $2; exit }'
}

unpack_kernel() {
    local deb module file
    deb=$(apt_file "$(kernel_package linux-image-amd64)") || exit $?
    rm -rf "$CACHE/unpacked" && mkdir "$CACHE/unpacked" && dpkg-deb -x "$deb" "$CACHE/unpacked"
    mkdir -p "$CACHE/modules"
    for module in $MODULES; do
        file=$(find "$CACHE/unpacked" -name "$module.ko" -o -name "${module//_/-}.ko" | head -1)
        [ -n "$file" ] || skip "$(basename "$deb") has no module $module"
        cp "$file" "$CACHE/modules/$module.ko"
    done
    cp "$CACHE"/unpacked/boot/vmlinuz-* "$KERNEL"
    rm -rf "$CACHE/unpacked"
}

unpack_guest() {
    local deb module file
    deb=$(apt_file "$(kernel_package linux-image-cloud-amd64)") || exit $?
    rm -rf "$CACHE/unpacked" && mkdir "$CACHE/unpacked" && dpkg-deb -x "$deb" "$CACHE/unpacked"
    mkdir -p "$GUEST/modules"
    : >"$GUEST/modules/order"
    for module in $GUEST_MODULES; do
        file=$(find "$CACHE/unpacked" -name "$module.ko" | head -1)
        [ -n "$file" ] || continue
        cp "$file" "$GUEST/modules/"
        echo "$module" >>"$GUEST/modules/order"
    done
    cp "$BUSYBOX" "$GUEST/busybox"
    cp "$CACHE"/unpacked/boot/vmlinuz-* "$GUEST/vmlinuz"
    rm -rf "$CACHE/unpacked"
}

# Idempotent: says what it does only when there is something to do.
install_packages() {
    mkdir -p "$CACHE/debs"
    command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null ||
        installed || skip "the lab's parts come by apt, and this machine has no apt-get"
    local missing=()
    command -v qemu-system-x86_64 >/dev/null || missing+=(qemu-system-x86)
    command -v ssh >/dev/null || missing+=(openssh-client)
    command -v ip >/dev/null || missing+=(iproute2)
    has_python || missing+=(python3)
    command -v mke2fs >/dev/null || missing+=(e2fsprogs)
    [ ${#missing[@]} = 0 ] || apt_install "${missing[@]}"
    # The wire between the hosts.
    qemu-system-x86_64 -netdev help 2>&1 | grep -q dgram ||
        skip "$(qemu-system-x86_64 -version | head -1) has no -netdev dgram; that needs QEMU 7.2"
    installed && return
    if [ "$(cat "$CACHE/complete" 2>/dev/null)" != "$(cached)" ]; then
        rm -rf "$CACHE/complete" "$KERNEL" "$CACHE/modules" "$GUEST"
    fi
    if [ ! -s "$KERNEL" ] || [ ! -d "$CACHE/modules" ]; then
        say "fetching a kernel with its modules (linux-image-amd64, unpacked into $CACHE)"
        unpack_kernel
    fi
    if [ ! -x "$BUSYBOX" ]; then
        say "fetching busybox-static (unpacked into $CACHE)"
        local deb
        deb=$(apt_file busybox-static) || exit $?
        dpkg-deb --fsys-tarfile "$deb" | tar -xO ./bin/busybox >"$BUSYBOX" && chmod +x "$BUSYBOX"
    fi
    if [ ! -x "$SSHD_TREE/usr/sbin/sshd" ]; then
        say "fetching openssh-server and libwrap0 (unpacked into $CACHE)"
        local deb
        for deb in openssh-server libwrap0; do
            deb=$(apt_file $deb) || exit $?
            dpkg-deb -x "$deb" "$SSHD_TREE"
        done
    fi
    if [ ! -s "$GUEST/vmlinuz" ]; then
        say "fetching the guests' kernel (linux-image-cloud-amd64, unpacked into $GUEST)"
        unpack_guest
    fi
    cached >"$CACHE/complete"
}
