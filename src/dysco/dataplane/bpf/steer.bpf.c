// SPDX-License-Identifier: Apache-2.0
// Steering: which packets of the host go to the agent, and where the agent's packets go. Flows that say how are
// rewritten here and never reach it; fast.bpf.h does that.
//
//   egress   on each underlay device, outgoing: sessions that are chained, SYNs that a policy may want  -> session TUN
//   ingress  on each underlay device, incoming: subsessions, ICMP errors about them                     -> underlay TUN
//   inject   on the underlay TUN, what the agent writes: to this host as if it came from the wire, else to the wire
//
// A box in a namespace of its own is reached by a veth pair, so that what is rewritten need not pass the agent:
//
//   from_host  there, on its end of the pair: as if it had come by one of the box's TUN devices
//   leave      there, on these TUN devices, outgoing: by the pair if a flow says so, else to the agent
//   from_box   on this host's end of the pair: to the wire; what cannot be carried goes back, and there to the agent
//
// What no map names passes at once; what the programs do not understand passes too, never is it dropped. Nothing here
// touches netfilter: egress stands behind it, ingress before it, and what inject sends does not meet it again.
// Addresses of both families are kept in 16 bytes, IPv4 in the first four.

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>

// What is needed of libbpf's headers, so that the kernel's own are enough to compile this.
#define SEC(name) __attribute__((section(name), used))
#undef __always_inline
#define __always_inline inline __attribute__((always_inline))
// What packets of established sessions never run through goes behind the rest: they find the instructions in a row.
#define likely(condition) __builtin_expect(!!(condition), 1)
#define unlikely(condition) __builtin_expect(!!(condition), 0)
#define __uint(name, value) int(*name)[value]
#define __type(name, value) typeof(value) *name
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define bpf_htons(value) ((__be16)(__builtin_constant_p(value) ? ((value) & 0xff) << 8 | ((value) >> 8 & 0xff) \
							       : __builtin_bswap16(value)))
#else
#define bpf_htons(value) (value)
#endif
#define bpf_ntohs(value) bpf_htons(value)
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define bpf_htonl(value) __builtin_bswap32(value)
#else
#define bpf_htonl(value) (value)
#endif
#define bpf_ntohl(value) bpf_htonl(value)
static void *(*const bpf_map_lookup_elem)(void *map, const void *key) = (void *)BPF_FUNC_map_lookup_elem;
static long (*const bpf_map_update_elem)(void *map, const void *key, const void *value,
					 __u64 flags) = (void *)BPF_FUNC_map_update_elem;
static long (*const bpf_map_delete_elem)(void *map, const void *key) = (void *)BPF_FUNC_map_delete_elem;
static long (*const bpf_skb_store_bytes)(struct __sk_buff *, __u32 offset, const void *from, __u32 size,
					 __u64 flags) = (void *)BPF_FUNC_skb_store_bytes;
static long (*const bpf_skb_load_bytes)(const void *skb, __u32 offset, void *to,
					__u32 size) = (void *)BPF_FUNC_skb_load_bytes;
static long (*const bpf_skb_change_head)(struct __sk_buff *, __u32 size,
					 __u64 flags) = (void *)BPF_FUNC_skb_change_head;
static long (*const bpf_redirect)(__u32 ifindex, __u64 flags) = (void *)BPF_FUNC_redirect;
static long (*const bpf_redirect_neigh)(__u32 ifindex, struct bpf_redir_neigh *, int size,
					__u64 flags) = (void *)BPF_FUNC_redirect_neigh;
static __u64 (*const bpf_jiffies64)(void) = (void *)BPF_FUNC_jiffies64;
static long (*const bpf_redirect_peer)(__u32 ifindex, __u64 flags) = (void *)BPF_FUNC_redirect_peer;
static long (*const bpf_skb_change_type)(struct __sk_buff *, __u32 type) = (void *)BPF_FUNC_skb_change_type;
static long (*const bpf_l4_csum_replace)(struct __sk_buff *, __u32 offset, __u64 from, __u64 to,
					 __u64 flags) = (void *)BPF_FUNC_l4_csum_replace;
static long (*const bpf_skb_vlan_pop)(struct __sk_buff *) = (void *)BPF_FUNC_skb_vlan_pop;
static __s64 (*const bpf_csum_update)(struct __sk_buff *, __u32 delta) = (void *)BPF_FUNC_csum_update;
static long (*const bpf_fib_lookup)(void *context, struct bpf_fib_lookup *, int size,
				    __u32 flags) = (void *)BPF_FUNC_fib_lookup;

