# The part of the lab's tests that scripts/test runs: sourced by scripts/lab.

# What is short enough, and shows most.
CHECK=linux-move
# Fetching the packages takes some 20 s where there is a mirror near. Behind a network that answers
# nothing it would take for ever.
CHECK_INSTALL=1200

# A lab of its own, whatever other is there, and nothing left of it. Ends with the test's status, or
# with 77 if there can be no lab.
check() {
    local status=0 parent
    parent=$(mktemp -d)
    export LAB_DIR=$parent/lab
    trap 'down; rm -rf "$(dirname "$LAB_DIR")"' EXIT
    timeout --foreground "$CHECK_INSTALL" "$SELF" install || status=$?
    case $status in
    0) ;;
    124) skip "its packages could not be had within $CHECK_INSTALL s" ;;
    *) exit $status ;;
    esac
    # Not forever: what hangs is a failure.
    timeout --foreground --kill-after=5 "$LAB_BUDGET" "$SELF" test $CHECK || status=$?
    [ $status != 0 ] || return 0
    case $status in
    124 | 137)
        say "the test $CHECK did not end within $LAB_BUDGET s (LAB_BUDGET): it hangs, or $(nproc) CPUs with a" \
            "load of $(cut -d' ' -f1 /proc/loadavg) need longer for it"
        ;;
    esac
    [ $status = 77 ] || last_words
    exit $status
}

# What the hosts, the guests and their vmruns said last.
last_words() {
    local file
    for file in "$LAB_DIR"/host?/{console.log,qemu.log} "$LAB_DIR/shared/$CHECK"/*.{console,log,result}; do
        [ ! -s "$file" ] || { echo "-- $file" && tail -n 8 "$file" | tr -d '\r'; } >&2
    done
}
