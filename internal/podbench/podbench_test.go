package podbench

import "testing"

func TestCountWrites(t *testing.T) {
	const metrics = `# TYPE apiserver_request_total counter
apiserver_request_total{code="201",resource="pods",subresource="",verb="POST"} 3
apiserver_request_total{code="200",resource="pods",subresource="status",verb="PATCH"} 1.2e+01
apiserver_request_total{code="200",resource="pods",subresource="",verb="LIST"} 100
apiserver_request_total{code="201",resource="events",subresource="",verb="POST"} 5
apiserver_request_total{code="200",resource="leases",subresource="",verb="PUT"} 50
apiserver_request_duration_seconds_count{resource="pods",verb="POST"} 9
`
	if got := countWrites(metrics); got != 20 {
		t.Errorf("countWrites = %d, want 20: 3 created, 12 patched, 5 events", got)
	}
}

func TestQuantile(t *testing.T) {
	values := []float64{5, 1, 4, 2, 3}
	for q, want := range map[float64]float64{0: 1, 0.5: 3, 0.99: 5} {
		if got := quantile(values, q); got != want {
			t.Errorf("quantile(%g) = %g, want %g", q, got, want)
		}
	}
	if got := quantile(nil, 0.5); got != 0 {
		t.Errorf("quantile of nothing = %g, want 0", got)
	}
}
