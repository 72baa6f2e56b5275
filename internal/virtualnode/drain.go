package virtualnode

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
)

// Draining is one orderly end of a node's work.
type Draining struct {
	Kube  kubernetes.Interface
	Node  string
	Force bool              // also pods that no controller makes again
	Say   func(line string) // hears what is waited for, each time it changes
}

// drainPause is how often a disruption budget is asked again, and pods on their way out are looked at.
const drainPause = time.Second

// Run takes no new pods and moves those that are there away: by evictions, so that disruption budgets hold, and each
// with its grace period. Pods of DaemonSets stay, as they would come back at once, and so do finished ones. It returns
// when the others are gone. The node's process has to go on meanwhile: it is who ends the pods.
func (d *Draining) Run(ctx context.Context) error {
	cordon := []byte(`{"spec":{"unschedulable":true}}`)
	if _, err := d.Kube.CoreV1().Nodes().Patch(ctx, d.Node, types.StrategicMergePatchType, cordon, metav1.PatchOptions{}); err != nil {
		return fmt.Errorf("cordon node %s: %w", d.Node, err)
	}
	pods, err := d.pods(ctx)
	if err != nil {
		return err
	}
	if bare := names(pods, unowned); len(bare) > 0 && !d.Force {
		return fmt.Errorf("nobody would make these pods again: %s. The node takes no new pods; to delete them too, use --force", strings.Join(bare, ", "))
	}
	last := ""
	for evicted := map[types.UID]bool{}; ; {
		why, err := d.evict(ctx, pods, evicted)
		if err != nil {
			return err
		}
		if len(pods) == 0 {
			return nil
		}
		if now := waitsFor(pods, why); now != last {
			d.Say(now)
			last = now
		}
		if pause(ctx, drainPause); ctx.Err() != nil {
			return fmt.Errorf("%s: %w", last, context.Cause(ctx))
		}
		if pods, err = d.pods(ctx); err != nil {
			return err
		}
	}
}

// pods are those that have to leave.
func (d *Draining) pods(ctx context.Context) ([]corev1.Pod, error) {
	list, err := d.Kube.CoreV1().Pods(metav1.NamespaceAll).List(ctx, metav1.ListOptions{FieldSelector: "spec.nodeName=" + d.Node})
	if err != nil {
		return nil, fmt.Errorf("list the pods of node %s: %w", d.Node, err)
	}
	return slices.DeleteFunc(list.Items, func(p corev1.Pod) bool {
		owner := metav1.GetControllerOf(&p)
		return finished(&p) || owner != nil && owner.Kind == "DaemonSet"
	}), nil
}

func unowned(p *corev1.Pod) bool { return metav1.GetControllerOf(p) == nil }

func names(pods []corev1.Pod, want func(*corev1.Pod) bool) []string {
	var out []string
	for i := range pods {
		if want(&pods[i]) {
			out = append(out, pods[i].Namespace+"/"+pods[i].Name)
		}
	}
	return out
}

// evict asks for the eviction of those that have not been asked yet, and gives by name why some have to stay for now.
func (d *Draining) evict(ctx context.Context, pods []corev1.Pod, evicted map[types.UID]bool) (map[string]string, error) {
	why := map[string]string{}
	for i := range pods {
		p := &pods[i]
		if evicted[p.UID] || p.DeletionTimestamp != nil {
			continue
		}
		err := d.Kube.PolicyV1().Evictions(p.Namespace).Evict(ctx, &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: p.Name, Namespace: p.Namespace},
			DeleteOptions: &metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(p.UID))}})
		switch {
		case err == nil, notFound(err), apierrors.IsConflict(err):
			evicted[p.UID] = true
		case apierrors.IsTooManyRequests(err):
			why[p.Namespace+"/"+p.Name] = budgetOf(err)
		default:
			return nil, fmt.Errorf("evict pod %s/%s: %w", p.Namespace, p.Name, err)
		}
	}
	return why, nil
}

// budgetOf says which disruption budget stands in the way.
func budgetOf(err error) string {
	status, ok := errors.AsType[*apierrors.StatusError](err)
	if !ok || status.ErrStatus.Details == nil {
		return err.Error()
	}
	for _, c := range status.ErrStatus.Details.Causes {
		if c.Type == policyv1.DisruptionBudgetCause {
			return c.Message
		}
	}
	return err.Error()
}

// waitsFor says in one line what a drain waits for.
func waitsFor(pods []corev1.Pod, why map[string]string) string {
	var held []string
	for _, name := range names(pods, func(p *corev1.Pod) bool { return why[p.Namespace+"/"+p.Name] != "" }) {
		held = append(held, name+" ("+why[name]+")")
	}
	text := fmt.Sprintf("waiting for %d pods to end", len(pods)-len(held))
	if len(held) > 0 {
		text += fmt.Sprintf(", and for disruption budgets of %d more: %s", len(held), strings.Join(held, ", "))
	}
	return text
}
