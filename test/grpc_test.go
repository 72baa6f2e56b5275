package test

import (
	"fmt"
	"net"
	"os"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"spillway.dev/spillway/internal/client"
)

// healthRole makes the test's own binary a server of gRPC's health protocol: it is what the image below holds.
const healthRole = "SPILLWAY_TEST_HEALTH"

// serveHealth answers NOT_SERVING for the first second.
func serveHealth() int {
	l, err := net.Listen("tcp", ":9000")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	state := health.NewServer()
	state.SetServingStatus("db", healthpb.HealthCheckResponse_NOT_SERVING)
	time.AfterFunc(time.Second, func() { state.SetServingStatus("db", healthpb.HealthCheckResponse_SERVING) })
	s := grpc.NewServer()
	healthpb.RegisterHealthServer(s, state)
	if err := s.Serve(l); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	return 1
}

func TestGRPCProbe(t *testing.T) {
	t.Parallel()
	p := sharedPlatform(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	const ref = "registry.test/health:1"
	img, err := busyboxImage(entry{path: "server", from: self})
	if err != nil {
		t.Skip(err)
	}
	path, err := archive(ref, img)
	if err := p.importImage(path, err); err != nil {
		t.Fatal(err)
	}
	probe := func(service string) M {
		return M{"grpc": M{"port": 9000, "service": service}, "periodSeconds": 1, "failureThreshold": 20}
	}
	n := p.create("grpc", []M{container("c", "", M{"image": ref, "command": []string{"/server"}, "environmentVariables": []M{{"name": healthRole, "value": "1"}},
		"startupProbe": probe(""), "readinessProbe": probe("db")})})
	g := p.await(n, "a failed start or the start", func(g *client.Group) bool { return g.State() != "Pending" })
	if exitCode(g, 0) == 127 {
		t.Skip("a static test binary is missing: CGO_ENABLED=0 go test")
	}
	p.running(n)
}
