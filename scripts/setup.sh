# Sourced by the other scripts: finds or installs what they need.

# Fails with one line if there is no Rust toolchain.
need_rust() {
    command -v cargo >/dev/null ||
        { echo "no cargo in PATH: install Rust 1.90 or newer (rustup.rs)" >&2; exit 1; }
}

# Where there is no sshd its files are unpacked into the lab's cache: the machine gets no service by it.
need_sshd() {
    local cache=${LAB_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/migpipe-lab} package
    [ -x /usr/sbin/sshd ] || [ -x "$cache/sshd/usr/sbin/sshd" ] && return
    mkdir -p "$cache/debs"
    for package in openssh-server libwrap0; do
        (cd "$cache/debs" && apt-get -qq download "$package" && dpkg-deb -x "$package"_*.deb "$cache/sshd") ||
            { echo "no $package: what needs an sshd is skipped" >&2; return; }
    done
}

# need_packages COMMAND:PACKAGE ...: installs the Debian packages whose command is missing. A
# command of '-' or a path is looked for as it is; COMMAND:- means that the package is called so.
need_packages() {
    local pair command package missing=()
    for pair in "$@"; do
        command=${pair%%:*} package=${pair#*:}
        case $package in
            -) package=$command; dpkg -s "$package" >/dev/null 2>&1 && continue ;;
            /*) [ -x "$package" ] && continue; package=$command ;;
            *) command -v "$command" >/dev/null && continue ;;
        esac
        missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "installing ${missing[*]}"
        apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${missing[@]}" >/dev/null && return 0
    fi
    echo "missing: ${missing[*]} (apt-get install ${missing[*]}); what needs them is skipped or fails" >&2
}
