package agent

import (
	"bytes"
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/host"
	"spillway.dev/spillway/internal/image"
	"spillway.dev/spillway/internal/network"
)

func TestCommandAndEnvironment(t *testing.T) {
	img := image.Image{Config: ocispec.ImageConfig{Entrypoint: []string{"/entry"}, Cmd: []string{"a", "b"}, Env: []string{"PATH=/bin", "MODE=image", "EMPTY="}}}
	tests := []struct {
		name string
		c    group.Container
		args []string
		env  []string
	}{
		{"the image's own", group.Container{}, []string{"/entry", "a", "b"}, []string{"PATH=/bin", "MODE=image", "EMPTY=", "HOSTNAME=h"}},
		{"command replaces both", group.Container{Command: []string{"x", "y"}}, []string{"x", "y"}, []string{"PATH=/bin", "MODE=image", "EMPTY=", "HOSTNAME=h"}},
		{"args replace the image's command", group.Container{Args: []string{"z"}}, []string{"/entry", "z"}, []string{"PATH=/bin", "MODE=image", "EMPTY=", "HOSTNAME=h"}},
		{"both", group.Container{Command: []string{"x"}, Args: []string{"z"}, Env: []group.EnvVar{{Name: "MODE", Value: "mine"}, {Name: "NEW", Value: "1=2"}}},
			[]string{"x", "z"}, []string{"PATH=/bin", "MODE=mine", "EMPTY=", "HOSTNAME=h", "NEW=1=2"}},
	}
	for _, tt := range tests {
		if diff := cmp.Diff(tt.args, command(&tt.c, img)); diff != "" {
			t.Errorf("%s: command (-want +got)\n%s", tt.name, diff)
		}
		if diff := cmp.Diff(tt.env, environment(&tt.c, img, "h")); diff != "" {
			t.Errorf("%s: environment (-want +got)\n%s", tt.name, diff)
		}
	}
}

func TestProcessFollowsTheSecurityContext(t *testing.T) {
	img := image.Image{Config: ocispec.ImageConfig{User: "web:www", WorkingDir: "/srv"}}
	uid, gid := int64(7), int64(8)
	p := process(&group.Container{}, img, "h")
	if p.User != "web:www" || p.Dir != "/srv" || !p.NoNewPrivs {
		t.Errorf("without a context: %+v", p)
	}
	p = process(&group.Container{WorkingDir: "/w", Security: &group.Security{User: &uid, Group: &gid, ExtraGroups: []int64{9}, AllowEscalation: true, DropCaps: []string{"ALL"}}}, img, "h")
	if p.User != "7:8" || p.Dir != "/w" || p.NoNewPrivs || p.Caps != 0 || len(p.Groups) != 1 || p.Groups[0] != 9 {
		t.Errorf("with a context: %+v", p)
	}
	p = process(&group.Container{Security: &group.Security{Group: &gid}}, img, "h")
	if p.User != "web:8" {
		t.Errorf("with a group alone: user %q, want web:8", p.User)
	}
}

func TestFilesOfAGroup(t *testing.T) {
	gateway := netip.MustParseAddr("10.0.0.1")
	if got, want := resolvConf(nil, gateway, "local"), "search local.spillway.internal\nnameserver 10.0.0.1\noptions ndots:1\n"; got != want {
		t.Errorf("resolvConf = %q, want %q", got, want)
	}
	own := &group.DNSConfig{Servers: []string{"1.1.1.1", "9.9.9.9"}, Search: []string{"a", "b"}, Options: []string{"ndots:2"}}
	if got, want := resolvConf(own, gateway, "local"), "search a b\nnameserver 1.1.1.1\nnameserver 9.9.9.9\noptions ndots:2\n"; got != want {
		t.Errorf("resolvConf = %q, want %q", got, want)
	}
	g := &group.Group{Ref: group.Ref{Name: strings.Repeat("n", 70)}, Spec: group.Spec{HostAliases: []group.HostAlias{{IP: "10.1.1.1", Names: []string{"db", "db.local"}}}}}
	if len(hostname(g)) != maxHostname {
		t.Errorf("hostname of %d bytes, the kernel takes %d", len(hostname(g)), maxHostname)
	}
	if got := hostsFile(g, gateway); !strings.HasSuffix(got, "10.1.1.1\tdb\tdb.local\n") || !strings.HasPrefix(got, "127.0.0.1\tlocalhost\n10.0.0.1\tn") {
		t.Errorf("hosts file %q", got)
	}
}

