package test

import (
	"fmt"
	"os/exec"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// nowhere is a hardware address that no machine of a site has: what is sent there is lost without a word, as on a wire
// that is cut.
const nowhere = "02:00:5e:00:53:01"

// lose lets everything that the machine sends to others be lost, and what is on its way; the other direction goes on.
func (m *machine) lose(to ...*machine) error {
	for _, other := range to {
		if err := m.tryIP("neigh", "replace", other.addr, "lladdr", nowhere, "dev", "up0", "nud", "permanent"); err != nil {
			return err
		}
	}
	return nil
}

// find lets the machine send to others again.
func (m *machine) find(to ...*machine) error {
	for _, other := range to {
		if err := m.tryIP("neigh", "flush", "to", other.addr, "dev", "up0", "nud", "permanent"); err != nil {
			return err
		}
	}
	return nil
}

func (m *machine) tryIP(args ...string) error {
	if out, err := exec.Command("ip", append([]string{"-n", m.ns}, args...)...).CombinedOutput(); err != nil {
		return fmt.Errorf("ip %s on %s: %w: %s", strings.Join(args, " "), m.name, err, out)
	}
	return nil
}

// lossTable holds the rule by which a machine loses packets.
var lossTable = &nftables.Table{Name: "fault", Family: nftables.TableFamilyIPv4}

// lossy lets the machine lose so many of a hundred packets that come to it; 0: none.
func (m *machine) lossy(percent uint32) error {
	ns, err := netns.GetFromName(m.ns)
	if err != nil {
		return err
	}
	defer ns.Close()
	c, err := nftables.New(nftables.WithNetNSFd(int(ns)))
	if err != nil {
		return err
	}
	if percent == 0 {
		c.DelTable(lossTable)
		return c.Flush()
	}
	table := c.AddTable(lossTable)
	chain := c.AddChain(&nftables.Chain{Name: "in", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRaw})
	c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: append([]byte("up0"), make([]byte, 13)...)},
		&expr.Numgen{Register: 1, Type: unix.NFT_NG_RANDOM, Modulus: 100},
		&expr.Byteorder{SourceRegister: 1, DestRegister: 1, Op: expr.ByteorderHton, Len: 4, Size: 4},
		&expr.Cmp{Op: expr.CmpOpLt, Register: 1, Data: binaryutil.BigEndian.PutUint32(percent)},
		&expr.Verdict{Kind: expr.VerdictDrop},
	}})
	return c.Flush()
}
