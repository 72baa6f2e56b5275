package probe

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"

	"spillway.dev/spillway/internal/group"
)

// Target is the container that is asked.
type Target struct {
	IP   string     // of the group
	From netip.Addr // of this machine, from which it is asked; invalid: any
	// Exec runs a command in the container and gives its exit code and the first part of its output.
	Exec func(ctx context.Context, command []string) (int, string, error)
}

// maxOutput bounds what of an answer is read and reported.
const maxOutput = 1024

// Check asks once; nil means fine. The message of an error is shown to the group's owner.
func Check(ctx context.Context, h group.Handler, t Target) error {
	switch {
	case h.HTTP != nil:
		return checkHTTP(ctx, h.HTTP, t)
	case h.TCP != nil:
		c, err := t.dialer().DialContext(ctx, "tcp", address(t.IP, h.TCP.Port))
		if err != nil {
			return err
		}
		return c.Close()
	case h.GRPC != nil:
		return checkGRPC(ctx, h.GRPC, t)
	case len(h.Exec) > 0:
		code, output, err := t.Exec(ctx, h.Exec)
		if err != nil {
			return err
		}
		if code != 0 {
			return fmt.Errorf("command %q exited with %d: %s", strings.Join(h.Exec, " "), code, output)
		}
	}
	return nil
}

func (t Target) dialer() *net.Dialer {
	d := &net.Dialer{}
	if t.From.IsValid() {
		d.LocalAddr = &net.TCPAddr{IP: t.From.AsSlice()}
	}
	return d
}

func address(ip string, port int) string { return net.JoinHostPort(ip, strconv.Itoa(port)) }

// client speaks to containers: no proxy, no reuse, no redirects, any certificate (the kubelet's rules).
func (t Target) client() *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			DialContext:            t.dialer().DialContext,
			TLSClientConfig:        &tls.Config{InsecureSkipVerify: true}, // a probe asks whether it answers, not who it is
			DisableKeepAlives:      true,
			MaxResponseHeaderBytes: 64 << 10,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

func checkHTTP(ctx context.Context, h *group.HTTPGet, t Target) error {
	scheme := "http"
	if h.HTTPS {
		scheme = "https"
	}
	path := "/" + strings.TrimPrefix(h.Path, "/")
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+address(t.IP, h.Port)+path, nil)
	if err != nil {
		return err
	}
	req.Header.Set("User-Agent", "spillway-probe")
	for _, header := range h.Headers {
		if strings.EqualFold(header.Name, "Host") {
			req.Host = header.Value
			continue
		}
		req.Header.Add(header.Name, header.Value)
	}
	if h.Host != "" {
		req.Host = h.Host
	}
	resp, err := t.client().Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, _ = io.CopyN(io.Discard, resp.Body, maxOutput)
	if resp.StatusCode < 200 || resp.StatusCode >= 400 {
		return fmt.Errorf("HTTP probe failed with statuscode: %d", resp.StatusCode)
	}
	return nil
}

func checkGRPC(ctx context.Context, h *group.GRPCCheck, t Target) error {
	conn, err := grpc.NewClient("passthrough:///"+address(t.IP, h.Port), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, to string) (net.Conn, error) { return t.dialer().DialContext(ctx, "tcp", to) }),
		grpc.WithUserAgent("spillway-probe"), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxOutput)))
	if err != nil {
		return err
	}
	defer conn.Close()
	answer, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: h.Service})
	if err != nil {
		return err
	}
	if answer.Status != grpc_health_v1.HealthCheckResponse_SERVING {
		return fmt.Errorf("service is %s, not SERVING", answer.Status)
	}
	return nil
}
