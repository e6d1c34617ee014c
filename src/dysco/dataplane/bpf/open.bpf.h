// SPDX-License-Identifier: Apache-2.0
// Opening: SYNs that begin or carry on a chain, where nothing has to be decided any more. Included by steer.bpf.c.
//
// The agent has said beforehand what becomes of them: rules with the hops of policies that are the same for every
// session, neighbours with the keys of their associations, tickets (a chain id and a pair of ports, each good for one
// subsession). The programs put the chain header before a SYN or take it off, exactly as dysco.protocol.setup does, let
// the flows in, and report; the agent then has the chain as if it had opened it. Whatever is not as simple as that (data
// in a SYN, options that forbid it, a repeated SYN, no ticket left, an HMAC that is wrong) goes to the agent, unchanged.
//
//   open_out -> send    a SYN leaves: of a local application, or out of the kernel box that `enter` has given it to
//   open_in -> enter    a SYN arrives with a chain header
//   answer -> carry_on  a SYN-ACK of a flow that is carried here passes, and the agent hears of it
//   tell -> carry_on    so does a FIN
//
// They are reached by tail calls, which the kernel forgets when the agent's last descriptor is gone: without an agent
// no chain begins. The second of two goes on with what the first has left in `scratch`, on the same CPU.

static long (*const bpf_tail_call)(void *, void *, __u32) = (void *)BPF_FUNC_tail_call;
static __s64 (*const bpf_csum_diff)(const void *from, __u32 from_size, const void *to, __u32 to_size,
				    __u32 seed) = (void *)BPF_FUNC_csum_diff;
static long (*const bpf_skb_change_tail)(struct __sk_buff *, __u32 length, __u64 flags) = (void *)BPF_FUNC_skb_change_tail;
static void *(*const bpf_ringbuf_reserve)(void *ring, __u64 size, __u64 flags) = (void *)BPF_FUNC_ringbuf_reserve;
static void (*const bpf_ringbuf_submit)(void *data, __u64 flags) = (void *)BPF_FUNC_ringbuf_submit;
static void (*const bpf_ringbuf_discard)(void *data, __u64 flags) = (void *)BPF_FUNC_ringbuf_discard;
static __u64 (*const bpf_ktime_get_ns)(void) = (void *)BPF_FUNC_ktime_get_ns;

#define MAX_RULES 64 // of one set; there are two
#define MAX_NEIGHBOURS 64
#define MAX_SLOTS 64 // of tickets: a neighbour's address of one family each
#define TICKETS 2048 // of one slot
#define MAX_HOPS 6   // of a header that is signed or checked here
#define MAX_KEYS 3   // of a neighbour, the newest first
#define MAX_WINDOWS 256
#define MAGIC 0x44595343 // "DYSC"
#define OPEN_ON_FAIL 4
#define FIXED_LEN 28 // of a chain header, before the tuples
#define HMAC_LEN 16
#define MAX_HEADER (FIXED_LEN + 2 * 36 + MAX_HOPS * 20 + 8 + HMAC_LEN)
#define LEAST_HEADER (FIXED_LEN + 2 * 12 + 8 + 8 + HMAC_LEN)
#define LONGEST_CHAIN 64 // dysco.protocol.admission
#define WINDOW_WORDS 128
#define WINDOW 8128 // RFC 6479: one word less than there is
#define NO_SLOT 0xffffffff
#define SECOND_NS 1000000000ull

#define CWR 0x80
#define ECE 0x40

#define STAGE_OUT 0 // in `stages`
#define STAGE_SEND 1
#define STAGE_IN 2
#define STAGE_ENTER 3
#define STAGE_TELL 4
#define STAGE_ANSWER 5
#define STAGE_CARRY 6

#define BEGAN 1 // kinds of reports
#define ARRIVED 2
#define WENT_ON 3
#define ANSWERED 4
#define ENDED 5

struct hop {
	__u8 address[16];
	__be32 box;
};

struct route {
	__u8 chain_id[16];
	__u8 hop_index; // of who signs
	__u8 hops;
	__u8 flags;   // of the chain header
	__u8 is_open; // whether the last hop is wherever the session goes
	__u32 neighbour; // of the first hop
	__u32 number;	 // by which the agent knows the rule
	__u32 mtu;	 // least on the way to the left
	struct hop hop[MAX_HOPS];
};

struct rule { // neighbour NO_SLOT: the agent decides
	struct clause clause;
	struct route route;
};

struct digest { // SHA-256 after the first block of RFC 2104, inside and outside
	__u32 inner[8], outer[8];
};

struct neighbour {
	__u8 own[2][16], address[2][16]; // IPv4, IPv6
	__u32 slot[2];
	__u32 mtu;
	__u32 rate; // chains that it may begin in a second; 0: the agent sees to each
	__u8 sends; // whether there is a key to sign with
	__u8 pad[7];
	struct digest key;
	struct {
		struct digest digest;
		__u64 until_ns; // CLOCK_MONOTONIC
		__u32 window;
		__u32 pad;
	} accepted[MAX_KEYS];
};

struct pace { // of a neighbour; written here alone
	__u64 counter; // of the last header that was signed for it, here or by the agent
	__u64 second_ns;
	__u64 begun;
};

struct window { // RFC 6479, of one key
	__u32 lock, pad;
	__u64 top; // the highest counter
	__u64 bits[WINDOW_WORDS];
};

struct ticket { // number 0: none
	__u64 number; // counted from 1
	__u8 chain_id[16];
	__be16 local, remote;
	__u8 pad[4];
};

struct openings {
	__u32 rules, first_rule;
	__be32 box; // the number of the kernel box, if `config` says that there is one
	__u32 mtu;
	__u8 boxes; // whether there is one that SYNs leave as they came
	__u8 pad[3];
};

struct report {
	__u8 kind, pad[3];
	__u32 neighbour;
	__u32 number; // of the rule
	__u32 ticket;
	__be32 isn; // what the SYN or SYN-ACK announces, as `dysco.protocol.chain.HALF` packs it
	__be16 mss;
	__u8 wscale, flags;
	__u16 header_len;
	__u8 pad2[6];
	struct key key; // of the flow by which the packet came
	__u8 header[248]; // BEGAN, WENT_ON: as signed; ARRIVED: as it came
};

#define SHORT_REPORT __builtin_offsetof(struct report, header)

