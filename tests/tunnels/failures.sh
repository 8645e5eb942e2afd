# Sourced by scripts/tunnels: programs of a tunnel that fail while the guest is on its way.
#
# After each the guest runs at its source, at once (stays) or when the destination was asked what became
# of it (resolved), and nowhere else; its consoles show that it lost nothing. What is no failure of the
# stream's way lets it through (moved).
FAILURES=('dies' 'ends with 0 early' 'holds back' 'prints' 'never reads')
COUNT_RESOLVED=0

# How long a program that hangs does so, and how long is waited for it (seconds).
HANGS=5 PATIENCE=2

# Name, the program, and what it leads to, with tabs between them.
failing_programs() {
    local program
    for program in "${COPIES[@]}" "${HOLDS[@]}"; do
        printf '%s\t%s\t| %s | @\n' "${program%% *}" "$program" "$(undo "$program")"
    done
    printf 'ssh\t%s\t\n' "$(way_to ssh @)"
    printf "socat\tsocat -t 60 - EXEC:'sh DIR/there'\t\n"
}

# The names of all rows.
failing_rows() {
    local failure program
    failing_programs | cut -f 1 | while read -r program; do
        for failure in "${FAILURES[@]}"; do echo "$program $failure"; done
    done
}

# A program that fails so, as a script.
failing() { # FAILURE PROGRAM DIRECTORY
    case $1 in
        # In the middle of the stream, which takes longer than that.
        'dies') echo "(sleep 0.4; kill -9 \$\$) </dev/null >/dev/null 2>&1 & exec $2" ;;
        'ends with 0 early') echo "head -c 3000000 | $2" ;;
        'holds back') echo "{ cat >$3/held; sleep $HANGS; } | $2" ;;
        'prints') echo "echo 'Welcome to hostb'; exec $2" ;;
        'never reads') echo "exec sleep $HANGS" ;;
    esac
}

alone() { [ "$(vmctl list | awk 'NR > 1 { print $1 }')" = "$GUEST" ]; }

# Waits until the guest runs on at its source, alone, and looks at what it says.
runs_on() {
    local before
    await alone && vmctl wait "$GUEST" running --timeout 60 2>/dev/null || { WHY="it does not run there alone"; return 1; }
    before=$(grep -c '^tick' "$dir/$GUEST.console")
    await ticks "$GUEST" $((before + 3)) || { WHY="it stands still"; return 1; }
    WHY=$(tr -d '\r' <"$dir/$GUEST.console" | awk '
        /ERROR/ { print; exit }
        /^tick/ && NF > 3 { if (n != "" && $2 != n + 1) { print "tick " $2 " after " n; exit } n = $2 }')
    [ -z "$WHY" ]
}

# failing_cell WAY NAME FAILURE PROGRAM REST: says in CELL what came of it.
failing_cell() {
    local way=$1 failure=$3 rest=$5 status=0 absent to place command said
    absent=$(missing "$2")
    if [ -n "$absent" ]; then
        CELL="SKIPPED: no $absent" COUNT_SKIPPED=$((COUNT_SKIPPED + 1))
        return
    fi
    need_guest
    NUMBER=$((NUMBER + 1)) to=g$NUMBER place=$dir/cell$NUMBER said=$dir/cell$NUMBER/said
    mkdir "$place"
    local there="mig-recv -q --timeout $PATIENCE --name $to --console file:$dir/$to.console"
    echo "$there" >"$place/there"
    failing "$failure" "${4//@/$there}" "$place" | sed "s|DIR|$place|g" >"$place/program"
    command="bash $place/program ${rest//@/$there}"
    local send=(mig-send -q --max-bandwidth 8M --timeout $PATIENCE --ready-timeout $PATIENCE --resolve-for 1)
    case $way in
        one-way) bash -c "${send[*]} $GUEST | { $command; }; exit \${PIPESTATUS[0]}" 2>"$said" || status=$? ;;
        both-ways) "${send[@]}" "$GUEST" "exec:$command" 2>"$said" || status=$? ;;
        commit) "${send[@]}" "$GUEST" "exec:$command" --commit exec:mig-recv 2>"$said" || status=$? ;;
    esac
    WHY=''
    if [ $status = 1 ]; then
        if runs_on; then
            CELL=stays COUNT_STAYED=$((COUNT_STAYED + 1))
            return
        fi
    elif [ $status = 0 ] && vmctl wait "$to" running --timeout 1 2>/dev/null; then
        # What ssh prints is for whoever reads its stdout: one way nobody does, and the guest is through.
        if verdict "$GUEST" "$to"; then
            [ $way != one-way ] || vmctl quit --force "$GUEST"
            GUEST=$to CELL="moved, $PAUSE ms" COUNT_MOVED=$((COUNT_MOVED + 1))
            return
        fi
    elif [ $status = 0 ] || [ $status = 4 ]; then
        # One way the end of the stream was written; nobody has it, and whoever is asked says so.
        mig-send -q --resolve --resolve-for 60 "$GUEST" exec:mig-recv 2>>"$said" || true
        if runs_on; then
            CELL=resolved COUNT_RESOLVED=$((COUNT_RESOLVED + 1))
            return
        fi
    fi
    CELL=FAILED COUNT_FAILED=$((COUNT_FAILED + 1))
    { echo "FAILED: $way, $2 $failure, status $status${WHY:+, $WHY}: $command"; sed 's/^/    /' "$said"; } >&2
    end_guests
}

# The table of all of them, or of these programs.
failing_table() {
    local name program rest failure way cells
    printf '| tunnel | one way | both ways | --commit |\n| --- | --- | --- | --- |\n'
    while IFS=$'\t' read -r name program rest <&3; do
        [ $# = 0 ] || printf '%s\n' "$@" | grep -qxF -- "$name" || continue
        for failure in "${FAILURES[@]}"; do
            cells=()
            for way in one-way both-ways commit; do
                failing_cell "$way" "$name" "$failure" "$program" "$rest"
                cells+=("$CELL")
            done
            printf '| %s %s | %s | %s | %s |\n' "$name" "$failure" "${cells[@]}"
        done
    done 3< <(failing_programs)
}
