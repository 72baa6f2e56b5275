package virtualnode

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Limits of the kubelet API.
const (
	serverHeaderTimeout = 10 * time.Second
	serverIdleTimeout   = 2 * time.Minute
	stopPatience        = 2 * time.Second
)

// server is the kubelet's HTTPS API of a node: never open, every request is one that the cluster allows.
type server struct {
	n        *Node
	guard    *guard
	certs    *servingCertificate
	listener net.Listener
}

func newServer(ctx context.Context, n *Node) (*server, error) {
	s := &server{n: n}
	var err error
	if s.guard, err = newGuard(ctx, n); err != nil {
		return nil, err
	}
	if s.certs, err = newServingCertificate(n); err != nil {
		return nil, err
	}
	if s.listener, err = net.Listen("tcp", n.cfg.Listen); err != nil {
		return nil, fmt.Errorf("the kubelet API cannot listen on %s: %w", n.cfg.Listen, err)
	}
	// With port 0 the system has chosen one: the cluster has to know it.
	n.cfg.Listen = s.listener.Addr().String()
	return s, nil
}

func (s *server) run(ctx context.Context) error {
	s.certs.start()
	defer s.certs.stop()
	h := &http.Server{Handler: s.guard.protect(s.routes()), ReadHeaderTimeout: serverHeaderTimeout, IdleTimeout: serverIdleTimeout,
		ErrorLog:    slog.NewLogLogger(s.n.log.Handler(), slog.LevelWarn),
		BaseContext: func(net.Listener) context.Context { return ctx },
		TLSConfig: &tls.Config{MinVersion: tls.VersionTLS12, ClientAuth: tls.RequestClientCert, GetCertificate: s.certs.get,
			NextProtos: []string{"http/1.1"}}} // SPDY takes connections over, which HTTP/2 cannot
	go func() {
		<-ctx.Done()
		soon, cancel := context.WithTimeout(context.Background(), stopPatience)
		defer cancel()
		if h.Shutdown(soon) != nil {
			h.Close()
		}
	}()
	err := h.ServeTLS(s.listener, "", "")
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("kubelet API: %w", err)
}

// routes is the whole surface. The permission that each needs is in guard.go.
func (s *server) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") })
	mux.HandleFunc("GET /healthz/{check}", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") })
	mux.HandleFunc("GET /pods", s.listPods)
	mux.HandleFunc("GET /pods/", s.listPods)
	mux.HandleFunc("GET /runningpods/", s.listRunning)
	mux.HandleFunc("GET /containerLogs/{namespace}/{pod}/{container}", s.logs)
	for _, method := range []string{"GET", "POST"} {
		mux.HandleFunc(method+" /exec/{namespace}/{pod}/{container}", s.exec)
		mux.HandleFunc(method+" /exec/{namespace}/{pod}/{uid}/{container}", s.exec)
		mux.HandleFunc(method+" /attach/{namespace}/{pod}/{container}", s.attach)
		mux.HandleFunc(method+" /attach/{namespace}/{pod}/{uid}/{container}", s.attach)
		mux.HandleFunc(method+" /portForward/{namespace}/{pod}", s.portForward)
		mux.HandleFunc(method+" /portForward/{namespace}/{pod}/{uid}", s.portForward)
		mux.HandleFunc(method+" /stats/summary", s.summary)
	}
	mux.HandleFunc("POST /run/{namespace}/{pod}/{container}", s.runCommand)
	mux.HandleFunc("POST /run/{namespace}/{pod}/{uid}/{container}", s.runCommand)
	mux.Handle("GET /metrics", promhttp.Handler())
	mux.HandleFunc("GET /metrics/resource", s.resourceMetrics)
	mux.HandleFunc("GET /metrics/cadvisor", s.resourceMetrics)
	mux.HandleFunc("GET /metrics/probes", func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Content-Type", metricsType) })
	mux.HandleFunc("GET /configz", s.configz)
	return mux
}

// listPods gives the pods bound to this node.
func (s *server) listPods(w http.ResponseWriter, _ *http.Request) { s.answerPods(w, nil) }

// listRunning gives those of which the platform has a group that has not ended.
func (s *server) listRunning(w http.ResponseWriter, _ *http.Request) {
	s.answerPods(w, func(pod *corev1.Pod) bool {
		g, gone := s.n.mirror.get(string(pod.UID))
		return g != nil && !gone && !ended(g)
	})
}

func (s *server) answerPods(w http.ResponseWriter, want func(*corev1.Pod) bool) {
	list := corev1.PodList{TypeMeta: metav1.TypeMeta{Kind: "PodList", APIVersion: "v1"}, Items: []corev1.Pod{}}
	for _, obj := range s.n.pods.informer.GetStore().List() {
		if pod, ok := obj.(*corev1.Pod); ok && (want == nil || want(pod)) {
			list.Items = append(list.Items, *pod)
		}
	}
	answerJSON(w, list)
}

func answerJSON(w http.ResponseWriter, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(body) // the caller is gone, or not
}

// configz says how this node is set up, in the kubelet's words where it has them.
func (s *server) configz(w http.ResponseWriter, _ *http.Request) {
	answerJSON(w, map[string]any{"kubeletconfig": map[string]any{"kind": "KubeletConfiguration", "apiVersion": "kubelet.config.k8s.io/v1beta1",
		"clusterDomain": s.n.cfg.ClusterDomain, "port": portNumber(s.n.cfg.Listen), "maxPods": s.n.maxPods(),
		"nodeLeaseDurationSeconds": leaseSeconds, "enableServer": true, "failSwapOn": true, "cgroupDriver": "cgroupfs"}})
}