struct syn { // what a SYN or SYN-ACK announces
	volatile __u8 left, mss_at, wscale, flags;
	volatile __u16 mss;
	__u16 pad;
};

struct head_of { // what opening a chain needs of a packet
	__u32 tcp, header, size; // offset of TCP, length of its header, length of the IP packet
	__u16 ip_sum;
	__u8 tos;
	__u8 pad;
	struct numbers numbers;
};

// Of each CPU: the stack is too small for it.
struct scratch {
	struct route route;
	struct found found;
	struct head_of head;
	struct syn syn;
	struct bpf_fib_lookup fib;
	struct key twin; // of a session that is over, and in whose place this one comes
	struct key key, other; // `send`: the subsession as it leaves and as it is answered; `enter`: the same of the session
	struct flow flow;
	__u32 neighbour, mtu, at; // at: of the counter in the message
	__u8 kind, back, is_last, replaces;
	__u16 tried; // keys of the neighbour
	__u16 news;  // of a SYN-ACK
	__u64 ticket;
	__u32 mac[4];
	__u32 state[8];
	__u32 w[64];
	__u8 block[64];
	__u8 message[256]; // a chain header, zero behind it
	struct digest proof;
};

// As `dysco.dataplane.steer` makes the maps.
_Static_assert(sizeof(struct scratch) == 1248 && sizeof(struct route) == 152 && sizeof(struct rule) == 232 &&
		       sizeof(struct neighbour) == 392 && sizeof(struct window) == 1040 && sizeof(struct ticket) == 32 &&
		       sizeof(struct report) == 320,
	       "sizes of map values");

#define ARRAY_OF(name, kind, entries) \
	struct { \
		__uint(type, kind); \
		__uint(max_entries, entries); \
		__type(key, __u32); \
		__type(value, struct name); \
	}

struct sha256_constants {
	__u32 k[64];
};

ARRAY_OF(rule, BPF_MAP_TYPE_ARRAY, 2 * MAX_RULES) rules SEC(".maps");
ARRAY_OF(neighbour, BPF_MAP_TYPE_ARRAY, MAX_NEIGHBOURS) neighbours SEC(".maps");
ARRAY_OF(pace, BPF_MAP_TYPE_ARRAY, MAX_NEIGHBOURS) paces SEC(".maps");
ARRAY_OF(window, BPF_MAP_TYPE_ARRAY, MAX_WINDOWS) windows SEC(".maps");
ARRAY_OF(ticket, BPF_MAP_TYPE_ARRAY, MAX_SLOTS * TICKETS) tickets SEC(".maps");
ARRAY_OF(openings, BPF_MAP_TYPE_ARRAY, 1) openings SEC(".maps");
ARRAY_OF(sha256_constants, BPF_MAP_TYPE_ARRAY, 1) sha256 SEC(".maps");
ARRAY_OF(scratch, BPF_MAP_TYPE_PERCPU_ARRAY, 1) scratch SEC(".maps");

struct place_in_line { // tickets of a slot that were taken
	__u64 taken;
};

ARRAY_OF(place_in_line, BPF_MAP_TYPE_ARRAY, MAX_SLOTS) heads SEC(".maps");

struct place_key {
	__u8 address[16];
	__u32 family;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 32 * MAX_NEIGHBOURS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct place_key);
	__type(value, __u32); // index of the neighbour
} peers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1 << 14);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct key);
	__type(value, struct route);
} in_box SEC(".maps"); // SYNs that the kernel box has and has not let out

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} reports SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 7);
	__type(key, __u32);
	__type(value, __u32);
} stages SEC(".maps");

#define AT(map, index) ({ \
	__u32 place_ = (index); \
	bpf_map_lookup_elem(&(map), &place_); \
})

// SHA-256 (FIPS 180-4).

static __always_inline __u32 ror(__u32 x, int n) { return x >> n | x << (32 - n); }

#define ROUND(a, b, c, d, e, f, g, h, i) do { \
	__u32 t1_ = h + (ror(e, 6) ^ ror(e, 11) ^ ror(e, 25)) + ((e & f) ^ (~e & g)) + k[t + i] + w[t + i]; \
	__u32 t2_ = (ror(a, 2) ^ ror(a, 13) ^ ror(a, 22)) + ((a & b) ^ (a & c) ^ (b & c)); \
	d += t1_; \
	h = t1_ + t2_; \
} while (0)

static __attribute__((noinline)) void compress(struct scratch *s, const __u32 *k, const __u8 *block)
{
	__u32 *w = s->w;
#pragma clang loop unroll(disable)
	for (int t = 0; t < 16; t++)
		w[t] = bpf_ntohl(((const __u32 *)block)[t]);
#pragma clang loop unroll(disable)
	for (int t = 16; t < 64; t++) {
		__u32 x = w[t - 15], y = w[t - 2];
		w[t] = w[t - 16] + (ror(x, 7) ^ ror(x, 18) ^ x >> 3) + w[t - 7] + (ror(y, 17) ^ ror(y, 19) ^ y >> 10);
	}
	__u32 a = s->state[0], b = s->state[1], c = s->state[2], d = s->state[3];
	__u32 e = s->state[4], f = s->state[5], g = s->state[6], h = s->state[7];
#pragma clang loop unroll(disable)
	for (int t = 0; t < 64; t += 8) {
		ROUND(a, b, c, d, e, f, g, h, 0);
		ROUND(h, a, b, c, d, e, f, g, 1);
		ROUND(g, h, a, b, c, d, e, f, 2);
		ROUND(f, g, h, a, b, c, d, e, 3);
		ROUND(e, f, g, h, a, b, c, d, 4);
		ROUND(d, e, f, g, h, a, b, c, 5);
		ROUND(c, d, e, f, g, h, a, b, 6);
		ROUND(b, c, d, e, f, g, h, a, 7);
	}
	s->state[0] += a;
	s->state[1] += b;
	s->state[2] += c;
	s->state[3] += d;
	s->state[4] += e;
	s->state[5] += f;
	s->state[6] += g;
	s->state[7] += h;
}

