package cli

import (
	"context"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"spillway.dev/spillway/internal/client"
	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/group"
)

// runFlags are what `run` can say about a group; the platform checks nearly all of it.
type runFlags struct {
	name, restart, isolation, label, network, subnet string
	cpu, memory                                      float64
	ports, env, secretEnv, tags, groupLabels         []string
	public, wait                                     bool
	grace                                            int
	timeout                                          time.Duration
	registryServer, registryUser, registryPW         string
}

func (a *app) runCommand() *cobra.Command {
	var f runFlags
	c := &cobra.Command{
		Use:   "run IMAGE [flags] [-- COMMAND ARG...]",
		Short: "Run a container group of one container",
		Long: "Run a container group of one container. Without --name the group is called like the image; running the same\n" +
			"name again updates that group. COMMAND replaces the image's entrypoint and command.",
		Example: "  spillway run nginx --port 80 --wait\n  spillway run busybox --name job --restart Never -- sh -c 'echo hello'",
		Args: func(c *cobra.Command, args []string) error {
			if dash := c.ArgsLenAtDash(); dash >= 0 {
				args = args[:dash]
			}
			return names("one IMAGE; the command goes behind --", 1, 1)(c, args)
		},
		RunE: func(c *cobra.Command, args []string) error {
			var command []string
			if c.ArgsLenAtDash() >= 0 {
				command = args[1:]
			}
			return a.run(c.Context(), args[0], command, f)
		},
	}
	fl := c.Flags()
	fl.StringVar(&f.name, "name", "", "name of the group (default: the image's)")
	fl.Float64Var(&f.cpu, "cpu", 1, "cores")
	fl.Float64Var(&f.memory, "memory", 1.5, "memory in GB")
	fl.StringArrayVar(&f.ports, "port", nil, "port that others reach, as 80 or 53/udp; repeatable")
	fl.StringArrayVar(&f.env, "env", nil, "environment variable K=V, or K to take it from here; repeatable")
	fl.StringArrayVar(&f.secretEnv, "secret-env", nil, "environment variable that is never shown, K=V or K; repeatable")
	fl.StringVar(&f.restart, "restart", "Always", "Always, OnFailure or Never")
	fl.IntVar(&f.grace, "grace", -1, "seconds between the stop signal and the kill")
	fl.Lookup("grace").DefValue = "30" // the platform's; -1 leaves it to it
	fl.StringVar(&f.isolation, "isolation", "", "shared or gvisor")
	fl.BoolVar(&f.public, "public", false, "give the group an address out of the platform's public range, if it has one")
	fl.StringVar(&f.label, "dns-label", "", "DNS name LABEL.LOCATION.spillway.internal; implies --public")
	fl.StringVar(&f.network, "network", "", "network that the group joins (default: default)")
	fl.StringVar(&f.subnet, "subnet", "", "subnet that the group gets its address of, as NETWORK/SUBNET or an id")
	fl.StringArrayVar(&f.groupLabels, "group-label", nil, "label K=V that service addresses select by; repeatable")
	fl.StringArrayVar(&f.tags, "tag", nil, "tag K=V; repeatable")
	fl.StringVar(&f.registryServer, "registry-server", "", "registry that needs a login")
	fl.StringVar(&f.registryUser, "registry-username", "", "user name for it")
	fl.StringVar(&f.registryPW, "registry-password", "", "password for it (default $SPILLWAY_REGISTRY_PASSWORD)")
	fl.BoolVar(&f.wait, "wait", false, "return when the group runs, or has run")
	fl.DurationVar(&f.timeout, "timeout", 10*time.Minute, "how long to wait")
	a.complete(c, "restart", fixed("Always", "OnFailure", "Never"))
	a.complete(c, "isolation", fixed("shared", "gvisor"))
	c.ValidArgsFunction = a.first(a.imageRefs)
	return c
}

func (a *app) run(ctx context.Context, image string, command []string, f runFlags) error {
	if f.name == "" {
		f.name = nameOf(image)
	}
	api, err := a.client()
	if err != nil {
		return err
	}
	if f.subnet != "" {
		if f.subnet, err = subnetID(api, f.subnet); err != nil {
			return err
		}
	}
	body, err := a.runBody(api.Config().Location, image, command, f)
	if err != nil {
		return err
	}
	g, err := api.PutGroup(ctx, "", f.name, body)
	if err != nil {
		return err
	}
	if f.wait {
		if g, err = a.await(ctx, api, g, f.name, f.timeout); err != nil {
			return err
		}
	}
	return a.emit(groupsView([]*client.Group{g}, g, time.Now()))
}

