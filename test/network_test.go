package test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netns"

	"spillway.dev/spillway/internal/client"
	"spillway.dev/spillway/internal/identity"
	"spillway.dev/spillway/internal/store"
	"spillway.dev/spillway/internal/store/embedded"
	"spillway.dev/spillway/internal/store/etcd"
	"spillway.dev/spillway/internal/store/sealed"
)

// web serves a page with the text on port 8000.
func web(text string) string {
	return "mkdir -p /tmp/www; echo '" + text + "' >/tmp/www/index.html; httpd -p 8000 -h /tmp/www; " + sleeper
}

func fetch(url string) (string, error) {
	c := http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := c.Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return strings.TrimSpace(string(body)), err
}

func TestGroupsReachEachOtherAndTheMachineThem(t *testing.T) {
	t.Parallel()
	p := sharedPlatform(t)
	server := p.create("server", []M{container("c", web("served"))})
	peer := p.create("peer", []M{container("c", sleeper)})
	addr := address(p.running(server))
	p.running(peer)
	waitFor(t, "the page from the machine", func() bool { out, _ := fetch("http://" + addr + ":8000/"); return out == "served" })
	if out, _ := p.exec(peer, "c", "wget -qO- http://"+addr+":8000/"); out != "served" {
		t.Errorf("a peer in the same subscription got %q, want served", out)
	}
	if out, code := p.exec(peer, "c", "ping -c1 -W1 "+addr); code != 0 {
		t.Errorf("ping: %s", out)
	}
}

func TestARangeOfAnotherPlatformIsRefused(t *testing.T) {
	t.Parallel()
	cidr := "--network=10.201.0.0/16"
	p := startPlatform(t, options{args: []string{cidr}})
	if err := p.importImage(busybox()); err != nil {
		t.Fatal(err)
	}
	n := p.create("owner", []M{container("c", web("owned"))})
	addr := address(p.running(n))
	out, err := exec.Command(p.bin.spillway, "up", "--data-dir", t.TempDir(), "--listen", "127.0.0.1:0", cidr).CombinedOutput()
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 5 || !strings.Contains(string(out), "10.201.0.0/16") {
		t.Errorf("a second platform in the same range: %v, %s, want exit code 5 and the range", err, out)
	}
	waitFor(t, "the owner's page", func() bool { out, _ := fetch("http://" + addr + ":8000/"); return out == "owned" })
	p.running(p.create("next", []M{container("c", sleeper)}))
}

func TestNoPlatformPortInReach(t *testing.T) {
	t.Parallel()
	p := sharedPlatform(t)
	n := p.create("probe", []M{container("c", sleeper)})
	g := p.running(n)
	gateway := netip.MustParseAddr(address(g)).As4()
	gateway[2], gateway[3] = 0, 1
	_, port, _ := net.SplitHostPort(strings.TrimPrefix(p.client.Config().Endpoint, "https://"))
	targets := []string{netip.AddrFrom4(gateway).String() + " " + port}
	var addrs []net.Addr
	links, _ := net.Interfaces()
	for _, l := range links {
		if l.Flags&net.FlagLoopback == 0 { // there are only gateways of other platforms, which come and go
			more, _ := l.Addrs()
			addrs = append(addrs, more...)
		}
	}
	for _, a := range addrs {
		if ip, _, err := net.ParseCIDR(a.String()); err == nil && ip.To4() != nil && !ip.IsLoopback() {
			targets = append(targets, ip.String()+" "+port, ip.String()+" 22")
		}
	}
	listener, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	targets = append(targets, netip.AddrFrom4(gateway).String()+" "+fmt.Sprint(listener.Addr().(*net.TCPAddr).Port), "169.254.169.254 80")
	for _, target := range targets {
		if _, code := p.exec(n, "c", "nc -w 1 "+target+" </dev/null"); code == 0 {
			t.Errorf("a group reaches %s", target)
		}
	}
}

