package virtualnode

import (
	"context"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// renewLease tells the cluster every few seconds that this node is there. It stops telling when the platform does not
// answer: pods would be bound to a node that can run none.
func (n *Node) renewLease(ctx context.Context) {
	for ctx.Err() == nil {
		err := n.platformAnswers(ctx)
		if err == nil {
			err = n.renewOnce(ctx)
		}
		if err != nil && ctx.Err() == nil {
			n.log.Warn("node lease not renewed", "error", err)
			pause(ctx, time.Second)
			continue
		}
		pause(ctx, leaseRenewal)
	}
}

func (n *Node) platformAnswers(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, leaseRenewal)
	defer cancel()
	return n.platform.Healthy(ctx)
}

func (n *Node) renewOnce(ctx context.Context) error {
	leases := n.kube.CoordinationV1().Leases(corev1.NamespaceNodeLease)
	now, seconds := metav1.NowMicro(), int32(leaseSeconds)
	lease, err := leases.Get(ctx, n.cfg.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		lease = &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: n.cfg.Name, Namespace: corev1.NamespaceNodeLease},
			Spec: coordinationv1.LeaseSpec{HolderIdentity: &n.cfg.Name, LeaseDurationSeconds: &seconds, RenewTime: &now}}
		if node, err := n.kube.CoreV1().Nodes().Get(ctx, n.cfg.Name, metav1.GetOptions{}); err == nil {
			lease.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: node.Name, UID: node.UID}}
		}
		_, err = leases.Create(ctx, lease, metav1.CreateOptions{})
		return err
	}
	if err != nil {
		return err
	}
	lease.Spec.HolderIdentity, lease.Spec.LeaseDurationSeconds, lease.Spec.RenewTime = &n.cfg.Name, &seconds, &now
	_, err = leases.Update(ctx, lease, metav1.UpdateOptions{})
	return err
}
