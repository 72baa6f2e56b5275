package cli

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"spillway.dev/spillway/internal/client"
)

func (a *app) psCommand() *cobra.Command {
	l := listing[client.Group]{list: (*client.Client).ListGroups, table: func(groups []*client.Group, data any) view { return groupsView(groups, data, time.Now()) }}
	return l.listCommand(a, &cobra.Command{Use: "ps", Short: "List container groups"})
}

// groupsView is a table of groups.
func groupsView(groups []*client.Group, data any, now time.Time) view {
	v := view{data: data, header: []string{"NAME", "STATE", "READY", "RESTARTS", "ADDRESS", "IMAGE", "AGE"}}
	for _, g := range groups {
		ready, restarts := counts(g)
		created := ""
		if g.Properties.OwnGroup != nil {
			if t := parseTime(g.Properties.Created); !t.IsZero() {
				created = age(now.Sub(t))
			}
		}
		v.rows = append(v.rows, []string{g.Name, stateText(g), ready, restarts, addressText(g), imageText(g), created})
	}
	return v
}

func counts(g *client.Group) (ready, restarts string) {
	up, n := 0, 0
	for _, c := range g.Properties.Containers {
		if iv := c.Properties.InstanceView; iv != nil {
			n += iv.RestartCount
			if iv.Ready != nil && *iv.Ready {
				up++
			}
		}
	}
	return fmt.Sprintf("%d/%d", up, len(g.Properties.Containers)), strconv.Itoa(n)
}

// noRoom is the reason of a group that waits for room on a host.
const noRoom = "FailedPlacement"

// stateText is the state, with what the group, or a container that does not run, waits for.
func stateText(g *client.Group) string {
	state := g.State()
	if g.Properties.ProvisioningState == "Deleting" {
		return "Deleting"
	}
	if state == "" {
		state = g.Properties.ProvisioningState
	}
	for _, c := range g.Properties.Containers {
		iv := c.Properties.InstanceView
		if iv == nil || iv.Current == nil || iv.Current.State != "Waiting" || iv.Current.Detail == "" {
			continue
		}
		word, _, _ := strings.Cut(iv.Current.Detail, ":")
		return state + " (" + clip(printable(word), 40) + ")"
	}
	if waitsForRoom(g) {
		return state + " (" + noRoom + ")"
	}
	return state
}

func waitsForRoom(g *client.Group) bool {
	iv := g.Properties.InstanceView
	return iv != nil && strings.HasPrefix(iv.Reason, noRoom)
}

func addressText(g *client.Group) string {
	addr := ""
	if iv := g.Properties.InstanceView; iv != nil {
		addr = iv.Address
	}
	ip := g.Properties.IPAddress
	if ip == nil {
		return addr
	}
	if ip.IP != "" {
		addr = ip.IP
	}
	var ports []string
	for _, p := range ip.Ports {
		text := strconv.Itoa(p.Port)
		if strings.EqualFold(p.Protocol, "UDP") {
			text += "/udp"
		}
		ports = append(ports, text)
	}
	if addr == "" || len(ports) == 0 {
		return addr
	}
	return addr + ":" + strings.Join(ports, ",")
}

func imageText(g *client.Group) string {
	list := g.Properties.Containers
	if len(list) == 0 {
		return ""
	}
	if len(list) == 1 {
		return list[0].Properties.Image
	}
	return fmt.Sprintf("%s +%d", list[0].Properties.Image, len(list)-1)
}
