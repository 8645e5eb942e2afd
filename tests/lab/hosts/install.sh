# What the lab needs from the distribution, and how it comes: sourced by scripts/lab.
#
# QEMU is installed, since it has many libraries. The kernel, busybox and sshd are only unpacked
# into the cache: the machine gets no second kernel, no service and no user by this.

KERNEL=$CACHE/vmlinuz
BUSYBOX=$CACHE/busybox
SSHD_TREE=$CACHE/sshd
# What guests of the lab are made from: the stock cloud kernel, its modules for virtio, a busybox.
GUEST=$CACHE/guest

# Only what is wanted: what that needs, what of it is built in, and the order come from the package's
# own modules, by modprobe.
HOST_MODULES="virtio_pci 9pnet_virtio 9p overlay kvm-amd virtio_net virtio_blk bridge tun virtio_console loop"
GUEST_MODULES="virtio_mmio virtio_blk ext4 virtio_net virtio_rng virtio_console virtio_balloon"

# What the cache holds when it is complete: it is made anew when that changes.
cached() { echo by modprobe: $HOST_MODULES / $GUEST_MODULES; }

installed() {
    command -v qemu-system-x86_64 >/dev/null && command -v ssh >/dev/null &&
        command -v ip >/dev/null && has_python && command -v mke2fs >/dev/null &&
        [ -s "$KERNEL" ] && [ -s "$CACHE/modules/order" ] && [ -x "$BUSYBOX" ] && [ -x "$SSHD_TREE/usr/sbin/sshd" ] &&
        [ -s "$GUEST/vmlinuz" ] && [ -s "$GUEST/modules/order" ] && [ -x "$GUEST/busybox" ] &&
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

# unpack_kernel PACKAGE DIR MODULE...: DIR gets vmlinuz and, in modules/, these modules with all that
# they need, and a file `order` with their names as they are to be loaded.
unpack_kernel() {
    local package=$1 dir=$2 deb root version wanted path name
    shift 2
    deb=$(apt_file "$(kernel_package "$package")") || exit $?
    root=$CACHE/unpacked
    rm -rf "$root" "$dir/modules" && mkdir "$root" && dpkg-deb -x "$deb" "$root"
    # Where a distribution has merged /lib into /usr, the package does not bring the link.
    [ -e "$root/lib" ] || ln -s usr/lib "$root/lib"
    version=$(ls "$root/lib/modules")
    depmod -b "$root" "$version" || die "depmod makes nothing of $(basename "$deb")"
    mkdir -p "$dir/modules" "$root/no-configuration"
    for wanted in "$@"; do
        modprobe -d "$root" -C "$root/no-configuration" -S "$version" --show-depends "$wanted" ||
            skip "$(basename "$deb") has no module $wanted"
    done >"$root/steps" || exit $?
    # A line is "builtin NAME", or "insmod PATH" with the module's parameters behind it.
    awk '$1 == "insmod" && !seen[$2]++ { print $2 }' "$root/steps" >"$root/order"
    while read -r path; do
        name=$(basename "$path")
        name=${name%.ko*}.ko
        plain_module "$path" >"$dir/modules/$name"
        echo "$name" >>"$dir/modules/order"
    done <"$root/order"
    cp "$root"/boot/vmlinuz-* "$dir/vmlinuz"
    rm -rf "$root"
}

# plain_module FILE: its content, which some distributions compress and busybox cannot load then.
plain_module() {
    case $1 in
    *.ko) cat "$1" ;;
    *.ko.gz) gzip -dc "$1" ;;
    *.ko.xz) need_command xz xz-utils && xz -dc "$1" ;;
    *.ko.zst) need_command zstd zstd && zstd -dcq "$1" ;;
    *) die "$(basename "$1") is compressed in a way that is not known here" ;;
    esac
}

need_command() { command -v "$1" >/dev/null || apt_install "$2"; }

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
    command -v depmod >/dev/null && command -v modprobe >/dev/null || missing+=(kmod)
    [ ${#missing[@]} = 0 ] || apt_install "${missing[@]}"
    # The wire between the hosts.
    qemu-system-x86_64 -netdev help 2>&1 | grep -q dgram ||
        skip "$(qemu-system-x86_64 -version | head -1) has no -netdev dgram; that needs QEMU 7.2"
    installed && return
    if [ "$(cat "$CACHE/complete" 2>/dev/null)" != "$(cached)" ]; then
        rm -rf "$CACHE/complete" "$KERNEL" "$CACHE/modules" "$GUEST"
    fi
    if [ ! -s "$KERNEL" ] || [ ! -s "$CACHE/modules/order" ]; then
        say "fetching a kernel with its modules (linux-image-amd64, unpacked into $CACHE)"
        unpack_kernel linux-image-amd64 "$CACHE" $HOST_MODULES
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
    if [ ! -s "$GUEST/vmlinuz" ] || [ ! -x "$GUEST/busybox" ]; then
        say "fetching the guests' kernel (linux-image-cloud-amd64, unpacked into $GUEST)"
        mkdir -p "$GUEST"
        unpack_kernel linux-image-cloud-amd64 "$GUEST" $GUEST_MODULES
        cp "$BUSYBOX" "$GUEST/busybox"
    fi
    cached >"$CACHE/complete"
}
