#!/bin/bash
# A stock Linux guest with a disk, a network card and randomness moves between two hosts through a
# real ssh, both ways and one way, there and back, while it writes, answers and counts time.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/lib/linux.sh"
. "$(dirname "$0")/lib/moving.sh"

move_there_and_back 1
