package network

import (
	"errors"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
)

func TestListsAreReadUntilWhole(t *testing.T) {
	n := 0
	got, err := whole(func() ([]int, error) {
		if n++; n < 3 {
			return []int{1}, netlink.ErrDumpInterrupted
		}
		return []int{1, 2}, nil
	})
	if err != nil || !slices.Equal(got, []int{1, 2}) {
		t.Errorf("whole() = %v, %v, want all after two broken reads", got, err)
	}
	broken := errors.New("broken")
	if _, err := whole(func() ([]int, error) { return nil, broken }); err != broken {
		t.Errorf("whole() = %v, want the list's own error", err)
	}
	if _, err := whole(func() ([]int, error) { return nil, netlink.ErrDumpInterrupted }); err == nil {
		t.Error("whole() of a list that never comes in one piece has no error")
	}
}