func TestTenantsAreApart(t *testing.T) {
	t.Parallel()
	p := startPlatform(t, options{})
	if err := p.importImage(busybox()); err != nil {
		t.Fatal(err)
	}
	server := p.create("tenant-a", []M{container("c", web("private"))})
	addr := address(p.running(server))
	second := p.addSubscription()
	foreign := sharedPlatform(t) // another platform on the same machine
	for _, q := range []*platform{second, foreign} {
		n := q.create("tenant-b", []M{container("c", sleeper)})
		q.running(n)
		if out, code := q.exec(n, "c", "nc -w 1 "+addr+" 8000 </dev/null"); code == 0 {
			t.Errorf("a group of another tenant got %q", out)
		}
		if out, code := q.exec(n, "c", "ping -c1 -W1 "+addr); code == 0 {
			t.Errorf("a group of another tenant pings: %s", out)
		}
	}
	if out, err := fetch("http://" + addr + ":8000/"); out != "private" {
		t.Errorf("the machine itself got %q, %v; want the page", out, err)
	}
}

// addSubscription writes a second subscription into the stopped platform's store: there is no call for it.
func (p *platform) addSubscription() *platform {
	p.Helper()
	const id = "00000000-0000-4000-8000-00000000beef"
	p.changeStore(func(st store.Store) error { return changeTenant(p.Context(), st, id) })
	cfg := p.client.Config()
	cfg.SubscriptionID = id
	other, err := client.New(cfg)
	if err != nil {
		p.Fatal(err)
	}
	p.Cleanup(other.Close)
	return &platform{T: p.T, process: p.process, client: other}
}

// changeStore changes what there is no call for, while the platform is stopped.
func (p *platform) changeStore(change func(store.Store) error) {
	p.Helper()
	if err := p.signal(syscall.SIGTERM); err != nil {
		p.Fatal(err)
	}
	if err := p.openStore(change); err != nil {
		p.Fatalf("change the store: %v", err)
	}
	if err := p.up(); err != nil {
		p.Fatal(err)
	}
}

func (p *platform) openStore(change func(store.Store) error) error {
	member, err := embedded.Start(p.Context(), filepath.Join(p.dir, "etcd"))
	if err != nil {
		return err
	}
	defer member.Close()
	key, err := sealed.LoadKey(filepath.Join(p.dir, "store.key"))
	if err != nil {
		return err
	}
	st, err := sealed.New(etcd.New(member.Client()), key)
	if err != nil {
		return err
	}
	return change(st)
}

func changeTenant(ctx context.Context, st store.Store, id string) error {
	e, err := st.Get(ctx, store.Tenant)
	if err != nil {
		return err
	}
	var tenant identity.Tenant
	if err := json.Unmarshal(e.Value, &tenant); err != nil {
		return err
	}
	tenant.Subscriptions = append(tenant.Subscriptions, identity.Subscription{ID: id, Name: "second"})
	value, err := json.Marshal(tenant)
	if err != nil {
		return err
	}
	_, err = st.Commit(ctx, store.Op{Key: store.Tenant, Value: value, If: e.Revision})
	return err
}