// HMAC-SHA256 of s->message, which is zero behind `length`; the first 16 bytes of s->state are it, in network order.
static __attribute__((noinline)) void sign(struct scratch *s, const __u32 *k, const struct digest *key, __u32 length)
{
	__u32 blocks = (length + 9 + 63) / 64;
	s->message[length & 255] = 0x80;
	*(__u32 *)(s->message + (blocks * 64 - 4 & 252)) = bpf_htonl((64 + length) * 8);
	__builtin_memcpy(s->state, key->inner, 32);
#pragma clang loop unroll(disable)
	for (__u32 b = 0; b < 4; b++) {
		if (b >= blocks)
			break;
		compress(s, k, s->message + 64 * b);
	}
	__u32 *block = (__u32 *)s->block;
#pragma unroll
	for (int i = 0; i < 8; i++)
		block[i] = bpf_htonl(s->state[i]);
	__builtin_memset(block + 8, 0, 32);
	s->block[32] = 0x80;
	block[15] = bpf_htonl((64 + 32) * 8);
	__builtin_memcpy(s->state, key->outer, 32);
	compress(s, k, s->block);
#pragma unroll
	for (int i = 0; i < 4; i++)
		s->state[i] = bpf_htonl(s->state[i]);
	// What follows the message is the padding; the HMAC takes its place.
	s->message[length & 255] = 0;
	*(__u32 *)(s->message + (blocks * 64 - 4 & 252)) = 0;
}

#define SEEN 1
#define WITH_SACK 2
#define WITH_TIMESTAMPS 4
#define WITH_ECN 8
#define MAX_SYN_OPTIONS 14

// Read them; a negative number if the agent must: options that are not well-formed, a tag, MD5, AO, MPTCP.
static __always_inline int read_syn(struct __sk_buff *skb, __u32 tcp, __u32 end, __u8 flags, struct syn *syn)
{
	__u8 ecn = flags & (ECE | CWR);
	syn->mss_at = 0;
	syn->mss = 0;
	syn->wscale = 255;
	syn->flags = SEEN | (ecn == (flags & ACK ? ECE : ECE | CWR) ? WITH_ECN : 0);
	syn->left = end - TCP_LEAST;
	for (int i = 0; i < MAX_SYN_OPTIONS; i++) {
		__u8 kind, length, value, left = syn->left;
		__u32 at = end - left;
		if (!left || bpf_skb_load_bytes(skb, tcp + at, &kind, 1) || kind == 0)
			return 0;
		if (kind == 1) {
			syn->left = left - 1;
			continue;
		}
		if (left < 2 || bpf_skb_load_bytes(skb, tcp + at + 1, &length, 1) || length < 2 || length > left)
			return -1;
		if (kind == 19 || kind == 29 || kind == 30 || kind == 253)
			return -1;
		if (kind == 2 && length == 4) {
			__be16 mss;
			if (syn->mss_at || at & 1 || bpf_skb_load_bytes(skb, tcp + at + 2, &mss, 2))
				return -1;
			syn->mss_at = at + 2;
			syn->mss = bpf_ntohs(mss);
		} else if (kind == 3 && length == 3) {
			if (bpf_skb_load_bytes(skb, tcp + at + 2, &value, 1))
				return -1;
			syn->wscale = value > 14 ? 14 : value; // RFC 7323 section 2.3
		} else if (kind == 4 && length == 2) {
			syn->flags = syn->flags | WITH_SACK;
		} else if (kind == 8 && length == 10) {
			syn->flags = syn->flags | WITH_TIMESTAMPS;
		}
		syn->left = left - length;
	}
	return syn->left ? -1 : 0;
}

// Lower the MSS to what fits an IP packet of `mtu` bytes; adds to the TCP checksum's sum what that changes.
static __always_inline int clamp(struct __sk_buff *skb, __u32 tcp, int family, __u32 mtu, struct syn *syn, __u64 *sum)
{
	__u32 limit = mtu - (family == 4 ? 40 : 60);
	__u32 mss = syn->mss;
	if (!syn->mss_at || mss <= limit || limit > 0xffff)
		return 0;
	__be16 value = bpf_htons(limit);
	if (bpf_skb_store_bytes(skb, tcp + syn->mss_at, &value, 2, 0))
		return -1;
	*sum += value + (__u64)(__u16)~bpf_htons(mss);
	syn->mss = limit;
	return 0;
}

static __always_inline void say_syn(struct report *report, __be32 seq, const struct syn *syn)
{
	report->isn = seq;
	report->mss = bpf_htons(syn->mss);
	report->wscale = syn->wscale;
	report->flags = syn->flags;
}

static __always_inline int look(struct __sk_buff *skb, __u32 l2, const struct found *found, struct head_of *head)
{
	if (found->key.family == 4) {
		struct iphdr ip;
		if (bpf_skb_load_bytes(skb, l2, &ip, sizeof(ip)))
			return -1;
		head->size = bpf_ntohs(ip.tot_len);
		head->ip_sum = ip.check;
		head->tos = ip.tos;
	} else {
		__be16 payload;
		if (bpf_skb_load_bytes(skb, l2 + 4, &payload, 2))
			return -1;
		head->size = sizeof(struct ipv6hdr) + bpf_ntohs(payload);
		head->tos = 0;
		head->ip_sum = 0;
	}
	head->tcp = found->tcp;
	if (bpf_skb_load_bytes(skb, found->tcp, &head->numbers, sizeof(head->numbers)))
		return -1;
	head->header = (head->numbers.offset >> 4) * 4;
	if (head->header < TCP_LEAST || l2 + head->size > skb->len || found->tcp - l2 + head->header > head->size)
		return -1;
	return 0;
}

