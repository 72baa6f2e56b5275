package arm

import (
	"errors"
	"strings"
	"testing"

	"spillway.dev/spillway/internal/fault"
)

func TestPlacementRefusals(t *testing.T) {
	web := []any{obj{"key": "app", "operator": "In", "values": []any{"web", "db"}}}
	turned := []any{obj{"key": "app", "operator": "in", "values": []any{"db", "web"}}}
	beside := []any{obj{"labels": web, "topology": "zone"}}
	gpu := func(n any, sku string) obj { return obj{"requests": obj{"gpu": obj{"count": n, "sku": sku}}} }
	for _, test := range []refusal{
		{"placement", obj{}, "", ""},
		{"placement", obj{"pools": []any{"Big"}}, "", "pool name 'Big' in 'properties.placement.pools'"},
		{"placement", obj{"where": 1}, "", "'properties.placement.where' is unknown"},
		{"placement", obj{"hostLabels": obj{"required": web, "preferred": []any{obj{"weight": 3, "labels": web}}}}, "", ""},
		{"placement", obj{"hostLabels": obj{"required": []any{obj{"key": "a", "operator": "Exists", "values": []any{"x"}}}}}, "", "must be empty for the operator 'Exists'"},
		{"placement", obj{"hostLabels": obj{"required": []any{obj{"key": "a", "operator": "NotIn"}}}}, "", "at least one value for the operator 'NotIn'"},
		{"placement", obj{"hostLabels": obj{"required": []any{obj{"key": "a"}}}}, "", "In, NotIn, Exists or DoesNotExist"},
		{"placement", obj{"hostLabels": obj{"required": []any{obj{"key": "a", "operator": "Gt"}}}}, "", "one of In, NotIn, Exists, DoesNotExist"},
		{"placement", obj{"hostLabels": obj{"required": []any{obj{"operator": "Exists"}}}}, "", "required[0].key' is required"},
		{"placement", obj{"hostLabels": obj{"preferred": []any{obj{"labels": web}}}}, "", "weight' is required"},
		{"placement", obj{"hostLabels": obj{"preferred": []any{obj{"weight": 101, "labels": web}}}}, "", "from 1 to 100, got 101"},
		{"placement", obj{"affinity": []any{obj{"labels": web}}}, "", "topology' is required"},
		{"placement", obj{"affinity": []any{obj{"labels": web, "topology": "rack"}}}, "", "host, faultDomain, zone, got 'rack'"},
		{"placement", obj{"affinity": []any{obj{"topology": "host"}}}, "", "at least one condition"},
		{"placement", obj{"spread": []any{obj{"labels": web, "topology": "host", "maxSkew": 0}}}, "", "from 1 to 10000, got 0"},
		{"placement", obj{"spread": []any{obj{"labels": web, "topology": "host", "whenUnsatisfiable": "Never"}}}, "", "DoNotSchedule, ScheduleAnyway"},
		{"placement", obj{"affinity": beside, "antiAffinity": []any{obj{"labels": turned, "topology": "zone"}}}, "", "'properties.placement.antiAffinity[0]' and the required affinity 'properties.placement.affinity[0]' select the same labels over the topology 'zone'"},
		{"placement", obj{"affinity": beside, "antiAffinity": []any{obj{"labels": turned, "topology": "host"}}}, "", ""},
		{"placement", obj{"affinity": beside, "antiAffinity": []any{obj{"labels": turned, "topology": "zone", "weight": 1}}}, "", ""},
		{"placement", obj{"affinity": many(33, obj{"labels": web, "topology": "zone"})}, "", "at most 32"},
		{"placement", obj{"affinity": []any{obj{"labels": many(17, web[0]), "topology": "zone"}}}, "", "at most 16"},
		{"failover", "Fenced", "", ""},
		{"failover", "Twice", "", "Fenced, got 'Twice'"},
		{"containers.0.properties.resources", gpu(2, "v100"), "", ""},
		{"containers.0.properties.resources", gpu(0, ""), "", "from 1 to 16, got 0"},
		{"containers.0.properties.resources", obj{"requests": obj{"gpu": obj{}}}, "", "gpu.count' is required"},
		{"containers.0.properties.resources", obj{"limits": obj{"gpu": obj{"count": 1}}}, "", "only requests"},
		{"containers", []any{container("a", "resources", gpu(10, "v100")), container("b", "resources", gpu(10, ""))}, "InvalidResourceRequest", "requests 20 GPUs"},
		{"containers", []any{container("a", "resources", gpu(1, "v100")), container("b", "resources", gpu(1, "a100"))}, "", "GPUs of one sku"},
	} {
		body := edit(t, "properties."+test.path, test.value)
		_, err := Decode(body, vOwn, "web")
		if test.words == "" {
			if err != nil {
				t.Errorf("%v: Decode = %v, want nil", test.value, err)
			}
			continue
		}
		e, ok := errors.AsType[*fault.Error](err)
		if !ok || e.Kind != fault.Invalid || test.code != "" && e.Code != test.code || !strings.Contains(all(e), test.words) {
			t.Errorf("%v: Decode = %v, want %s with %q", test.value, err, test.code, test.words)
		}
		if _, err := Decode(body, v2025, "web"); err == nil {
			t.Errorf("%v is taken by api-version %s", test.value, v2025.Name)
		}
	}
}

func all(e *fault.Error) string {
	text := e.Message
	for _, d := range e.Details {
		text += "\n" + d.Message
	}
	return text
}

func many(n int, v any) []any {
	var list []any
	for range n {
		list = append(list, v)
	}
	return list
}

func TestPatchKeepsGPUs(t *testing.T) {
	req, err := Decode(edit(t, first+"resources", obj{"requests": obj{"cpu": 1, "gpu": obj{"count": 2, "sku": "v100"}}}), vOwn, "web")
	if err != nil {
		t.Fatal(err)
	}
	resize := func(requests string) (*Patch, error) {
		return DecodePatch([]byte(`{"properties":{"containers":[{"name":"main","properties":{"resources":{"requests":`+requests+`}}}]}}`), vOwn, "web")
	}
	p, err := resize(`{"cpu":2}`)
	if err != nil {
		t.Fatal(err)
	}
	s, err := p.Apply(&req.Spec)
	if err != nil || s.Total().GPUs != 2 || s.Total().MilliCPU != 2000 {
		t.Errorf("Apply = %+v, %v", s.Total(), err)
	}
	if _, err := resize(`{"cpu":2,"gpu":{"count":1}}`); err == nil || !strings.Contains(err.Error(), "cannot change while the group runs") {
		t.Errorf("DecodePatch(gpu) = %v", err)
	}
}
