# Sourced by scripts/tunnels: one cell of the matrix, and what it needs.
COUNT_MOVED=0 COUNT_HELD=0 COUNT_STAYED=0 COUNT_SKIPPED=0 COUNT_FAILED=0
NUMBER=0 GUEST=''

# An sshd that each connection starts anew, without a port: it speaks to ssh by its stdin.
make_ssh() {
    local sshd=/usr/sbin/sshd unpacked=${LAB_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/migpipe-lab}/sshd key
    [ -x $sshd ] || sshd=$unpacked/usr/sbin/sshd
    [ -x "$sshd" ] && command -v ssh ssh-keygen >/dev/null || { SSHD=''; return 0; }
    SSHD=$sshd
    for key in host_key user_key; do ssh-keygen -q -t ed25519 -N '' -f "$dir/$key"; done
    cp "$dir/user_key.pub" "$dir/authorized_keys"
    echo "hostb $(cat "$dir/host_key.pub")" >"$dir/known_hosts"
    cat >"$dir/sshd_config" <<END
HostKey $dir/host_key
PidFile none
AuthorizedKeysFile $dir/authorized_keys
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
LogLevel ERROR
SetEnv PATH=$PATH XDG_RUNTIME_DIR=$dir XDG_STATE_HOME=$dir
END
    # As root sshd wants a user of its own and a directory: a mount namespace gives it both.
    cat >"$dir/sshd" <<END
if [ "\$(id -u)" = 0 ]; then
    mkdir -p /run/sshd
    if ! grep -q '^sshd:' /etc/passwd; then
        { cat /etc/passwd; echo 'sshd:x:65533:65534::/run/sshd:/usr/sbin/nologin'; } >$dir/passwd.\$\$
        mount --bind $dir/passwd.\$\$ /etc/passwd
    fi
fi
LD_LIBRARY_PATH=$unpacked/usr/lib/x86_64-linux-gnu exec $sshd -i -e -f $dir/sshd_config
END
    local unshare=''
    [ "$(id -u)" != 0 ] || unshare='unshare --mount'
    cat >"$dir/ssh" <<END
Host hostb
    User $(id -un)
    ProxyCommand $unshare sh $dir/sshd
    IdentityFile $dir/user_key
    UserKnownHostsFile $dir/known_hosts
    GlobalKnownHostsFile none
    IdentitiesOnly yes
    BatchMode yes
    StrictHostKeyChecking yes
END
}

# A key of age, where age is.
make_age_key() {
    command -v age-keygen >/dev/null || return 0
    age-keygen -o "$dir/age.key" 2>/dev/null
    age-keygen -y "$dir/age.key" >"$dir/age.pub"
}

# A host that has been there for long: what it has not heard of has not been there.
remember() {
    mkdir -m 700 -p "$dir/vmrun/migrations"
    chmod 700 "$dir/vmrun"
    printf '{"id":"%s","since":{"secs_since_epoch":%s,"nanos_since_epoch":0}}' \
        "$(cat /proc/sys/kernel/random/uuid)" "$(($(date +%s) - 86400))" >"$dir/vmrun/migrations/host-id"
}

# Ends all guests that there are.
end_guests() {
    local name
    for name in $(vmctl list 2>/dev/null | awk 'NR > 1 { print $1 }'); do
        vmctl quit --force "$name" 2>/dev/null || true
    done
    GUEST=''
}

# Waits until a command succeeds, a minute at most.
await() {
    local _
    for _ in $(seq 1200); do
        "$@" >/dev/null 2>&1 && return
        sleep 0.05
    done
    return 1
}

ticks() { [ "$(grep -c '^tick' "$dir/$1.console" 2>/dev/null)" -ge "$2" ]; }

# The guest for the next cell: the one that arrived by the last, or a new one.
need_guest() {
    [ -z "$GUEST" ] || return 0
    NUMBER=$((NUMBER + 1)) GUEST=g$NUMBER
    setsid vmrun --log error --name $GUEST --mem 64M --console "file:$dir/$GUEST.console" \
        --kernel builtin:dirty,pages=64,rate=500,fill=random,fill-mb=8,tick-ms=20 </dev/null >/dev/null &
    await ticks $GUEST 3
}