// Give a SYN the addresses and ports of a flow, and the length it has with a chain header more or less. `sum`: what
// else changes under the TCP checksum; `new_size`: of the IP packet.
static __always_inline int redress(struct __sk_buff *skb, __u32 l2, const struct head_of *head, int family,
				   const struct flow *flow, __u32 new_size, __u64 sum)
{
	__u64 length = (__u64)bpf_htons(new_size) + (__u16)~bpf_htons(head->size); // also what the pseudo-header's changes by
	__be16 value;
	if (family == 4) {
		struct {
			__u16 sum;
			__u8 src[4], dst[4];
		} __attribute__((packed)) ip;
		value = bpf_htons(new_size);
		ip.sum = ~fold((__u64)(__u16)~head->ip_sum + flow->address_delta + length);
		__builtin_memcpy(ip.src, flow->src, 4);
		__builtin_memcpy(ip.dst, flow->dst, 4);
		if (bpf_skb_store_bytes(skb, l2 + 2, &value, 2, 0) || bpf_skb_store_bytes(skb, l2 + 10, &ip, 10, 0))
			return -1;
	} else {
		value = bpf_htons(new_size - sizeof(struct ipv6hdr));
		if (bpf_skb_store_bytes(skb, l2 + 4, &value, 2, BPF_F_RECOMPUTE_CSUM) ||
		    bpf_skb_store_bytes(skb, l2 + 8, flow->src, 32, BPF_F_RECOMPUTE_CSUM))
			return -1;
	}
	if (bpf_skb_store_bytes(skb, head->tcp, &flow->sport, 4, 0))
		return -1;
	if (bpf_l4_csum_replace(skb, head->tcp + CHECKSUM_AT, 0, fold(flow->address_delta + length), BPF_F_PSEUDO_HDR))
		return -1;
	return bpf_l4_csum_replace(skb, head->tcp + CHECKSUM_AT, 0, fold(sum + flow->port_delta), 0);
}

// What an exchange of bytes adds to a sum. Of both zeros that a sum has it is the plain one, as `Flow` has it: by an
// addresses' difference other than that, `complete` tells partial checksums from complete ones.
static __always_inline __u16 difference(const void *from, const void *to, __u32 size)
{
	__u32 sum = fold((__u32)bpf_csum_diff(from, size, to, size, 0));
	return sum == 0xffff ? 0 : sum;
}

// A flow from one tuple to another, with its counters at zero.
static __always_inline void make(struct flow *flow, const struct key *from, const struct key *to, __u8 action)
{
	__builtin_memset(flow, 0, sizeof(*flow));
	__builtin_memcpy(flow->src, to->src, 32);
	flow->sport = to->sport;
	flow->dport = to->dport;
	flow->address_delta = difference(from->src, to->src, 32);
	flow->port_delta = difference(&from->sport, &to->sport, 4);
	flow->action = action;
	flow->tells = TELLS;
}

// The flow of the SYN-ACK, which the agent shall hear of.
static __always_inline void awaits(struct flow *flow, __be32 isn, __u32 mtu)
{
	flow->tells |= ANSWER;
	flow->top.ack = bpf_ntohl(isn) + 1; // not known to have been acknowledged; what an answer acknowledges
	flow->tsval_delta = mtu; // nothing is translated yet
}

#define FREE 0
#define OVER 1 // of a session whose ends have both sent FIN
#define LIVE 2

// Whether a new session may take a tuple that leaves this host; `twin`: the other direction's, of one that is over.
static __always_inline int taken(const struct key *key, struct key *twin)
{
	const struct flow *flow = flow_of(key);
	if (!flow)
		return FREE;
	if (!(flow->tells & ENDED_HERE))
		return LIVE;
	__builtin_memset(twin, 0, sizeof(*twin));
	__builtin_memcpy(twin->src, flow->dst, 16);
	__builtin_memcpy(twin->dst, flow->src, 16);
	twin->sport = flow->dport;
	twin->dport = flow->sport;
	twin->family = key->family;
	twin->direction = FLOW_IN;
	flow = flow_of(twin);
	return flow && flow->tells & ENDED_HERE ? OVER : LIVE;
}

static __always_inline int hand_out(void)
{
	count(SYN_CAPTURED);
	return bpf_redirect(conf.session_ifindex, 0);
}

static __always_inline int hand_in(void)
{
	count(CAPTURED_IN);
	return bpf_redirect(conf.underlay_ifindex, 0);
}

// What `go_to` has left: without a branch, for the verifier would walk everything behind it twice.
#define LINK_HEADER(skb) ((skb)->cb[0] & 15)

static __always_inline __u32 smaller(__u32 one, __u32 other) { return one < other ? one : other; }

// The first rule that a session lies in; 0 if there is none, or only the agent knows what is to become of it.
static __always_inline const struct rule *rule_for(const struct key *key, const struct openings *openings)
{
	for (__u32 index = 0; index < MAX_RULES; index++) {
		if (index >= openings->rules)
			return 0;
		const struct rule *rule = AT(rules, openings->first_rule + index);
		if (!rule)
			return 0;
		if (!lies_outside(&rule->clause, key))
			return rule->route.neighbour == NO_SLOT ? 0 : rule;
	}
	return 0;
}

static __always_inline struct ticket *take_ticket(__u32 slot)
{
	struct place_in_line *head = AT(heads, slot);
	if (!head)
		return 0;
	for (int i = 0; i < 4; i++) {
		__u64 taken = *(volatile __u64 *)&head->taken;
		struct ticket *ticket = AT(tickets, slot * TICKETS + (__u32)(taken & (TICKETS - 1)));
		if (!ticket || ticket->number != taken + 1)
			return 0;
		if (__sync_val_compare_and_swap(&head->taken, taken, taken + 1) == taken)
			return ticket;
	}
	return 0;
}

