#!/bin/bash
# Runs Kubernetes' conformance tests against two virtual nodes and no other node, on a platform and a control plane of
# its own: hack/conformance.sh [node|all|FOCUS]
#
# node (default): the tests that are both NodeConformance and Conformance. all: every Conformance test. Results are in
# build/conformance/report. The first run builds the suite, which takes some ten minutes.
set -euo pipefail
cd "$(dirname "$0")/.."

case ${1:-node} in
node) focus='\[NodeConformance\].*\[Conformance\]|\[Conformance\].*\[NodeConformance\]' ;;
all) focus='\[Conformance\]' ;;
*) focus=$1 ;;
esac
procs=${PROCS:-4}
dir=$PWD/build/conformance
programs=$dir/programs
address=10.255.250.1 # on the loopback device, of the control plane and the nodes
dns=spillway.internal/coredns:conformance
allow=host-network,host-pid,host-ipc,host-path,privileged # some tests have pods of the host's own
export CGO_ENABLED=0 KUBECONFIG=$dir/kubernetes/kubeconfig

say() { echo "conformance: $*" >&2; }
[ "$(id -u)" = 0 ] || { say "run as root"; exit 1; }
for pair in curl:curl nc.openbsd:netcat-openbsd dig:bind9-dnsutils gcc:gcc bash-static:bash-static busybox:busybox-static ip:iproute2; do
    command -v "${pair%%:*}" >/dev/null || apt-get install -y --no-install-recommends "${pair#*:}" >/dev/null
done

say "build"
mkdir -p "$programs"
make --no-print-directory build kubernetes >/dev/null
(
    cd kubernetes
    go build -trimpath -ldflags "$(make -s -C .. kubernetes-ldflags)" -o "$programs/kubectl" k8s.io/kubernetes/cmd/kubectl
    go build -o "$programs/agnhost" k8s.io/kubernetes/test/images/agnhost
    go build -o "$programs/ginkgo" github.com/onsi/ginkgo/v2/ginkgo
    go test -c -o "$programs/e2e.test" k8s.io/kubernetes/test/e2e
)

pids=()
cleanup() {
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
    bin/spillway down --purge --data-dir "$dir/platform" >/dev/null 2>&1 || true
    ip address delete $address/32 dev lo 2>/dev/null || true
}
trap cleanup EXIT
# What a run that was killed has left.
[ ! -e "$dir/platform" ] || bin/spillway down --purge --data-dir "$dir/platform" >/dev/null 2>&1 || true
rm -rf "$dir/platform" "$dir/kubernetes" "$dir/report"
mkdir -p "$dir/report"
ip address add $address/32 dev lo 2>/dev/null || true

# begin LOG COMMAND…: starts a process of this run.
begin() {
    "${@:2}" >"$dir/$1.log" 2>&1 &
    pids+=($!)
}
# await LOG: waits for a process's ready line.
await() {
    for ((i = 0; i < 600; i++)); do
        grep -q '^ready ' "$dir/$1.log" && return
        sleep 0.1
    done
    say "$1 is not ready:"
    tail -n 5 "$dir/$1.log" >&2
    exit 1
}
say "start"
begin platform bin/spillway up --data-dir "$dir/platform" --listen 127.0.0.1:0 --allow $allow
begin kubernetes bin/spillway-kubernetes --data-dir "$dir/kubernetes" --listen 127.0.0.1:0 --advertise-address $address \
    --addons coredns=$dns
await platform
go run ./hack/image -o "$dir/coredns.tar" -name $dns -file bin/coredns=/coredns -entrypoint /coredns
bin/spillway --config "$dir/platform/client.json" image import "$dir/coredns.tar" >/dev/null
await kubernetes
for n in 1 2; do
    begin "node$n" bin/spillway-node --kubeconfig "$KUBECONFIG" --config "$dir/platform/client.json" --name "virtual-$n" --no-taint \
        --address $address --listen $address:$((10250 + n)) --allow $allow
done
hack/conformance/images.sh "$dir/images" "$programs" "$dir/platform/client.json"

say "run"
status=0
# In the background, so that whoever ends this script ends the suite with it.
"$programs/ginkgo" --procs="$procs" --focus="$focus" --skip='\[Disruptive\]' --no-color --silence-skips --timeout=3h --output-dir="$dir/report" --json-report=report.json \
    "$programs/e2e.test" -- --kubeconfig="$KUBECONFIG" --kubectl-path="$programs/kubectl" --provider=skeleton --disable-log-dump=true >"$dir/report/log" 2>&1 &
pids+=($!)
wait "${pids[-1]}" || status=$?
grep -E '^(Ran|  \[FAIL\]|Ginkgo ran)' "$dir/report/log" || tail -n 20 "$dir/report/log"
exit $status
