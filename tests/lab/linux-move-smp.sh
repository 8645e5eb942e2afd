#!/bin/bash
# The same as linux-move.sh with two vCPUs, whose clocks agree at every moment, and four moves: each
# host sends and receives the guest in each way.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/lib/linux.sh"
. "$(dirname "$0")/lib/moving.sh"

watched_moves 2 both_ways one_way one_way both_ways
