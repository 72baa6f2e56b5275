#!/bin/bash
# Makes the images that the conformance tests use, of programs of this machine, and imports them into a platform:
# hack/conformance/images.sh WORK-DIR PROGRAMS-DIR CLIENT-CONFIG
#
# They resemble the originals in what the tests look at, and in nothing else. Their names are those that the suite
# itself lists.
set -euo pipefail
cd "$(dirname "$0")/../.."

work=$1 programs=$2
export SPILLWAY_CONFIG=$3
go=${GO:-go}

mkdir -p "$work"
"$programs/e2e.test" --list-images 2>/dev/null >"$work/list"

# names KEY…: the names in the suite's list that end in one of the keys, as options of hack/image.
names() {
    local key
    for key in "$@"; do sed -n "s|^\(.*/$key:.*\)$|-name=\1|p" "$work/list"; done
}

# base DIR: a root with a shell and its tools.
base() {
    rm -rf "$1" && mkdir -p "$1"/{bin,etc,tmp,root,home,usr/bin,var} && chmod 1777 "$1/tmp"
    cp "$(command -v busybox)" "$1/bin/busybox"
    local tool
    for tool in $(busybox --list); do [ "$tool" = busybox ] || ln -sf busybox "$1/bin/$tool"; done
    printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/false\n' >"$1/etc/passwd"
    printf 'root:x:0:\nnobody:x:65534:\nusers:x:100:\n' >"$1/etc/group"
}

# copy DIR PROGRAM…: programs of this machine with the libraries that they need.
copy() {
    local dir=$1 program path lib
    shift
    mkdir -p "$dir/usr/local/bin" "$dir/lib64"
    for program in "$@"; do
        path=$(readlink -f "$(command -v "$program")")
        cp "$path" "$dir/usr/local/bin/$program"
        for lib in $(ldd "$path" | grep -o '/[^ )]*') /lib/*-linux-gnu/libnss_dns.so.2 /lib/*-linux-gnu/libnss_files.so.2 /lib/*-linux-gnu/libresolv.so.2; do
            mkdir -p "$dir$(dirname "$lib")"
            cp -nL "$lib" "$dir$lib"
        done
    done
    echo 'hosts: files dns' >"$dir/etc/nsswitch.conf"
}

# image KEYS DIR OPTION…: packs a root under every name that ends in one of the keys, and imports it.
image() {
    local -a as
    mapfile -t as < <(names $1) # the keys are words
    [ ${#as[@]} -gt 0 ] || { echo "images: the suite lists none of: $1" >&2; return; }
    "$go" run ./hack/image -o "$work/image.tar" "${as[@]}" -dir "$2" "${@:3}"
    bin/spillway image import "$work/image.tar" >/dev/null
}

www=(/bin/busybox httpd -f -p 80 -h)
base "$work/plain"
base "$work/agnhost"
# A shell that keeps variables whose names it could not have itself, and that has no tools of its own.
for dir in "$work"/{plain,agnhost}; do rm "$dir/bin/sh" && cp "$(command -v bash-static)" "$dir/bin/sh"; done
image "busybox ipc-utils perl" "$work/plain" -- sh
copy "$work/agnhost" curl dig getent nc.openbsd
ln -sf ../usr/local/bin/nc.openbsd "$work/agnhost/bin/nc"
cp "$programs/agnhost" "$work/agnhost/agnhost" && ln -sf agnhost "$work/agnhost/agnhost-2" && mkdir -p "$work/agnhost/uploads"
suite=$(cd kubernetes && "$go" list -m -f '{{.Dir}}' k8s.io/kubernetes)
cp "$suite"/test/images/agnhost/porter/localhost.{crt,key} "$work/agnhost/"
image agnhost "$work/agnhost" -entrypoint /agnhost -- pause
image glibc-dns-testing "$work/agnhost" -- sh
mkdir -p "$work/pause" && cp "$programs/agnhost" "$work/pause/agnhost"
image pause "$work/pause" -user 65535:65535 -entrypoint /agnhost -entrypoint pause
base "$work/nonroot"
echo 'nonroot:x:1234:1234:nonroot:/home:/bin/sh' >>"$work/nonroot/etc/passwd"
image nonroot "$work/nonroot" -user 1234 -entrypoint /bin/sh -entrypoint -c -entrypoint id
base "$work/nonewprivs"
gcc -static -O1 -o "$work/nonewprivs/nnp" hack/conformance/nonewprivs.c && chmod 4755 "$work/nonewprivs/nnp"
image nonewprivs "$work/nonewprivs" -entrypoint /nnp
for kind in nautilus kitten; do
    base "$work/$kind"
    mkdir -p "$work/$kind/www"
    printf '{\n"image": "%s.jpg"\n}\n' $kind >"$work/$kind/www/data.json"
    echo $kind >"$work/$kind/www/index.html"
    image $kind "$work/$kind" -- "${www[@]}" /www
done
base "$work/web"
mkdir -p "$work/web/usr/share/nginx/html"
echo '<h1>Welcome to nginx!</h1>' >"$work/web/usr/share/nginx/html/index.html"
image nginx "$work/web" -- "${www[@]}" /usr/share/nginx/html
mkdir -p "$work/web/usr/local/apache2/htdocs"
echo '<html><body><h1>It works!</h1></body></html>' >"$work/web/usr/local/apache2/htdocs/index.html"
image httpd "$work/web" -- "${www[@]}" /usr/local/apache2/htdocs
