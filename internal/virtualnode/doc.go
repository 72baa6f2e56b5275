// Package virtualnode is a node of a Kubernetes cluster that has no machine: the pods bound to it run as container
// groups of a Spillway platform.
//
// It translates and nothing more: Pod → group (translate.go, env.go, files.go, refuse.go), group → PodStatus
// (status.go), streams → streams (kubelet.go). Everything that a kubelet does to containers (probes, hooks, restarts,
// volumes, logs) the platform's hosts do. What the hosts must not see of the cluster, its objects and tokens, is
// resolved here. The translation is pure; the controllers around it (node.go, pods.go, services.go) are IO. Start at
// Run.
package virtualnode
