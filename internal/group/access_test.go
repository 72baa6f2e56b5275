package group

import (
	"slices"
	"strings"
	"testing"
)

func TestAllowance(t *testing.T) {
	spec := Spec{HostNetwork: true, HostPID: true, HostIPC: true,
		Volumes:        []Volume{{Name: "a", EmptyDir: &EmptyDir{}}, {Name: "b", HostPath: &HostPath{Path: "/var/log/pods"}}},
		InitContainers: []Container{{Name: "i", Security: &Security{}}}, Containers: []Container{{Name: "c", Security: &Security{Privileged: true}}},
		Ephemeral: []Container{{Name: "e", Security: &Security{Privileged: true}}}}
	needs := spec.Needs()
	var fields []string
	for _, n := range needs {
		fields = append(fields, n.Field)
	}
	want := []string{"properties.hostNetwork", "properties.hostPID", "properties.hostIPC", "properties.volumes[1].hostPath",
		"properties.containers[0].properties.securityContext.privileged", "properties.ephemeralContainers[0].properties.securityContext.privileged"}
	if !slices.Equal(fields, want) {
		t.Fatalf("needs = %v, want %v", fields, want)
	}
	for words, lacking := range map[string]int{"": 6, "host-network": 5, "host-path": 5, "host-path=/var/log": 5, "host-path=/var/lo": 6, "host-path=/var/log/pods": 5,
		"host-path=/": 5, "host-path=/var/log/pods/x": 6, "privileged": 4, "host-network,host-pid,host-ipc,host-path,privileged": 0} {
		a, err := ParseAllowance(split(words))
		if err != nil {
			t.Fatalf("ParseAllowance(%s) = %v", words, err)
		}
		lacks := a.Lacks(needs)
		if len(lacks) != lacking || a.Any() != (words != "") {
			t.Errorf("with %q are lacking %v, want %d", words, lacks, lacking)
		}
		for _, n := range lacks {
			if !strings.Contains(n.Refusal(), "--allow "+string(n.Access)) {
				t.Errorf("refusal %q names no flag", n.Refusal())
			}
		}
	}
	if len((Allowance{}).Lacks(needs)) != len(needs) {
		t.Error("the zero allowance gives something")
	}
	for _, bad := range []string{"all", "host-network=/x", "host-path=", "host-path=var", "host-path=/var/", "host-path=/a/../b"} {
		if _, err := ParseAllowance([]string{bad}); err == nil {
			t.Errorf("ParseAllowance(%s) took it", bad)
		}
	}
	a, _ := ParseAllowance([]string{"host-path", "host-path=/var/log"})
	if dir, ok := a.Base("/var/log/x"); !ok || dir != "/var/log" {
		t.Errorf("base = %q, want the innermost one", dir)
	}
}

func split(words string) []string {
	return strings.FieldsFunc(words, func(r rune) bool { return r == ',' })
}
