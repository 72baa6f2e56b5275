#!/bin/bash
# Measures what a pod costs on a virtual node beside a real kubelet with containerd, both on one API server, in one run:
# hack/podbench.sh [ROUNDS, default 20] [BURST, default 500]
#
# Everything that it starts is its own and ends with it; logs and the result are in build/podbench. The first run builds
# the kubelet and containerd, which takes some minutes.
set -euo pipefail
cd "$(dirname "$0")/.."

rounds=${1:-20} burst=${2:-500}
containerd=v2.4.2
go=${GO:-go}
dir=$PWD/build/podbench
programs=$dir/programs
address=10.255.251.1     # on the loopback device, of the control plane and both nodes
pods=10.255.252.0/24     # of the kubelet's pods, on a bridge of their own
bridge=spbench0
export CGO_ENABLED=0 KUBECONFIG=$dir/kubernetes/kubeconfig

say() { echo "podbench: $*" >&2; }
[ "$(id -u)" = 0 ] || { say "run as root"; exit 1; }
hack/setup.sh
for pair in /usr/lib/cni/bridge:containernetworking-plugins runc:runc busybox:busybox-static ip:iproute2 iptables:iptables mount:mount; do
    command -v "${pair%%:*}" >/dev/null || apt-get install -y --no-install-recommends "${pair#*:}" >/dev/null
done

say "build"
mkdir -p "$programs"
make --no-print-directory build kubernetes >/dev/null
(cd kubernetes && $go build -trimpath -o "$programs/kubelet" k8s.io/kubernetes/cmd/kubelet)
for name in containerd containerd-shim-runc-v2 ctr; do
    [ -x "$programs/$name" ] || GOBIN=$programs $go install -trimpath github.com/containerd/containerd/v2/cmd/$name@$containerd
done

