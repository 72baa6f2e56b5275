package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"spillway.dev/spillway/internal/fault"
)

// Keep is a slot that stays at a Sync, with its membership when it has one.
type Keep struct {
	Slot       Slot
	Membership *Membership
}

// Report says what a Sync found wrong, and what of it it could not put right.
type Report struct {
	Links    int    // links removed
	Elements int    // entries removed
	Restored int    // entries put back
	Missing  []Slot // kept slots whose link is gone: their groups have no network
}

// Detach removes slots: links, with them their routes, then every entry of their addresses. All links of one call go
// together, which costs the kernel one wait instead of one each. What is not there is no error.
func (n *Network) Detach(ctx context.Context, slots ...Slot) error {
	var links []string
	var addrs []netip.Addr
	for _, s := range slots {
		links = append(links, n.plan.link(s.Index))
		addrs = append(addrs, s.Addr)
	}
	errs := []error{n.fastForget(links), n.deleteLinks(links...), n.LeaveSlots(ctx, slots...)}
	n.mu.Lock()
	defer n.mu.Unlock()
	errs = append(errs, n.commit(func(have elements) (del, add []element) {
		for i, a := range addrs {
			// Only this slot's entry: the address may belong to another slot by now.
			if e := guardElement(links[i], a); have.guard[a] == e && !slices.Contains(del, e) {
				del = append(del, e)
			}
		}
		return del, nil
	}))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("detach %d slots: %w", len(slots), err)
	}
	return nil
}

// deleteLinks moves links into the instance's death group and deletes the group.
func (n *Network) deleteLinks(names ...string) error {
	n.rtMu.Lock()
	defer n.rtMu.Unlock()
	var msgs []*message
	for _, name := range names {
		index, err := n.rt.index(name)
		if errors.Is(err, unix.ENODEV) {
			continue
		}
		if err != nil {
			return err
		}
		msgs = append(msgs, newMessage(unix.RTM_NEWLINK, unix.NLM_F_ACK, linkHead(index, 0)).u32(unix.IFLA_GROUP, n.plan.group))
	}
	if len(msgs) == 0 {
		return nil
	}
	msgs = append(msgs, newMessage(unix.RTM_DELLINK, unix.NLM_F_ACK, linkHead(0, 0)).u32(unix.IFLA_GROUP, n.plan.group))
	if err := n.rt.do(msgs...); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete links %v: %w", names, err)
	}
	return nil
}

// Sync makes this instance's part of the machine equal to what is kept: other links and entries go, missing entries
// come back.
func (n *Network) Sync(ctx context.Context, keep []Keep) (Report, error) {
	var r Report
	present, err := n.links()
	if err != nil {
		return r, err
	}
	want := newElements()
	for _, k := range keep {
		link := n.plan.link(k.Slot.Index)
		if !present[link] {
			r.Missing = append(r.Missing, k.Slot)
			continue
		}
		delete(present, link)
		add := []element{guardElement(link, k.Slot.Addr)}
		if k.Membership != nil {
			add = append(add, membershipElements(*k.Membership)...)
		}
		want.apply(nil, add)
	}
	var stray []string
	for name := range present {
		stray = append(stray, name)
	}
	if r.Links = len(stray); r.Links > 0 {
		if err := errors.Join(n.fastForget(stray), n.deleteLinks(stray...)); err != nil {
			return r, fmt.Errorf("sync network: %w", err)
		}
	}
	if err := n.syncElements(want, &r); err != nil {
		return r, fmt.Errorf("sync network: %w", err)
	}
	if r.Links+r.Elements+r.Restored+len(r.Missing) > 0 {
		n.log.InfoContext(ctx, "network put right", "instance", n.plan.instance, "links", r.Links, "elements", r.Elements, "restored", r.Restored, "missing", len(r.Missing))
	}
	return r, nil
}

func (n *Network) syncElements(want elements, r *Report) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.readGroups(); err != nil {
		return err
	}
	gone := map[netip.Addr]bool{}
	err := n.commit(func(have elements) (del, add []element) {
		has, should := have.all(), want.all()
		for e := range has {
			if !should[e] {
				del = append(del, e)
				gone[e.owner()] = true
			}
		}
		for e := range should {
			if !has[e] {
				add = append(add, e)
			}
		}
		r.Elements, r.Restored = len(del), len(add)
		return del, add
	})
	if err != nil {
		return err
	}
	var addrs []netip.Addr
	for a := range gone {
		addrs = append(addrs, a)
	}
	return n.forgetConnections(addrs)
}

