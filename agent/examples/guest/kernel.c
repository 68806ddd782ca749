// What a container finds in the guest's kernel, asked by a program in it. Prints one line a question.
//
//   kernel sockets    sockets of the families and protocols that programs ask for
//   kernel links      makes network interfaces of every kind, and removes them (CAP_NET_ADMIN)
//   kernel calls32    the calls of a 32-bit program that the kernel says it does not have
//   kernel lift       takes the device rules off the cgroup that it sees (CAP_SYS_ADMIN)
//   kernel files32    whether a 32-bit program can ask about files of every layer, and whether their numbers differ
//
// A 64-bit program reaches the 32-bit calls through interrupt 0x80.
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/if_link.h>
#include <linux/if_tunnel.h>
#include <linux/rtnetlink.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

static void said(const char *name, long result) {
	printf("%s: %s\n", name, result < 0 ? strerror(errno) : "ok");
}

static void lift(void) {
	int cgroup = open("/sys/fs/cgroup", O_RDONLY);
	__u32 ids[16] = { 0 };
	union bpf_attr query = { .query = { .target_fd = cgroup, .attach_type = BPF_CGROUP_DEVICE, .prog_ids = (__u64)ids, .prog_cnt = 16 } };
	said("query", syscall(SYS_bpf, BPF_PROG_QUERY, &query, sizeof query));
	for (__u32 i = 0; i < query.query.prog_cnt && i < 16; i++) {
		union bpf_attr by_id = { .prog_id = ids[i] };
		int program = syscall(SYS_bpf, BPF_PROG_GET_FD_BY_ID, &by_id, sizeof by_id);
		union bpf_attr detach = { .target_fd = cgroup, .attach_bpf_fd = program, .attach_type = BPF_CGROUP_DEVICE };
		said("lift", syscall(SYS_bpf, BPF_PROG_DETACH, &detach, sizeof detach));
	}
}

static void sockets(void) {
	said("sctp", socket(AF_INET, SOCK_STREAM, 132));
	said("sctp6", socket(AF_INET6, SOCK_SEQPACKET, 132));
	said("mptcp", socket(AF_INET, SOCK_STREAM, 262));
	said("mptcp6", socket(AF_INET6, SOCK_STREAM, 262));
	said("xdp", socket(44, SOCK_RAW, 0));
	int tcp = socket(AF_INET, SOCK_STREAM, 0);
	struct tcp_md5sig signature = { .tcpm_keylen = 4, .tcpm_key = "key" };
	((struct sockaddr_in *)&signature.tcpm_addr)->sin_family = AF_INET;
	((struct sockaddr_in *)&signature.tcpm_addr)->sin_addr.s_addr = inet_addr("10.0.0.1");
	said("md5", setsockopt(tcp, IPPROTO_TCP, TCP_MD5SIG, &signature, sizeof signature));
	said("alg", socket(AF_ALG, SOCK_SEQPACKET, 0));
	int mode = -1;
	said("mempolicy", syscall(SYS_get_mempolicy, &mode, NULL, 0, NULL, 0));
}

static struct {
	struct nlmsghdr header;
	struct ifinfomsg link;
	char attributes[512];
} request;

static struct rtattr *attribute(int type, const void *data, int length) {
	struct rtattr *new = (void *)((char *)&request + NLMSG_ALIGN(request.header.nlmsg_len));
	new->rta_type = type;
	new->rta_len = RTA_LENGTH(length);
	memcpy(RTA_DATA(new), data, length);
	request.header.nlmsg_len = NLMSG_ALIGN(request.header.nlmsg_len) + RTA_ALIGN(new->rta_len);
	return new;
}

static void end(struct rtattr *nest) {
	nest->rta_len = (char *)&request + request.header.nlmsg_len - (char *)nest;
}

// Makes the interface and takes it away again; `number` and `address` are attributes of its kind, 0 for none.
static void link_of(const char *kind, int number, unsigned value, int address) {
	int route = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
	memset(&request, 0, sizeof request);
	request.header = (struct nlmsghdr){ NLMSG_LENGTH(sizeof request.link), RTM_NEWLINK,
		NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL };
	attribute(IFLA_IFNAME, "tried0", 7);
	struct rtattr *info = attribute(IFLA_LINKINFO, "", 0);
	attribute(IFLA_INFO_KIND, kind, strlen(kind) + 1);
	struct rtattr *data = attribute(IFLA_INFO_DATA, "", 0);
	unsigned remote = inet_addr("192.0.2.1");
	if (number) attribute(number, &value, 4);
	if (address) attribute(address, &remote, 4);
	end(data);
	end(info);
	struct { struct nlmsghdr header; struct nlmsgerr error; char rest[512]; } answer;
	send(route, &request, request.header.nlmsg_len, 0);
	recv(route, &answer, sizeof answer, 0);
	errno = -answer.error.error;
	said(kind, answer.error.error);
	memset(&request, 0, sizeof request);
	request.header = (struct nlmsghdr){ NLMSG_LENGTH(sizeof request.link), RTM_DELLINK, NLM_F_REQUEST | NLM_F_ACK };
	attribute(IFLA_IFNAME, "tried0", 7);
	send(route, &request, request.header.nlmsg_len, 0);
	recv(route, &answer, sizeof answer, 0);
	close(route);
}