#define OUR_MARK 0x64797363 // "dysc": written by inject, read and cleared by egress and ingress
#define MAX_CLAUSES 128 // of one set; there are two, so that a set is exchanged in one step
#define MAX_ADDRESSES 16
#define VLAN_ID 0x0fff // of a tag; zero: the tag says only how urgent it is (IEEE 802.1Q)
#define FIN 0x01
#define SYN 0x02
#define RST 0x04
#define ACK 0x10
#define SERVICES 512
#define AT_ONCE 64 // keys in a frame of `tallies`
#define FLOW_OUT 1 // a session packet that leaves: egress
#define FLOW_IN 2  // a packet that arrives, of a session without a subsession or of a fast flow: ingress
// From 4 on: a packet that has left a box by the device with this number (FIRST_BOX of `dysco.protocol.flow`)

// RESET_KEPT_BACK: this host's own reset for a subsession, which would end a session that goes on
enum counter { CAPTURED_OUT, CAPTURED_IN, SYN_CAPTURED, TO_HOST, TO_WIRE, NO_ROUTE, TOO_BIG, RESET_KEPT_BACK, REWRITTEN,
	       SYN_OPENED, COUNTERS };

struct key {
	__u8 src[16];
	__u8 dst[16];
	__be16 sport;
	__be16 dport;
	__u8 family; // 4 or 6
	__u8 direction;
	__u8 pad[2];
};

struct key_4 {
	__be32 src, dst;
	__be16 sport, dport;
	__u8 direction;
	__u8 pad[3];
};

struct clause { // all must hold; a port range in host byte order
	__u32 src[4], src_mask[4];
	__u32 dst[4], dst_mask[4];
	__u16 sport_low, sport_high, dport_low, dport_high;
	__u8 family; // 4, 6, or 0 for both
	__u8 pad[7];
};

struct config {
	__u32 session_ifindex;  // where egress redirects to
	__u32 underlay_ifindex; // where ingress redirects to
	__u32 device_ifindex;   // underlay device that packets for this host seem to come from
	__u32 clauses; // how many of the set that counts
	__u32 first_clause;
	__u16 port_low, port_high;
	__u8 device_mac[6];
	__u8 device_has_mac;
	__u8 capture_all_syn;
	__u8 flows_in; // whether any flow is of that direction
	__u8 boxes;    // whether SYNs may be in the kernel box that open.bpf.h knows of
	__u8 pad[2];
	__u32 addresses;
	__u8 address[MAX_ADDRESSES][16];
	__u8 address_family[MAX_ADDRESSES];
};

struct flow;

// A table for each family: to find its flow is a third of what a packet costs here, and a short key is found sooner.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1 << 20);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct key_4);
	__type(value, struct flow);
} flows_4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1 << 20);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct key);
	__type(value, struct flow);
} flows_6 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2 * MAX_CLAUSES);
	__type(key, __u32);
	__type(value, struct clause);
} clauses SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, COUNTERS);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

// Maps of one entry, which is read where it lies: the loader puts its address in.
#define VALUE_OF(map) SEC("value/" map)

struct config conf VALUE_OF("config");

// Of what services sessions that leave by a flow were ever: so that others need not be looked for in a large table.
__u8 services[SERVICES] VALUE_OF("services");

struct place {
	__u32 veth_ifindex; // 0: not known yet
	__u16 port;
	__u16 pad;
};

// Each program `leave` has its own.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct place);
} place SEC(".maps");

static __always_inline struct key_4 in_short(const struct key *key)
{
	struct key_4 found = { .sport = key->sport, .dport = key->dport, .direction = key->direction };
	__builtin_memcpy(&found.src, key->src, 4);
	__builtin_memcpy(&found.dst, key->dst, 4);
	return found;
}

static __always_inline struct flow *flow_of(const struct key *key)
{
	if (key->family != 4)
		return bpf_map_lookup_elem(&flows_6, key);
	struct key_4 four = in_short(key);
	return bpf_map_lookup_elem(&flows_4, &four);
}

static __always_inline long put_flow(const struct key *key, const struct flow *flow)
{
	if (key->family != 4)
		return bpf_map_update_elem(&flows_6, key, flow, BPF_ANY);
	struct key_4 four = in_short(key);
	return bpf_map_update_elem(&flows_4, &four, flow, BPF_ANY);
}

