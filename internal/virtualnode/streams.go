package virtualnode

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"

	"spillway.dev/spillway/internal/client"
	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/host"
)

// Timeouts of streams: a kubelet's.
const (
	streamIdle     = 4 * time.Hour
	streamCreation = remotecommand.DefaultStreamCreationTimeout
)

// execProtocols are those of SPDY; over a WebSocket the library speaks up to the fourth.
var execProtocols = []string{remotecommand.StreamProtocolV4Name, remotecommand.StreamProtocolV3Name, remotecommand.StreamProtocolV2Name, remotecommand.StreamProtocolV1Name}

// errNoPod is a request for a pod that this node does not have.
var errNoPod = errors.New("pod does not exist")

// target finds the container that a request names.
func (s *server) target(r *http.Request) (client.Target, *corev1.Pod, error) {
	namespace, name := r.PathValue("namespace"), r.PathValue("pod")
	obj, ok, err := s.n.pods.informer.GetStore().GetByKey(namespace + "/" + name)
	if err != nil || !ok {
		return client.Target{}, nil, errNoPod
	}
	pod := obj.(*corev1.Pod)
	if uid := r.PathValue("uid"); uid != "" && uid != string(pod.UID) {
		return client.Target{}, nil, errNoPod
	}
	g, _ := s.n.mirror.get(string(pod.UID))
	if g == nil {
		return client.Target{}, nil, errNoPod
	}
	return client.Target{ResourceGroup: s.n.cfg.ResourceGroup, Group: g.Name, Container: r.PathValue("container")}, pod, nil
}

// refuse answers a request that cannot be served.
func refuse(w http.ResponseWriter, err error) {
	status := http.StatusInternalServerError
	if errors.Is(err, errNoPod) {
		status = http.StatusNotFound
	} else if kind := fault.KindOf(err); kind != fault.Internal {
		status = kind.Row().Status
	}
	http.Error(w, err.Error(), status)
}

// logs serves a container's log.
func (s *server) logs(w http.ResponseWriter, r *http.Request) {
	t, pod, err := s.target(r)
	if err != nil {
		refuse(w, err)
		return
	}
	if !hasContainer(pod, t.Container) {
		http.Error(w, fmt.Sprintf("container %q not found in pod %q", t.Container, pod.Name), http.StatusNotFound)
		return
	}
	opt, limit, err := logOptions(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "text/plain")
	out := &logWriter{w: w, left: limit, stop: func() {}}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	out.stop = cancel
	err = s.n.platform.Logs(ctx, t, opt, out)
	if err != nil && !out.begun && ctx.Err() == nil {
		if fault.KindOf(err) == fault.NotFound {
			// The kubelet's words, which clients know: there is no such run.
			why := fmt.Sprintf("container %q in pod %q is waiting to start: ContainerCreating", t.Container, pod.Name)
			if opt.Previous {
				why = fmt.Sprintf("previous terminated container %q in pod %q not found", t.Container, pod.Name)
			}
			http.Error(w, why, http.StatusBadRequest)
			return
		}
		refuse(w, err)
	}
}

func hasContainer(pod *corev1.Pod, name string) bool {
	if containerOf(pod, name) != nil {
		return true
	}
	for i := range pod.Spec.EphemeralContainers {
		if pod.Spec.EphemeralContainers[i].Name == name {
			return true
		}
	}
	return false
}

// logOptions reads the query of a request for logs. -1 as limit: none.
func logOptions(r *http.Request) (host.LogOptions, int64, error) {
	q := r.URL.Query()
	var opt host.LogOptions
	limit := int64(-1)
	flag := func(name string) bool {
		on, _ := strconv.ParseBool(q.Get(name)) // as a kubelet: what is no boolean is false
		return on
	}
	opt.Follow, opt.Previous, opt.Timestamps = flag("follow"), flag("previous"), flag("timestamps")
	if v := q.Get("tailLines"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 0 {
			return opt, 0, fmt.Errorf("tailLines %q: must not be negative", v)
		}
		if opt.Tail = n; n == 0 {
			opt.Tail = -1
		}
	}
	if v := q.Get("limitBytes"); v != "" {
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil || n < 1 {
			return opt, 0, fmt.Errorf("limitBytes %q: must be greater than 0", v)
		}
		limit = n
	}
	if v := q.Get("sinceSeconds"); v != "" {
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil || n < 1 {
			return opt, 0, fmt.Errorf("sinceSeconds %q: must be greater than 0", v)
		}
		opt.Since = time.Now().Add(-time.Duration(n) * time.Second)
	}
	if v := q.Get("sinceTime"); v != "" {
		at, err := time.Parse(time.RFC3339, v)
		if err != nil {
			return opt, 0, fmt.Errorf("sinceTime %q: %w", v, err)
		}
		opt.Since = at
	}
	return opt, limit, nil
}

