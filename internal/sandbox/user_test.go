package sandbox

import (
	"slices"
	"strings"
	"testing"
)

func TestLookUpUser(t *testing.T) {
	passwd := []byte("root:x:0:0:root:/root:/bin/sh\nweb:x:33:33::/var/www:/bin/sh\nbroken\nodd:x:notanumber:1::/:/bin/sh\nbig:x:4294967296:1::/:\nrel:x:5:5::relative:\n")
	groups := []byte("root:x:0:\nweb:x:33:\nextra:x:44:web,other\ndisk:x:6:other\nbad:x:-1:web\n")
	tests := []struct {
		spec     string
		uid, gid uint32
		groups   []uint32
		home     string
		fails    string
	}{
		{spec: "", groups: []uint32{0}, home: "/root"},
		{spec: "0", groups: []uint32{0}, home: "/root"},
		{spec: "web", uid: 33, gid: 33, groups: []uint32{33, 44}, home: "/var/www"},
		{spec: "33", uid: 33, gid: 33, groups: []uint32{33, 44}, home: "/var/www"},
		{spec: "web:disk", uid: 33, gid: 6, groups: []uint32{6}, home: "/var/www"},
		{spec: "web:77", uid: 33, gid: 77, groups: []uint32{77}, home: "/var/www"},
		{spec: "1000", uid: 1000, groups: []uint32{0}, home: "/"},
		{spec: "1000:44", uid: 1000, gid: 44, groups: []uint32{44}, home: "/"},
		{spec: "rel", uid: 5, gid: 5, groups: []uint32{5}, home: "/"},
		{spec: "nobody", fails: "not in the image's /etc/passwd"},
		{spec: "web:nogroup", fails: "not in the image's /etc/group"},
		{spec: "odd", fails: "not in"},
		{spec: "4294967296", fails: "not in"},
		{spec: "2147483648", fails: "not in"},
		{spec: "-1", fails: "not in"},
	}
	for _, tt := range tests {
		u, err := lookUpUser(tt.spec, passwd, groups)
		if tt.fails != "" {
			if err == nil || !strings.Contains(err.Error(), tt.fails) {
				t.Errorf("lookUpUser(%q) = %+v, %v, want an error with %q", tt.spec, u, err, tt.fails)
			}
			continue
		}
		if err != nil || u.uid != tt.uid || u.gid != tt.gid || u.home != tt.home || !slices.Equal(u.groups, tt.groups) {
			t.Errorf("lookUpUser(%q) = %+v, %v, want %+v", tt.spec, u, err, tt)
		}
	}
}

func FuzzLookUpUser(f *testing.F) {
	f.Add("web:extra", []byte("web:x:33:33::/:"), []byte("extra:x:4:web"))
	f.Fuzz(func(t *testing.T, spec string, passwd, groups []byte) {
		u, err := lookUpUser(spec, passwd, groups)
		if err == nil && (u.uid > maxID || u.gid > maxID) {
			t.Fatalf("lookUpUser(%q) = %+v: an id that wraps", spec, u)
		}
	})
}

func TestCaps(t *testing.T) {
	const usual = 0xa00425fb
	tests := []struct {
		add, drop []string
		want      uint64
	}{
		{nil, nil, usual},
		{nil, []string{"ALL"}, 0},
		{[]string{"NET_BIND_SERVICE"}, []string{"ALL"}, 1 << 10},
		{nil, []string{"NET_RAW"}, usual &^ (1 << 13)},
		{[]string{"NO_SUCH"}, []string{"ALL"}, 0},
	}
	for _, tt := range tests {
		if got := Caps(tt.add, tt.drop); got != tt.want {
			t.Errorf("Caps(%v, %v) = %#x, want %#x", tt.add, tt.drop, got, tt.want)
		}
	}
}