static __always_inline void drop_flow(const struct key *key)
{
	if (key->family != 4) {
		bpf_map_delete_elem(&flows_6, key);
	} else {
		struct key_4 four = in_short(key);
		bpf_map_delete_elem(&flows_4, &four);
	}
}

static __always_inline void count(__u32 which)
{
	__u64 *value = bpf_map_lookup_elem(&counters, &which);
	if (value)
		*value += 1;
}

struct found {
	struct key key;
	__u32 tcp; // offset of the TCP header
	__u8 flags;
	__u8 quoted; // the key is what an ICMP error quotes
	__u8 plain;  // TCP stands right behind an IP header without options
};

struct ports { // as TCP begins
	__be16 sport, dport;
	__be32 seq, ack;
	__u8 offset, flags;
};

static __always_inline void take_ports(const struct ports *tcp, __u32 offset, struct found *found)
{
	found->tcp = offset;
	found->key.sport = tcp->sport;
	found->key.dport = tcp->dport;
	found->flags = tcp->flags;
}

static __always_inline int load_ports(struct __sk_buff *skb, __u32 offset, struct found *found)
{
	struct ports tcp;
	if (bpf_skb_load_bytes(skb, offset, &tcp, sizeof(tcp)))
		return 0;
	take_ports(&tcp, offset, found);
	return 1;
}

static __always_inline int quoted_ports(struct __sk_buff *skb, __u32 offset, struct found *found)
{
	__be16 ports[2];
	if (bpf_skb_load_bytes(skb, offset, ports, 4))
		return 0;
	found->key.sport = ports[0];
	found->key.dport = ports[1];
	found->quoted = 1;
	return 1;
}

// Everything but TCP behind a plain IPv4 header.
static __always_inline int parse_rare_4(struct __sk_buff *skb, __u32 l2, struct found *found)
{
	struct iphdr ip, inner;
	__u8 type;
	if (bpf_skb_load_bytes(skb, l2, &ip, sizeof(ip)) || ip.frag_off & bpf_htons(0x3fff))
		return 0;
	__u32 next = l2 + ip.ihl * 4;
	found->key.family = 4;
	if (ip.protocol == IPPROTO_TCP) {
		__builtin_memcpy(found->key.src, &ip.saddr, 4);
		__builtin_memcpy(found->key.dst, &ip.daddr, 4);
		return load_ports(skb, next, found);
	}
	if (ip.protocol != IPPROTO_ICMP)
		return 0;
	// Destination unreachable, time exceeded, parameter problem (RFC 792).
	if (bpf_skb_load_bytes(skb, next, &type, 1) || (type != 3 && type != 11 && type != 12))
		return 0;
	if (bpf_skb_load_bytes(skb, next + 8, &inner, sizeof(inner)) || inner.protocol != IPPROTO_TCP ||
	    inner.frag_off & bpf_htons(0x1fff))
		return 0;
	__builtin_memcpy(found->key.src, &inner.saddr, 4);
	__builtin_memcpy(found->key.dst, &inner.daddr, 4);
	return quoted_ports(skb, next + 8 + inner.ihl * 4, found);
}

#define MAX_EXTENSIONS 4

// Hop-by-hop options, routing, destination options (RFC 8200 section 4); the next header, or a negative number.
static __always_inline int skip_extensions(struct __sk_buff *skb, __u8 next, __u32 *offset)
{
#pragma unroll
	for (int i = 0; i < MAX_EXTENSIONS; i++) {
		__u8 header[2];
		if (next != 0 && next != 43 && next != 60)
			break;
		if (bpf_skb_load_bytes(skb, *offset, header, 2))
			return -1;
		next = header[0];
		*offset += 8 + header[1] * 8;
	}
	return next;
}

