#!/bin/bash
# Installs what the tests use beside Go, and prepares the machine for them. Where it cannot, it says what is missing;
# the tests that need it are then skipped and name it too. A second run is harmless.
set -euo pipefail
cd "$(dirname "$0")/.."

hack/need.sh build

say() { echo "setup: $*" >&2; }

# command:package, where the package of Debian has another name
missing=()
for pair in crun:crun runc:runc git:git ip:iproute2 busybox:busybox-static; do
    command -v "${pair%%:*}" >/dev/null || missing+=("${pair#*:}")
done
[ -e /etc/ssl/certs/ca-certificates.crt ] || missing+=(ca-certificates)
# The tests put busybox alone into an image: it must need no libraries.
if command -v busybox >/dev/null && ldd "$(command -v busybox)" >/dev/null 2>&1; then missing+=(busybox-static); fi

if [ "$(id -u)" != 0 ]; then
    say "not root: nothing is installed, and the tests that need root are skipped"
    [ ${#missing[@]} -eq 0 ] || say "missing: ${missing[*]}"
    exit 0
fi

if [ ${#missing[@]} -gt 0 ]; then
    if command -v apt-get >/dev/null; then
        say "install ${missing[*]}"
        export DEBIAN_FRONTEND=noninteractive
        apt-get install -y --no-install-recommends "${missing[@]}" >/dev/null 2>&1 ||
            { apt-get update >/dev/null && apt-get install -y --no-install-recommends "${missing[@]}" >/dev/null; } ||
            say "apt-get could not install ${missing[*]}; the tests that need them are skipped"
    else
        say "no Debian: install these by hand, or the tests that need them are skipped: ${missing[*]}"
    fi
fi
# The package lists, for the images that are made of Debian's servers.
if command -v apt-cache >/dev/null && ! apt-cache show nginx >/dev/null 2>&1; then
    apt-get update >/dev/null 2>&1 || say "apt-get update failed: the tests with real servers are skipped"
fi

# Old versions of crun refuse a hybrid cgroup layout as long as v2 still has a controller to itself. Mounting the
# controller's v1 hierarchy takes it away from v2.
unified=/sys/fs/cgroup/unified
if [ -e $unified/cgroup.controllers ] && grep -qw hugetlb $unified/cgroup.controllers && [ ! -d /sys/fs/cgroup/hugetlb ]; then
    say "hybrid cgroups: give hugetlb to v1, so that crun runs"
    mkdir -p /sys/fs/cgroup/hugetlb && mount -t cgroup -o hugetlb cgroup /sys/fs/cgroup/hugetlb ||
        say "could not mount the hugetlb hierarchy: the tests of crun are skipped or fail"
fi
