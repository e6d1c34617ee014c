// SPDX-License-Identifier: Apache-2.0
// Rewriting: what becomes of a packet of an established session without asking the agent. Included by steer.bpf.c.
//
// The same edit as dysco.wire.rewrite makes in Python, to the byte; the tests hold both to it. Direct writes are avoided
// on purpose: a program that has one unclones every packet that it sees, also those that are not chained.

#define TO_AGENT 0 // not ours to edit
#define TO_STACK 1 // up the host's own stack, as if it had come from the wire
#define TO_BOX 2   // to the kernel's forwarding, as if the agent had written it to the session TUN
#define TO_WIRE 3  // wherever the routes say, as if the agent had written it to the underlay TUN
#define TO_DEVICE 4 // to a box in a namespace of its own, as if the agent had written it to the box's TUN there

#define ASK_AGENT (-100) // no verdict: the packet is as it was
#define TCP_LEAST 20
#define CHECKSUM_AT 16 // in the TCP header
#define MAX_OPTIONS 10 // of one packet, padding included; the usual two have four bytes of it
#define MAX_EDGES 9
#define EPOCH_SHIFT 4 // of ticks, of which a kernel has 100 to 1000 a second: a next hop is believed for 160 ms at most

// Laid out by lines of the cache: what decides comes first, what each packet writes last and next to each other, so that
// it is touched once. Before it stand the entry's head and the key: 72 bytes of IPv4, 96 of IPv6.
struct flow {
	__u8 action;
	__u8 translates; // whether the numbers below are other than zero
	__u8 known;	 // which of the highest numbers
	__u8 tells;	 // what of beginning and end is carried here, and what the agent hears of it
	__u32 hop_ifindex; // where packets left until lately; 0: not known. TO_DEVICE: our end of the box's veth pair
	union {
		__u8 hop_mac[6]; // of the next hop
		struct {
			__u16 ifindex_low, ifindex_high; // TO_DEVICE: of the TUN device in the box's namespace
		} box;
	};
	__u16 hop_epoch; // when it was looked up
	__u32 seq_delta, ack_delta, tsval_delta, tsecr_delta;
	__u8 src[16], dst[16]; // as in the key
	__be16 sport, dport;
	__u16 address_delta, port_delta; // what to add to the sum behind a checksum, in the machine's order of bytes
	union tops {
		struct {
			__u32 seq, ack; // the number behind the last byte, and the highest acknowledgement, both as they came in
		};
		__u64 both; // raised in one step
	} top;
	__u64 packets, bytes; // counted here; bytes of IP packets
};

#define KNOWN_SEQ 1
#define KNOWN_ACK 2
#define HALF_LEFT 4 // in seq_delta and ack_delta, which translate nothing yet, stands what a SYN-ACK has announced
#define CARRIES_FIN 1
#define ANSWER 2   // the first SYN-ACK is carried, and told
#define TELLS_FIN 4
#define TELLS (CARRIES_FIN | TELLS_FIN)
#define ENDED_HERE 8 // a FIN was carried

struct numbers {
	__be16 sport, dport;
	__be32 seq, ack;
	__u8 offset, flags;
	__be16 window, checksum, urgent;
};

// Timestamps alone, as all systems lay them out (RFC 7323 appendix A).
struct stamps {
	__be32 kind, value, echo;
};

#define STAMPS_ALONE 0x0101080a

// What is written of a packet, in one piece: each call to the kernel costs as much as all else that is done here.
struct head {
	__u8 addresses[32]; // of IPv6; for IPv4, the last ten bytes are the header's checksum and the addresses
	struct numbers tcp;
	struct stamps stamps;
};

#define HEAD_OF_IPV4 22

static __always_inline __u32 fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum & 0xffff;
}

static __always_inline __be32 plus(__be32 number, __u32 delta) { return bpf_htonl(bpf_ntohl(number) + delta); }

// What an exchange of words adds to a sum (RFC 1624).
static __always_inline __u32 change(__be32 old, __be32 new) { return fold((__u64)new + (__u32)~old); }

