package test

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"

	"spillway.dev/spillway/internal/client"
	"spillway.dev/spillway/internal/fault"
)

// putAddress puts a service address; its properties are the sum of parts.
func (p *platform) putAddress(n string, parts ...M) *client.ServiceAddress {
	p.Helper()
	properties := M{}
	for _, part := range parts {
		for k, v := range part {
			properties[k] = v
		}
	}
	ctx, cancel := context.WithTimeout(p.Context(), patience)
	defer cancel()
	a, err := p.client.PutServiceAddress(ctx, "", n, M{"properties": properties})
	if err != nil {
		p.Fatalf("put service address %s: %v", n, err)
	}
	return a
}

func (p *platform) removeAddress(n string) {
	p.Helper()
	ctx, cancel := context.WithTimeout(p.Context(), patience)
	defer cancel()
	if err := p.client.DeleteServiceAddress(ctx, "", n); err != nil {
		p.Errorf("delete service address %s: %v", n, err)
	}
}

// readyEndpoints waits until a service address has so many.
func (p *platform) readyEndpoints(n string, want int) {
	p.Helper()
	waitFor(p.T, fmt.Sprintf("%d ready endpoints of %s", want, n), func() bool {
		a, err := p.client.GetServiceAddress(p.Context(), "", n)
		return err == nil && a.Properties.InstanceView.ReadyEndpoints == want
	})
}

// who asks a web server so many times and gives the different answers, "refused" for a refusal.
func (p *platform) who(from, url string, times int) []string {
	p.Helper()
	out, _ := p.exec(from, "c", fmt.Sprintf("for i in $(seq %d); do timeout 2 wget -qO- %s 2>&1 || true; done", times, url))
	var all []string
	for _, line := range strings.Split(out, "\n") {
		if strings.Contains(line, "refused") {
			line = "refused"
		}
		if !slices.Contains(all, line) {
			all = append(all, line)
		}
	}
	slices.Sort(all)
	return all
}

// serviceElements counts what the rules hold of service addresses.
func (p *platform) serviceElements() map[string]int {
	p.Helper()
	conn, err := nftables.New()
	if err != nil {
		p.Fatal(err)
	}
	table := &nftables.Table{Family: nftables.TableFamilyINet, Name: "spillway_" + p.id}
	out := map[string]int{}
	for _, name := range []string{"service_ip", "service", "endpoint", "service_host"} {
		set, err := conn.GetSetByName(table, name)
		if err != nil {
			p.Fatalf("set %s: %v", name, err)
		}
		list, err := conn.GetSetElements(set)
		if err != nil {
			p.Fatalf("set %s: %v", name, err)
		}
		out[name] = len(list)
	}
	return out
}

// server is a group that tells its name on port 8000 and echoes on port 7000, ready while /tmp/ready is there.
func (p *platform) server(text, network string, labels M) string {
	p.Helper()
	script := "touch /tmp/ready; nc -ll -p 7000 -e cat & " + web(text)
	return p.create("server", []M{container("c", script, M{"readinessProbe": M{"exec": M{"command": []string{"test", "-f", "/tmp/ready"}}, "periodSeconds": 1, "failureThreshold": 1}})},
		M{"network": network, "labels": labels})
}