SEC("tc/open_out") int open_out(struct __sk_buff *skb)
{
	__u32 l2 = LINK_HEADER(skb);
	struct openings *open = AT(openings, 0);
	struct scratch *s = AT(scratch, 0);
	if (!open || !s)
		return hand_out();
	struct found *found = &s->found;
	struct head_of *head = &s->head;
	__builtin_memset(found, 0, sizeof(*found));
	if (!parse(skb, l2, found) || !found->plain || look(skb, l2, found, head) ||
	    head->size != head->tcp - l2 + head->header || l2 + head->size != skb->len ||
	    read_syn(skb, head->tcp, head->header, found->flags, &s->syn))
		return hand_out();
	int family = found->key.family, f = family == 6;
	found->key.direction = FLOW_OUT;
	const struct route *boxed = bpf_map_lookup_elem(&in_box, &found->key);
	s->replaces = taken(&found->key, &s->twin);
	if (s->replaces == LIVE)
		return hand_out();
	if (boxed) {
		__builtin_memcpy(&s->route, boxed, sizeof(s->route));
		s->kind = WENT_ON;
		s->back = TO_BOX;
	} else {
		const struct rule *rule = rule_for(&found->key, open);
		if (!rule)
			return hand_out();
		__builtin_memcpy(&s->route, &rule->route, sizeof(s->route));
		s->kind = BEGAN;
		s->back = is_own(found->key.src, family) ? TO_STACK : TO_WIRE;
	}
	__u32 hops = s->route.hops;
	const struct neighbour *neighbour = AT(neighbours, s->route.neighbour);
	struct pace *pace = AT(paces, s->route.neighbour);
	if (!neighbour || !pace || !neighbour->sends || hops < 1 || hops > MAX_HOPS)
		return hand_out();
	// The subsession; of its ports routes know nothing.
	struct key *sub = &s->key;
	__builtin_memset(sub, 0, sizeof(*sub));
	__builtin_memcpy(sub->src, neighbour->own[f], 16);
	__builtin_memcpy(sub->dst, neighbour->address[f], 16);
	sub->family = family;
	s->mtu = smaller(smaller(neighbour->mtu, s->route.mtu), open->mtu);
	__builtin_memcpy(s->flow.src, sub->src, 32);
	__builtin_memset(&s->fib, 0, sizeof(s->fib));
	long result = route(skb, family, head->tos, &s->flow, &s->fib, BPF_FIB_LOOKUP_SKIP_NEIGH);
	__u32 slot = neighbour->slot[f];
	if (result != BPF_FIB_LKUP_RET_SUCCESS || s->mtu < 576 || slot >= MAX_SLOTS)
		return hand_out();
	struct ticket *ticket = take_ticket(slot);
	if (!ticket)
		return hand_out();
	sub->sport = ticket->local;
	sub->dport = ticket->remote;
	s->ticket = ticket->number;
	if (s->kind == BEGAN)
		__builtin_memcpy(s->route.chain_id, ticket->chain_id, 16);
	// The chain header.
	__u8 *m = s->message;
	__builtin_memset(m, 0, sizeof(s->message));
	*(__u32 *)m = bpf_htonl(MAGIC);
	m[4] = 1;
	m[5] = s->route.flags;
	__builtin_memcpy(m + 8, s->route.chain_id, 16);
	m[24] = s->route.hop_index;
	m[25] = hops;
	m[26] = family;
	__u32 at;
	if (family == 4) {
		__builtin_memcpy(m + 28, found->key.src, 4);
		__builtin_memcpy(m + 32, found->key.dst, 4);
		__builtin_memcpy(m + 36, &found->key.sport, 4);
		__builtin_memcpy(m + 40, sub->src, 4);
		__builtin_memcpy(m + 44, sub->dst, 4);
		__builtin_memcpy(m + 48, &sub->sport, 4);
#pragma unroll
		for (int i = 0; i < MAX_HOPS; i++) {
			__builtin_memcpy(m + 52 + 8 * i, s->route.hop[i].address, 4);
			*(__be32 *)(m + 56 + 8 * i) = s->route.hop[i].box;
		}
		__builtin_memcpy(m + 52, sub->dst, 4); // where the first one is now
		at = 52 + 8 * hops;
		if (s->route.is_open)
			*(__u32 *)(m + (at - 8 & 252)) = *(__u32 *)found->key.dst;
	} else {
		__builtin_memcpy(m + 28, found->key.src, 32);
		__builtin_memcpy(m + 60, &found->key.sport, 4);
		__builtin_memcpy(m + 64, sub->src, 32);
		__builtin_memcpy(m + 96, &sub->sport, 4);
#pragma unroll
		for (int i = 0; i < MAX_HOPS; i++) {
			__builtin_memcpy(m + 100 + 20 * i, s->route.hop[i].address, 16);
			*(__be32 *)(m + 116 + 20 * i) = s->route.hop[i].box;
		}
		__builtin_memcpy(m + 100, sub->dst, 16);
		at = 100 + 20 * hops;
		if (s->route.is_open)
#pragma unroll
			for (int i = 0; i < 4; i++)
				*(__u32 *)(m + (at - 20 + 4 * i & 252)) = ((__u32 *)found->key.dst)[i];
	}
	__u32 length = at + 8 + HMAC_LEN;
	m[6] = length >> 8;
	m[7] = length;
	__u64 counter = __sync_fetch_and_add(&pace->counter, 1) + 1;
	*(__be32 *)(m + (at & 252)) = bpf_htonl(counter >> 32);
	*(__be32 *)(m + (at + 4 & 252)) = bpf_htonl((__u32)counter);
	s->at = at;
	bpf_tail_call(skb, &stages, STAGE_SEND);
	return hand_out();
}

SEC("tc/send") int send(struct __sk_buff *skb)
{
	__u32 l2 = LINK_HEADER(skb);
	struct scratch *s = AT(scratch, 0);
	const struct sha256_constants *constants = AT(sha256, 0);
	if (!s || !constants)
		return hand_out();
	__u32 at = s->at;
	const struct neighbour *neighbour = AT(neighbours, s->route.neighbour);
	if (!neighbour || at < LEAST_HEADER - 8 - HMAC_LEN || at > MAX_HEADER - 8 - HMAC_LEN)
		return hand_out();
	__u8 *m = s->message;
	sign(s, constants->k, &neighbour->key, at + 8);
#pragma unroll
	for (int i = 0; i < 4; i++)
		*(__u32 *)(m + (at + 8 + 4 * i & 252)) = s->state[i];
	__u32 length = at + 8 + HMAC_LEN;
	struct report *report = bpf_ringbuf_reserve(&reports, sizeof(*report), 0);
	if (!report)
		return hand_out();
	if (s->replaces)
		drop_flow(&s->twin);
	// Its flows, the one of the answers first, and what the agent must know.
	struct key *session = &s->found.key, *sub = &s->key, *other = &s->other;
	int family = session->family;
	__builtin_memcpy(other, sub, sizeof(*other));
	reverse(other);
	other->direction = FLOW_IN;
	reverse(session);
	make(&s->flow, other, session, s->back);
	reverse(session);
	awaits(&s->flow, s->head.numbers.seq, s->mtu);
	long failed = put_flow(other, &s->flow);
	make(&s->flow, session, sub, TO_WIRE);
	know_service(session);
	failed |= put_flow(session, &s->flow);
	__u64 sum = 0;
	__u32 announced_mss = s->syn.mss;
	failed |= clamp(skb, s->head.tcp, family, s->mtu, &s->syn, &sum);
	if (s->kind == BEGAN)
		s->syn.mss = announced_mss; // as the application's host has it; a box may have changed it
	else
		bpf_map_delete_elem(&in_box, session);
	report->kind = s->kind;
	report->neighbour = s->route.neighbour;
	report->number = s->route.number;
	report->ticket = s->ticket;
	say_syn(report, s->head.numbers.seq, &s->syn);
	report->header_len = length;
	__builtin_memcpy(&report->key, session, sizeof(report->key));
	__builtin_memcpy(report->header, m, sizeof(report->header));
	bpf_ringbuf_submit(report, 0);
	count(SYN_OPENED);
	if (failed)
		return TC_ACT_SHOT;
	__u32 size = s->head.size;
	sum += (__u32)bpf_csum_diff(0, 0, (__be32 *)m, length & 252, 0);
	if (bpf_skb_change_tail(skb, l2 + size + length, 0) ||
	    bpf_skb_store_bytes(skb, l2 + size, m, length, 0) ||
	    redress(skb, l2, &s->head, family, &s->flow, size + length, sum))
		return TC_ACT_SHOT;
	if (!l2 && push_ethernet(skb, 0))
		return TC_ACT_SHOT;
	return leave(skb, &s->fib);
}

