#!/bin/bash
# A stock Linux guest with every virtio device moves to the other host and back through a real ssh,
# once with the handover and once one way, while it writes, answers and counts time; then it switches
# itself off.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/lib/linux.sh"
. "$(dirname "$0")/lib/moving.sh"

watched_moves 1 both_ways one_way