static void links(void) {
	link_of("dummy", 0, 0, 0);
	link_of("bridge", 0, 0, 0);
	link_of("wireguard", 0, 0, 0);
	link_of("vxlan", IFLA_VXLAN_ID, 7, IFLA_VXLAN_GROUP);
	link_of("geneve", IFLA_GENEVE_ID, 7, IFLA_GENEVE_REMOTE);
	link_of("ipip", 0, 0, IFLA_IPTUN_REMOTE);
	link_of("xfrm", IFLA_XFRM_IF_ID, 7, 0);
}

// Pointers have to be below 4 GiB, as those to static variables of a static program are.
static long call32(int number, long first, long second, long third) {
	long result;
	register long ebx __asm__("r8") = first;
	__asm__ volatile("push %%rbx\n push %%rbp\n mov %%r8, %%rbx\n xor %%ebp, %%ebp\n int $0x80\n pop %%rbp\n pop %%rbx"
		: "=a"(result) : "a"(number), "r"(ebx), "c"(second), "d"(third), "S"(0), "D"(0) : "r9", "r10", "r11", "memory");
	return (int)result;
}

static const struct { const char *name; int number; } table[] = {
#define CALL(name, number) { #name, number },
#include "calls32.h"
};

static void calls32(void) {
	for (unsigned i = 0; i < sizeof table / sizeof *table; i++) {
		fflush(stdout);
		int child = fork();
		if (child == 0) {
			// Calls that wait end by the signal, and those that end the process by themselves: they exist.
			setitimer(ITIMER_REAL, &(struct itimerval){ .it_value.tv_usec = 300000 }, NULL);
			_exit(call32(table[i].number, 0, 0, 0) == -ENOSYS ? 77 : 0);
		}
		int status = 0;
		while (waitpid(child, &status, 0) < 0 && errno == EINTR) {}
		if (WIFEXITED(status) && WEXITSTATUS(status) == 77) printf("%s\n", table[i].name);
	}
}

// stat (106) and getdents (141) are the calls that have room for 32 bits of a file's number only.
static void files32(void) {
	static char path[64], buffer[8192];
	static const char *paths[] = { "/", "/bin", "/bin/busybox", "/etc", "/etc/top", "/tmp/made", "/tmp/linked" };
	enum { many = sizeof paths / sizeof *paths };
	unsigned numbers[many];
	close(creat("/tmp/made", 0644));
	if (link("/bin/busybox", "/tmp/linked") < 0) perror("link");
	for (int i = 0; i < many; i++) {
		strcpy(path, paths[i]);
		long result = call32(106, (long)path, (long)buffer, 0);
		memcpy(&numbers[i], buffer + 4, sizeof numbers[i]);
		struct stat whole;
		if (result < 0) printf("stat %s: %s\n", path, strerror(-result));
		else if (stat(path, &whole) < 0 || whole.st_ino != numbers[i]) printf("stat %s: %u, not %lu\n", path, numbers[i], whole.st_ino);
		for (int j = 0; j < i; j++) {
			int same = i == many - 1 && j == 2;
			if ((numbers[i] == numbers[j]) != same) printf("%s and %s: %u and %u\n", paths[i], paths[j], numbers[i], numbers[j]);
		}
	}
	for (int i = 0; i < 2; i++) {
		int directory = open(paths[i], O_RDONLY | O_DIRECTORY);
		long result;
		while ((result = call32(141, directory, (long)buffer, sizeof buffer)) > 0) {}
		if (result < 0) printf("getdents %s: %s\n", paths[i], strerror(-result));
	}
	puts("asked");
}

int main(int count, char **words) {
	const char *what = count > 1 ? words[1] : "";
	if (!strcmp(what, "lift")) lift();
	else if (!strcmp(what, "sockets")) sockets();
	else if (!strcmp(what, "links")) links();
	else if (!strcmp(what, "calls32")) calls32();
	else if (!strcmp(what, "files32")) files32();
	else return 2;
	return 0;
}