// Add to a number that stands anywhere in the TCP header; at an odd offset the bytes stand swapped in the sum, which is
// 256 times as much (RFC 1071 section 2).
static __always_inline int shift(struct __sk_buff *skb, __u32 tcp, __u32 offset, __u32 delta, __u64 *sum)
{
	__be32 old, new;
	if (bpf_skb_load_bytes(skb, tcp + offset, &old, 4))
		return -1;
	new = plus(old, delta);
	if (bpf_skb_store_bytes(skb, tcp + offset, &new, 4, 0))
		return -1;
	*sum += (__u64)change(old, new) << (offset & 1) * 8;
	return 0;
}

// Where the options stand whose numbers are translated, from the TCP header on; 0: not there. Bytes in memory, for of
// these the verifier remembers no ranges: it sees the search in one state and not in thousands.
struct options {
	volatile __u8 stamps, edges, edges_length, left;
};

// Look for them, as far as they are well-formed; a negative number if there are too many, or one of them twice.
static __always_inline int find_options(struct __sk_buff *skb, __u32 tcp, __u32 end, struct options *found)
{
	found->left = end - TCP_LEAST;
	for (int i = 0; i < MAX_OPTIONS; i++) {
		__u8 kind, length, left = found->left;
		__u32 at = end - left;
		if (!left || bpf_skb_load_bytes(skb, tcp + at, &kind, 1) || kind == 0)
			return 0;
		if (kind == 1) {
			found->left = left - 1;
			continue;
		}
		if (left < 2 || bpf_skb_load_bytes(skb, tcp + at + 1, &length, 1) || length < 2 || length > left)
			return 0;
		if (kind == 8 && length == 10) {
			if (found->stamps)
				return -1;
			found->stamps = at + 2;
		} else if (kind == 5) {
			if (found->edges)
				return -1;
			found->edges = at + 2;
			found->edges_length = length - 2;
		}
		found->left = left - length;
	}
	return found->left ? -1 : 0;
}

// SACK edges go with the acknowledgement, timestamps with theirs.
static __always_inline int shift_options(struct __sk_buff *skb, __u32 tcp, const struct options *options,
					 const struct flow *flow, __u8 flags, __u64 *sum)
{
	if (options->stamps) {
		if (shift(skb, tcp, options->stamps, flow->tsval_delta, sum))
			return -1;
		if (flags & ACK && shift(skb, tcp, options->stamps + 4, flow->tsecr_delta, sum))
			return -1;
	}
	for (__u32 edge = 0; edge < MAX_EDGES; edge++) {
		if (4 * edge + 4 > options->edges_length)
			break;
		if (shift(skb, tcp, options->edges + 4 * edge, flow->ack_delta, sum))
			return -1;
	}
	return 0;
}

// The same of a number that is at hand.
static __always_inline void shift_here(__be32 *number, __u32 delta, __u64 *sum)
{
	__be32 old = *number;
	*number = plus(old, delta);
	*sum += change(old, *number);
}

// Make the checksum of a changed packet. Only the kernel knows whether it is partial, in which only the addresses
// count, or complete, from which all differences are taken; but what it makes of the addresses' difference shows it.
static __always_inline int complete(struct __sk_buff *skb, __u32 tcp, __u32 address_delta, __u32 delta,
				    __be16 *checksum)
{
	__u32 at = tcp + CHECKSUM_AT, by_kernel = address_delta ? address_delta : delta;
	if (unlikely(bpf_l4_csum_replace(skb, at, 0, by_kernel, address_delta ? BPF_F_PSEUDO_HDR : 0)))
		return -1;
	const __be16 *place = (void *)(long)skb->data + at;
	if (unlikely((void *)(place + 1) > (void *)(long)skb->data_end))
		return -1;
	__u16 old = *checksum, now = *place;
	if (address_delta && now != fold((__u64)old + address_delta))
		now = ~fold((__u64)delta + (__u32) ~(__u32)now);
	*checksum = now;
	return 0;
}

