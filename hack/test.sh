#!/bin/bash
# Runs every test that this machine can run, and ends with one summary: hack/test.sh [SOAK, default 60s]
set -uo pipefail
cd "$(dirname "$0")/.."

go=${GO:-go}
status=0
echo "== go vet"
"$go" vet ./... || status=1
[ "$(id -u)" != 0 ] || hack/runsc.sh || echo "test: runsc was not built; its tests are skipped" >&2

# The machine's own tests come last and alone: they measure times.
others=$("$go" list ./... | grep -v /spillway/test$)
{
    "$go" test -json -timeout 10m $others
    SPILLWAY_SOAK=${1:-60s} "$go" test -json -count 1 -timeout 15m -parallel 6 ./test
} | "$go" run ./hack/summary || status=1
exit $status
