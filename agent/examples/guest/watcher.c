// Watches processes come into its PID namespace and tells what of theirs does not lie in its own root: run as the first process
// of a container that may trace (CAP_SYS_PTRACE). Ends at SIGTERM and prints how many processes it saw before they ran their
// program, and each kind of thing that it found.
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/vfs.h>
#include <unistd.h>

static volatile sig_atomic_t over;
static struct stat own_root, own_program;
static char found[64][256];
static int finds;

static void end(int signal) { (void)signal; over = 1; }

static int same(const struct stat *a, const struct stat *b) { return a->st_dev == b->st_dev && a->st_ino == b->st_ino; }

static void find(const char *what, const char *where) {
	char text[256];
	snprintf(text, sizeof text, "%s: %s", what, where);
	for (int i = 0; i < finds; i++) if (!strcmp(found[i], text)) return;
	if (finds < 64) strcpy(found[finds++], text);
}

// A cgroup's directory is the container's own, read-only, and nothing lies above it.
static int is_own_cgroup(int fd) {
	struct statfs system;
	struct statvfs flags;
	struct stat own, here, above;
	int up = openat(fd, "..", O_PATH);
	int is = !fstatfs(fd, &system) && system.f_type == CGROUP2_SUPER_MAGIC && !fstatvfs(fd, &flags) && (flags.f_flag & ST_RDONLY)
		&& !fstat(fd, &here) && !stat("/sys/fs/cgroup", &own) && same(&here, &own) && !fstat(up, &above) && same(&here, &above);
	close(up);
	return is;
}

static void look_at_descriptors(int pid) {
	char path[64], text[256];
	snprintf(path, sizeof path, "/proc/%d/fd", pid);
	DIR *all = opendir(path);
	if (!all) return;
	int sockets = 0;
	for (struct dirent *entry; (entry = readdir(all));) {
		ssize_t length = readlinkat(dirfd(all), entry->d_name, text, sizeof text - 1);
		if (length < 0) continue;
		text[length] = 0;
		if (!strncmp(text, "socket:", 7) && ++sockets > 1) find("more sockets than one", "fd");
		if (text[0] != '/') continue;
		struct stat theirs, own;
		int fd = openat(dirfd(all), entry->d_name, O_PATH);
		if (fd < 0) continue;
		int fine = !fstat(fd, &theirs) && ((!stat(text, &own) && same(&theirs, &own)) || is_own_cgroup(fd));
		if (!fine) find("fd", text);
		close(fd);
	}
	closedir(all);
}

// What the link leads to, if it can be followed, is the container's root: its processes start there.
static void look_at_directory(int pid, const char *link) {
	char path[64];
	struct stat theirs;
	snprintf(path, sizeof path, "/proc/%d/%s/", pid, link);
	if (!stat(path, &theirs) && !same(&theirs, &own_root)) find(link, "not the container's root");
}

// Says whether the process has yet to run its program.
static int look_at_program(int pid) {
	char path[64], text[256];
	struct stat theirs;
	struct statvfs flags;
	snprintf(path, sizeof path, "/proc/%d/exe", pid);
	ssize_t length = readlink(path, text, sizeof text - 1);
	int fd = open(path, O_PATH);
	if (length < 0 || fd < 0 || fstat(fd, &theirs) || same(&theirs, &own_program)) { close(fd); return 0; }
	text[length] = 0;
	if (fstatvfs(fd, &flags) || !(flags.f_flag & ST_RDONLY)) find("exe, on a file system that can be written", text);
	int written = open(path, O_WRONLY);
	if (written >= 0) find("exe, open for writing", text);
	close(written);
	close(fd);
	return 1;
}

static int is_there(int pid) {
	char path[32];
	snprintf(path, sizeof path, "/proc/%d", pid);
	return !access(path, F_OK);
}

int main(void) {
	int top = 1, early = 0, last_early = 0;
	signal(SIGTERM, end);
	stat("/", &own_root);
	stat("/bin/busybox", &own_program);
	puts("watching");
	fflush(stdout);
	while (!over) {
		for (int pid = top > 4 ? top - 3 : 2; pid <= top + 4; pid++) {
			if (!is_there(pid)) continue;
			look_at_directory(pid, "root");
			look_at_directory(pid, "cwd");
			look_at_descriptors(pid);
			if (look_at_program(pid) && pid > last_early) { last_early = pid; early++; }
			if (pid > top) top = pid;
		}
	}
	printf("early %d\n", early);
	for (int i = 0; i < finds; i++) puts(found[i]);
	return 0;
}
