#!/bin/bash
# Builds gVisor's runsc into bin/, where 'spillway up' of this tree finds it. Debian's package is years old; the module
# is built in a directory of its own, so that its dependencies never touch ours.
set -euo pipefail
cd "$(dirname "$0")/.."

version=v0.0.0-20260905035102-160fafc42237
target=$PWD/bin/runsc
if [ -x "$target" ] && [ "$(cat bin/runsc.version 2>/dev/null)" = "$version" ]; then exit 0; fi
hack/need.sh build
mkdir -p bin
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
echo "== build runsc $version (some minutes)"
cd "$dir"
go=${GO:-go}
"$go" mod init runsc >/dev/null 2>&1
"$go" get "gvisor.dev/gvisor/runsc@$version" >/dev/null 2>&1 || { echo "make runsc: gvisor.dev/gvisor $version cannot be downloaded" >&2; exit 1; }
# Static: it executes itself again inside a root of its own.
CGO_ENABLED=0 "$go" build -trimpath -ldflags '-s -w' -o "$target.new" gvisor.dev/gvisor/runsc
mv "$target.new" "$target"
echo "$version" >"$(dirname "$target")/runsc.version"
"$target" --version | head -n 1
