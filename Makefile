# Ravelin: build, test, show. Everything works as root on a fresh Debian 12 machine; products are under target/,
# what is slow to make (guest kernel, emulated host, images) is kept by content in ~/.cache/ravelin.
#
#   make demo     a pod in its own microVM, shown step by step
#   make test     unit tests, the agent's tests in a guest, the end-to-end tests (on containerd 1.6 those that depend on it)
#   make test-all the same with every end-to-end test on both containerds, then critest in all its columns: hours
#   make critest  Kubernetes's conformance suite for container runtimes in all columns of docs/conformance.md, which it writes: hours
#   make faults   every fault of tests/faults, which writes its tables in docs/reliability.md: hours
#   make soak     1,000 pods one after the other, some killed (SOAK_PODS=100 for fewer): hours
#   make bench    times beside runc's, in virtual time
#   make shell    a shell in the emulated host (CONTAINERD=1.6 for Debian's containerd)
#   make lint     formatting, clippy, licences and advisories, and Miri where there is a compiler that has it
#   make fuzz     every fuzz target for a minute (FUZZ_SECONDS=3600 for an hour, FUZZ_TARGETS="vmm/ shim/config" for some)

SHELL := /bin/bash
.DEFAULT_GOAL := build
.PHONY: deps kernel build initramfs host images dist e2e-binary test-unit test-agent test-e2e test test-all critest faults soak lint fuzz shell demo bench clean

CONTAINERD ?= 2.3
TESTARGS ?=
CARGO ?= cargo
HOST := tests/host/run
target := $(abspath $(or $(CARGO_TARGET_DIR),target))
static := x86_64-unknown-linux-gnu

# The agent is static, so libseccomp is too.
export LIBSECCOMP_LINK_TYPE := static
export LIBSECCOMP_LIB_PATH := /usr/lib/x86_64-linux-gnu

agent-build = RUSTFLAGS="-C target-feature=+crt-static -C relocation-model=static" \
    $(CARGO) build --release --target $(static) -p ravelin-agent
# So are the machine and the file server: which system calls they make, their filters' tables, must not depend on a node's C library.
vmm-build = RUSTFLAGS="-C target-feature=+crt-static" \
    $(CARGO) build --release --target $(static) -p ravelin-vmm -p ravelin-fs

deps:
	@tests/host/deps

kernel: deps
	@config/kernel/build target/guest/vmlinux

build: deps
	$(CARGO) build --release -p ravelin-shim
	$(vmm-build)
	$(agent-build)

initramfs: build
	@config/kernel/initramfs $(target)/$(static)/release/ravelin-agent target/guest/initramfs.cpio

# The emulated host's disk and the images that are imported in it.
images: deps
	@tests/images/build > /dev/null

host: images
	@tests/host/bake > /dev/null

# What is installed on a node, as a tree.
dist: kernel initramfs
	@tests/host/make-dist $(target) target/dist

e2e-binary: dist
	$(agent-build) --example hostile-agent
	@tests/host/make-e2e target/dist $(target)/$(static)/release/examples/hostile-agent

# The tests of the tests' scripts, and Rust's: the second run when the first fail.
test-unit: deps
	@tests/scripts_test.py && scripts=0 || scripts=1; $(CARGO) test --workspace && exit $$scripts

# The agent alone, in a guest that QEMU boots: CASE=exec chooses cases.
test-agent: kernel
	$(agent-build) --example guest
	@agent/examples/guest/run target/guest/vmlinux $(target)/$(static)/release/examples/guest "$(CASE)"

test-e2e: e2e-binary host
	@tests/host/e2e $(TESTARGS)

test: deps
	@tests/host/test

test-all: deps
	@tests/host/test --whole

critest: dist host
	@tests/critest/all

faults soak: e2e-binary host
	@tests/faults/run $@

lint: deps
	$(CARGO) fmt --all --check
	@for crate in */fuzz/Cargo.toml tests/fuzz/support/Cargo.toml; do $(CARGO) fmt --check --manifest-path $$crate || exit 1; done
	$(CARGO) clippy --workspace --all-targets --all-features -- -D warnings
	@$(CARGO) deny --version > /dev/null 2>&1 || $(CARGO) install --locked cargo-deny
	$(CARGO) deny check bans licenses sources
	@# The advisories are a git repository, which not every machine can reach.
	@if git ls-remote -q https://github.com/RustSec/advisory-db HEAD > /dev/null 2>&1; then $(CARGO) deny check advisories; \
	else echo "advisories not checked: their database cannot be reached"; fi
	@tests/miri/run

fuzz: deps
	@tests/fuzz/run $(FUZZ_TARGETS)

shell: dist host
	@$(HOST) --containerd $(CONTAINERD) --shell

demo: dist host
	@$(HOST) --containerd $(CONTAINERD) -- /src/tests/demo/demo

bench: dist host
	@tests/bench/run --containerd $(CONTAINERD)

clean:
	rm -rf target
