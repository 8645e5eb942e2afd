# Sourced by scripts/tunnels: the rows of the matrix.
#
# A row is a name, the programs that it needs, its kind and a command, with tabs between them. In the
# command @ stands for the mig-recv at its end and DIR for a directory of the cell. The kinds: prompt
# passes on what it has, and a handover goes through it; holds keeps data back until its input ends. What
# goes through nc brings no answer behind the end of its input.
ROWS=()

row() { ROWS+=("$1	$2	$3	$4"); }

# The command that undoes each filter.
undo() {
    case $1 in
        gzip*) echo gunzip ;;
        pigz*) echo 'pigz -d' ;;
        zstd*) echo 'zstd -dcq' ;;
        lz4*) echo 'lz4 -dcq' ;;
        xz*) echo 'xz -dc' ;;
        bzip2*) echo bunzip2 ;;
        openssl*) echo 'openssl enc -d -aes-256-ctr -pbkdf2 -pass pass:secret' ;;
        age*) echo "age -d -i $dir/age.key" ;;
        *) echo cat ;;
    esac
}

# Those that change what they carry, and copiers that wait for a full block.
HOLDS=('gzip -1' 'pigz -1' 'zstd -1cq' 'lz4 -1cq' 'xz -0c' 'bzip2 -1'
    'openssl enc -aes-256-ctr -pbkdf2 -pass pass:secret' 'mbuffer -q -m 4M' 'age -R AGE.pub')
COPIES=('cat' 'tee DIR/copy' 'dd bs=64k status=none' 'pv -q' 'split -b 64k --filter=cat -')

# What leads to the other side, with the command there as its argument.
way_to() {
    case $1 in
        ssh) echo "ssh -F $dir/ssh hostb '$2'" ;;
        'ssh -C') echo "ssh -C -F $dir/ssh hostb '$2'" ;;
        'ssh ControlMaster')
            echo "ssh -o ControlMaster=auto -o ControlPath=$dir/master -o ControlPersist=60 -F $dir/ssh hostb '$2'" ;;
        socat)
            # It ends half a second after its input, unless it is told to wait for the answers.
            # What an address of socat may hold is not what a shell may.
            echo "echo '$2' >DIR/there; socat -t 60 UNIX-LISTEN:DIR/s EXEC:'sh DIR/there' & until [ -S DIR/s ]; do sleep 0.02; done; exec socat -t 60 - UNIX-CONNECT:DIR/s" ;;
        nc)
            # The one that listens ends with what it is sent, and has no answer then.
            echo "mkfifo DIR/back; (nc -lU DIR/s <DIR/back | ($2) >DIR/back) & until [ -S DIR/s ]; do sleep 0.02; done; exec nc -NU DIR/s" ;;
        fifo)
            echo "mkfifo DIR/go DIR/back; ($2) <DIR/go >DIR/back & cat DIR/back & exec cat >DIR/go" ;;
    esac
}

rows() {
    local copy hold via first
    HOLDS=("${HOLDS[@]/AGE/$dir/age}")
    for copy in "${COPIES[@]}"; do
        first=${copy%% *}
        row "$first" "$first" prompt "$copy | @"
        row "$first, and back" "$first" prompt "$copy | @ | ${copy/copy/answers}"
    done
    for via in ssh 'ssh -C' 'ssh ControlMaster' socat nc fifo; do
        row "$via" "${via%% *}" prompt "$(way_to "$via" @)"
    done
    for hold in "${HOLDS[@]}"; do
        first=${hold%% *}
        row "$first" "$first" holds "$hold | $(undo "$hold") | @"
    done
    # Two of them.
    for copy in "${COPIES[@]:1}"; do
        for via in ssh socat nc fifo; do
            first=${copy%% *}
            row "$first, $via" "$first $via" prompt "$copy | { $(way_to "$via" @); }"
        done
    done
    for hold in "${HOLDS[@]}"; do
        for via in ssh socat; do
            first=${hold%% *}
            row "$first, $via" "$first $via" holds "$hold | { $(way_to "$via" "$(undo "$hold") | @"); }"
        done
    done
    # Three of them.
    local seal=${HOLDS[6]} open
    open=$(undo "$seal")
    for hold in "${HOLDS[@]:0:6}"; do
        first=${hold%% *}
        row "$first, openssl, ssh" "$first openssl ssh" holds \
            "$hold | $seal | $(way_to ssh "$open | $(undo "$hold") | @")"
        row "$first, mbuffer, socat" "$first mbuffer socat" holds \
            "$hold | mbuffer -q -m 4M | { $(way_to socat "$(undo "$hold") | @"); }"
        row "pv, $first, nc" "pv $first nc" holds \
            "pv -q | $hold | { $(way_to nc "$(undo "$hold") | @"); }"
    done
    row "pv, tee, ssh" "pv tee ssh" prompt "pv -q | tee DIR/copy | $(way_to ssh @)"
    row "dd, socat, tee" "dd socat tee" prompt "dd bs=64k status=none | { $(way_to socat 'tee DIR/copy | @'); }"
}