// listTries is how often a list is read again that changed while it was read: on a busy machine links come and go all
// the time.
const listTries = 20

// whole reads a list until it comes in one piece.
func whole[T any](list func() ([]T, error)) ([]T, error) {
	var all []T
	var err error
	for range listTries {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return all, err
		}
	}
	return all, err
}

// links are the names of this instance's links on the host.
func (n *Network) links() (map[string]bool, error) {
	all, err := whole(n.route.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	out := map[string]bool{}
	for _, l := range all {
		if name := l.Attrs().Name; strings.HasPrefix(name, n.plan.links) {
			out[name] = true
		}
	}
	return out, nil
}

// Slots are the indexes of the links that are there: what a host that lost its records still has.
func (n *Network) Slots() ([]uint32, error) {
	present, err := n.links()
	if err != nil {
		return nil, err
	}
	var out []uint32
	for name := range present {
		if i, err := strconv.ParseUint(strings.TrimPrefix(name, n.plan.links), 16, 32); err == nil {
			out = append(out, uint32(i))
		}
	}
	return out, nil
}

// Purge removes everything of an instance: links, overlay, table, gateway address and public routes. Only the machine-wide
// forwarding switch stays as it is, because others may rely on it.
func Purge(ctx context.Context, cfg Config) error {
	n, err := connect(cfg)
	if err != nil {
		return err
	}
	defer n.Close()
	present, err := n.links()
	if err != nil {
		return err
	}
	var names []string
	for name := range present {
		names = append(names, name)
	}
	errs := []error{n.deleteLinks(names...), n.removeOverlay(), n.SyncSpaces(ctx, nil), n.removeTable(), n.removeGateway()}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("purge network of instance %s: %w", n.plan.instance, err)
	}
	return nil
}

func (n *Network) removeTable() error {
	n.serviceMu.Lock()
	defer n.serviceMu.Unlock()
	n.mu.Lock()
	defer n.mu.Unlock()
	head := []byte{unix.NFPROTO_INET, unix.NFNETLINK_V0, 0, 0}
	m := newMessage(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_DELTABLE, unix.NLM_F_ACK, head).text(unix.NFTA_TABLE_NAME, n.plan.table)
	n.have = newElements()
	n.services = nil
	if err := n.nf.do(m); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("delete table %s: %w", n.plan.table, err)
	}
	return nil
}

// checkPublic refuses public ranges that hold an address of this machine: packets to it would be dropped.
func (n *Network) checkPublic() error {
	addrs, err := whole(func() ([]netlink.Addr, error) { return n.route.AddrList(nil, unix.AF_INET) })
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		ip, ok := netip.AddrFromSlice(a.IP.To4())
		for _, p := range n.plan.public {
			if ok && p.Contains(ip) {
				return fault.New(fault.Invalid, "", "public range %s holds %s, an address of this machine itself: leave it out of --public-addresses", p, ip)
			}
		}
	}
	return nil
}

// HostPrefixes are the ranges that this machine's addresses and routes use: what ChooseCIDR must avoid.
func HostPrefixes() ([]netip.Prefix, error) {
	var out []netip.Prefix
	addrs, err := whole(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, unix.AF_INET) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		if ip, ok := netip.AddrFromSlice(a.IP.To4()); ok {
			ones, _ := a.Mask.Size()
			out = append(out, netip.PrefixFrom(ip, ones).Masked())
		}
	}
	routes, err := whole(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(unix.AF_INET, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		if r.Dst == nil || r.Table >= ownTables {
			continue
		}
		if ip, ok := netip.AddrFromSlice(r.Dst.IP.To4()); ok {
			ones, _ := r.Dst.Mask.Size()
			out = append(out, netip.PrefixFrom(ip, ones).Masked())
		}
	}
	return out, nil
}

// Tables are the instances that have a table on this machine, for `doctor` and tests.
func Tables() ([]string, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	list, err := conn.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, fmt.Errorf("list tables: %w", err)
	}
	var out []string
	for _, t := range list {
		if name, ok := strings.CutPrefix(t.Name, tablePrefix); ok {
			out = append(out, name)
		}
	}
	return out, nil
}

// Changes counts the netlink changes made so far: the figure that `bench` prints per start.
func (n *Network) Changes() int64 { return n.nf.sent.Load() + n.rt.sent.Load() }
