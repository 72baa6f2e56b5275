package network

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// This file is about rules on this machine that are not ours. What goes around the stack does not pass them, so where there are
// any, and nobody has said that it may, everything takes the stack.

// FastPath says when TCP between groups goes around the stack.
type FastPath string

const (
	FastAuto FastPath = "auto" // where the machine has no firewall of its own; the default
	FastOn   FastPath = "on"   // past the machine's own firewall
	FastOff  FastPath = "off"
)

// tablePrefix begins the name of the table of each instance.
const tablePrefix = "spillway_"

// filterFamilies are those whose rules see packets of groups, or their envelopes.
var filterFamilies = []byte{unix.NFPROTO_INET, unix.NFPROTO_IPV4, unix.NFPROTO_NETDEV, unix.NFPROTO_BRIDGE}

// foreignRules says what of this machine may have a word in what becomes of a packet between groups; "": nothing. Translation
// does not count, as packets between groups are not tracked. overlayMu is held.
func (n *Network) foreignRules() (string, error) {
	legacy, err := inside(n.home, func() ([]byte, error) { return os.ReadFile("/proc/thread-self/net/ip_tables_names") })
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("list tables of iptables: %w", err)
	}
	for table := range strings.FieldsSeq(string(legacy)) {
		if table != "nat" {
			return fmt.Sprintf("table %s of iptables (legacy)", table), nil
		}
	}
	found, err := whole(func() (found []string, err error) {
		m := newMessage(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETCHAIN, unix.NLM_F_DUMP, []byte{unix.NFPROTO_UNSPEC, unix.NFNETLINK_V0, 0, 0})
		err = n.watch.dump(m, func(body []byte) {
			if f := filters(body); f != "" {
				found = append(found, f)
			}
		})
		return found, err
	})
	if err != nil {
		return "", fmt.Errorf("list chains: %w", err)
	}
	if len(found) == 0 {
		return "", nil
	}
	return found[0], nil
}

// filters describes a chain that may refuse or change packets of groups; "": it does not, or is ours.
func filters(body []byte) string {
	if len(body) < 4 || !slices.Contains(filterFamilies, body[0]) {
		return ""
	}
	var table, chain, kind string
	hooked, rules, policy := false, uint32(0), uint32(1) // NF_ACCEPT
	attributes(body[4:], func(k uint16, v []byte) {
		switch {
		case k == unix.NFTA_CHAIN_TABLE:
			table = unix.ByteSliceToString(v)
		case k == unix.NFTA_CHAIN_NAME:
			chain = unix.ByteSliceToString(v)
		case k == unix.NFTA_CHAIN_TYPE:
			kind = unix.ByteSliceToString(v)
		case k == unix.NFTA_CHAIN_HOOK:
			hooked = true
		case k == unix.NFTA_CHAIN_POLICY && len(v) == 4:
			policy = binary.BigEndian.Uint32(v)
		case k == unix.NFTA_CHAIN_USE && len(v) == 4:
			rules = binary.BigEndian.Uint32(v)
		}
	})
	if !hooked || kind == "nat" || strings.HasPrefix(table, tablePrefix) || policy == 1 && rules == 0 {
		return ""
	}
	return fmt.Sprintf("chain %.60q of table %.60q", chain, table)
}

// reasonToRest says why nothing may go around the stack; "": it may. overlayMu is held.
func (n *Network) reasonToRest() string {
	if n.cfg.FastPath == FastOn {
		return ""
	}
	why, err := n.foreignRules()
	if err != nil {
		return err.Error()
	}
	return why
}

// rest lets nothing go around the stack while there is a reason, and says so when that changes. Both locks are held.
func (n *Network) rest(why string) error {
	if why != n.fast.rests {
		if why != "" {
			n.log.Info("packets between groups take the stack, as this machine has rules of its own", "instance", n.plan.instance, "first", why)
		} else {
			n.log.Info("packets between groups go around the stack again", "instance", n.plan.instance)
		}
		n.fast.rests = why
	}
	return n.fast.path.Rest(why != "")
}
