# Running scripts on the hosts: sourced by scripts/lab.

# Where a host sees the script: a file of the repository under its own path, so that it finds its
# neighbours; any other as a copy in the shared directory.
visible_path() {
    local script=$1 copy
    case $script in
    "$REPO"/*) echo "$script" ;;
    *)
        mkdir -p "$LAB_DIR/shared/.jobs"
        copy=$(mktemp "$LAB_DIR/shared/.jobs/XXXXXX-$(basename "$script")")
        cp "$script" "$copy"
        echo "/shared/.jobs/$(basename "$copy")"
        ;;
    esac
}

# job HOST LOG SCRIPT ARGS: runs a script on a host; what it prints goes to LOG too.
job() {
    local host=$1 log=$2 runner=()
    shift 2
    [ -x "$1" ] || [ "${1#/shared/}" != "$1" ] || runner=(bash)
    on "$host" "cd /root && exec ${runner[*]:-} $(printf '%q ' "$@")" </dev/null 2>&1 | tee "$log"
}

run() {
    local hosts=$HOSTS host script path logs pids=() names=() status=0
    if [ "${1:-}" = --on ]; then
        check_host "${2:-}"
        hosts=$2
        shift 2
    fi
    [ $# != 0 ] || wrong "run what? name a script"
    script=$(readlink -f "$1") && [ -f "$script" ] || wrong "there is no script $1"
    shift
    for host in $hosts; do need_lab "$host"; done
    path=$(visible_path "$script")
    [ "${path#/shared/}" = "$path" ] || chmod +x "$LAB_DIR$path"
    logs=$LAB_DIR/logs/$(date +%H%M%S)-$(basename "$script" .sh)
    mkdir -p "$logs"
    if [ "$hosts" != "$HOSTS" ]; then
        job "$hosts" "$logs/$hosts.log" "$path" "$@" || status=$?
        return $status
    fi
    for host in $hosts; do
        (job "$host" "$logs/$host.log" "$path" "$@" | sed -u "s/^/$host| /") &
        pids+=($!)
        names+=("$host")
    done
    local index code
    for index in "${!pids[@]}"; do
        code=0
        wait "${pids[index]}" || code=$?
        [ $code = 0 ] || say "${names[index]}: exit status $code; log in $logs"
        [ $status != 0 ] || status=$code
    done
    return $status
}

# Runs tests/lab/*.sh on hosta. A test that ends with 77 was skipped and said why.
run_tests() {
    local names=("$@") name code passed=0 failed=0 skipped=0
    if [ ${#names[@]} = 0 ]; then
        for name in "$REPO"/tests/lab/*.sh; do
            [ "$(basename "$name")" = lib.sh ] || names+=("$(basename "$name" .sh)")
        done
    fi
    up
    for name in "${names[@]}"; do
        [ -f "$REPO/tests/lab/$name.sh" ] || wrong "there is no test tests/lab/$name.sh"
        code=0
        run --on hosta "$REPO/tests/lab/$name.sh" || code=$?
        case $code in
        0) passed=$((passed + 1)) && echo "test $name ... ok" ;;
        77) skipped=$((skipped + 1)) && echo "test $name ... SKIPPED" ;;
        *) failed=$((failed + 1)) && echo "test $name ... FAILED (exit status $code)" ;;
        esac
    done
    echo "$passed passed, $failed failed, $skipped skipped"
    [ $failed = 0 ]
}
