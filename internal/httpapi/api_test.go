package httpapi_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"spillway.dev/spillway/internal/client"
	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/host"
	"spillway.dev/spillway/internal/httpapi"
)

func TestLifecycle(t *testing.T) {
	w := newWorld(t, httpapi.Rate{})
	ctx := t.Context()
	g, err := w.client.PutGroup(ctx, "", "web", body())
	if err != nil || g.Name != "web" {
		t.Fatalf("PutGroup = %v, %v", g, err)
	}
	g = w.waitState("web", "Running")
	if g.Properties.ProvisioningState != "Succeeded" || g.Properties.Host != "h1" {
		t.Errorf("running group has provisioningState %s on host %q", g.Properties.ProvisioningState, g.Properties.Host)
	}
	if err := w.client.Stop(ctx, "", "web"); err != nil {
		t.Fatalf("Stop = %v", err)
	}
	if g, err := w.client.GetGroup(ctx, "", "WEB"); err != nil || g.State() != "Stopped" {
		t.Errorf("after Stop state = %v, %v, want Stopped", g.State(), err)
	}
	if err := w.client.Start(ctx, "", "web"); err != nil {
		t.Fatalf("Start = %v", err)
	}
	w.waitState("web", "Running")
	if err := w.client.Restart(ctx, "", "web"); err != nil {
		t.Fatalf("Restart = %v", err)
	}
	if g := w.waitState("web", "Running"); g.Properties.Epoch != 3 {
		t.Errorf("epoch after start and restart = %d, want 3", g.Properties.Epoch)
	}
	if err := w.client.DeleteGroup(ctx, "", "web", true); err != nil {
		t.Fatalf("DeleteGroup = %v", err)
	}
	if _, err := w.client.GetGroup(ctx, "", "web"); fault.KindOf(err) != fault.NotFound {
		t.Errorf("GetGroup after delete = %v, want not found", err)
	}
	if err := w.client.DeleteGroup(ctx, "", "web", true); fault.KindOf(err) != fault.NotFound {
		t.Errorf("second DeleteGroup = %v, want not found", err)
	}
	if n := w.host.Count(); n != 0 {
		t.Errorf("the host still has %d groups", n)
	}
}

func TestEndedGroupRunsAgain(t *testing.T) {
	w := newWorld(t, httpapi.Rate{})
	for epoch := int64(1); epoch <= 2; epoch++ {
		if _, err := w.client.PutGroup(t.Context(), "", "job", body("run=10ms", "exit=3")); err != nil {
			t.Fatalf("PutGroup = %v", err)
		}
		g := w.waitState("job", "Failed")
		s := g.Properties.Containers[0].Properties.InstanceView.Current
		if g.Properties.Epoch != epoch || s.ExitCode == nil || *s.ExitCode != 3 || s.Detail != "Error" {
			t.Errorf("epoch %d: state %+v, want exit code 3 in epoch %d", g.Properties.Epoch, s, epoch)
		}
	}
}

