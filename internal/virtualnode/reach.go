package virtualnode

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"spillway.dev/spillway/internal/fault"
)

// How often the feed looks for nodes that came or went, and for the first one.
const (
	reachEvery = 10 * time.Second
	reachFirst = 500 * time.Millisecond
)

// reachNodes makes the kubelet APIs of the cluster's virtual nodes reachable from its pods, where metrics are read, at
// the addresses that the nodes give: groups reach no port of a machine otherwise. It works while ctx lasts.
func (f *serviceFeed) reachNodes(ctx context.Context) {
	var done map[string]string // address → what the platform has been told, or has refused for good
	for wait := reachFirst; ctx.Err() == nil; pause(ctx, wait) {
		if done == nil {
			have, err := f.n.platform.ListServiceAddresses(ctx, f.n.cfg.ResourceGroup)
			if err != nil {
				continue
			}
			done = map[string]string{}
			for _, a := range have { // also of nodes that went while nobody fed
				if ip, ok := strings.CutPrefix(a.Name, f.nodePrefix()); ok {
					done[strings.ReplaceAll(ip, "-", ".")] = ""
				}
			}
		}
		nodes, err := f.n.kube.CoreV1().Nodes().List(ctx, metav1.ListOptions{LabelSelector: "type=virtual-kubelet", ResourceVersion: "0"})
		if apierrors.IsForbidden(err) {
			f.n.log.Info("pods do not reach the kubelet API of their node: no right to list nodes")
			return
		}
		if err != nil {
			continue // the API is away for a moment
		}
		want := f.addressesOfNodes(nodes.Items)
		if len(want) > 0 {
			wait = reachEvery
		}
		for ip := range done {
			if want[ip] == nil {
				want[ip] = &address{} // no node has it any more
			}
		}
		for ip, a := range want {
			if err := f.reach(ctx, ip, a, done); err != nil && ctx.Err() == nil {
				f.n.log.Warn("address of a node", "address", ip, "error", err)
			}
		}
	}
}

// nodePrefix begins the names of nodes' service addresses; the address itself follows.
func (f *serviceFeed) nodePrefix() string { return "node-" + f.n.cluster[:8] + "-" }

// addressesOfNodes are the service addresses of this cluster's virtual nodes, by address: several nodes may share one.
func (f *serviceFeed) addressesOfNodes(nodes []corev1.Node) map[string]*address {
	out := map[string]*address{}
	for i := range nodes {
		n := &nodes[i]
		port := n.Status.DaemonEndpoints.KubeletEndpoint.Port
		if !strings.HasPrefix(n.Spec.ProviderID, "spillway://"+f.n.cluster+"/") || port == 0 {
			continue
		}
		ip := ""
		for _, a := range n.Status.Addresses {
			if a.Type == corev1.NodeInternalIP && ip == "" {
				ip = a.Address
			}
		}
		if ip == "" || strings.Contains(ip, ":") {
			continue
		}
		a := out[ip]
		if a == nil {
			a = &address{Tags: map[string]string{tagCluster: f.n.cluster}, Properties: addressProperties{Network: f.n.cfg.Network, Address: ip,
				Endpoints: []addressEndpoint{{Address: ip}}, HostEndpoints: true}}
			out[ip] = a
		}
		p := &a.Properties
		name := fmt.Sprintf("kubelet-%d", port)
		if !slices.ContainsFunc(p.Ports, func(have addressPort) bool { return have.Port == port }) {
			p.Ports = append(p.Ports, addressPort{name, port, "TCP"})
			p.Endpoints[0].Ports = append(p.Endpoints[0].Ports, endpointPort{name, port})
		}
	}
	return out
}

// reach tells the platform of one address, once. An address without ports goes.
func (f *serviceFeed) reach(ctx context.Context, ip string, a *address, done map[string]string) error {
	name := f.nodePrefix() + strings.ReplaceAll(ip, ".", "-")
	if len(a.Properties.Ports) == 0 {
		if err := f.n.platform.DeleteServiceAddress(ctx, f.n.cfg.ResourceGroup, name); err != nil && fault.KindOf(err) != fault.NotFound {
			return err
		}
		delete(done, ip)
		return nil
	}
	body, err := json.Marshal(a)
	if err != nil || done[ip] == string(body) {
		return err
	}
	_, err = f.n.platform.PutServiceAddress(ctx, f.n.cfg.ResourceGroup, name, json.RawMessage(body))
	switch fault.KindOf(err) {
	case fault.Invalid, fault.Denied, fault.Conflict: // it will not become right by itself
		done[ip] = string(body)
	}
	if err == nil {
		done[ip] = string(body)
	}
	return err
}
