#!/bin/bash
# Runs every test that this machine can run, and ends with one summary: hack/test.sh [SOAK, default 60s]
set -uo pipefail
cd "$(dirname "$0")/.."

go=${GO:-go}
export CGO_ENABLED=0
status=0
echo "== go vet"
"$go" vet ./... || status=1
kubernetes=
if [ "$(id -u)" = 0 ]; then
    hack/runsc.sh || echo "test: runsc was not built; its tests are skipped" >&2
    [ -e bin/spillway-kubernetes ] || echo "== the first build of the control plane takes some minutes"
    if make --no-print-directory kubernetes; then
        kubernetes=1
        (cd kubernetes && "$go" vet -trimpath ./...) || status=1
    else
        status=1
    fi
fi

# The machine's own tests come last and alone: they measure times.
others=$("$go" list ./... | grep -v /spillway/test$)
{
    "$go" test -json -timeout 10m $others
    # As it was built, so that nothing is compiled twice.
    [ -z "$kubernetes" ] || (cd kubernetes && "$go" test -json -trimpath -timeout 10m ./...)
    SPILLWAY_SOAK=${1:-60s} "$go" test -json -count 1 -timeout 20m -parallel 4 ./test
} | "$go" run ./hack/summary || status=1
exit $status