// Whether a counter is new under its key (RFC 6479); the lock is held for a few instructions.
static __always_inline int is_new(struct window *window, __u64 counter)
{
	int free = 0, new = 0;
	for (int i = 0; i < 64 && !free; i++)
		free = __sync_val_compare_and_swap(&window->lock, 0, 1) == 0;
	if (!free)
		return 0;
	__u64 top = window->top;
	if (counter + WINDOW > top) {
		__u64 word = counter >> 6, last = top >> 6;
		if (counter > top) {
			__u64 ahead = word - last;
#pragma clang loop unroll(disable)
			for (__u32 i = 1; i <= WINDOW_WORDS; i++) {
				if (i > ahead)
					break;
				window->bits[(last + i) & (WINDOW_WORDS - 1)] = 0;
			}
			window->top = counter;
		}
		__u64 bit = 1ull << (counter & 63);
		__u64 *bits = &window->bits[word & (WINDOW_WORDS - 1)];
		new = !(*bits & bit);
		*bits |= bit;
	}
	*(volatile __u32 *)&window->lock = 0;
	return new;
}

// Whether a neighbour may begin one more chain in this second; what is more, the agent sees to.
static __always_inline int may_begin(struct pace *pace, __u32 rate, __u64 now)
{
	if (now - pace->second_ns >= SECOND_NS) {
		pace->second_ns = now;
		pace->begun = 0;
	}
	return __sync_fetch_and_add(&pace->begun, 1) < rate;
}

static __always_inline __u32 neighbour_at(const __u8 *address, int family)
{
	struct place_key key = { .family = family };
	__builtin_memcpy(key.address, address, 16);
	const __u32 *index = bpf_map_lookup_elem(&peers, &key);
	return index ? *index : NO_SLOT;
}

static __always_inline int differ(const __u8 *one, const __u8 *other)
{
	const __u64 *a = (const __u64 *)one, *b = (const __u64 *)other;
	return a[0] != b[0] || a[1] != b[1];
}

SEC("tc/open_in") int open_in(struct __sk_buff *skb)
{
	__u32 l2 = LINK_HEADER(skb);
	struct openings *open = AT(openings, 0);
	struct scratch *s = AT(scratch, 0);
	if (!open || !s)
		return hand_in();
	struct found *found = &s->found;
	struct head_of *head = &s->head;
	__builtin_memset(found, 0, sizeof(*found));
	if (!parse(skb, l2, found) || !found->plain || look(skb, l2, found, head) ||
	    read_syn(skb, head->tcp, head->header, found->flags, &s->syn))
		return hand_in();
	int family = found->key.family;
	found->key.direction = FLOW_IN;
	__u32 begin = head->tcp + head->header, length = head->size - (begin - l2);
	if (length < LEAST_HEADER || length > MAX_HEADER || length & 3)
		return hand_in();
	__u8 *m = s->message;
	__builtin_memset(m, 0, sizeof(s->message));
	if (bpf_skb_load_bytes(skb, begin, m, length))
		return hand_in();
	__u32 hops = m[25];
	__u32 at = family == 4 ? FIXED_LEN + 2 * 12 + hops * 8 : FIXED_LEN + 2 * 36 + hops * 20;
	if (*(__u32 *)m != bpf_htonl(MAGIC) || m[4] != 1 || m[5] & ~OPEN_ON_FAIL || ((__u32)m[6] << 8 | m[7]) != length ||
	    m[26] != family || m[27] || m[24] >= LONGEST_CHAIN || hops < 1 || hops > MAX_HOPS ||
	    length != at + 8 + HMAC_LEN)
		return hand_in();
	struct key *session = &s->key, *other = &s->other;
	__builtin_memset(session, 0, sizeof(*session));
	__builtin_memset(&s->route, 0, sizeof(s->route));
	if (family == 4) {
		__builtin_memcpy(session->src, m + 28, 4);
		__builtin_memcpy(session->dst, m + 32, 4);
		__builtin_memcpy(&session->sport, m + 36, 4);
#pragma unroll
		for (int i = 0; i < MAX_HOPS; i++) {
			if (i < hops) {
				__builtin_memcpy(s->route.hop[i].address, m + 52 + 8 * i, 4);
				s->route.hop[i].box = *(__be32 *)(m + 56 + 8 * i);
			}
		}
	} else {
		__builtin_memcpy(session->src, m + 28, 32);
		__builtin_memcpy(&session->sport, m + 60, 4);
#pragma unroll
		for (int i = 0; i < MAX_HOPS; i++) {
			if (i < hops) {
				__builtin_memcpy(s->route.hop[i].address, m + 100 + 20 * i, 16);
				s->route.hop[i].box = *(__be32 *)(m + 116 + 20 * i);
			}
		}
	}
	session->family = family;
	session->direction = FLOW_OUT;
	__u32 from = neighbour_at(found->key.src, family), next = 0;
	const struct neighbour *neighbour = AT(neighbours, from);
	if (!neighbour || !neighbour->rate || differ(s->route.hop[0].address, found->key.dst))
		return hand_in();
	if (hops == 1) {
		if (s->route.hop[0].box || !is_own(session->dst, family) || (l2 != 0) != conf.device_has_mac)
			return hand_in();
	} else {
		if (!conf.boxes || (s->route.hop[0].box && s->route.hop[0].box != open->box) ||
		    bpf_map_lookup_elem(&in_box, session) || taken(session, &s->twin) == LIVE)
			return hand_in();
		for (int i = 1; i < MAX_HOPS; i++) {
			__u32 index = i < hops ? neighbour_at(s->route.hop[i].address, family) : 0;
			if (index == NO_SLOT)
				return hand_in();
			if (i == 1)
				next = index;
		}
	}
	__builtin_memcpy(other, session, sizeof(*other));
	reverse(other);
	s->replaces = taken(other, &s->twin);
	if (s->replaces == LIVE)
		return hand_in();
	// What is left of the way, for the SYN that comes out of the box.
	__builtin_memcpy(s->route.chain_id, m + 8, 16);
	s->route.hop_index = m[24] + 1;
	s->route.hops = hops - 1;
	s->route.flags = m[5];
	s->route.neighbour = next;
#pragma unroll
	for (int i = 1; i < MAX_HOPS; i++)
		__builtin_memcpy(&s->route.hop[i - 1], &s->route.hop[i], sizeof(struct hop));
	__builtin_memset(&s->route.hop[MAX_HOPS - 1], 0, sizeof(struct hop));
	s->mtu = smaller(neighbour->mtu, open->mtu);
	s->route.mtu = s->mtu;
	s->neighbour = from;
	s->is_last = hops == 1;
	s->at = at;
	s->tried = 0;
#pragma unroll
	for (int i = 0; i < 4; i++) {
		s->mac[i] = *(__u32 *)(m + (at + 8 + 4 * i & 252));
		*(__u32 *)(m + (at + 8 + 4 * i & 252)) = 0;
	}
	bpf_tail_call(skb, &stages, STAGE_ENTER);
	return hand_in();
}

