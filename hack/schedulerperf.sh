#!/bin/bash
# Measures Kubernetes' scheduler by its own benchmark (scheduler_perf, SchedulingBasic at 5000 nodes) beside placement here, in
# one run: hack/schedulerperf.sh [ROUNDS, default 3]
#
# scheduler_perf runs API server, scheduler and client in one process over an etcd, without kubelets; the etcd is the same as
# Spillway's. Its build takes some minutes the first time. Results are in build/schedulerperf.
set -euo pipefail
cd "$(dirname "$0")/.."

rounds=${1:-3}
go=${GO:-go}
dir=$PWD/build/schedulerperf
package=k8s.io/kubernetes/test/integration/scheduler_perf/misc
export CGO_ENABLED=0

say() { echo "schedulerperf: $*" >&2; }

say "build"
rm -rf "$dir"
mkdir -p "$dir/bin"
make --no-print-directory platform >/dev/null
(cd kubernetes && $go test -c -o "$dir/misc.test" $package)
source=$(cd kubernetes && $go list -f '{{.Dir}}' $package)
version=$(cd kubernetes && $go list -m -f '{{.Version}}' k8s.io/kubernetes)

# It starts "etcd" with flags of its own.
cat >"$dir/bin/etcd" <<SH
#!/bin/bash
while [ \$# -gt 0 ]; do
    case \$1 in
    --data-dir) data=\$2 ;;
    --listen-client-urls) url=\$2 ;;
    esac
    shift
done
exec "$PWD/bin/spillway" benchpart etcd --data-dir "\$data" --listen "\$url"
SH
chmod +x "$dir/bin/etcd"

# run WORKLOAD OUT: runs one workload once; its processor time in seconds, etcd's included, goes to OUT.cpu.
run() {
    rm -rf "$2" && mkdir -p "$2"
    local TIMEFORMAT='%U %S'
    { time (cd "$source" && PATH=$dir/bin:$PATH KUBE_CACHE_MUTATION_DETECTOR=false TMPDIR=/var/tmp "$dir/misc.test" -test.run '^$' -test.benchtime 1x -test.timeout 30m \
        -test.bench "^BenchmarkPerfScheduling\$/^SchedulingBasic\$/^$1\$" -perf-scheduling-label-filter= -data-items-dir "$2" >"$2/log" 2>&1); } 2>"$2/cpu"
    grep -q '^PASS' "$2/log" || { tail -n 5 "$2/log" >&2; say "$1 failed; its log is $2/log"; exit 1; }
}

# metric FILE METRIC [EXTENSION POINT…]: the average of a metric, summed over extension points.
metric() {
    awk -v metric="$2" -v points=" ${*:3} " -F'[:,]' '
        /"Average"/ {average = $2}
        /"Metric"/ {found = index($2, "\"" metric "\"")}
        /"extension_point"/ && found {gsub(/[ "]/, "", $2); if (points == "  " || index(points, " " $2 " ")) sum += average}
        END {print sum}' "$1"
}
ours() { sed -n "s/^ *\"$2\": \([0-9.]*\),*/\1/p" "$1"; }
seconds() { awk '{print $1 + $2}' "$1"; }
# middle of some numbers, one a line.
middle() { sort -g | awk '{v[NR] = $1} END {print v[int((NR + 1) / 2)]}'; }
over() { awk -v a="$1" -v b="$2" 'BEGIN {printf "%.1f", a / b}'; }

for ((i = 1; i <= rounds; i++)); do
    say "round $i of $rounds"
    bin/spillway bench place --json >"$dir/place.$i.json" 2>/dev/null
    run 5000Nodes "$dir/few.$i"
    run 5000Nodes_10000Pods "$dir/many.$i"
    json=$(echo "$dir/many.$i/"*.json)
    metric "$json" SchedulingThroughput >>"$dir/pods"
    metric "$json" scheduler_framework_extension_point_duration_seconds PreFilter Filter PreScore Score >>"$dir/decision"
    # What 9000 more pods cost is what pods cost.
    awk -v a="$(seconds "$dir/many.$i/cpu")" -v b="$(seconds "$dir/few.$i/cpu")" 'BEGIN {print 9000 / (a - b)}' >>"$dir/podsPerCPU"
    ours "$dir/place.$i.json" placementsPerCPUSecondAt5000Hosts >>"$dir/placed"
    ours "$dir/place.$i.json" durablePlacementsPerSecondAt5000Hosts >>"$dir/durable"
    ours "$dir/place.$i.json" durablePlacementsPerCPUSecondAt5000Hosts >>"$dir/durablePerCPU"
done
pods=$(middle <"$dir/pods") perCPU=$(middle <"$dir/podsPerCPU") placed=$(middle <"$dir/placed") durable=$(middle <"$dir/durable") durablePerCPU=$(middle <"$dir/durablePerCPU")
echo "kubernetes $version, scheduler_perf SchedulingBasic/5000Nodes_10000Pods, $rounds rounds, $(nproc) CPUs, $(uname -sr)"
echo "pods scheduled per second                                    $pods"
echo "pods per second of processor (scheduler, API server, etcd)   $perCPU"
echo "one decision of the scheduler, in ms                         $(middle <"$dir/decision")"
echo "spillway: placements per second of processor                 $placed"
echo "spillway: durable placements per second                      $durable"
echo "spillway: durable placements per second of processor         $durablePerCPU"
echo "placements per second of processor over pods per second      $(over "$placed" "$pods")"
echo "placements over pods, both per second of processor           $(over "$placed" "$perCPU")"
echo "durable placements over pods, both per second                $(over "$durable" "$pods")"
echo "durable placements over pods, both per second of processor   $(over "$durablePerCPU" "$perCPU")"