// Put addresses, ports and numbers in their place; a negative number if the packet is spoilt.
static __always_inline int rewrite(struct __sk_buff *skb, __u32 l2, __u32 tcp, int family, __u16 ip_sum,
				   struct head *head, const struct options *options, const struct flow *flow,
				   int translates)
{
	__u64 sum = flow->port_delta;
	__u32 size = sizeof(head->tcp);
	head->tcp.sport = flow->sport;
	head->tcp.dport = flow->dport;
	if (translates) {
		int acknowledges = head->tcp.flags & ACK;
		shift_here(&head->tcp.seq, flow->seq_delta, &sum);
		if (acknowledges)
			shift_here(&head->tcp.ack, flow->ack_delta, &sum);
		if (head->stamps.kind) {
			shift_here(&head->stamps.value, flow->tsval_delta, &sum);
			if (acknowledges)
				shift_here(&head->stamps.echo, flow->tsecr_delta, &sum);
			size += sizeof(head->stamps);
		} else if (shift_options(skb, tcp, options, flow, head->tcp.flags, &sum)) {
			return -1;
		}
	}
	if (complete(skb, tcp, flow->address_delta, fold(sum), &head->tcp.checksum))
		return -1;
	if (family == 4) {
		__u16 new_sum = ~fold((__u64)(__u16)~ip_sum + flow->address_delta);
		__builtin_memcpy(head->addresses + HEAD_OF_IPV4, &new_sum, 2);
		__builtin_memcpy(head->addresses + 24, flow->src, 4);
		__builtin_memcpy(head->addresses + 28, flow->dst, 4);
		return bpf_skb_store_bytes(skb, l2 + 10, head->addresses + HEAD_OF_IPV4, 10 + (size & 63), 0);
	}
	// A device's sum of the whole packet must follow: IPv6 has no header checksum that would cancel the change.
	bpf_csum_update(skb, flow->address_delta);
	__builtin_memcpy(head->addresses, flow->src, 32);
	return bpf_skb_store_bytes(skb, l2 + 8, head->addresses, 32 + (size & 63), 0);
}

// Route as for what the agent writes to the underlay TUN.
static __always_inline long route(struct __sk_buff *skb, int family, __u8 tos,
				  const struct flow *flow, struct bpf_fib_lookup *fib, __u32 flags)
{
	fib->ifindex = conf.underlay_ifindex;
	fib->l4_protocol = IPPROTO_TCP;
	if (family == 4) {
		fib->family = 2; // AF_INET
		fib->tos = tos & 0x1c;
		__builtin_memcpy(&fib->ipv4_src, flow->src, 4);
		__builtin_memcpy(&fib->ipv4_dst, flow->dst, 4);
	} else {
		fib->family = 10; // AF_INET6
		__builtin_memcpy(fib->ipv6_src, flow->src, 32);
	}
	return bpf_fib_lookup(skb, fib, sizeof(*fib), flags);
}

// To the wire; the packet begins with an Ethernet header, or with none that counts.
static __always_inline int leave(struct __sk_buff *skb, const struct bpf_fib_lookup *fib)
{
	// The look-up has left the next hop where the destination was; its family may differ (RFC 5549).
	struct bpf_redir_neigh next = { .nh_family = fib->family };
	if (fib->family == 2)
		next.ipv4_nh = fib->ipv4_dst;
	else
		__builtin_memcpy(next.ipv6_nh, fib->ipv6_dst, 16);
	skb->mark = OUR_MARK;
	return bpf_redirect_neigh(fib->ifindex, &next, sizeof(next), 0);
}

// bpf_redirect_neigh takes an Ethernet header off and puts the right one, if any, in its place.
static __always_inline int push_ethernet(struct __sk_buff *skb, const __u8 *mac)
{
	struct ethhdr eth = { .h_proto = skb->protocol };
	if (mac)
		__builtin_memcpy(eth.h_dest, mac, 6);
	return bpf_skb_change_head(skb, ETH_HLEN, 0) || bpf_skb_store_bytes(skb, 0, &eth, sizeof(eth), 0);
}

// Up the stack on the device that the agent's packets come by too: filters and routes see the same in both modes.
static __always_inline int deliver(struct __sk_buff *skb, __u32 l2)
{
	if (skb->ifindex == conf.device_ifindex)
		return TC_ACT_UNSPEC;
	if (l2 && bpf_skb_store_bytes(skb, 0, conf.device_mac, 6, 0))
		return TC_ACT_SHOT;
	return bpf_redirect(conf.device_ifindex, BPF_F_INGRESS);
}

// What goes to a box's namespace and back crosses a veth pair, and says so in place of the Ethernet addresses.
struct passage {
	__u8 kind;   // no multicast bit, for the kernel looks at it
	__u8 action; // what becomes of it at the other end: TO_BOX or TO_AGENT
	__u16 port;  // of `dysco.protocol.flow`: which device of which box it has left
	__u32 ifindex; // of the TUN device in the box's namespace
	__u8 pad[4];
};

#define PASSAGE 0x02

