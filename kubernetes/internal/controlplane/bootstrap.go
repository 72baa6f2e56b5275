package controlplane

import (
	"context"
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

// awaitAccounts waits until the controllers have made the default service account: before, no pod can be created.
func awaitAccounts(ctx context.Context, kubeconfig string) error {
	cfg, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	kube, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return err
	}
	for deadline := time.Now().Add(readyTimeout); ctx.Err() == nil; {
		_, err = kube.CoreV1().ServiceAccounts(metav1.NamespaceDefault).Get(ctx, "default", metav1.GetOptions{})
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the controllers have not made the default service account after %s: %w", readyTimeout, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
	return ctx.Err()
}