# What a guest says that was at $1 and is at $2: whether it counts on where it left off, checks its memory
# and finds no error, and stands still at its old home. How long it saw itself stand still goes to PAUSE
# (milliseconds).
verdict() {
    local there
    await ticks "$2" 5 || { WHY="it does not run at its destination"; return 1; }
    there=$(cat "$dir/$1.console")
    WHY=$(cat "$dir/$1.console" "$dir/$2.console" | tr -d '\r' | awk '
        /ERROR/ { print; exit }
        /^tick/ && NF > 3 {
            if (n != "" && $2 != n + 1) { print "tick " $2 " after " n; exit }
            n = $2
        }')
    [ -z "$WHY" ] || return 1
    sleep 0.1
    [ "$there" = "$(cat "$dir/$1.console")" ] || { WHY="it runs at its source as well"; return 1; }
    PAUSE=$(tr -d '\r' <"$dir/$2.console" | awk '
        { for (i = 1; i < NF; i++) if ($i == "gap-us" && $(i + 1) > most) most = $(i + 1) }
        NR == 3 { exit } END { printf "%d", (most + 500) / 1000 }')
}

# Whether mig-send gave up with these words, and the guest runs on where it is.
stays() { # SAID WORDS
    local before
    before=$(grep -c '^tick' "$dir/$GUEST.console")
    grep -q "$2" "$1" && grep -q 'runs on here$' "$1" && await ticks "$GUEST" $((before + 3))
}

missing() {
    local program
    for program in $1; do
        case $program in
            fifo) ;;
            ssh) [ -n "$SSHD" ] || { echo sshd; return; } ;;
            *) command -v "$program" >/dev/null || { echo "$program"; return; } ;;
        esac
    done
}

# cell WAY NEEDS KIND COMMAND: moves the guest, and says in CELL what came of it.
cell() {
    local way=$1 kind=$3 command=$4 status=0 absent from to place patience=300
    # What is to be found out is not waited for; what is to arrive has all the time that there is.
    [ "$kind" = prompt ] || patience=3
    absent=$(missing "$2")
    if [ -n "$absent" ]; then
        CELL="SKIPPED: no $absent" COUNT_SKIPPED=$((COUNT_SKIPPED + 1))
        return
    fi
    need_guest
    from=$GUEST NUMBER=$((NUMBER + 1)) to=g$NUMBER place=$dir/cell$NUMBER
    mkdir "$place"
    command=${command//@/mig-recv -q --name $to --console file:$dir/$to.console}
    command=${command//DIR/$place}
    case $way in
        one-way) bash -o pipefail -c "mig-send -q $from | { $command; }" 2>"$place/said" || status=$? ;;
        both-ways) mig-send -q --ready-timeout $patience "$from" "exec:$command" 2>"$place/said" || status=$? ;;
        commit) mig-send -q "$from" "exec:$command" --commit exec:mig-recv 2>"$place/said" || status=$? ;;
    esac
    WHY=''
    if [ "$way-$kind" = both-ways-holds ]; then
        if [ $status = 1 ] && stays "$place/said" 'holds data back'; then
            CELL="named" COUNT_HELD=$((COUNT_HELD + 1))
            return
        fi
    elif [ $way = commit ] && [[ " $2 " == *" nc "* ]]; then
        if [ $status = 1 ] && stays "$place/said" 'did not acknowledge the guest'; then
            vmctl quit --force "$to" 2>/dev/null || true
            CELL="stays" COUNT_STAYED=$((COUNT_STAYED + 1))
            return
        fi
    elif [ $status = 0 ] && verdict "$from" "$to"; then
        [ $way != one-way ] || vmctl quit --force "$from"
        GUEST=$to
        CELL="moved, $PAUSE ms" COUNT_MOVED=$((COUNT_MOVED + 1))
        return
    fi
    CELL="FAILED" COUNT_FAILED=$((COUNT_FAILED + 1))
    { echo "FAILED: $way, status $status${WHY:+, $WHY}: $command"; sed 's/^/    /' "$place/said"; } >&2
    end_guests
}