// Everything but TCP behind a plain IPv6 header.
static __always_inline int parse_rare_6(struct __sk_buff *skb, __u32 l2, struct found *found)
{
	struct ipv6hdr ip, inner;
	__u8 type;
	if (bpf_skb_load_bytes(skb, l2, &ip, sizeof(ip)))
		return 0;
	__u32 offset = l2 + sizeof(ip);
	int next = skip_extensions(skb, ip.nexthdr, &offset);
	found->key.family = 6;
	if (next == IPPROTO_TCP) {
		__builtin_memcpy(found->key.src, &ip.saddr, 32);
		return load_ports(skb, offset, found);
	}
	if (next != IPPROTO_ICMPV6)
		return 0;
	// Types 1 to 4 are the errors (RFC 4443).
	if (bpf_skb_load_bytes(skb, offset, &type, 1) || type < 1 || type > 4)
		return 0;
	if (bpf_skb_load_bytes(skb, offset + 8, &inner, sizeof(inner)))
		return 0;
	offset += 8 + sizeof(inner);
	if (skip_extensions(skb, inner.nexthdr, &offset) != IPPROTO_TCP)
		return 0;
	__builtin_memcpy(found->key.src, &inner.saddr, 32);
	return quoted_ports(skb, offset, found);
}

// Find the tuple of a TCP packet, or the tuple that an ICMP error quotes. 0: not ours to look at.
// TCP behind a plain IP header is read where it lies: this is what all traffic of the host pays.
static __always_inline int parse(struct __sk_buff *skb, __u32 l2, struct found *found)
{
	if (unlikely(skb->vlan_present && skb->vlan_tci & VLAN_ID)) // of a VLAN device on top, which is another network
		return 0;
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		const struct iphdr *ip = (void *)(long)skb->data + l2;
		const struct ports *tcp = (const void *)(ip + 1);
		if (likely((void *)(tcp + 1) <= (void *)(long)skb->data_end)) {
			if (likely(ip->protocol == IPPROTO_TCP && ip->ihl == 5)) {
				if (unlikely(ip->frag_off & bpf_htons(0x3fff)))
					return 0;
				found->key.family = 4;
				__builtin_memcpy(found->key.src, &ip->saddr, 4);
				__builtin_memcpy(found->key.dst, &ip->daddr, 4);
				take_ports(tcp, l2 + sizeof(*ip), found);
				found->plain = 1;
				return 1;
			}
			if (ip->protocol == IPPROTO_UDP)
				return 0;
		}
		return parse_rare_4(skb, l2, found);
	}
	if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		const struct ipv6hdr *ip = (void *)(long)skb->data + l2;
		const struct ports *tcp = (const void *)(ip + 1);
		if (likely((void *)(tcp + 1) <= (void *)(long)skb->data_end)) {
			if (likely(ip->nexthdr == IPPROTO_TCP)) {
				found->key.family = 6;
				__builtin_memcpy(found->key.src, &ip->saddr, 32);
				take_ports(tcp, l2 + sizeof(*ip), found);
				found->plain = 1;
				return 1;
			}
			if (ip->nexthdr == IPPROTO_UDP)
				return 0;
		}
		return parse_rare_6(skb, l2, found);
	}
	return 0;
}

static __always_inline void reverse(struct key *key)
{
	__u8 address[16];
	__be16 port = key->sport;
	__builtin_memcpy(address, key->src, 16);
	__builtin_memcpy(key->src, key->dst, 16);
	__builtin_memcpy(key->dst, address, 16);
	key->sport = key->dport;
	key->dport = port;
}

// The lower port is the service's, as a rule.
static __always_inline volatile __u8 *service_of(const struct key *key)
{
	__u32 one = bpf_ntohs(key->sport), two = bpf_ntohs(key->dport);
	return &services[(one < two ? one : two) % SERVICES];
}

static __always_inline int may_leave_by_a_flow(const struct key *key) { return *service_of(key); }

// Before there is a flow by which its packets leave.
static __always_inline void know_service(const struct key *key) { *service_of(key) = 1; }

// One branch for all: with one for each condition the verifier walks every way through 128 clauses.
static __always_inline __u32 lies_outside(const struct clause *clause, const struct key *key)
{
	const __u32 *src = (const __u32 *)key->src, *dst = (const __u32 *)key->dst;
	__u32 sport = bpf_ntohs(key->sport), dport = bpf_ntohs(key->dport);
	__u32 differs = clause->family * (clause->family ^ key->family);
	differs |= ((dport - clause->dport_low) | (clause->dport_high - dport) | (sport - clause->sport_low) |
		    (clause->sport_high - sport)) & 0x80000000;
#pragma unroll
	for (int i = 0; i < 4; i++)
		differs |= ((src[i] ^ clause->src[i]) & clause->src_mask[i]) |
			   ((dst[i] ^ clause->dst[i]) & clause->dst_mask[i]);
	return differs;
}

