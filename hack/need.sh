#!/bin/bash
# Makes sure that this machine has what building and running the platform needs, and says clearly what is missing where
# it cannot install it: hack/need.sh build|up
set -euo pipefail
cd "$(dirname "$0")/.."

die() { echo "make: $*" >&2; exit 1; }

[ "$(uname -s)" = Linux ] || die "Spillway needs Linux, this is $(uname -s)"

go=${GO:-go}
want=$(sed -n 's/^go //p' go.mod)
command -v "$go" >/dev/null || die "Go $want or newer is missing: see https://go.dev/doc/install"
have=$("$go" env GOVERSION)
[ "$(printf '%s\n%s\n' "${have#go}" "$want" | sort -V | head -n 1)" = "$want" ] || die "Go $want or newer is needed, $go is ${have#go}: see https://go.dev/doc/install"
[ "${1:-build}" = up ] || exit 0

[ "$(id -u)" = 0 ] || die "the platform makes namespaces, cgroups and mounts: run 'sudo make up'"

# command:package, where the package of Debian has another name
missing=()
for pair in curl:curl flock:util-linux setsid:util-linux; do
    command -v "${pair%%:*}" >/dev/null || missing+=("${pair#*:}")
done
[ ${#missing[@]} -gt 0 ] || exit 0
mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)
command -v apt-get >/dev/null || die "install these first: ${missing[*]} (this is no Debian, so it is left to you)"
echo "== install ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get install -y --no-install-recommends "${missing[@]}" >/dev/null 2>&1 ||
    { apt-get update >/dev/null && apt-get install -y --no-install-recommends "${missing[@]}" >/dev/null; } ||
    die "apt-get could not install ${missing[*]}"