func TestNetworkNumbers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "networks.json")
	n, err := openNetworks(path, "00aa")
	if err != nil {
		t.Fatal(err)
	}
	number := func(n *networks, subscription string) uint32 {
		t.Helper()
		subscription, network, named := strings.Cut(subscription, "/")
		if !named {
			network = group.DefaultNetwork
		}
		got, err := n.of(subscription, network)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	a, b := number(n, "A"), number(n, "b")
	if a == b || a == 0 || b == 0 {
		t.Errorf("subscriptions got %d and %d", a, b)
	}
	again, err := openNetworks(path, "00aa")
	if err != nil {
		t.Fatal(err)
	}
	if number(again, "a") != a || number(again, "B") != b {
		t.Error("numbers change with case or over a restart")
	}
	if c := number(again, "c"); c == a || c == b {
		t.Errorf("a new subscription got %d, which is taken", c)
	}
	named := number(again, "a/blue")
	if named == a || named == number(again, "b/blue") || named != number(again, "A/blue") {
		t.Errorf("network blue of subscription a got %d; its default network has %d", named, a)
	}
}

func TestRunIDsRoundTrip(t *testing.T) {
	l := runLabel{UID: "0a1b", Epoch: 3, Name: "web-1", Attempt: 12}
	if got, ok := parseRunID(l.id()); !ok || got != l {
		t.Errorf("parseRunID(%q) = %+v, %v", l.id(), got, ok)
	}
	for _, bad := range []string{"", "a.b.c", "a.x.c.1", "a.1.c.x"} {
		if _, ok := parseRunID(bad); ok {
			t.Errorf("parseRunID(%q) took it", bad)
		}
	}
}

func TestReadLogs(t *testing.T) {
	dir := t.TempDir()
	write := func(name, body string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("log.1", "2026-01-01T00:00:01.000000000Z O F one\n2026-01-01T00:00:02.000000000Z E F two\n")
	write("log", "2026-01-01T00:00:03.000000000Z O P thr\n2026-01-01T00:00:03.000000000Z O F ee\nnonsense\n2026-01-01T00:00:04.000000000Z O F four\n2026-01-01T00:00:05.000000000Z O F unfini")
	tests := []struct {
		name string
		opt  host.LogOptions
		want string
	}{
		{"all", host.LogOptions{}, "one\ntwo\nthree\nfour\n"},
		{"tail", host.LogOptions{Tail: 1}, "four\n"},
		{"none", host.LogOptions{Tail: -1}, ""},
		{"since", host.LogOptions{Since: time.Date(2026, 1, 1, 0, 0, 4, 0, time.UTC)}, "four\n"},
		{"timestamps", host.LogOptions{Tail: 1, Timestamps: true}, "2026-01-01T00:00:04.000000000Z four\n"},
		{"the last bytes", host.LogOptions{LimitBytes: 9}, "ee\nfour\n"},
	}
	for _, tt := range tests {
		var out bytes.Buffer
		if err := readLogs(context.Background(), dir, tt.opt, func() bool { return true }, &out); err != nil || out.String() != tt.want {
			t.Errorf("%s: %q, %v, want %q", tt.name, out.String(), err, tt.want)
		}
	}
}

func FuzzRenderLogLine(f *testing.F) {
	f.Add([]byte("2026-01-01T00:00:01.000000000Z O F one\n"))
	f.Fuzz(func(t *testing.T, line []byte) {
		(&follower{}).render(line)
		(&follower{opt: host.LogOptions{Timestamps: true}}).render(line)
	})
}

// TestVirtualNetworkNumbers: networks with addresses outside the range are counted apart, are written down, and are given again
// only when nothing on the machine has them.
func TestVirtualNetworkNumbers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "networks.json")
	open := func(held ...uint32) *networks {
		t.Helper()
		n, err := openNetworks(path, "00aa")
		if err != nil {
			t.Fatal(err)
		}
		still := map[uint32]bool{}
		for _, h := range held {
			still[h] = true
		}
		if err := n.forget(still); err != nil {
			t.Fatal(err)
		}
		return n
	}
	first, second := network.VirtualNetwork("00aa", 1), network.VirtualNetwork("00aa", 2)
	is := func(n *networks, name string, want uint32) {
		t.Helper()
		if got, err := n.outside("Sub", name); err != nil || got != want {
			t.Errorf("%s has the number %x, %v, want %x", name, got, err, want)
		}
	}
	n := open()
	is(n, "vnet:a", first)
	is(n, "vnet:b", second)
	if got, err := n.of("sub", "vnet:a"); err != nil || got != 1 {
		t.Errorf("a network in the range has the number %d, %v, want 1", got, err)
	}
	n = open(second)
	is(n, "vnet:b", second)
	is(n, "vnet:c", network.VirtualNetwork("00aa", 3))
	n = open()
	is(n, "vnet:d", first)
	if got, err := n.of("sub", "vnet:a"); err != nil || got != 1 {
		t.Errorf("a network in the range has the number %d, %v, want 1 as before", got, err)
	}
	n.numbers["sub/full"+outside] = network.VirtualNetwork("00aa", network.MaxVirtual)
	if _, err := n.outside("sub", "vnet:e"); fault.KindOf(err) != fault.Exhausted {
		t.Errorf("one too many: %v", err)
	}
}