static __always_inline int wanted(const struct key *key, __u32 first, __u32 count)
{
	for (__u32 index = 0; index < MAX_CLAUSES; index++) {
		__u32 at = first + index;
		if (index >= count)
			return 0;
		const struct clause *clause = bpf_map_lookup_elem(&clauses, &at);
		if (!clause)
			return 0;
		if (!lies_outside(clause, key))
			return 1;
	}
	return 0;
}

static __always_inline int is_tagged(struct __sk_buff *skb, __u32 tcp)
{
	__u8 option[4];
	if (bpf_skb_load_bytes(skb, tcp + sizeof(struct tcphdr), option, 4))
		return 0;
	return option[0] == 253 && option[1] == 12 && option[2] == 0xd1 && option[3] == 0x5c;
}

static __always_inline int is_own(const __u8 *address, __u8 family)
{
	for (int i = 0; i < MAX_ADDRESSES; i++) {
		if (i >= conf.addresses)
			return 0;
		const __u32 *one = (const __u32 *)conf.address[i], *two = (const __u32 *)address;
		if (conf.address_family[i] == family && one[0] == two[0] && one[1] == two[1] && one[2] == two[2] &&
		    one[3] == two[3])
			return 1;
	}
	return 0;
}

// Whether it is a port of subsessions.
static __always_inline int is_reserved(__be16 port)
{
	__u16 number = bpf_ntohs(port);
	return number >= conf.port_low && number <= conf.port_high;
}

static __always_inline int is_subsession(const __u8 *address, __be16 port, __u8 family)
{
	return is_reserved(port) && is_own(address, family);
}

#include "fast.bpf.h"
#include "open.bpf.h"

// Whether a flow may be carried on without the agent: it sees what begins and ends sessions.
static __always_inline int is_fast(const struct found *found, const struct flow *flow)
{
	__u8 flags = found->flags;
	return likely(flow->action && found->plain && !(flags & (SYN | RST)) &&
		      (!(flags & FIN) || (flow->tells & TELLS) == CARRIES_FIN));
}

// Whether it may be carried on although it begins or ends a session, if the agent hears of it.
static __always_inline int is_told(const struct found *found, const struct flow *flow)
{
	if (!flow->action || !found->plain || found->flags & RST)
		return 0;
	if (found->flags & SYN)
		return found->flags & ACK && flow->tells & ANSWER;
	return found->flags & FIN && flow->tells & TELLS_FIN;
}

static __always_inline void go_to(struct __sk_buff *skb, __u32 stage, __u32 l2, int arrives)
{
	skb->cb[0] = l2;
	skb->cb[1] = arrives;
	bpf_tail_call(skb, &stages, stage);
}

static __always_inline int egress_at(struct __sk_buff *skb, __u32 l2)
{
	if (skb->mark == OUR_MARK) {
		skb->mark = 0;
		return TC_ACT_UNSPEC;
	}
	struct found found = {};
	if (unlikely(skb->vlan_present) || !parse(skb, l2, &found))
		return TC_ACT_UNSPEC;
	found.key.direction = FLOW_OUT;
	if (unlikely(found.quoted))
		reverse(&found.key); // the flow of the other direction knows where the quoted packet came from
	struct flow *flow = may_leave_by_a_flow(&found.key) ? flow_of(&found.key) : 0;
	if (flow) {
		if (is_fast(&found, flow)) {
			int verdict = carry(skb, l2, 0, found.key.family, flow);
			if (likely(verdict != ASK_AGENT))
				return verdict;
		} else if (is_told(&found, flow)) {
			go_to(skb, found.flags & SYN ? STAGE_ANSWER : STAGE_TELL, l2, 0);
		} else if (flow->tells & ENDED_HERE && (found.flags & (SYN | ACK)) == SYN) {
			go_to(skb, STAGE_OUT, l2, 0);
		}
		count(CAPTURED_OUT);
		return bpf_redirect(conf.session_ifindex, 0);
	}
	if (likely(found.quoted || !(found.flags & RST || (found.flags & (SYN | ACK)) == SYN)))
		return TC_ACT_UNSPEC;
	if (found.flags & RST) {
		// A fragment of a subsession packet passes ingress; what the kernel puts together finds no socket.
		if (!is_subsession(found.key.src, found.key.sport, found.key.family))
			return TC_ACT_UNSPEC;
		count(RESET_KEPT_BACK);
		return TC_ACT_SHOT;
	}
	int boxed = conf.boxes && bpf_map_lookup_elem(&in_box, &found.key);
	if (!boxed && !conf.capture_all_syn && !is_tagged(skb, found.tcp) &&
	    !wanted(&found.key, conf.first_clause, conf.clauses))
		return TC_ACT_UNSPEC;
	go_to(skb, STAGE_OUT, l2, 0);
	count(SYN_CAPTURED);
	return bpf_redirect(conf.session_ifindex, 0);
}