// logWriter sends what it gets at once, and ends the reading when a limit is reached.
type logWriter struct {
	w     http.ResponseWriter
	left  int64 // bytes; negative: no limit
	begun bool
	stop  func()
}

func (l *logWriter) Write(b []byte) (int, error) {
	l.begun = true
	n := len(b)
	if l.left >= 0 && int64(n) > l.left {
		b = b[:l.left]
	}
	if l.left >= 0 {
		if l.left -= int64(len(b)); l.left == 0 {
			defer l.stop()
		}
	}
	if _, err := l.w.Write(b); err != nil {
		return 0, err
	}
	if f, ok := l.w.(http.Flusher); ok {
		f.Flush()
	}
	return n, nil
}

// session carries one request's container to the streaming library.
type session struct {
	s *server
	t client.Target
}

func (s *server) exec(w http.ResponseWriter, r *http.Request) {
	t, pod, err := s.target(r)
	if err != nil {
		refuse(w, err)
		return
	}
	opt, err := remotecommand.NewOptions(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	remotecommand.ServeExec(w, r, session{s, t}, pod.Name, string(pod.UID), t.Container, r.URL.Query()["command"], opt, streamIdle, streamCreation, execProtocols)
}

func (s *server) attach(w http.ResponseWriter, r *http.Request) {
	t, pod, err := s.target(r)
	if err != nil {
		refuse(w, err)
		return
	}
	opt, err := remotecommand.NewOptions(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	remotecommand.ServeAttach(w, r, session{s, t}, pod.Name, string(pod.UID), t.Container, opt, streamIdle, streamCreation, execProtocols)
}

func (s *server) portForward(w http.ResponseWriter, r *http.Request) {
	t, pod, err := s.target(r)
	if err != nil {
		refuse(w, err)
		return
	}
	opt, err := portforward.NewV4Options(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	portforward.ServePortForward(w, r, session{s, t}, pod.Name, string(pod.UID), opt, streamIdle, streamCreation, portforward.SupportedProtocols)
}

// runCommand runs a command without streams and answers with its output.
func (s *server) runCommand(w http.ResponseWriter, r *http.Request) {
	t, _, err := s.target(r)
	if err != nil {
		refuse(w, err)
		return
	}
	command := strings.Split(r.URL.Query().Get("cmd"), " ") // a kubelet does the same
	out := &logWriter{w: w, left: -1, stop: func() {}}
	if _, err := s.n.platform.Exec(r.Context(), t, host.ExecRequest{Command: command}, host.Streams{Stdout: out, Stderr: out}); err != nil && !out.begun {
		refuse(w, err)
	}
}

// ExecInContainer implements remotecommand.Executor.
func (x session) ExecInContainer(ctx context.Context, _, _, _ string, cmd []string, in io.Reader, out, errs io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize, _ time.Duration) error {
	code, err := x.s.n.platform.Exec(ctx, x.t, host.ExecRequest{Command: cmd, TTY: tty, Stdin: in != nil}, streamsOf(ctx, in, out, errs, resize))
	if err != nil {
		return err
	}
	if code != 0 {
		return utilexec.CodeExitError{Err: fmt.Errorf("command terminated with exit code %d", code), Code: code}
	}
	return nil
}

// AttachContainer implements remotecommand.Attacher.
func (x session) AttachContainer(ctx context.Context, _, _, _ string, in io.Reader, out, errs io.WriteCloser, _ bool, resize <-chan remotecommand.TerminalSize) error {
	return x.s.n.platform.Attach(ctx, x.t, streamsOf(ctx, in, out, errs, resize))
}

// PortForward implements portforward.PortForwarder.
func (x session) PortForward(ctx context.Context, _, _ string, port int32, stream io.ReadWriteCloser) error {
	defer stream.Close()
	return x.s.n.platform.Forward(ctx, x.t.ResourceGroup, x.t.Group, int(port), stream)
}

// streamsOf are the caller's ends in the platform's terms.
func streamsOf(ctx context.Context, in io.Reader, out, errs io.WriteCloser, resize <-chan remotecommand.TerminalSize) host.Streams {
	s := host.Streams{Stdin: in, Stdout: io.Discard, Stderr: io.Discard}
	if out != nil {
		s.Stdout = out
	}
	if errs != nil {
		s.Stderr = errs
	}
	if resize != nil {
		sizes := make(chan host.Size)
		s.Resize = sizes
		go func() {
			defer close(sizes)
			for size := range resize {
				select {
				case sizes <- host.Size{Rows: size.Height, Cols: size.Width}:
				case <-ctx.Done():
					return
				}
			}
		}()
	}
	return s
}

// parseRequest reads a certificate signing request.
func parseRequest(text []byte) (*x509.CertificateRequest, error) {
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, errors.New("no PEM block")
	}
	return x509.ParseCertificateRequest(block.Bytes)
}