func TestWatch(t *testing.T) {
	w := newWorld(t, httpapi.Rate{})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	watch, err := w.client.Watch(ctx, client.WatchOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer watch.Close()
	first, err := watch.Next()
	if err != nil || first.Type != client.Bookmark || first.Revision == "" {
		t.Fatalf("first event = %+v, %v, want a bookmark", first, err)
	}
	if _, err := w.client.PutGroup(ctx, "", "web", body()); err != nil {
		t.Fatal(err)
	}
	var types []string
	for last := ""; last != "Running"; {
		e, err := watch.Next()
		if err != nil {
			t.Fatal(err)
		}
		types = append(types, e.Type)
		last = e.Object.State()
	}
	if types[0] != client.Added || types[len(types)-1] != client.Modified {
		t.Errorf("events = %v, want ADDED first and MODIFIED last", types)
	}
	again, err := w.client.Watch(ctx, client.WatchOptions{Revision: first.Revision})
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	for i, want := range types {
		if e, err := again.Next(); err != nil || e.Type != want {
			t.Fatalf("resumed event %d = %v, %v, want %s", i, e.Type, err, want)
		}
	}
	for _, revision := range []string{"other-1", "x", strings.Split(first.Revision, "-")[0] + "-99999"} {
		if _, err := w.client.Watch(ctx, client.WatchOptions{Revision: revision}); fault.KindOf(err) != fault.Gone {
			t.Errorf("Watch(revision %s) = %v, want gone", revision, err)
		}
	}
	snapshot, err := w.client.Watch(ctx, client.WatchOptions{ResourceGroup: "*"})
	if err != nil {
		t.Fatal(err)
	}
	defer snapshot.Close()
	if e, err := snapshot.Next(); err != nil || e.Type != client.Added || e.Object.Name != "web" {
		t.Errorf("snapshot = %+v, %v, want ADDED web", e, err)
	}
}

func TestStoppingServerEndsWatches(t *testing.T) {
	w := newWorld(t, httpapi.Rate{})
	watch, err := w.client.Watch(t.Context(), client.WatchOptions{})
	w.must(err)
	defer watch.Close()
	w.must2(watch.Next()) // the bookmark: it is open
	close(w.stopping)
	if e, err := watch.Next(); err != io.EOF {
		t.Errorf("Next() after the stop = %+v, %v, want EOF", e, err)
	}
}

func TestLogs(t *testing.T) {
	w := newWorld(t, httpapi.Rate{})
	if _, err := w.client.PutGroup(t.Context(), "", "web", body("run=200ms")); err != nil {
		t.Fatal(err)
	}
	var followed bytes.Buffer
	if err := w.client.Logs(t.Context(), client.Target{Group: "web"}, host.LogOptions{Follow: true}, &followed); err != nil {
		t.Fatalf("Logs(follow) = %v", err)
	}
	if got, want := followed.String(), "hello from main\nready\nbye\n"; got != want {
		t.Errorf("followed log = %q, want %q", got, want)
	}
	a := w.call("GET", w.groupPath("web")+"/containers/main/logs", "2023-05-01", nil)
	if a.status != 200 || at(a.body, "content") != "hello from main\nready\n" {
		t.Errorf("logs = %d %s", a.status, a.text)
	}
	for query, want := range map[string]string{"tail=x": "InvalidQueryParameterValue", "tail=-1": "InvalidQueryParameterValue", "follow=true": "InvalidQueryParameter", "timestamps=maybe": "InvalidQueryParameterValue"} {
		if a := w.call("GET", w.groupPath("web")+"/containers/main/logs", "2023-05-01&"+query, nil); a.status != 400 || a.code() != want {
			t.Errorf("logs?%s = %d %s, want 400 %s", query, a.status, a.code(), want)
		}
	}
	if a := w.call("GET", w.groupPath("web")+"/containers/nope/logs", "2023-05-01", nil); a.status != 404 {
		t.Errorf("logs of an unknown container = %d, want 404", a.status)
	}
}

func TestExec(t *testing.T) {
	w := newWorld(t, httpapi.Rate{})
	if _, err := w.client.PutGroup(t.Context(), "", "web", body()); err != nil {
		t.Fatal(err)
	}
	w.waitState("web", "Running")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	run := func(stdin string, command ...string) (string, string, int) {
		t.Helper()
		var out, errOut bytes.Buffer
		s := host.Streams{Stdout: &out, Stderr: &errOut}
		if stdin != "" {
			s.Stdin = strings.NewReader(stdin)
		}
		code, err := w.client.Exec(ctx, client.Target{Group: "web"}, host.ExecRequest{Command: command, Stdin: stdin != ""}, s)
		if err != nil {
			t.Fatalf("Exec(%v) = %v", command, err)
		}
		return out.String(), errOut.String(), code
	}
	if out, _, code := run("", "echo", "a b", "c"); out != "a b c\n" || code != 0 {
		t.Errorf("echo = %q, %d", out, code)
	}
	if _, errOut, code := run("", "exit", "7"); errOut != "exit 7\n" || code != 7 {
		t.Errorf("exit 7 = %q, %d", errOut, code)
	}
	long := strings.Repeat("0123456789", 200_000)
	if out, _, _ := run(long, "cat"); out != long {
		t.Errorf("cat gave %d bytes back, want %d", len(out), len(long))
	}
	resize := make(chan host.Size, 1)
	resize <- host.Size{Rows: 40, Cols: 120}
	var out bytes.Buffer
	if _, err := w.client.Exec(ctx, client.Target{Group: "web"}, host.ExecRequest{Command: []string{"size"}, TTY: true}, host.Streams{Stdout: &out, Resize: resize}); err != nil || out.String() != "40x120\n" {
		t.Errorf("size = %q, %v", out.String(), err)
	}
	out.Reset()
	if err := w.client.Attach(ctx, client.Target{Group: "web"}, host.Streams{Stdin: strings.NewReader("typed"), Stdout: &out}); err != nil || out.String() != "typed" {
		t.Errorf("Attach = %q, %v", out.String(), err)
	}
	if err := w.client.Stop(ctx, "", "web"); err != nil {
		t.Fatal(err)
	}
	_, err := w.client.Exec(ctx, client.Target{Group: "web"}, host.ExecRequest{Command: []string{"echo"}}, host.Streams{})
	if e, ok := errors.AsType[*fault.Error](err); !ok || e.Code != "ContainerNotRunning" {
		t.Errorf("Exec in a stopped group = %v, want ContainerNotRunning", err)
	}
}

func TestImages(t *testing.T) {
	w := newWorld(t, httpapi.Rate{})
	ctx := t.Context()
	phases := ""
	image, err := w.client.PullImage(ctx, "nginx:1", nil, func(p host.Progress) { phases += p.Phase + " " })
	if err != nil || image.Ref != "nginx:1" || phases != "resolving done " {
		t.Errorf("PullImage = %+v, %v with phases %q", image, err, phases)
	}
	_, err = w.client.PullImage(ctx, "missing:1", nil, nil)
	if e, ok := errors.AsType[*fault.Error](err); !ok || e.Code != "InaccessibleImage" {
		t.Errorf("PullImage(missing) = %v, want InaccessibleImage", err)
	}
	big := "busybox:2\n" + strings.Repeat("x", 6<<20)
	images, err := w.client.ImportImage(ctx, strings.NewReader(big))
	if err != nil || len(images) != 1 || images[0].Size != 6<<20 {
		t.Errorf("ImportImage = %+v, %v", images, err)
	}
	all, err := w.client.Images(ctx)
	if err != nil || len(all) != 2 || all[0].Host != "h1" {
		t.Errorf("Images = %+v, %v, want two on h1", all, err)
	}
	if err := w.client.RemoveImage(ctx, "nginx:1"); err != nil {
		t.Errorf("RemoveImage = %v", err)
	}
	if err := w.client.RemoveImage(ctx, "nginx:1"); fault.KindOf(err) != fault.NotFound {
		t.Errorf("second RemoveImage = %v, want not found", err)
	}
}

func TestHosts(t *testing.T) {
	w := newWorld(t, httpapi.Rate{})
	if h, err := w.client.HostAction(t.Context(), "h1", "cordon"); err != nil || !h.Cordoned {
		t.Fatalf("cordon = %+v, %v", h, err)
	}
	g, err := w.client.PutGroup(t.Context(), "", "web", body())
	if err != nil || g.Properties.ProvisioningState != "Pending" || !strings.Contains(g.Properties.InstanceView.Reason, "cordoned") {
		t.Errorf("PutGroup on a cordoned platform = %+v, %v, want a group that waits", g, err)
	}
	var log, followed strings.Builder
	if err := w.client.Logs(t.Context(), client.Target{Group: "web"}, host.LogOptions{}, &log); err != nil || log.String() != "" {
		t.Errorf("Logs of a group that waits = %q, %v", log.String(), err)
	}
	if _, err := w.client.Stats(t.Context(), "", "web"); err == nil || !strings.Contains(err.Error(), "waits for room") {
		t.Errorf("Stats of a group that waits = %v", err)
	}
	done := make(chan error, 1)
	go func() {
		done <- w.client.Logs(t.Context(), client.Target{Group: "web"}, host.LogOptions{Follow: true}, &followed)
	}()
	if h, err := w.client.HostAction(t.Context(), "h1", "uncordon"); err != nil || h.Cordoned {
		t.Errorf("uncordon = %+v, %v", h, err)
	}
	if _, err := w.client.WaitFor(t.Context(), "", "web", func(g *client.Group) (bool, error) { return g.State() == "Running", nil }); err != nil {
		t.Error(err)
	}
	if err := w.client.DeleteGroup(t.Context(), "", "web", true); err != nil {
		t.Error(err)
	}
	if err := <-done; err != nil || !strings.HasPrefix(followed.String(), "hello from main") {
		t.Errorf("Logs of a group that waited = %q, %v", followed.String(), err)
	}
	w.host.Change(func(h *host.Host) { h.DiskFull = true })
	_, err = w.client.PutGroup(t.Context(), "", "other", body())
	if e, ok := errors.AsType[*fault.Error](err); !ok || e.Code != "ServiceUnavailable" || !strings.Contains(e.Message, "disk") {
		t.Errorf("PutGroup on a full disk = %v, want ServiceUnavailable because of it", err)
	}
	if hosts, err := w.client.Hosts(t.Context()); err != nil || len(hosts) != 1 || hosts[0].Name != "h1" {
		t.Errorf("Hosts = %+v, %v", hosts, err)
	}
}

func TestResourceGroups(t *testing.T) {
	w := newWorld(t, httpapi.Rate{})
	ctx := t.Context()
	if _, err := w.client.PutResourceGroup(ctx, "Team.A", map[string]string{"k": "v"}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.client.PutGroup(ctx, "team.a", "web", body()); err != nil {
		t.Fatal(err)
	}
	if rg, err := w.client.GetResourceGroup(ctx, "TEAM.a"); err != nil || rg.Name != "Team.A" || rg.Tags["k"] != "v" {
		t.Errorf("GetResourceGroup = %+v, %v", rg, err)
	}
	if err := w.client.DeleteResourceGroup(ctx, "team.a"); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(patience); ; {
		_, err := w.client.GetResourceGroup(ctx, "team.a")
		if fault.KindOf(err) == fault.NotFound {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the resource group is still there: %v", err)
		}
		time.Sleep(5 * time.Millisecond)
	}
	if n := w.host.Count(); n != 0 {
		t.Errorf("the host still has %d groups", n)
	}
	_, err := w.client.PutGroup(ctx, "team.a", "web", body())
	if e, ok := errors.AsType[*fault.Error](err); !ok || e.Code != "ResourceGroupNotFound" {
		t.Errorf("PutGroup without its resource group = %v, want ResourceGroupNotFound", err)
	}
}

func TestPaging(t *testing.T) {
	w := newWorld(t, httpapi.Rate{})
	for _, name := range []string{"a", "b", "c", "d", "e"} {
		if _, err := w.client.PutGroup(t.Context(), "", name, body()); err != nil {
			t.Fatal(err)
		}
	}
	path := strings.TrimSuffix(w.groupPath(""), "/")
	var names []string
	query := "2023-05-01&$top=2"
	for query != "" {
		a := w.call("GET", path, query, nil)
		items, _ := a.body["value"].([]any)
		for _, i := range items {
			names = append(names, at(i, "name").(string))
			if at(i, "properties", "instanceView") != nil {
				t.Errorf("the list of an Azure version shows an instance view")
			}
		}
		next, _ := a.body["nextLink"].(string)
		_, query, _ = strings.Cut(next, "api-version=")
		if next != "" && !strings.Contains(next, "%24skipToken=") {
			t.Fatalf("nextLink = %s", next)
		}
		if strings.Contains(next, "?%24") { // parameters are sorted: the token comes first
			_, rest, _ := strings.Cut(next, "?")
			query = "2023-05-01&" + strings.Replace(rest, "api-version=2023-05-01", "", 1)
		}
	}
	if got := strings.Join(names, ""); got != "abcde" {
		t.Errorf("pages gave %s, want abcde", got)
	}
	all, err := w.client.ListGroups(t.Context(), "*")
	if err != nil || len(all) != 5 || all[0].State() == "" {
		t.Errorf("ListGroups(*) = %d groups, %v, want 5 with states", len(all), err)
	}
}
