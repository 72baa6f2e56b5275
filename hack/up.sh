#!/bin/bash
# Starts the platform on this machine in the background and runs the sample group on it. A second run is harmless.
#
# SPILLWAY_DATA_DIR (default /var/lib/spillway) and SPILLWAY_LISTEN (default 127.0.0.1:8443) choose another place.
set -euo pipefail
cd "$(dirname "$0")/.."

data=${SPILLWAY_DATA_DIR:-/var/lib/spillway}
listen=${SPILLWAY_LISTEN:-127.0.0.1:8443}
log=$data/up.log
export SPILLWAY_CONFIG=$data/client.json

die() { echo "make up: $*" >&2; exit 1; }
step() { echo "== $*"; }

mkdir -p "$data"
chmod 700 "$data"

if ! flock -n "$data/up.lock" true 2>/dev/null; then
    step "the platform of $data runs already"
else
    step "start the platform (log: $log)"
    touch "$log"
    from=$(($(stat -c %s "$log") + 1))
    setsid nohup bin/spillway up --data-dir "$data" --listen "$listen" >>"$log" 2>&1 </dev/null &
    pid=$!
    for ((i = 0; i < 300; i++)); do
        tail -c "+$from" "$log" | grep -q '^ready ' && break
        kill -0 "$pid" 2>/dev/null || { tail -c "+$from" "$log" | tail -n 5 >&2; die "the platform did not start; 'bin/spillway doctor --data-dir $data' checks this machine"; }
        sleep 0.1
    done
    tail -c "+$from" "$log" | grep -m 1 '^ready ' || die "the platform is not ready after 30 s; see $log"
fi

step "run the sample group"
if ! bin/spillway image ls -o tsv --query '[].ref' | grep -qx 'docker.io/library/sample:1'; then
    mkdir -p build
    CGO_ENABLED=0 "${GO:-go}" build -trimpath -ldflags '-s -w' -o build/sample ./hack/sample
    "${GO:-go}" run ./hack/image -o build/sample.tar -name sample:1 -file build/sample=/sample -- /sample
    bin/spillway image import build/sample.tar >/dev/null
fi
bin/spillway apply -f hack/sample/group.yaml --wait --timeout 1m
address=$(bin/spillway show sample -o tsv --query properties.ipAddress.ip)
url=http://$address/

for ((i = 0; i < 50; i++)); do
    answer=$(curl -sf --max-time 2 --noproxy '*' "$url") && break
    sleep 0.1
done
[ -n "${answer:-}" ] || die "the sample group does not answer at $url; see 'bin/spillway logs sample' and 'bin/spillway events sample'"
step "curl $url"
echo "$answer"
step "bin/spillway logs sample"
bin/spillway logs sample | head -n 3
if [ "$data" != /var/lib/spillway ]; then
    echo "== for the command line: export SPILLWAY_CONFIG=$SPILLWAY_CONFIG"
fi