func TestServiceAddressFollowsReadyGroups(t *testing.T) {
	t.Parallel()
	p := startPlatform(t, options{})
	if err := p.importImage(busybox()); err != nil {
		t.Fatal(err)
	}
	one := p.server("one", "blue", M{"app": "web", "tier": "front"})
	two := p.server("two", "blue", M{"app": "web", "tier": "front"})
	p.server("wrong label", "blue", M{"app": "web"})
	elsewhere := p.server("wrong network", "green", M{"app": "web", "tier": "front"})
	inside := p.create("client", []M{container("c", sleeper)}, M{"network": "blue"})
	outside := p.create("client", []M{container("c", sleeper)})
	p.putAddress("web", M{"network": "blue", "address": "10.32.0.10", "names": []string{"web", "web.shop"}, "selector": M{"app": "web", "tier": "front"},
		"ports": []M{{"name": "http", "port": 80, "targetPort": 8000}, {"name": "echo", "port": 7}}})
	for _, n := range []string{one, two, elsewhere, inside, outside} {
		p.running(n)
	}
	p.readyEndpoints("web", 2)
	for _, url := range []string{"http://10.32.0.10/", "http://web.local.spillway.internal/", "http://web.shop.local.spillway.internal/"} {
		waitFor(t, "both servers behind "+url, func() bool { return slices.Equal(p.who(inside, url, 12), []string{"one", "two"}) })
	}
	if got := p.who(outside, "http://10.32.0.10/", 1); slices.Contains(got, "one") || slices.Contains(got, "two") {
		t.Errorf("a group of another network got %v", got)
	}
	if out, code := p.exec(outside, "c", "nslookup web.local.spillway.internal"); code == 0 {
		t.Errorf("a group of another network resolves the name: %s", out)
	}
	// Readiness moves traffic, and only new connections.
	if out, code := p.exec(one, "c", "rm /tmp/ready"); code != 0 {
		t.Fatal(out)
	}
	p.await(one, "not ready", func(g *client.Group) bool { return !*g.Properties.Containers[0].Properties.InstanceView.Ready })
	within(t, time.Second, "traffic moves to the server that is ready", func() bool { return slices.Equal(p.who(inside, "http://10.32.0.10/", 6), []string{"two"}) })
	// The record of a group that is to go is enough.
	start := time.Now()
	p.remove(two)
	waitFor(t, "refusal", func() bool { return slices.Equal(p.who(inside, "http://10.32.0.10/", 1), []string{"refused"}) })
	if out, code := p.exec(inside, "c", "time -p nc -w 5 10.32.0.10 80 </dev/null"); code == 0 || !strings.Contains(out, "real 0.") {
		t.Errorf("a port without endpoints, %s after the removal: %d, %s, want a refusal at once", time.Since(start), code, out)
	}
	p.exec(one, "c", "touch /tmp/ready")
	p.readyEndpoints("web", 1)
	waitFor(t, "the server that is ready again", func() bool { return slices.Equal(p.who(inside, "http://10.32.0.10/", 3), []string{"one"}) })
	p.removeAddress("web")
	waitFor(t, "empty sets", func() bool {
		held := p.serviceElements()
		return held["service_ip"]+held["service"]+held["endpoint"]+held["service_host"] == 0
	})
	if out, code := p.exec(inside, "c", "nslookup web.local.spillway.internal"); code == 0 {
		t.Errorf("the name outlives its service address: %s", out)
	}
}

// within is waitFor with a bound of its own.
func within(t *testing.T, bound time.Duration, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(bound); !done(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s", what, bound)
		}
	}
}

// TestServiceAddressOutlivesTheServer kills the server while connections are open and new ones are made.
func TestServiceAddressOutlivesTheServer(t *testing.T) {
	t.Parallel()
	p := startPlatform(t, options{})
	if err := p.importImage(busybox()); err != nil {
		t.Fatal(err)
	}
	servers := []string{p.server("one", "blue", M{"app": "web"}), p.server("two", "blue", M{"app": "web"})}
	inside := p.create("client", []M{container("c", sleeper)}, M{"network": "blue", "restartPolicy": "Always"})
	ports := M{"ports": []M{{"name": "http", "port": 80, "targetPort": 8000}, {"name": "echo", "port": 7, "targetPort": 7000}}}
	p.putAddress("web", M{"network": "blue", "selector": M{"app": "web"}, "affinity": "ClientIP"}, ports)
	listed := []M{}
	for _, n := range append(servers, inside) {
		g := p.running(n)
		if n != inside {
			listed = append(listed, M{"address": address(g)})
		}
	}
	p.putAddress("listed", M{"network": "blue", "address": "10.32.0.11", "endpoints": listed}, ports)
	p.readyEndpoints("web", 2)
	waitFor(t, "an answer", func() bool { return len(p.who(inside, "http://100.64.0.1/", 3)) == 1 })
	sticky := p.who(inside, "http://100.64.0.1/", 3)
	before := p.serviceElements()
	if before["service_ip"] != 2 || before["endpoint"] != 2*16+2*2 {
		t.Errorf("the sets hold %v, want 2 addresses with 2 ports each, of 16 buckets for a hash and 2 for chance", before)
	}
	out, code := p.exec(inside, "c", `
		((i=0; while :; do i=$((i+1)); echo $i; sleep 0.1; done) | nc 100.64.0.1 7 >/tmp/echoed) </dev/null >/dev/null 2>&1 &
		(while :; do for a in 100.64.0.1 10.32.0.11; do timeout 2 wget -qO- http://$a/ || echo $a failed >&2; done; sleep 0.02; done) </dev/null >/dev/null 2>>/tmp/failed &
		sleep 0.5; wc -l </tmp/echoed`)
	if code != 0 || out == "0" {
		t.Fatalf("the connection does not begin: %s", out)
	}
	for round := range 2 {
		if err := p.signal(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		time.Sleep(300 * time.Millisecond)
		if err := p.up(); err != nil {
			t.Fatal(err)
		}
		p.running(inside)
		p.readyEndpoints("web", 2)
		time.Sleep(500 * time.Millisecond)
		if now := p.serviceElements(); fmt.Sprint(now) != fmt.Sprint(before) {
			t.Errorf("round %d: the sets hold %v, before the kill %v", round, now, before)
		}
	}
	first, _ := p.exec(inside, "c", "wc -l </tmp/echoed")
	time.Sleep(time.Second)
	then, _ := p.exec(inside, "c", "wc -l </tmp/echoed")
	if first == then || first == "0" {
		t.Errorf("the open connection stands at %s, then %s lines", first, then)
	}
	if out, _ := p.exec(inside, "c", "cat /tmp/failed"); out != "" {
		t.Errorf("new connections failed while the server was killed:\n%s", out)
	}
	if now := p.who(inside, "http://100.64.0.1/", 3); !slices.Equal(now, sticky) {
		t.Errorf("the client went from %v to %v", sticky, now)
	}
}

func TestServiceAddressLeadsToTheMachine(t *testing.T) {
	t.Parallel()
	p := sharedPlatform(t)
	n := name("machine")
	inside := p.create("client", []M{container("c", sleeper)}, M{"network": n})
	p.running(inside)
	l, err := net.Listen("tcp4", p.gateway+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprintln(c, "machine")
			c.Close()
		}
	}()
	endpoint := M{"network": n, "address": "10.32.0.1", "names": []string{n}, "ports": []M{{"port": 443}},
		"endpoints": []M{{"address": p.gateway, "ports": []M{{"port": l.Addr().(*net.TCPAddr).Port}}}}}
	p.putAddress(n, endpoint)
	t.Cleanup(func() { _ = p.client.DeleteServiceAddress(context.Background(), "", n) })
	if out, _ := p.exec(inside, "c", "nc -w 1 10.32.0.1 443 </dev/null"); strings.Contains(out, "machine") {
		t.Errorf("a group reaches the machine without the right: %s", out)
	}
	p.putAddress(n, endpoint, M{"hostEndpoints": true})
	waitFor(t, "the machine behind the address", func() bool {
		out, _ := p.exec(inside, "c", "nc -w 1 "+n+".local.spillway.internal 443 </dev/null")
		return out == "machine"
	})
	if out, _ := p.exec(inside, "c", fmt.Sprintf("nc -w 1 %s %d </dev/null", p.gateway, l.Addr().(*net.TCPAddr).Port)); strings.Contains(out, "machine") {
		t.Errorf("a group reaches the machine past the service address")
	}
	for i := range 5 { // another service address takes the place of one that has just gone
		p.removeAddress(n)
		p.putAddress(n, endpoint, M{"hostEndpoints": i%2 == 0})
	}
	waitFor(t, "the machine behind the address that was made anew", func() bool {
		out, _ := p.exec(inside, "c", "nc -w 1 "+n+".local.spillway.internal 443 </dev/null")
		return out == "machine"
	})
	_, err = p.client.PutServiceAddress(t.Context(), "", name("inside"), M{"properties": M{"address": p.gateway, "ports": []M{{"port": 80}}, "endpoints": []M{}}})
	if fault.KindOf(err) != fault.Invalid {
		t.Errorf("a service address inside the groups' range: %v, want a refusal", err)
	}
}

