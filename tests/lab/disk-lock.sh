#!/bin/bash
# Whoever may run a guest holds the locks of its disk images: a second vmrun is refused by name, and
# the lock goes over with the guest. On one host, since the lab's shared directory carries no locks.
. "$(dirname "$0")/lib.sh"

SPEC=builtin:dirty,pages=16,rate=100,fill=random,fill-mb=2

clear_guests
consoles
disk=$(mktemp -d)
trap 'rm -rf "$disk"' EXIT
truncate -s 16M "$disk/web.raw" "$disk/data.raw"

start() {
    local name=$1
    shift
    setsid vmrun --name "$name" --kernel "$SPEC" --mem 32M --console "file:$(console "$name")" "$@" \
        </dev/null >"$CONSOLES/$name.log" 2>&1 &
    wait_ticks "$(console "$name")" 3
}

# refused ARGUMENTS...: a second vmrun ends at once, and says which image another holds.
refused() {
    local said
    said=$(expect 1 vmrun --name second --kernel "$SPEC" --mem 32M "$@")
    [[ $said == *"$disk/web.raw"*locked* ]] || fail "the refusal does not name the image: $said"
    [ "$(wc -l <<<"$said")" = 1 ] || fail "the refusal is more than one line: $said"
}

start first --disk "$disk/web.raw"
refused --disk "$disk/web.raw"
refused --disk "$disk/data.raw" --disk "$disk/web.raw"
refused --disk "$disk/web.raw,ro"
say "$(expect 1 vmrun --name second --kernel "$SPEC" --mem 32M --disk "$disk/web.raw")"

expect 0 mig-send first "exec:mig-recv -q --name there --disk disk0=$disk/web.raw --console file:$(console there)" -q \
    --max-downtime "$DOWNTIME" >/dev/null
wait_for "the source's vmrun to end" is_state hosta first ''
wait_ticks "$(console there)" 3
refused --disk "$disk/web.raw"
say "the lock went over with the guest"

vmctl pause there
refused --disk "$disk/web.raw"
vmctl resume there
vmctl quit there
wait_for "the guest's vmrun to end" is_state hosta there ''
start third --disk "$disk/web.raw"
say "and was free when the guest had ended"

# Nobody writes what all only read.
vmctl quit third
wait_for "the guest's vmrun to end" is_state hosta third ''
start reader1 --disk "$disk/web.raw,ro"
start reader2 --disk "$disk/web.raw,ro"
refused --disk "$disk/web.raw"
vmctl quit reader1
vmctl quit reader2
say "readers share an image, and keep a writer out"