static __always_inline int ingress_at(struct __sk_buff *skb, __u32 l2)
{
	// What the agent gives to this host as it came, such as a SYN to a reserved port that is no chain's: it has been here.
	if (unlikely(skb->mark == OUR_MARK)) {
		skb->mark = 0;
		return TC_ACT_UNSPEC;
	}
	struct found found = {};
	if (!parse(skb, l2, &found))
		return TC_ACT_UNSPEC;
	if (unlikely(found.quoted))
		reverse(&found.key);
	if (!is_reserved(found.key.dport) && !conf.flows_in)
		return TC_ACT_UNSPEC;
	found.key.direction = FLOW_IN;
	struct flow *flow = flow_of(&found.key);
	if (!flow && !is_subsession(found.key.dst, found.key.dport, found.key.family))
		return TC_ACT_UNSPEC;
	if (unlikely(skb->vlan_present) && bpf_skb_vlan_pop(skb))
		return TC_ACT_SHOT;
	if (flow && is_fast(&found, flow)) {
		int verdict = carry(skb, l2, 1, found.key.family, flow);
		if (likely(verdict != ASK_AGENT))
			return verdict;
	} else if (flow && is_told(&found, flow)) {
		go_to(skb, found.flags & SYN ? STAGE_ANSWER : STAGE_TELL, l2, 1);
	} else if (!flow && !found.quoted && (found.flags & (SYN | ACK)) == SYN) {
		go_to(skb, STAGE_IN, l2, 1);
	}
	count(CAPTURED_IN);
	return bpf_redirect(conf.underlay_ifindex, 0);
}

SEC("tc/egress") int egress(struct __sk_buff *skb) { return egress_at(skb, ETH_HLEN); }
SEC("tc/egress_l3") int egress_l3(struct __sk_buff *skb) { return egress_at(skb, 0); }
SEC("tc/ingress") int ingress(struct __sk_buff *skb) { return ingress_at(skb, ETH_HLEN); }
SEC("tc/ingress_l3") int ingress_l3(struct __sk_buff *skb) { return ingress_at(skb, 0); }

// What the agent writes to its underlay TUN: an IP packet without link-layer header.
SEC("tc/inject") int inject(struct __sk_buff *skb)
{
	struct bpf_fib_lookup fib = { .ifindex = skb->ifindex };
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		struct iphdr ip;
		if (bpf_skb_load_bytes(skb, 0, &ip, sizeof(ip)))
			return TC_ACT_SHOT;
		fib.family = 2; // AF_INET
		fib.tos = ip.tos & 0x1c;
		fib.l4_protocol = ip.protocol;
		fib.ipv4_src = ip.saddr;
		fib.ipv4_dst = ip.daddr;
	} else if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr ip;
		if (bpf_skb_load_bytes(skb, 0, &ip, sizeof(ip)))
			return TC_ACT_SHOT;
		fib.family = 10; // AF_INET6
		fib.l4_protocol = ip.nexthdr;
		__builtin_memcpy(fib.ipv6_src, &ip.saddr, 32);
	} else {
		return TC_ACT_SHOT;
	}
	long result = bpf_fib_lookup(skb, &fib, sizeof(fib), BPF_FIB_LOOKUP_SKIP_NEIGH);
	if (result == BPF_FIB_LKUP_RET_NOT_FWDED) { // for this host itself
		if (conf.device_has_mac && push_ethernet(skb, conf.device_mac))
			return TC_ACT_SHOT;
		skb->mark = OUR_MARK;
		count(TO_HOST);
		return bpf_redirect(conf.device_ifindex, BPF_F_INGRESS);
	}
	if (result == BPF_FIB_LKUP_RET_FRAG_NEEDED) {
		count(TOO_BIG);
		return TC_ACT_SHOT;
	}
	if (result != BPF_FIB_LKUP_RET_SUCCESS) {
		count(NO_ROUTE);
		return TC_ACT_SHOT;
	}
	if (push_ethernet(skb, 0))
		return TC_ACT_SHOT;
	count(TO_WIRE);
	return leave(skb, &fib);
}

