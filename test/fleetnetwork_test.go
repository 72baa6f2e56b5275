package test

import (
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"spillway.dev/spillway/internal/client"
	"spillway.dev/spillway/internal/host"
)

// spread is a platform of three hosts with groups that serve their own names.
type spread struct {
	*platform
	hosts map[string]*fleetHost // the two that have joined
	local string                // the platform's own
	first *machine
}

// startSpread runs the platform on a machine "first" and lets "second" and "third" join.
func startSpread(t *testing.T) *spread {
	t.Helper()
	s := newSite(t)
	first := s.machine("first")
	p := startPlatform(t, options{on: first, args: []string{"--hosts-listen", first.addr + ":0", "--beat", beat.String()}})
	own, err := p.client.Hosts(t.Context())
	if err != nil || len(own) != 1 {
		t.Fatalf("hosts = %v, %v", own, err)
	}
	w := &spread{platform: p, local: own[0].Name, first: first, hosts: map[string]*fleetHost{}}
	for _, name := range []string{"second", "third"} {
		w.hosts[name] = joinHost(t, s.machine(name), endpointOf(t, p.dir), token(t, p.client))
		awaitHost(t, p.client, name, host.Ready)
	}
	if err := p.importImage(busybox()); err != nil {
		t.Fatal(err)
	}
	return w
}

// web runs a group on a host; it serves its name at port 8080.
func (w *spread) web(name, on string, more ...M) *client.Group {
	w.Helper()
	for _, h := range []string{w.local, "second", "third"} {
		action := "cordon"
		if h == on {
			action = "uncordon"
		}
		if _, err := w.client.HostAction(w.Context(), h, action); err != nil {
			w.Fatal(err)
		}
	}
	serve := container("c", "mkdir -p /w && echo "+name+" > /w/index.html && exec httpd -f -p 8080 -h /w", M{"ports": []M{{"port": 8080}}})
	w.put(name, group([]M{serve}, append([]M{{"ipAddress": M{"type": "Private", "ports": []M{{"port": 8080}}}}}, more...)...))
	w.Cleanup(func() { w.remove(name) })
	g := w.running(name)
	if g.Properties.Host != on {
		w.Fatalf("group %s runs on %s, want %s", name, g.Properties.Host, on)
	}
	return g
}

// fetch asks an address or a name from within a group.
func (w *spread) fetch(from, to string) string {
	out, _, err := w.tryExec(from, "c", "timeout 2 wget -qO- http://"+to+":8080/ 2>&1; true")
	if err != nil {
		return err.Error()
	}
	return out
}

// nameOf is the name of a group in its network.
func nameOf(g *client.Group) string { return g.Name + ".default.local.spillway.internal" }

// TestNetworkOverHosts runs groups on three hosts: those of a network reach each other without translation, those of
// different networks not at all, and a host that is lost is out before its groups run elsewhere.
func TestNetworkOverHosts(t *testing.T) {
	t.Parallel()
	w := startSpread(t)
	one, two, three := w.web("one", w.local), w.web("two", "second", M{"restartPolicy": "Always"}), w.web("three", "third")
	other := w.web("other", "second", M{"network": "apart"})
	groups := []*client.Group{one, two, three}
	for _, from := range groups {
		for _, to := range groups {
			if got := w.fetch(from.Name, address(to)); got != to.Name {
				t.Errorf("from %s to %s: %q", from.Name, to.Name, got)
			}
		}
		for _, to := range groups {
			if got := w.fetch(from.Name, nameOf(to)); got != to.Name {
				t.Errorf("from %s to %s by name: %q", from.Name, to.Name, got)
			}
		}
		if got := w.fetch("other", nameOf(from)); !strings.Contains(got, "bad address") {
			t.Errorf("the name of %s in another network: %q", from.Name, got)
		}
		if got := w.fetch(from.Name, address(other)); got == "other" {
			t.Errorf("from %s into another network: %q", from.Name, got)
		}
		if got := w.fetch("other", address(from)); got == from.Name {
			t.Errorf("out of another network to %s: %q", from.Name, got)
		}
	}
	if _, err := w.client.HostAction(t.Context(), w.local, "uncordon"); err != nil {
		t.Fatal(err)
	}
	// The agent dies, its containers do not.
	second := w.hosts["second"]
	second.signal(syscall.SIGKILL)
	moved := w.await("two", "a start elsewhere", func(g *client.Group) bool { return g.Properties.Host != "second" && g.State() == "Running" })
	if address(moved) == address(two) {
		t.Errorf("the address %s is on two hosts", address(two))
	}
	if !second.serves(address(two)) {
		t.Error("the first copy does not run any more: the test shows nothing")
	}
	if got := w.fetch("three", address(two)); got == "two" {
		t.Error("a lost host is reached")
	}
	if got := w.fetch("three", address(moved)); got != "two" {
		t.Errorf("the group that was started elsewhere: %q", got)
	}
	if got := w.fetch("three", nameOf(moved)); got != "two" {
		t.Errorf("the group that was started elsewhere, by name: %q", got)
	}
	if out, _ := w.exec("three", "c", "nslookup "+address(moved)+" 2>&1; true"); !strings.Contains(out, nameOf(moved)) {
		t.Errorf("the name of the address %s:\n%s", address(moved), out)
	}
	second.start()
	awaitHost(t, w.client, "second", host.Ready)
	waitFor(t, "the end of the first copy", func() bool { return !second.serves(address(two)) })
	if g := w.get("other"); g.State() != "Failed" {
		t.Errorf("the group that must not start twice is %s, want Failed", g.State())
	}
	back := w.web("back", "second")
	if got := w.fetch("three", address(back)); got != "back" {
		t.Errorf("the host that came back: %q", got)
	}
}

// TestNamesOfAHostThatIsCutOff: a host that reaches no server goes on to answer what it knew of groups elsewhere, also when
// its agent dies meanwhile.
func TestNamesOfAHostThatIsCutOff(t *testing.T) {
	t.Parallel()
	w := startSpread(t)
	third := w.hosts["third"]
	far := w.web("far", w.local, M{"ipAddress": M{"type": "Public", "dnsNameLabel": "shop-front", "ports": []M{{"port": 8080}}}})
	id, gateway, err := instanceOf(third.dir)
	if err != nil {
		t.Fatal(err)
	}
	ask := func() (got string) {
		q := new(dns.Msg)
		q.SetQuestion("shop-front.local.spillway.internal.", dns.TypeA)
		_ = third.on.inside(func() error {
			answer, err := dns.Exchange(q, net.JoinHostPort(gateway, "53"))
			if err == nil && len(answer.Answer) == 1 {
				got = answer.Answer[0].(*dns.A).A.String()
			}
			return err
		})
		return got
	}
	waitFor(t, "the name on the other host", func() bool { return ask() == address(far) })
	waitFor(t, "the name on its disk", func() bool {
		body, _ := os.ReadFile(filepath.Join("/run/spillway", id, "names.json"))
		return strings.Contains(string(body), "shop-front")
	})
	if err := third.on.lose(w.first); err != nil {
		t.Fatal(err)
	}
	third.signal(syscall.SIGKILL)
	third.start()
	if got := ask(); got != address(far) {
		t.Errorf("an agent that was started while it is cut off says that the group is at %q, want %s", got, address(far))
	}
	w.remove("far")
	if err := third.on.find(w.first); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the end of the name", func() bool { return ask() == "" })
}

// serves says whether something answers at an address, as the host's own machine sees it.
func (h *fleetHost) serves(ip string) bool {
	c := http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: h.on.dialContext}}
	resp, err := c.Get("http://" + ip + ":8080/")
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}