func TestDNSLabelAndPublicAddress(t *testing.T) {
	t.Parallel()
	listen := freeUDP(t)
	p := startPlatform(t, options{args: []string{"--dns-listen", listen, "--public-addresses", "203.0.113.0/28", "--location", "westlake"}})
	if err := p.importImage(busybox()); err != nil {
		t.Fatal(err)
	}
	body := func(script string, ip M) M {
		b := group([]M{container("c", script, M{"ports": []M{{"port": 8000}}})}, M{"ipAddress": ip})
		b["location"] = "westlake"
		return b
	}
	p.put("web", body(web("labelled"), M{"type": "Public", "dnsNameLabel": "shop-front", "ports": []M{{"port": 8000, "protocol": "TCP"}}}))
	other := group([]M{container("c", sleeper)})
	other["location"] = "westlake"
	p.put("peer", other)
	g := p.running("web")
	p.running("peer")
	ip := g.Properties.IPAddress
	if ip.FQDN != "shop-front.westlake.spillway.internal" || !netip.MustParsePrefix("203.0.113.0/28").Contains(netip.MustParseAddr(ip.IP)) {
		t.Errorf("address %+v, want the label's name and an address of 203.0.113.0/28", ip)
	}
	waitFor(t, "the public address", func() bool { out, _ := fetch("http://" + ip.IP + ":8000/"); return out == "labelled" })
	if _, err := fetch("http://" + ip.IP + ":8001/"); err == nil {
		t.Error("an undeclared port answers at the public address")
	}
	q := new(dns.Msg)
	q.SetQuestion(ip.FQDN+".", dns.TypeA)
	answer, err := dns.Exchange(q, listen)
	if err != nil || len(answer.Answer) != 1 || !strings.HasSuffix(answer.Answer[0].String(), ip.IP) {
		t.Errorf("DNS from the machine: %v, %v; want %s", answer, err, ip.IP)
	}
	if out, _ := p.exec("peer", "c", "wget -qO- http://"+ip.FQDN+":8000/"); out != "labelled" {
		t.Errorf("by name from inside = %q, want labelled", out)
	}
	p.remove("web")
	if answer, err := dns.Exchange(q, listen); err == nil && len(answer.Answer) > 0 {
		t.Errorf("the name of a deleted group still resolves: %v", answer.Answer)
	}
	p.remove("peer")
}

func freeUDP(t *testing.T) string {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return c.LocalAddr().String()
}

// outside is a network namespace that stands for the world beyond the machine.
type outside struct {
	addr string
	ns   netns.NsHandle
}

func newOutside(t *testing.T, subnet byte) *outside {
	t.Helper()
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("ip is missing: apt-get install iproute2")
	}
	id := fmt.Sprintf("swt%d-%d", os.Getpid()%10000, subnet)
	here, there := fmt.Sprintf("10.253.%d.1", subnet), fmt.Sprintf("10.253.%d.2", subnet)
	run := func(line string) {
		t.Helper()
		args := strings.Fields(line)
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", line, err, out)
		}
	}
	run("ip netns add " + id)
	t.Cleanup(func() { run("ip netns del " + id) })
	run("ip link add " + id + " type veth peer name eth0 netns " + id)
	run("ip addr add " + here + "/24 dev " + id)
	run("ip link set " + id + " up")
	for _, line := range []string{"addr add " + there + "/24 dev eth0", "link set lo up", "link set eth0 up"} {
		run("ip -n " + id + " " + line)
	}
	ns, err := netns.GetFromName(id)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	return &outside{addr: there, ns: ns}
}

// listen opens a port in the outside world.
func (o *outside) listen(t *testing.T, port int) net.Listener {
	t.Helper()
	type result struct {
		l   net.Listener
		err error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // given up with the goroutine
		if err := netns.Set(o.ns); err != nil {
			done <- result{nil, err}
			return
		}
		l, err := net.Listen("tcp", fmt.Sprintf("%s:%d", o.addr, port))
		done <- result{l, err}
	}()
	r := <-done
	if r.err != nil {
		t.Fatal(r.err)
	}
	t.Cleanup(func() { r.l.Close() })
	return r.l
}

func TestOutboundIsTranslated(t *testing.T) {
	t.Parallel()
	p := sharedPlatform(t)
	world := newOutside(t, 1)
	from := make(chan string, 16)
	l := world.listen(t, 8080)
	go http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		from <- r.RemoteAddr
		fmt.Fprintln(w, "outside")
	}))
	n := p.create("outbound", []M{container("c", sleeper)})
	addr := address(p.running(n))
	if out, _ := p.exec(n, "c", "wget -qO- http://"+world.addr+":8080/"); out != "outside" {
		t.Fatalf("a group got %q from outside, want an answer", out)
	}
	if seen := <-from; strings.HasPrefix(seen, addr) {
		t.Errorf("outside saw the group's own address %s", seen)
	}
}
