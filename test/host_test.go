package test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"

	"spillway.dev/spillway/internal/client"
	"spillway.dev/spillway/internal/identity"
	"spillway.dev/spillway/internal/store"
)

// everything is what an administrator can give away.
const everything = "host-network,host-pid,host-ipc,host-path,privileged"

// givingPlatform is one that gives groups what the flag says.
func givingPlatform(t *testing.T, allow string) *platform {
	t.Helper()
	p := startPlatform(t, options{args: []string{"--allow", allow}})
	if err := p.importImage(busybox()); err != nil {
		t.Fatal(err)
	}
	return p
}

// hostPath is a volume of the host.
func hostPath(name, path, kind string) M {
	return M{"name": name, "hostPath": M{"path": path, "type": kind}}
}

func mounted(volume, path string, parts ...M) M {
	m := M{"name": volume, "mountPath": path}
	for _, part := range parts {
		for k, v := range part {
			m[k] = v
		}
	}
	return m
}

var privileged = M{"securityContext": M{"privileged": true}}

// asks has a group for each thing of the host, by the field that a refusal has to name.
func asks() map[string]M {
	return map[string]M{
		"properties.hostNetwork":         group([]M{container("c", sleeper)}, M{"hostNetwork": true}),
		"properties.hostPID":             group([]M{container("c", sleeper)}, M{"hostPID": true}),
		"properties.hostIPC":             group([]M{container("c", sleeper)}, M{"hostIPC": true}),
		"properties.volumes[0].hostPath": group([]M{container("c", sleeper)}, M{"volumes": []M{hostPath("logs", "/var/log", "")}}),
		"properties.containers[0].properties.securityContext.privileged": group([]M{container("c", sleeper, privileged)}),
	}
}

// TestHostAccessHasTwoLocks: neither a platform that gives nothing nor a caller without the right lets a group have
// anything of the host.
func TestHostAccessHasTwoLocks(t *testing.T) {
	t.Parallel()
	closed := sharedPlatform(t)
	for field, body := range asks() {
		if why := closed.refused(name("locked"), body); !strings.Contains(why, field) || !strings.Contains(why, "spillway up --allow ") {
			t.Errorf("refusal %q does not name %s and the flag", why, field)
		}
	}
	p := givingPlatform(t, everything)
	limited := p.as(identity.Contributor)
	for field, body := range asks() {
		if why := limited.refused(name("locked"), body); !strings.Contains(why, string(identity.AccessHosts)) {
			t.Errorf("%s: refusal %q does not name the right", field, why)
		}
	}
	n := p.create("held", []M{container("c", sleeper, privileged)})
	p.running(n)
	if _, _, err := limited.tryExec(n, "c", "id"); err == nil || !strings.Contains(err.Error(), string(identity.AccessHosts)) {
		t.Errorf("exec into a privileged container without the right = %v", err)
	}
	body := M{"properties": M{"containers": []M{{"name": "c", "properties": M{"image": "registry.test/other:1"}}}}}
	if _, err := limited.client.PatchGroup(t.Context(), "", n, body); err == nil || !strings.Contains(err.Error(), string(identity.AccessHosts)) {
		t.Errorf("another image in a privileged container without the right = %v", err)
	}
	limited.create("plain", []M{container("c", sleeper)})
}

// hostAddress is the address from which this machine speaks to the world.
func hostAddress(t *testing.T) string {
	t.Helper()
	conn, err := net.Dial("udp4", "192.0.2.1:9")
	if err != nil {
		t.Skip("the machine has no way out: ", err)
	}
	defer conn.Close()
	return conn.LocalAddr().(*net.UDPAddr).IP.String()
}