var notName = regexp.MustCompile(`[^a-z0-9]+`)

// nameOf makes a group's name of an image's: registry/team/nginx:1.2 is nginx.
func nameOf(image string) string {
	ref, _, _ := strings.Cut(image, "@")
	base := path.Base(ref)
	base, _, _ = strings.Cut(base, ":")
	return strings.Trim(notName.ReplaceAllString(strings.ToLower(base), "-"), "-")
}

type object = map[string]any

// checkAmounts refuses amounts with which no program runs. The API takes them: there they stand for a share of what is
// left, which nobody means by a flag.
func (f *runFlags) checkAmounts() error {
	const gigabyte = 1 << 30
	if f.cpu*1000 < group.MinMilliCPU {
		return usagef("--cpu %g: a container gets at least %g cores", f.cpu, group.MinMilliCPU/1000.0)
	}
	if f.memory*gigabyte < group.MinMemory {
		return usagef("--memory %g: a container gets at least %.3f GB", f.memory, float64(group.MinMemory)/gigabyte)
	}
	return nil
}

func (a *app) runBody(location, image string, command []string, f runFlags) (object, error) {
	if err := f.checkAmounts(); err != nil {
		return nil, err
	}
	ports, err := parsePorts(f.ports)
	if err != nil {
		return nil, err
	}
	env, err := a.runEnv(f)
	if err != nil {
		return nil, err
	}
	container := object{"image": image, "ports": ports, "environmentVariables": env,
		"resources": object{"requests": object{"cpu": f.cpu, "memoryInGB": f.memory}}}
	if len(command) > 0 {
		container["command"] = command
	}
	props := object{"osType": "Linux", "restartPolicy": f.restart, "containers": []object{{"name": f.name, "properties": container}}}
	if f.isolation != "" {
		props["isolation"] = f.isolation
	}
	if f.grace >= 0 {
		props["terminationGracePeriodSeconds"] = f.grace
	}
	switch {
	case len(ports) > 0:
		ip := object{"type": "Private", "ports": ports}
		if f.public || f.label != "" { // a name that all may ask for is a public thing
			ip["type"] = "Public"
		}
		if f.label != "" {
			ip["dnsNameLabel"] = f.label
		}
		props["ipAddress"] = ip
	case f.public || f.label != "":
		return nil, usagef("--public and --dns-label need at least one --port")
	}
	if f.registryServer != "" {
		if f.registryPW == "" {
			f.registryPW = a.getenv("SPILLWAY_REGISTRY_PASSWORD")
		}
		props["imageRegistryCredentials"] = []object{{"server": f.registryServer, "username": f.registryUser, "password": f.registryPW}}
	}
	if f.network != "" {
		props["network"] = f.network
	}
	if f.subnet != "" {
		props["subnetIds"] = []object{{"id": f.subnet}}
	}
	labels, err := keyValues("--group-label", f.groupLabels)
	if err != nil {
		return nil, err
	}
	if len(labels) > 0 {
		props["labels"] = labels
	}
	tags, err := keyValues("--tag", f.tags)
	if err != nil {
		return nil, err
	}
	return object{"location": location, "tags": tags, "properties": props}, nil
}

// keyValues reads K=V texts of a flag.
func keyValues(flag string, texts []string) (object, error) {
	out := object{}
	for _, t := range texts {
		k, v, ok := strings.Cut(t, "=")
		if !ok {
			return nil, usagef("%s %q must be K=V", flag, t)
		}
		out[k] = v
	}
	return out, nil
}

func (a *app) runEnv(f runFlags) ([]object, error) {
	env := []object{}
	for _, part := range []struct {
		list []string
		key  string
	}{{f.env, "value"}, {f.secretEnv, "secureValue"}} {
		for _, e := range part.list {
			k, v, ok := strings.Cut(e, "=")
			if !ok {
				v = a.getenv(k)
			}
			if k == "" {
				return nil, usagef("environment variable %q must be K=V or K", e)
			}
			env = append(env, object{"name": k, part.key: v})
		}
	}
	return env, nil
}