SEC("tc/enter") int enter(struct __sk_buff *skb)
{
	__u32 l2 = LINK_HEADER(skb);
	struct scratch *s = AT(scratch, 0);
	const struct sha256_constants *constants = AT(sha256, 0);
	if (!s || !constants)
		return hand_in();
	__u32 at = s->at;
	const struct neighbour *neighbour = AT(neighbours, s->neighbour);
	struct pace *pace = AT(paces, s->neighbour);
	if (!neighbour || !pace || at < LEAST_HEADER - 8 - HMAC_LEN || at > MAX_HEADER - 8 - HMAC_LEN)
		return hand_in();
	// Signed with one of the neighbour's keys? One at a time, for it is long to verify.
	__u8 *m = s->message;
	__u64 now = bpf_ktime_get_ns();
	__u16 tried = s->tried++;
	if (tried >= MAX_KEYS)
		return hand_in();
	sign(s, constants->k, &neighbour->accepted[tried].digest, at + 8);
	__u32 differs = now >= neighbour->accepted[tried].until_ns;
#pragma unroll
	for (int i = 0; i < 4; i++)
		differs |= s->state[i] ^ s->mac[i];
	if (differs) {
		bpf_tail_call(skb, &stages, STAGE_ENTER);
		return hand_in();
	}
	__u32 window_index = neighbour->accepted[tried].window;
	struct window *window = AT(windows, window_index);
	if (!window || !may_begin(pace, neighbour->rate, now))
		return hand_in();
	struct report *report = bpf_ringbuf_reserve(&reports, sizeof(*report), 0);
	if (!report)
		return hand_in();
	__u64 counter = (__u64)bpf_ntohl(*(__be32 *)(m + (at & 252))) << 32 | bpf_ntohl(*(__be32 *)(m + (at + 4 & 252)));
	if (!is_new(window, counter)) {
		bpf_ringbuf_discard(report, 0);
		return hand_in();
	}
#pragma unroll
	for (int i = 0; i < 4; i++)
		*(__u32 *)(m + (at + 8 + 4 * i & 252)) = s->mac[i];
	// Its flows on this side, the one of the answers first.
	struct key *session = &s->key, *other = &s->other, *sub = &s->found.key;
	int family = sub->family, is_last = s->is_last;
	__u32 length = at + 8 + HMAC_LEN;
	__u64 sum = 0;
	long failed = 0;
	if (s->replaces)
		drop_flow(&s->twin);
	reverse(sub);
	make(&s->flow, other, sub, TO_WIRE);
	reverse(sub);
	if (!is_last)
		s->flow.tells = CARRIES_FIN; // it is told once, behind the box
	awaits(&s->flow, s->head.numbers.seq, s->mtu);
	know_service(other);
	failed |= put_flow(other, &s->flow);
	make(&s->flow, sub, session, is_last ? TO_STACK : TO_BOX);
	if (!is_last)
		s->flow.tells = CARRIES_FIN;
	failed |= put_flow(sub, &s->flow);
	if (!is_last)
		failed |= bpf_map_update_elem(&in_box, session, &s->route, BPF_ANY);
	report->kind = ARRIVED;
	report->neighbour = s->neighbour;
	report->number = 0;
	report->ticket = 0;
	say_syn(report, s->head.numbers.seq, &s->syn);
	report->header_len = length;
	__builtin_memcpy(&report->key, sub, sizeof(report->key));
	__builtin_memcpy(report->header, m, sizeof(report->header));
	bpf_ringbuf_submit(report, 0);
	if (is_last)
		failed |= clamp(skb, s->head.tcp, family, s->mtu, &s->syn, &sum);
	count(SYN_OPENED);
	if (failed)
		return TC_ACT_SHOT;
	__u32 header = (__u32)bpf_csum_diff((__be32 *)m, length & 252, 0, 0, 0);
	sum += header;
	if (bpf_skb_change_tail(skb, s->head.tcp + s->head.header, 0) ||
	    redress(skb, l2, &s->head, family, &s->flow, s->head.size - length, sum))
		return TC_ACT_SHOT;
	// Where a device gave a sum of the whole packet: the header's bytes have left it, and so has their sum the checksum.
	bpf_csum_update(skb, ~header);
	return is_last ? deliver(skb, l2) : bpf_redirect(conf.session_ifindex, BPF_F_INGRESS);
}

static __always_inline int hand_over(int arrives)
{
	if (arrives)
		return hand_in();
	count(CAPTURED_OUT);
	return bpf_redirect(conf.session_ifindex, 0);
}