// freePort is one that nobody listens on now.
func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func TestHostNetwork(t *testing.T) {
	t.Parallel()
	p := givingPlatform(t, everything)
	ip, port := hostAddress(t), freePort(t)
	own, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	url := fmt.Sprintf("http://%s:%d/", ip, port)
	peer := p.create("peer", []M{container("c", web("from a group"))})
	n := p.create("net", []M{
		container("web", fmt.Sprintf("mkdir -p /www && echo host-net >/www/index.html && exec httpd -f -p %d -h /www", port), M{"readinessProbe": M{"httpGet": M{"port": port, "path": "/"}, "periodSeconds": 1}}),
		container("look", "echo NAME=$(hostname)=$HOSTNAME=; echo address $ADDR; ip -o link; cat /etc/hosts /etc/resolv.conf; echo end; "+sleeper, M{"environmentVariables": []M{{"name": "ADDR", "value": "@my-address@"}}}),
	}, M{"hostNetwork": true, "addressPlaceholder": "@my-address@", "restartPolicy": "Always", "hostAliases": []M{{"ip": "192.0.2.77", "hostnames": []string{"printer.test"}}}})
	g := p.running(n)
	if address(g) != ip {
		t.Errorf("address = %s, want the machine's, %s", address(g), ip)
	}
	if out, err := fetch(url); out != "host-net" {
		t.Errorf("%s = %q, %v", url, out, err)
	}
	log := p.awaitLog(n, "look", "end")
	hosts, _ := os.ReadFile("/etc/hosts")
	resolv, _ := os.ReadFile("/etc/resolv.conf")
	for _, want := range []string{"NAME=" + own + "=" + own + "=", "address " + ip, "sw" + p.id, strings.TrimSpace(string(hosts)), "192.0.2.77\tprinter.test", strings.TrimSpace(string(resolv))} {
		if !strings.Contains(log, want) {
			t.Errorf("the container did not see %q:\n%s", want, log)
		}
	}
	if out, _ := p.exec(n, "look", "wget -qO- http://"+address(p.running(peer))+":8000/"); out != "from a group" {
		t.Errorf("a group as seen from the host's network = %q", out)
	}
	if now, err := os.Hostname(); err != nil || now != own {
		t.Errorf("the machine's name became %q, %v", now, err)
	}
	if page := p.forwarded(n, port); !strings.Contains(page, "host-net") {
		t.Errorf("forwarded answer = %q", page)
	}
	before := starts(g)
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
		if err := p.signal(sig); err != nil {
			t.Fatal(err)
		}
		if out, err := fetch(url); out != "host-net" {
			t.Errorf("with the server down = %q, %v", out, err)
		}
		if err := p.up(); err != nil {
			t.Fatal(err)
		}
		if g := p.running(n); starts(g) != before || address(g) != ip {
			t.Fatalf("starts %q, address %s; before %q", starts(g), address(g), before)
		}
	}
	p.withoutKeeper(func() {})
	waitFor(t, "a command after the keeper's death", func() bool { _, code, err := p.tryExec(n, "look", "true"); return err == nil && code == 0 })
	if now := starts(p.running(n)); now != before {
		t.Errorf("after the keeper's death starts = %q, want %q", now, before)
	}
	p.remove(n)
	if out, err := fetch(url); err == nil {
		t.Errorf("after the deletion %s still answers %q", url, out)
	}
}

func TestHostProcesses(t *testing.T) {
	t.Parallel()
	p := givingPlatform(t, everything)
	n := p.create("pid", []M{container("c", "sleep 4242 & ls -d /proc/"+itoa(p.keeperPid())+"; echo end; "+sleeper), container("d", "sleep 4243 & "+sleeper)}, M{"hostPID": true, "restartPolicy": "Always"})
	g := p.running(n)
	log := p.awaitLog(n, "c", "end")
	if !strings.Contains(log, "/proc/"+itoa(p.keeperPid())+"\n") {
		t.Errorf("the container does not see the keeper's process:\n%s", log)
	}
	sleeping := func(seconds string) bool { return processes("sleep", seconds) > 0 }
	waitFor(t, "both children", func() bool { return sleeping("4242") && sleeping("4243") })
	// The end of its first process is the end of the container, and of that one alone.
	first := p.firstPid(n, "c")
	if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	p.await(n, "a restart of c alone", func(g *client.Group) bool { return restarts(g, 0) == 1 && restarts(g, 1) == 0 })
	p.running(n)
	if count := processes("sleep", "4242"); count > 1 {
		t.Errorf("%d children of c are there, want that of the new run alone", count)
	}
	if !sleeping("4243") {
		t.Error("the child of d has gone with c")
	}
	// What ends while no keeper looks leaves nothing either.
	first = p.firstPid(n, "d")
	p.withoutKeeper(func() {
		if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
			t.Error(err)
		}
	})
	p.await(n, "a restart of d", func(g *client.Group) bool { return restarts(g, 1) == 1 })
	waitFor(t, "one child of d", func() bool { return processes("sleep", "4243") == 1 })
	if address(p.get(n)) != address(g) {
		t.Error("its address has changed")
	}
	p.remove(n)
	if sleeping("4242") || sleeping("4243") {
		t.Error("children are left after the deletion")
	}
}