SEC("tc/from_host") int from_host(struct __sk_buff *skb)
{
	struct passage passage;
	if (bpf_skb_load_bytes(skb, 0, &passage, sizeof(passage)) || passage.kind != PASSAGE)
		return TC_ACT_SHOT;
	if (passage.action == TO_AGENT) {
		skb->mark = OUR_MARK;
		return bpf_redirect(passage.ifindex, 0);
	}
	if (bpf_skb_change_type(skb, PACKET_HOST))
		return TC_ACT_SHOT;
	return bpf_redirect(passage.ifindex, BPF_F_INGRESS);
}

SEC("tc/leave") int leave_box(struct __sk_buff *skb)
{
	if (skb->mark == OUR_MARK) {
		skb->mark = 0;
		return TC_ACT_UNSPEC;
	}
	__u32 zero = 0;
	const struct place *here = bpf_map_lookup_elem(&place, &zero);
	struct found found = {};
	if (!here || !here->veth_ifindex || !parse(skb, 0, &found) || found.quoted)
		return TC_ACT_UNSPEC;
	found.key.direction = here->port;
	const struct flow *flow = flow_of(&found.key);
	if (!flow || !is_fast(&found, flow))
		return TC_ACT_UNSPEC;
	struct passage passage = { .kind = PASSAGE, .port = here->port, .ifindex = skb->ifindex };
	if (push_ethernet(skb, 0) || bpf_skb_store_bytes(skb, 0, &passage, sizeof(passage), 0))
		return TC_ACT_SHOT;
	return bpf_redirect(here->veth_ifindex, 0);
}

SEC("tc/from_box") int from_box(struct __sk_buff *skb)
{
	struct passage passage;
	if (bpf_skb_load_bytes(skb, 0, &passage, sizeof(passage)) || passage.kind != PASSAGE)
		return TC_ACT_SHOT;
	struct found found = {};
	if (parse(skb, ETH_HLEN, &found)) {
		found.key.direction = passage.port;
		struct flow *flow = flow_of(&found.key);
		if (flow && flow->action == TO_WIRE && is_fast(&found, flow)) {
			int verdict = carry(skb, ETH_HLEN, 1, found.key.family, flow);
			if (verdict != ASK_AGENT)
				return verdict;
		}
	}
	passage.action = TO_AGENT;
	if (bpf_skb_store_bytes(skb, 0, &passage, sizeof(passage), 0))
		return TC_ACT_SHOT;
	return bpf_redirect(skb->ifindex, 0);
}

// Run by the agent and attached nowhere: packets of the flow whose key the frame carries go to the agent from now on.
// In place, so that what was counted until then can still be read.
SEC("tc/divert") int divert(struct __sk_buff *skb)
{
	struct key key;
	if (bpf_skb_load_bytes(skb, ETH_HLEN, &key, sizeof(key)))
		return 0;
	struct flow *flow = flow_of(&key);
	if (!flow)
		return 0;
	*(volatile __u8 *)&flow->action = TO_AGENT;
	return 1;
}

// Likewise: look for packets of the service whose number the frame carries, from now on.
SEC("tc/know") int know(struct __sk_buff *skb)
{
	__u32 service;
	if (bpf_skb_load_bytes(skb, ETH_HLEN, &service, sizeof(service)))
		return 0;
	services[service % SERVICES] = 1;
	return 1;
}

// Likewise: packets and bytes of each flow whose key the frame carries, in place of the key; and take it away, if the
// frame says so first, and unless a new session has taken its place, of which the agent has not heard yet.
SEC("tc/tallies") int tallies(struct __sk_buff *skb)
{
	__u32 take_away, at = ETH_HLEN + sizeof(take_away);
	if (bpf_skb_load_bytes(skb, ETH_HLEN, &take_away, sizeof(take_away)))
		return 0;
	for (int i = 0; i < AT_ONCE; i++) {
		struct key key;
		__u64 carried[2] = {};
		if (bpf_skb_load_bytes(skb, at, &key, sizeof(key)))
			break;
		const struct flow *flow = flow_of(&key);
		if (flow) {
			carried[0] = flow->packets;
			carried[1] = flow->bytes;
			if (take_away && flow->tells & ENDED_HERE)
				drop_flow(&key);
		}
		if (bpf_skb_store_bytes(skb, at, carried, sizeof(carried), 0))
			break;
		at += sizeof(key);
	}
	return 0;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