// Carry a packet that the agent hears of, if there is news in it.
SEC("tc/carry_on") int carry_on(struct __sk_buff *skb)
{
	__u32 l2 = LINK_HEADER(skb);
	int arrives = skb->cb[1] & 1;
	struct scratch *s = AT(scratch, 0);
	if (!s)
		return TC_ACT_UNSPEC;
	struct flow *flow = flow_of(&s->found.key);
	if (!flow || flow->translates)
		return hand_over(arrives);
	struct report *report = bpf_ringbuf_reserve(&reports, SHORT_REPORT, 0);
	if (!report)
		return hand_over(arrives);
	report->kind = s->kind;
	say_syn(report, s->head.numbers.seq, &s->syn);
	__builtin_memcpy(&report->key, &s->found.key, sizeof(report->key));
	int verdict = move(skb, l2, arrives, s->found.key.family, flow, 0);
	if (verdict == ASK_AGENT || !s->news)
		bpf_ringbuf_discard(report, 0);
	else
		bpf_ringbuf_submit(report, 0);
	if (verdict == ASK_AGENT)
		return hand_over(arrives);
	if (s->kind == ANSWERED)
		flow->tells &= ~ANSWER;
	return verdict;
}

static __always_inline int go_on(struct __sk_buff *skb, struct scratch *s, __u8 kind, int news)
{
	s->kind = kind;
	s->news = news;
	bpf_tail_call(skb, &stages, STAGE_CARRY);
	return hand_over(skb->cb[1] & 1);
}

// What both begin with; the packet's key in scratch.
static __always_inline struct scratch *begin(struct __sk_buff *skb, __u32 l2, int arrives)
{
	struct scratch *s = AT(scratch, 0);
	if (!s)
		return 0;
	__builtin_memset(&s->found, 0, sizeof(s->found));
	if (!parse(skb, l2, &s->found) || !s->found.plain)
		return 0;
	s->found.key.direction = arrives ? FLOW_IN : FLOW_OUT;
	return s;
}

SEC("tc/tell") int tell(struct __sk_buff *skb)
{
	__u32 l2 = LINK_HEADER(skb);
	int arrives = skb->cb[1] & 1;
	struct scratch *s = begin(skb, l2, arrives);
	return s ? go_on(skb, s, ENDED, 1) : TC_ACT_UNSPEC;
}

SEC("tc/answer") int answer(struct __sk_buff *skb)
{
	__u32 l2 = LINK_HEADER(skb);
	int arrives = skb->cb[1] & 1, news = 1;
	struct scratch *s = begin(skb, l2, arrives);
	if (!s)
		return TC_ACT_UNSPEC;
	struct flow *flow = flow_of(&s->found.key);
	struct head_of *head = &s->head;
	__u64 sum = 0;
	// Who acknowledges the chain header is no agent; the agent says what then.
	if (!flow || flow->known & KNOWN_ACK || flow->translates || look(skb, l2, &s->found, head) ||
	    head->numbers.ack != bpf_htonl(flow->top.ack) ||
	    read_syn(skb, head->tcp, head->header, s->found.flags, &s->syn) ||
	    clamp(skb, head->tcp, s->found.key.family, flow->tsval_delta, &s->syn, &sum) ||
	    (sum && bpf_l4_csum_replace(skb, head->tcp + CHECKSUM_AT, 0, fold(sum), 0)))
		return hand_over(arrives);
	__u32 announces = s->syn.mss | s->syn.wscale << 16 | (__u32)s->syn.flags << 24;
	if (flow->action == TO_BOX) {
		// If the box lets it out as it came in, it need not be told again.
		struct key *out = &s->key;
		__builtin_memset(out, 0, sizeof(*out));
		__builtin_memcpy(out->src, flow->src, 32);
		out->sport = flow->sport;
		out->dport = flow->dport;
		out->family = s->found.key.family;
		out->direction = FLOW_OUT;
		struct flow *left = flow_of(out);
		if (left && left->tells & ANSWER && !left->translates) {
			left->seq_delta = head->numbers.seq;
			left->ack_delta = announces;
			left->known |= HALF_LEFT;
		}
	} else if (flow->known & HALF_LEFT) {
		news = flow->seq_delta != head->numbers.seq || flow->ack_delta != announces;
	}
	return go_on(skb, s, ANSWERED, news);
}

// Run by the agent and attached nowhere. The next counter for the neighbour whose number the frame carries, its lower
// half; the upper one stands in the map.
SEC("tc/draw") int draw(struct __sk_buff *skb)
{
	__u32 index;
	if (bpf_skb_load_bytes(skb, ETH_HLEN, &index, 4))
		return 0;
	struct pace *pace = AT(paces, index);
	return pace ? (int)(__sync_fetch_and_add(&pace->counter, 1) + 1) : 0;
}

// Likewise: whether the HMAC-SHA256 of a message under a digest is what is expected, before the programs are relied on.
SEC("tc/prove") int prove(struct __sk_buff *skb)
{
	struct scratch *s = AT(scratch, 0);
	const struct sha256_constants *constants = AT(sha256, 0);
	struct {
		__u32 length;
		__u32 mac[4];
	} asked;
	if (!s || !constants || bpf_skb_load_bytes(skb, ETH_HLEN, &asked, sizeof(asked)) ||
	    bpf_skb_load_bytes(skb, ETH_HLEN + sizeof(asked), s->w, sizeof(struct digest)))
		return 0;
	__u32 length = asked.length;
	__builtin_memset(s->message, 0, sizeof(s->message));
	if (length < 4 || length > MAX_HEADER - HMAC_LEN || length & 3 ||
	    bpf_skb_load_bytes(skb, ETH_HLEN + sizeof(asked) + sizeof(struct digest), s->message, length))
		return 0;
	__builtin_memcpy(&s->proof, s->w, sizeof(struct digest));
	sign(s, constants->k, &s->proof, length);
	return s->state[0] == asked.mac[0] && s->state[1] == asked.mac[1] && s->state[2] == asked.mac[2] &&
	       s->state[3] == asked.mac[3];
}

// Likewise: whether a counter is new in a window.
SEC("tc/accept") int accept(struct __sk_buff *skb)
{
	struct {
		__u32 index, pad;
		__u64 counter;
	} asked;
	if (bpf_skb_load_bytes(skb, ETH_HLEN, &asked, sizeof(asked)))
		return 0;
	struct window *window = AT(windows, asked.index);
	return window ? is_new(window, asked.counter) : 0;
}