static __always_inline int enter_box(struct __sk_buff *skb, __u32 l2, const struct flow *flow)
{
	struct passage passage = {
		.kind = PASSAGE,
		.action = TO_BOX,
		.ifindex = flow->box.ifindex_low | (__u32)flow->box.ifindex_high << 16,
	};
	if (!l2 && push_ethernet(skb, 0))
		return TC_ACT_SHOT;
	if (bpf_skb_store_bytes(skb, 0, &passage, sizeof(passage), 0))
		return TC_ACT_SHOT;
	// Straight into the other namespace where the kernel knows the header's length.
	return l2 ? bpf_redirect_peer(flow->hop_ifindex, 0) : bpf_redirect(flow->hop_ifindex, 0);
}

// Without a branch, for the verifier walks all that comes behind one twice.
static __always_inline __u32 further(__u32 old, __u32 number)
{
	__s32 ahead = number - old;
	asm volatile("" : "+r"(ahead)); // else the compiler makes a branch of it
	__s32 is_behind = ahead >> 31;
	asm volatile("" : "+r"(is_behind));
	return old + (ahead & ~is_behind);
}

// Several CPUs may carry packets of one flow. When tries run out, others have raised the numbers meanwhile.
static __always_inline void tally(struct flow *flow, const struct numbers *tcp, __u32 size, __u32 payload)
{
	union tops came = { .seq = bpf_ntohl(tcp->seq) + payload, .ack = bpf_ntohl(tcp->ack) };
	__u8 says = tcp->flags & ACK ? KNOWN_SEQ | KNOWN_ACK : KNOWN_SEQ, news = says & ~flow->known;
	if (unlikely(news)) {
		if (news & KNOWN_SEQ)
			flow->top.seq = came.seq;
		if (news & KNOWN_ACK)
			flow->top.ack = came.ack;
		flow->known |= says;
	}
	__sync_fetch_and_add(&flow->packets, 1); // first, for it takes the line away from other CPUs in one go
	__sync_fetch_and_add(&flow->bytes, size);
#pragma unroll
	for (int i = 0; i < 4; i++) {
		union tops old = { .both = flow->top.both }, new = { .seq = further(old.seq, came.seq), .ack = old.ack };
		if (says & KNOWN_ACK)
			new.ack = further(old.ack, came.ack);
		if (likely(new.both == old.both || __sync_val_compare_and_swap(&flow->top.both, old.both, new.both) == old.both))
			break;
	}
}