// TestKillsDuringServiceAddressChanges kills the server between any two effects of a PUT and of a DELETE: what was
// acknowledged is there, and in the end nothing else is.
func TestKillsDuringServiceAddressChanges(t *testing.T) {
	t.Parallel()
	a := startArmed(t)
	server := a.create("server", []M{container("c", web("served"))})
	inside := a.create("client", []M{container("c", sleeper)})
	endpoint := M{"address": address(a.running(server))}
	a.running(inside)
	properties := M{"address": "10.32.0.1", "names": []string{"svc"}, "ports": []M{{"port": 80, "targetPort": 8000}}, "endpoints": []M{endpoint}}
	const url = "http://svc.local.spillway.internal/"
	for _, point := range addressPoints {
		// Answered or not: what has come this far is stored, and takes effect.
		a.strike(point, func(ctx context.Context) error {
			_, err := a.client.PutServiceAddress(ctx, "", "svc", M{"properties": properties})
			if err == nil { // the hosts follow behind the answer
				<-ctx.Done()
			}
			return err
		})
		waitFor(t, "the service address after a kill at "+point, func() bool { return slices.Equal(a.who(inside, url, 1), []string{"served"}) })
		a.removeAddress("svc")
		// The name is the last to go: until then the host may come to the next point on behalf of this removal.
		waitFor(t, "the end of the name", func() bool {
			_, code := a.exec(inside, "c", "nslookup svc.local.spillway.internal")
			return code != 0
		})
	}
	for _, point := range addressGonePoints {
		a.putAddress("svc", properties)
		waitFor(t, "the service address", func() bool { return slices.Equal(a.who(inside, url, 1), []string{"served"}) })
		a.strike(point, func(ctx context.Context) error { return a.client.DeleteServiceAddress(ctx, "", "svc") })
		waitFor(t, "empty sets after a kill at "+point, func() bool {
			held := a.serviceElements()
			return held["service_ip"]+held["service"]+held["endpoint"] == 0
		})
		if _, err := a.client.GetServiceAddress(t.Context(), "", "svc"); fault.KindOf(err) != fault.NotFound {
			t.Errorf("after a kill at %s the record is still there: %v", point, err)
		}
	}
}
