package test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"spillway.dev/spillway/internal/client"
	"spillway.dev/spillway/internal/fault"
)

// M is a piece of a request's body.
type M = map[string]any

// image is the name of the busybox image that every platform here has.
const image = "registry.test/busybox:1"

// container is a container that runs a shell script; parts are merged into its properties.
func container(name, script string, parts ...M) M {
	properties := M{"image": image, "resources": M{"requests": M{"cpu": 0.05, "memoryInGB": 0.05}, "limits": M{"cpu": 1, "memoryInGB": 0.1}}}
	if script != "" {
		properties["command"] = []string{"/bin/sh", "-c", script}
	}
	for _, part := range parts {
		for k, v := range part {
			properties[k] = v
		}
	}
	return M{"name": name, "properties": properties}
}

// initContainer is a container without what only others may have.
func initContainer(name, script string, parts ...M) M {
	c := container(name, script, parts...)
	if c["properties"].(M)["restartPolicy"] == nil {
		delete(c["properties"].(M), "resources")
	}
	return c
}

// sleeper is a script that runs until it is stopped, and stops at once.
const sleeper = `trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done`

// group is a body; parts are merged into its properties.
func group(containers []M, parts ...M) M {
	properties := M{"osType": "Linux", "restartPolicy": "Never", "terminationGracePeriodSeconds": 3, "containers": containers}
	for _, part := range parts {
		for k, v := range part {
			properties[k] = v
		}
	}
	return M{"location": "local", "properties": properties}
}

var named atomic.Int64

// name gives a name that no other test uses.
func name(prefix string) string { return fmt.Sprintf("%s-%d", prefix, named.Add(1)) }

// create puts a group and deletes it at the end of the test.
func (p *platform) create(prefix string, containers []M, parts ...M) string {
	p.Helper()
	n := name(prefix)
	p.put(n, group(containers, parts...))
	p.Cleanup(func() { p.remove(n) })
	return n
}

func (p *platform) put(n string, body M) {
	p.Helper()
	ctx, cancel := context.WithTimeout(p.Context(), patience)
	defer cancel()
	if _, err := p.client.PutGroup(ctx, "", n, body); err != nil {
		p.Fatalf("put %s: %v", n, err)
	}
}

// refused puts a group that must be refused and gives the message.
func (p *platform) refused(n string, body M) string {
	p.Helper()
	ctx, cancel := context.WithTimeout(p.Context(), patience)
	defer cancel()
	_, err := p.client.PutGroup(ctx, "", n, body)
	if err == nil {
		p.Fatalf("put %s was accepted, want a refusal", n)
	}
	return err.Error()
}

// remove deletes a group and waits until nothing is left of it.
func (p *platform) remove(n string) {
	p.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := p.client.DeleteGroup(ctx, "", n, true); err != nil && fault.KindOf(err) != fault.NotFound {
		p.Errorf("delete %s: %v\n%s", n, err, p.describe(n))
	}
}

func (p *platform) get(n string) *client.Group {
	p.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	g, err := p.client.GetGroup(ctx, "", n)
	if err != nil {
		p.Fatalf("get %s: %v", n, err)
	}
	return g
}

// await watches a group until it is as wanted.
func (p *platform) await(n, what string, done func(*client.Group) bool) *client.Group {
	p.Helper()
	ctx, cancel := context.WithTimeout(p.Context(), patience)
	defer cancel()
	g, err := p.client.WaitFor(ctx, "", n, func(g *client.Group) (bool, error) { return done(g), nil })
	if err != nil {
		p.Fatalf("wait for %s of %s: %v\n%s", what, n, err, p.describe(n))
	}
	return g
}

func (p *platform) awaitState(n, state string) *client.Group {
	p.Helper()
	return p.await(n, state, func(g *client.Group) bool { return g.State() == state })
}

// running waits until all containers run and are ready.
func (p *platform) running(n string) *client.Group {
	p.Helper()
	return p.await(n, "all containers ready", func(g *client.Group) bool {
		for _, c := range g.Properties.Containers {
			v := c.Properties.InstanceView
			if v == nil || v.Current == nil || v.Current.State != "Running" || v.Ready == nil || !*v.Ready {
				return false
			}
		}
		return g.State() == "Running"
	})
}

// describe shows a group as the API does, for messages.
func (p *platform) describe(n string) string {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	g, err := p.client.GetGroup(ctx, "", n)
	if err != nil {
		return err.Error()
	}
	var tree M
	if json.Unmarshal(g.Raw, &tree) != nil {
		return string(g.Raw)
	}
	text, _ := json.MarshalIndent(tree["properties"], "", " ")
	return string(text)
}

// events gives the events of a group and its containers as lines "Name: message".
func events(g *client.Group) string {
	var b strings.Builder
	add := func(name, message string) { fmt.Fprintf(&b, "%s: %s\n", name, message) }
	if v := g.Properties.InstanceView; v != nil {
		for _, e := range v.Events {
			add(e.Name, e.Message)
		}
	}
	for i := range g.Properties.Containers {
		if v := g.Properties.Containers[i].Properties.InstanceView; v != nil {
			for _, e := range v.Events {
				add(e.Name, e.Message)
			}
		}
	}
	for i := range g.Properties.InitContainers {
		if v := g.Properties.InitContainers[i].Properties.InstanceView; v != nil {
			for _, e := range v.Events {
				add(e.Name, e.Message)
			}
		}
	}
	return b.String()
}

// exitCode of the only container's last run, -1 when it has none.
func exitCode(g *client.Group, i int) int {
	v := g.Properties.Containers[i].Properties.InstanceView
	if v == nil || v.Current == nil || v.Current.ExitCode == nil {
		return -1
	}
	return *v.Current.ExitCode
}

// detail of a container's current state.
func detail(g *client.Group, i int) string {
	v := g.Properties.Containers[i].Properties.InstanceView
	if v == nil || v.Current == nil {
		return ""
	}
	return v.Current.Detail
}

func restarts(g *client.Group, i int) int {
	if v := g.Properties.Containers[i].Properties.InstanceView; v != nil {
		return v.RestartCount
	}
	return 0
}

// address of a group in the virtual network.
func address(g *client.Group) string {
	if v := g.Properties.InstanceView; v != nil {
		return v.Address
	}
	return ""
}
