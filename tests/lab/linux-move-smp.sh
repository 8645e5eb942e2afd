#!/bin/bash
# The same as linux-move.sh with two vCPUs: their clocks agree at every moment, on both hosts.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/lib/linux.sh"
. "$(dirname "$0")/lib/moving.sh"

move_there_and_back 2