pids=()
cleanup() {
    local mount i
    for ((i = ${#pids[@]} - 1; i >= 0; i--)); do kill "${pids[i]}" 2>/dev/null || true; done
    for ((i = ${#pids[@]} - 1; i >= 0; i--)); do wait "${pids[i]}" 2>/dev/null || true; done
    bin/spillway down --purge --data-dir "$dir/platform" >/dev/null 2>&1 || true
    while read -r mount; do umount -l "$mount" 2>/dev/null || true; done < <(awk -v dir="$dir/" 'index($2, dir) == 1 {print $2}' /proc/mounts | sort -r)
    ip link delete $bridge 2>/dev/null || true
    ip address delete $address/32 dev lo 2>/dev/null || true
}
trap cleanup EXIT
# What a run that was killed has left.
[ ! -e "$dir/platform" ] || bin/spillway down --purge --data-dir "$dir/platform" >/dev/null 2>&1 || true
rm -rf "$dir"/{platform,kubernetes,kubelet,containerd,root,certificate-authority,client-certificate,client-key}
mkdir -p "$dir"/{kubelet,containerd/cni,root/bin}
ip address add $address/32 dev lo 2>/dev/null || true

# begin LOG COMMAND…: starts a process of this run.
begin() {
    "${@:2}" >"$dir/$1.log" 2>&1 &
    pids+=($!)
}
# await WHAT COMMAND…: waits until a command succeeds.
await() {
    for ((i = 0; i < 600; i++)); do
        "${@:2}" >/dev/null 2>&1 && return
        sleep 0.1
    done
    say "waited in vain for $1; the logs are in $dir"
    exit 1
}
ready() { grep -q '^ready ' "$dir/$1.log"; }
# api METHOD PATH [CURL OPTION…]: asks the cluster as its administrator.
api() {
    local key
    for key in certificate-authority client-certificate client-key; do
        [ -s "$dir/$key" ] || sed -n "s/^ *$key-data: //p" "$KUBECONFIG" | base64 -d >"$dir/$key"
    done
    curl -sSf --cacert "$dir/certificate-authority" --cert "$dir/client-certificate" --key "$dir/client-key" -X "$1" "$(sed -n 's/^ *server: //p' "$KUBECONFIG")$2" "${@:3}"
}
node_ready() { api GET "/api/v1/nodes/$1" | tr -d ' \n' | grep -o '{[^{}]*"type":"Ready"[^{}]*}' | grep -q '"status":"True"'; }

cat >"$dir/containerd.toml" <<TOML
version = 3
root = "$dir/containerd/root"
state = "$dir/containerd/state"
[grpc]
  address = "$dir/containerd/sock"
[ttrpc]
  address = "$dir/containerd/ttrpc"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = "spillway.internal/pause:1"
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = ["/usr/lib/cni"]
    conf_dir = "$dir/containerd/cni"
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
      BinaryName = "$(command -v runc)"
TOML
cat >"$dir/containerd/cni/10-bench.conflist" <<JSON
{"cniVersion": "1.0.0", "name": "podbench", "plugins": [
  {"type": "bridge", "bridge": "$bridge", "isGateway": true, "ipMasq": false,
   "ipam": {"type": "host-local", "dataDir": "$dir/containerd/cni-state", "ranges": [[{"subnet": "$pods"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "loopback"}]}
JSON
cat >"$dir/kubelet.yaml" <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: $address
port: 10260
healthzPort: 0
authentication: {anonymous: {enabled: false}, webhook: {enabled: false}, x509: {clientCAFile: $dir/certificate-authority}}
authorization: {mode: AlwaysAllow}
failCgroupV1: false
failSwapOn: false
cgroupDriver: cgroupfs
cgroupsPerQOS: false
enforceNodeAllocatable: []
containerRuntimeEndpoint: unix://$dir/containerd/sock
podLogsDir: $dir/kubelet-logs
clusterDNS: []
YAML

say "start"
PATH=$programs:$PATH begin containerd "$programs/containerd" --config "$dir/containerd.toml"
begin platform bin/spillway up --data-dir "$dir/platform" --listen 127.0.0.1:0
begin kubernetes bin/spillway-kubernetes --data-dir "$dir/kubernetes" --listen 127.0.0.1:0 --advertise-address $address
await "the platform" ready platform
await "the control plane" ready kubernetes
api GET /version >/dev/null
cp "$(command -v busybox)" "$dir/root/bin/busybox"
for tool in sh sleep; do ln -sf busybox "$dir/root/bin/$tool"; done
$go run ./hack/image -o "$dir/busybox.tar" -name docker.io/library/busybox:1 -dir "$dir/root" -- sh
$go run ./hack/image -o "$dir/pause.tar" -name spillway.internal/pause:1 -dir "$dir/root" -- sleep 2147483647
bin/spillway --config "$dir/platform/client.json" image import "$dir/busybox.tar" >/dev/null
for image in busybox pause; do
    await "containerd" "$programs/ctr" -a "$dir/containerd/sock" -n k8s.io images import "$dir/$image.tar"
done
begin node bin/spillway-node --kubeconfig "$KUBECONFIG" --config "$dir/platform/client.json" --name virtual --no-taint \
    --address $address --listen $address:10250
virtual=${pids[-1]}
begin kubelet "$programs/kubelet" --config "$dir/kubelet.yaml" --kubeconfig "$KUBECONFIG" --root-dir "$dir/kubelet" --hostname-override real --node-ip $address
for node in virtual real; do await "node $node" node_ready $node; done
await "the service account" api GET /api/v1/namespaces/default/serviceaccounts/default

# peak is the most memory that the virtual node's process has had.
peak() { sed -n 's/^VmHWM:[[:space:]]*\([0-9]*\) kB/\1/p' "/proc/$virtual/status"; }
say "measure ($(nproc) CPUs, $(uname -sr), containerd $containerd, $(runc --version | head -n 1))"
bin/spillway-node bench --nodes virtual,real --rounds "$rounds" --burst "$burst" | tee "$dir/result.json"
say "1000 pods at once on the virtual node"
bin/spillway-node bench --nodes virtual --rounds 0 --burst 1000 | tee "$dir/thousand.json"
say "spillway-node: at most $(($(peak) / 1024)) MiB resident"
say "groups left: $(bin/spillway --config "$dir/platform/client.json" ps -o json | grep -c '"id"' || true)"
