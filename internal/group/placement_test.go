package group

import "testing"

func TestConditions(t *testing.T) {
	labels := map[string]string{"app": "web", "empty": ""}
	for _, test := range []struct {
		e    Expression
		want bool
	}{
		{Expression{"app", In, []string{"db", "web"}}, true},
		{Expression{"app", In, []string{"db"}}, false},
		{Expression{"none", In, []string{""}}, false},
		{Expression{"empty", In, []string{""}}, true},
		{Expression{"app", NotIn, []string{"web"}}, false},
		{Expression{"none", NotIn, []string{"web"}}, true},
		{Expression{"empty", Exists, nil}, true},
		{Expression{"none", Exists, nil}, false},
		{Expression{"app", DoesNotExist, nil}, false},
		{Expression{"none", DoesNotExist, nil}, true},
	} {
		if got := test.e.Holds(labels); got != test.want {
			t.Errorf("%+v holds = %t, want %t", test.e, got, test.want)
		}
	}
	one := []Expression{{"a", In, []string{"x", "y"}}, {"b", Exists, nil}}
	same := []Expression{{"b", Exists, nil}, {"a", In, []string{"y", "x", "y"}}}
	other := []Expression{{"a", In, []string{"x"}}, {"b", Exists, nil}}
	if Canonical(one) != Canonical(same) || Canonical(one) == Canonical(other) {
		t.Errorf("Canonical = %q, %q, %q", Canonical(one), Canonical(same), Canonical(other))
	}
}

func TestTotalCountsEverything(t *testing.T) {
	s := Spec{EphemeralStorage: 7, InitContainers: []Container{{Requests: Resources{GPUs: 2}}, {Sidecar: true, Requests: Resources{Memory: 1}}},
		Containers: []Container{{Requests: Resources{MilliCPU: 1, GPUs: 1}, GPUSKU: "v100"}, {Requests: Resources{MilliCPU: 2}}}}
	if got, want := s.Total(), (Resources{MilliCPU: 3, Memory: 1, EphemeralStorage: 7, GPUs: 2}); got != want || s.GPUSKU() != "v100" {
		t.Errorf("Total = %+v of %q, want %+v", got, s.GPUSKU(), want)
	}
}