func parsePorts(list []string) ([]object, error) {
	ports := []object{}
	for _, p := range list {
		number, protocol, _ := strings.Cut(p, "/")
		n, err := strconv.Atoi(number)
		if err != nil {
			return nil, usagef("--port %q must be a number, or a number and a protocol as in 53/udp", p)
		}
		if protocol == "" {
			protocol = "TCP"
		}
		ports = append(ports, object{"port": n, "protocol": strings.ToUpper(protocol)})
	}
	return ports, nil
}

// await returns when the group that g describes runs or has ended; a group that failed is an error. Meanwhile a
// terminal shows what it is waiting for.
func (a *app) await(ctx context.Context, api *client.Client, g *client.Group, name string, timeout time.Duration) (*client.Group, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	line := a.statusLine()
	defer line.clear()
	bars := a.bars()
	epoch := epochOf(g)
	reason := ""
	tell := a.tellRoom(line)
	last, err := api.WaitFor(ctx, "", name, func(g *client.Group) (bool, error) {
		if epochOf(g) > epoch {
			epoch = epochOf(g)
		}
		if !tellsOf(g, epoch) {
			return false, nil
		}
		bars.tellEvents(eventsOf(g))
		reason = waitingFor(g)
		line.set(reason)
		tell(g)
		return ready(g)
	})
	if ctx.Err() == context.DeadlineExceeded {
		return nil, fault.New(fault.Unavailable, "", "The container group '%s' did not run within %s%s. See 'spillway events %s'.", name, timeout, because(reason), name)
	}
	return last, err
}

func because(reason string) string {
	if reason == "" {
		return ""
	}
	return ": " + reason
}

func epochOf(g *client.Group) int64 {
	if g.Properties.OwnGroup == nil {
		return 0
	}
	return g.Properties.Epoch
}

// tellsOf says whether the instance view is about this epoch and not about what ran before.
func tellsOf(g *client.Group, epoch int64) bool {
	v := g.Properties.InstanceView
	return v != nil && v.Epoch >= epoch
}

// ready says whether a group runs or has run to its end.
func ready(g *client.Group) (bool, error) {
	switch group.State(g.State()) {
	case group.Running, group.Succeeded:
		return true, nil
	case group.Failed:
		return true, fault.New(fault.Conflict, "ContainerGroupFailed", "The container group '%s' failed%s. See 'spillway logs %s' and 'spillway events %s'.", g.Name, because(waitingFor(g)), g.Name, g.Name)
	case group.Stopped:
		return true, fault.New(fault.Conflict, "ContainerGroupStopped", "The container group '%s' was stopped. Start it with 'spillway start %s'.", g.Name, g.Name)
	}
	for _, c := range g.Properties.Containers {
		if c.Properties.InstanceView == nil || c.Properties.InstanceView.Current == nil {
			continue
		}
		if m := c.Properties.InstanceView.Current; m.State == string(group.Waiting) && hopeless(m.Detail) {
			return true, fault.New(fault.Conflict, "ContainerGroupFailed", "The container '%s' of group '%s' cannot start: %s. The platform keeps trying; see 'spillway events %s'.", c.Name, g.Name, m.Detail, g.Name)
		}
	}
	return false, nil
}

// hopeless are reasons to wait that a person has to do something about.
func hopeless(detail string) bool {
	for _, p := range []string{"ErrImagePull", "ImagePullBackOff", "InaccessibleImage", "InvalidImageName", "CrashLoopBackOff", "CreateContainerError"} {
		if strings.HasPrefix(detail, p) {
			return true
		}
	}
	return false
}

// waitingFor is the newest thing that is known of a group that does not run yet.
func waitingFor(g *client.Group) string {
	v := g.Properties.InstanceView
	if v == nil {
		return ""
	}
	if v.Reason != "" {
		return v.Reason
	}
	for _, e := range slices.Backward(eventsOf(g)) {
		if e.Name != layerEvent {
			return fmt.Sprintf("%s: %s", e.Name, e.Message)
		}
	}
	return ""
}
