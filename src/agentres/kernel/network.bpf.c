// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * Counts what one agent sends and receives, and limits the rate in each direction.
 *
 * Both programs are attached to the agent's cgroup (BPF_CGROUP_INET_EGRESS, BPF_CGROUP_INET_INGRESS) and so
 * see every IP packet of every socket that was made in it or below.  A packet's length is its IP length.
 *
 * The Generic Cell Rate Algorithm limits the rate: `next` is when the next byte would be on time.  A packet
 * moves `next` on by the time that the packet takes at that rate; a packet that finds it more than `burst` ahead
 * of now is dropped.  `next` lags behind now by at most LATE: that much a delayed sender may catch up.
 * It is one number, moved by compare-and-exchange, so that no processor waits for another.
 *
 * Out: a packet is stamped with its departure time, and a queueing discipline that honours it (fq) holds it
 * back until then, so that nothing is lost.  Without one, the packet leaves at once and the excess is dropped.
 * In: a received packet cannot be held back, but its acknowledgement can, and TCP sends no faster
 * than it is acknowledged: an acknowledgement leaves when what it acknowledges would have been on time.
 *
 * scripts/bpf compiles this file; a test compiles it again and compares.
 */
#include <linux/bpf.h>

#define SEC(name) __attribute__((section(name), used))
#define inline __attribute__((always_inline)) inline

static __u64 (*const ktime_get_ns)(void) = (void *)BPF_FUNC_ktime_get_ns;
static long (*const skb_load_bytes)(const void *skb, __u32 offset, void *to, __u32 len) =
	(void *)BPF_FUNC_skb_load_bytes;

/* Verdicts (include/linux/bpf-cgroup.h). */
enum { PASS = 1 };
enum { DROP_INGRESS = 0 };
enum { DROP_EGRESS = 2 };	/* the sender sees a lost packet; with 0 it would see EPERM */

#define NSEC_PER_SEC 1000000000ULL
#define LOOPBACK_IFINDEX 1	/* in every network namespace */
#define LATE 20000000ULL	/* ns; TCP has a millisecond's packets queued, and sends when it hears of the last */
#define SMALL 128		/* bytes: acknowledgements, handshakes and names have twice the headroom */
#define RACES 8			/* lost to other processors, before a packet is counted without a verdict */

/* One direction.  agentres.kernel.network reads and writes it through a mapping: keep the two alike. */
struct direction {
	__u64 rate;		/* bytes a second; 0: only counted */
	__u64 burst;		/* ns that `next` may be ahead */
	__u64 next;		/* ns, CLOCK_MONOTONIC */
	__u64 limit_loopback;
	__u64 bytes, packets;
	__u64 dropped_bytes, dropped_packets;
	__u64 loopback_bytes, loopback_packets;
	__u64 delayed_bytes, delayed_packets;	/* of `bytes` and `packets`, what came ahead of the rate */
	__u64 unused[4];
};

struct {
	volatile struct direction egress, ingress;
} network SEC(".data");

static inline int count(volatile __u64 *bytes, volatile __u64 *packets, __u64 len, int verdict)
{
	__sync_fetch_and_add(bytes, len);
	__sync_fetch_and_add(packets, 1);
	return verdict;
}

/* Return when the packet is on time, in ns: `now` or later.  0: it comes too early and must be dropped. */
static inline __u64 departure(volatile struct direction *way, __u64 rate, __u64 len, __u64 now)
{
	__u64 cost = len * NSEC_PER_SEC / rate;
	__u64 burst = way->burst;

	if (len <= SMALL)
		burst *= 2;
	for (int race = 0; race < RACES; race++) {
		__u64 next = way->next;
		__u64 at = next > now - LATE ? next : now - LATE;

		if (at > now + burst)
			return 0;
		if (__sync_val_compare_and_swap(&way->next, next, at + cost) == next)
			return at > now ? at : now;
	}
	__sync_fetch_and_add(&way->next, cost);
	return now;
}

/* Whether the packet is a TCP segment with nothing but an acknowledgement. */
static inline int acknowledges(struct __sk_buff *skb)
{
	__u8 ip[40], tcp[14];
	__u32 header, total;

	if (skb->len > SMALL || skb_load_bytes(skb, 0, ip, 20))
		return 0;
	switch (ip[0] >> 4) {
	case 4:
		if (ip[9] != 6)
			return 0;
		header = (ip[0] & 15) * 4;
		total = ip[2] << 8 | ip[3];
		break;
	case 6:
		if (ip[6] != 6)	/* with extension headers it is no longer small talk */
			return 0;
		header = 40;
		total = 40 + (ip[4] << 8 | ip[5]);
		break;
	default:
		return 0;
	}
	if (skb_load_bytes(skb, header, tcp, sizeof(tcp)))
		return 0;
	/* FIN, SYN, RST, PSH, URG are 0, ACK is 1, and nothing follows the headers. */
	return (tcp[13] & 0x3f) == 0x10 && header + (tcp[12] >> 4) * 4 == total;
}

SEC("cgroup_skb/egress")
int egress(struct __sk_buff *skb)
{
	volatile struct direction *way = &network.egress;
	__u64 len = skb->len, rate = way->rate, now, at;

	if (skb->ifindex == LOOPBACK_IFINDEX && !way->limit_loopback)
		return count(&way->loopback_bytes, &way->loopback_packets, len, PASS);
	now = ktime_get_ns();
	at = now;
	if (rate) {
		at = departure(way, rate, len, now);
		if (!at)
			return count(&way->dropped_bytes, &way->dropped_packets, len, DROP_EGRESS);
		if (at > now)
			count(&way->delayed_bytes, &way->delayed_packets, len, PASS);
	}
	if (network.ingress.rate && network.ingress.next > at && acknowledges(skb))
		at = network.ingress.next;
	if (at > now && at > skb->tstamp)	/* TCP itself may want it to leave later */
		skb->tstamp = at;
	return count(&way->bytes, &way->packets, len, PASS);
}

SEC("cgroup_skb/ingress")
int ingress(struct __sk_buff *skb)
{
	volatile struct direction *way = &network.ingress;
	__u64 len = skb->len, rate = way->rate, now, at;

	if (skb->ifindex == LOOPBACK_IFINDEX && !way->limit_loopback)
		return count(&way->loopback_bytes, &way->loopback_packets, len, PASS);
	if (rate) {
		now = ktime_get_ns();
		at = departure(way, rate, len, now);
		if (!at)
			return count(&way->dropped_bytes, &way->dropped_packets, len, DROP_INGRESS);
		if (at > now)
			count(&way->delayed_bytes, &way->delayed_packets, len, PASS);
	}
	return count(&way->bytes, &way->packets, len, PASS);
}

char gpl[] SEC("license") = "GPL";	/* the helpers and the departure time need it */