// Do what a flow says. Everything that could be refused is asked before the first byte is changed. `translates` is a
// constant: whether numbers of the flow may have to be translated, which the verifier is long about.
static __always_inline int move(struct __sk_buff *skb, __u32 l2, int arrives, int family,
				struct flow *flow, int translates)
{
	translates = translates && flow->translates;
	struct head head = {};
	__u32 at, size;
	__u16 ip_sum = 0;
	__u8 tos = 0;
	if (family == 4) {
		const struct iphdr *ip = (void *)(long)skb->data + l2;
		if (unlikely((void *)(ip + 1) + sizeof(head.tcp) > (void *)(long)skb->data_end))
			return ASK_AGENT;
		size = bpf_ntohs(ip->tot_len);
		ip_sum = ip->check;
		tos = ip->tos;
		at = sizeof(*ip);
		__builtin_memcpy(&head.tcp, ip + 1, sizeof(head.tcp));
		const struct stamps *stamps = (void *)(ip + 1) + sizeof(head.tcp);
		if (likely((void *)(stamps + 1) <= (void *)(long)skb->data_end))
			head.stamps = *stamps; // or what else stands there
	} else {
		const struct ipv6hdr *ip = (void *)(long)skb->data + l2;
		if (unlikely((void *)(ip + 1) + sizeof(head.tcp) > (void *)(long)skb->data_end))
			return ASK_AGENT;
		size = sizeof(*ip) + bpf_ntohs(ip->payload_len);
		at = sizeof(*ip);
		__builtin_memcpy(&head.tcp, ip + 1, sizeof(head.tcp));
		const struct stamps *stamps = (void *)(ip + 1) + sizeof(head.tcp);
		if (likely((void *)(stamps + 1) <= (void *)(long)skb->data_end))
			head.stamps = *stamps; // or what else stands there
	}
	__u32 header = (head.tcp.offset >> 4) * 4;
	if (unlikely(header < TCP_LEAST || at + header > size || l2 + size > skb->len))
		return ASK_AGENT;
	struct options options = {};
	if (unlikely(header != TCP_LEAST + sizeof(head.stamps) || head.stamps.kind != bpf_htonl(STAMPS_ALONE))) {
		head.stamps.kind = 0;
		if (translates && header > TCP_LEAST && find_options(skb, l2 + at, header, &options))
			return ASK_AGENT;
	}
	struct bpf_fib_lookup fib = {};
	// What leaves on the right device already needs another address on its Ethernet header, and no second way through
	// the device's queue. The first packet of an epoch goes that way, for there neighbours are asked whether they live.
	__u16 epoch = 0;
	volatile __u8 in_place = 0, action = flow->action; // as in `options`: in one state what is done alike
	if (action == TO_WIRE && !arrives && l2) {
		epoch = bpf_jiffies64() >> EPOCH_SHIFT;
		in_place = flow->hop_ifindex == skb->ifindex && flow->hop_epoch == epoch;
	}
	if (unlikely(action == TO_WIRE && !in_place)) {
		int learns = !arrives && l2;
		long result = route(skb, family, tos, flow, &fib, learns ? 0 : BPF_FIB_LOOKUP_SKIP_NEIGH);
		if (result == BPF_FIB_LKUP_RET_NOT_FWDED)
			action = TO_STACK;
		else if (result != BPF_FIB_LKUP_RET_SUCCESS && result != BPF_FIB_LKUP_RET_NO_NEIGH)
			return ASK_AGENT;
		if (learns && result == BPF_FIB_LKUP_RET_SUCCESS) {
			__builtin_memcpy(flow->hop_mac, fib.dmac, 6);
			flow->hop_epoch = epoch;
			flow->hop_ifindex = fib.ifindex;
		}
	}
	if (action == TO_STACK && (!arrives || (l2 != 0) != conf.device_has_mac))
		return ASK_AGENT;
	if (action == TO_DEVICE && !arrives)
		return ASK_AGENT;
	tally(flow, &head.tcp, size, size - at - header + !!(head.tcp.flags & (SYN | FIN)));
	if (unlikely(head.tcp.flags & FIN))
		flow->tells |= ENDED_HERE;
	if (unlikely(rewrite(skb, l2, l2 + at, family, ip_sum, &head, &options, flow, translates)))
		return TC_ACT_SHOT;
	count(REWRITTEN);
	if (action == TO_STACK)
		return deliver(skb, l2);
	if (action == TO_BOX)
		return bpf_redirect(conf.session_ifindex, BPF_F_INGRESS);
	if (action == TO_DEVICE)
		return enter_box(skb, l2, flow);
	if (in_place)
		return bpf_skb_store_bytes(skb, 0, flow->hop_mac, 6, 0) ? TC_ACT_SHOT : TC_ACT_UNSPEC;
	if (!l2 && push_ethernet(skb, 0))
		return TC_ACT_SHOT;
	return leave(skb, &fib);
}

// The first bytes of a packet, aligned as the verifier wants what is copied in words. `four` and `six` begin alike.
union front {
	struct {
		__u8 pad[2], to[6], rest[8];
	} eth;
	struct {
		__u8 before[16], begin[10];
		__be16 sum;
		__be32 src, dst;
		struct numbers tcp;
		struct stamps stamps;
	} four;
	struct {
		__u8 before[16], begin[8];
		__u8 src[16], dst[16];
		struct numbers tcp;
		struct stamps stamps;
	} six;
};

#define TO_CHECKSUM 18 // what of a TCP header is written if no number behind it changes