func TestHostIPC(t *testing.T) {
	t.Parallel()
	p := givingPlatform(t, everything)
	mark := fmt.Sprintf("spillway-test-%d", os.Getpid())
	if err := os.WriteFile("/dev/shm/"+mark, []byte("shared"), 0o644); err != nil {
		t.Skip(err)
	}
	defer os.Remove("/dev/shm/" + mark)
	n := p.create("ipc", []M{container("c", "cat /dev/shm/"+mark+"; readlink /proc/self/ns/ipc; readlink /proc/self/ns/net; echo end; "+sleeper)}, M{"hostIPC": true})
	p.running(n)
	log := p.awaitLog(n, "c", "end")
	ipc, _ := os.Readlink("/proc/self/ns/ipc")
	network, _ := os.Readlink("/proc/self/ns/net")
	if !strings.Contains(log, "shared") || !strings.Contains(log, ipc) || strings.Contains(log, network) {
		t.Errorf("the container sees\n%s\nwant the host's IPC namespace %s and not its network %s", log, ipc, network)
	}
	// Its slot is nobody else's when it is gone.
	p.remove(n)
	other := p.create("after", []M{container("c", "readlink /proc/self/ns/ipc; echo end; "+sleeper)})
	if log := p.awaitLog(other, "c", "end"); strings.Contains(log, ipc) {
		t.Error("an ordinary group is in the host's IPC namespace")
	}
}

// TestRevokedHostAccess: a platform that was started anew without its flag lets go on what runs, and starts no more.
func TestRevokedHostAccess(t *testing.T) {
	t.Parallel()
	p := givingPlatform(t, everything)
	n := p.create("held", []M{container("c", sleeper)}, M{"hostNetwork": true, "restartPolicy": "Always"})
	before := starts(p.running(n))
	if err := p.signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	p.opt.args = nil
	if err := p.up(); err != nil {
		t.Fatal(err)
	}
	if g := p.running(n); starts(g) != before {
		t.Errorf("starts = %q, want %q", starts(g), before)
	}
	if err := syscall.Kill(p.firstPid(n, "c"), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	p.await(n, "a refused start", func(g *client.Group) bool { return strings.Contains(events(g), "--allow host-network") })
}

// as is the same platform as a principal with a role on its subscription sees it.
func (p *platform) as(role identity.Role) *platform {
	p.Helper()
	cfg := p.client.Config()
	p.changeStore(func(st store.Store) error {
		ids, _, err := identity.Open(p.Context(), st, slog.New(slog.DiscardHandler), nil)
		if err != nil {
			return err
		}
		who, secret, err := ids.AddPrincipal(p.Context(), "limited", identity.Assignment{Role: role, Scope: "/subscriptions/" + cfg.SubscriptionID})
		cfg.ClientID, cfg.ClientSecret = who.ClientID, secret
		return err
	})
	cfg.Endpoint = p.client.Config().Endpoint
	other, err := client.New(cfg)
	if err != nil {
		p.Fatal(err)
	}
	p.Cleanup(other.Close)
	return &platform{T: p.T, process: p.process, client: other}
}

// firstPid is the first process of a container's present run.
func (p *platform) firstPid(n, container string) int {
	p.Helper()
	records, err := p.records()
	if err != nil {
		p.Fatal(err)
	}
	uid := p.get(n).Properties.UID
	for _, c := range records {
		var l struct{ UID, Name string }
		if json.Unmarshal(c.Label, &l) == nil && l.UID == uid && l.Name == container && !c.Exited {
			return c.Pid
		}
	}
	p.Fatalf("the keeper has no run of %s/%s", n, container)
	return 0
}

// withoutKeeper does something while there is no keeper, and nobody who would start one.
func (p *platform) withoutKeeper(do func()) {
	p.Helper()
	p.mu.Lock()
	server := p.cmd.Process
	p.mu.Unlock()
	keeper := p.keeperPid()
	for _, err := range []error{server.Signal(syscall.SIGSTOP), syscall.Kill(keeper, syscall.SIGKILL)} {
		if err != nil {
			p.Fatal(err)
		}
	}
	do()
	if err := server.Signal(syscall.SIGCONT); err != nil {
		p.Fatal(err)
	}
	waitFor(p.T, "a new keeper", func() bool { now := p.keeperPid(); return now != 0 && now != keeper })
}

// processes counts those with exactly these arguments.
func processes(argv ...string) int {
	n := 0
	for _, pid := range processIDs() {
		body, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if string(body) == strings.Join(argv, "\x00")+"\x00" {
			n++
		}
	}
	return n
}

// forwarded is a page through the API's forwarding.
func (p *platform) forwarded(n string, port int) string {
	p.Helper()
	ctx, cancel := context.WithTimeout(p.Context(), patience)
	defer cancel()
	ours, theirs := net.Pipe()
	done := make(chan error, 1)
	go func() {
		done <- p.client.Forward(ctx, "", n, port, theirs)
		theirs.Close()
	}()
	if _, err := ours.Write([]byte("GET / HTTP/1.0\r\n\r\n")); err != nil {
		p.Fatal(err)
	}
	body, _ := io.ReadAll(ours)
	ours.Close()
	if err := <-done; err != nil {
		p.Errorf("forward: %v", err)
	}
	return string(body)
}
