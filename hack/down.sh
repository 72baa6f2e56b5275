#!/bin/bash
# Stops the platform that 'make up' started; with the argument "purge", removes it with all its groups.
set -euo pipefail
cd "$(dirname "$0")/.."

data=${SPILLWAY_DATA_DIR:-/var/lib/spillway}
[ -x bin/spillway ] || { echo "make down: bin/spillway is not there: run 'make build' first" >&2; exit 1; }
if [ "${1:-}" = purge ]; then
    exec bin/spillway down --data-dir "$data" --purge
fi
bin/spillway down --data-dir "$data"
echo "Groups go on without it: 'make up' adopts them, 'make purge' removes them."