// The same as `move` for what most packets are, all of it in a row: no options but timestamps, or none that change, and
// no way to look for. ASK_AGENT: it is another one. `arrives` and `family` are constants.
static __always_inline int carry_straight(struct __sk_buff *skb, __u32 l2, int arrives, int family, struct flow *flow)
{
	const __u32 to_tcp = l2 + (family == 4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr));
	const void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	const struct numbers *came = data + to_tcp;
	const struct stamps *stamps = (const void *)(came + 1);
	const __u8 translates = flow->translates, action = flow->action;
	if (unlikely((void *)(came + 1) > end || came->flags & FIN))
		return ASK_AGENT;
	union front front;
	__u32 header = (came->offset >> 4) * 4, written = TO_CHECKSUM, size;
	if (translates && header != TCP_LEAST) {
		if (unlikely(header != TCP_LEAST + sizeof(*stamps) || (void *)(stamps + 1) > end ||
			     stamps->kind != bpf_htonl(STAMPS_ALONE)))
			return ASK_AGENT;
		written = sizeof(*came) + sizeof(*stamps);
	}
	if (family == 4)
		size = bpf_ntohs(((const struct iphdr *)(data + l2))->tot_len);
	else
		size = sizeof(struct ipv6hdr) + bpf_ntohs(((const struct ipv6hdr *)(data + l2))->payload_len);
	if (unlikely(header < TCP_LEAST || to_tcp - l2 + header > size || l2 + size > skb->len))
		return ASK_AGENT;
	if (arrives) {
		if (unlikely(action != TO_BOX && (action != TO_STACK || (l2 != 0) != conf.device_has_mac)))
			return ASK_AGENT;
	} else if (unlikely(!l2 || action != TO_WIRE || flow->hop_ifindex != skb->ifindex ||
			    flow->hop_epoch != (__u16)(bpf_jiffies64() >> EPOCH_SHIFT))) {
		return ASK_AGENT;
	} else {
		*(__u32 *)front.eth.to = *(const __u32 *)flow->hop_mac;
		*(__u16 *)(front.eth.to + 4) = *(const __u16 *)(flow->hop_mac + 4);
		*(__u64 *)front.eth.rest = *(const __u64 *)(data + 6);
		*(__u64 *)front.four.begin = *(const __u64 *)(data + l2);
	}
	struct numbers *tcp;
	if (family == 4) {
		const struct iphdr *ip = data + l2;
		*(__u16 *)(front.four.begin + 8) = *(const __u16 *)((const void *)ip + 8);
		front.four.sum = ~fold((__u64)(__u16)~ip->check + flow->address_delta);
		__builtin_memcpy(&front.four.src, flow->src, 4);
		__builtin_memcpy(&front.four.dst, flow->dst, 4);
		tcp = &front.four.tcp;
	} else {
		__builtin_memcpy(front.six.src, flow->src, 32);
		tcp = &front.six.tcp;
	}
	*tcp = *came;
	tally(flow, tcp, size, size - (to_tcp - l2) - header);
	tcp->sport = flow->sport;
	tcp->dport = flow->dport;
	__u32 delta = flow->port_delta;
	if (translates) {
		__u64 sum = delta;
		int acknowledges = tcp->flags & ACK;
		shift_here(&tcp->seq, flow->seq_delta, &sum);
		if (acknowledges)
			shift_here(&tcp->ack, flow->ack_delta, &sum);
		if (written != TO_CHECKSUM) {
			struct stamps *changed = family == 4 ? &front.four.stamps : &front.six.stamps;
			*changed = *stamps;
			shift_here(&changed->value, flow->tsval_delta, &sum);
			if (acknowledges)
				shift_here(&changed->echo, flow->tsecr_delta, &sum);
		}
		delta = fold(sum);
	}
	if (unlikely(complete(skb, to_tcp, flow->address_delta, delta, &tcp->checksum)))
		return TC_ACT_SHOT;
	if (family == 6)
		bpf_csum_update(skb, flow->address_delta);
	if (arrives) {
		const void *from = family == 4 ? (void *)&front.four.sum : front.six.src;
		if (bpf_skb_store_bytes(skb, l2 + (family == 4 ? 10 : 8), from, (family == 4 ? 10 : 32) + (written & 63), 0))
			return TC_ACT_SHOT;
	} else if (bpf_skb_store_bytes(skb, 0, front.eth.to, to_tcp + (written & 63), 0)) {
		return TC_ACT_SHOT;
	}
	count(REWRITTEN);
	if (!arrives)
		return TC_ACT_UNSPEC;
	return action == TO_BOX ? bpf_redirect(conf.session_ifindex, BPF_F_INGRESS) : deliver(skb, l2);
}

static __always_inline int carry(struct __sk_buff *skb, __u32 l2, int arrives, int family, struct flow *flow)
{
	int verdict = family == 4 ? carry_straight(skb, l2, arrives, 4, flow) : carry_straight(skb, l2, arrives, 6, flow);
	return likely(verdict != ASK_AGENT) ? verdict : move(skb, l2, arrives, family, flow, 1);
}
