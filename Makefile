# Every command of the day, a line each. None of them needs root, Docker or a cluster.
CARGO ?= cargo
# Built with the whole workspace: alone, a package's dependencies have other features and are compiled once more.
PROGRAMS = $(CARGO) build --locked --workspace --bins
TARGET = $(shell $(CARGO) metadata --locked --no-deps --format-version 1 | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')

.PHONY: help demo bench-failover bench-links test lint soak soak-namespaces fuzz doctor fmt
help: ## say what there is
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*## /\t/' | expand -t 16

demo: ## three clusters on this machine, joined; HOLD=1 keeps them up
	$(PROGRAMS)
	"$(TARGET)/debug/demo" $(if $(HOLD),--hold)

bench-failover: ## gateways, agents and whole clusters lost in every way, 20 times each, as a table (40 minutes); RUNS=3 is quicker, ONLY="cluster" picks
	$(PROGRAMS)
	"$(TARGET)/debug/bench-failover" $(if $(RUNS),--runs $(RUNS)) $(if $(ONLY),--only "$(ONLY)")

bench-links: ## how many links a gateway keeps its promise for, and what they cost; LINKS=100,400 RUNS=5
	$(CARGO) build --locked --workspace --example many_peers
	"$(TARGET)/debug/examples/many_peers" $(if $(LINKS),--links $(LINKS)) $(if $(RUNS),--runs $(RUNS))

test: ## every test; says what this machine lacks first
	$(PROGRAMS)
	"$(TARGET)/debug/doctor" --for-tests
	$(CARGO) test --locked --workspace

lint: ## formatting, clippy, documents, licences
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --no-deps --quiet
	$(CARGO) test --locked --quiet -p house

# One seed again: SECONDS=1 FIRST=1234; STORY=1 tells everything that went before.
soak: ## made-up stories of whole clusters until one goes wrong: SECONDS=600 simulated, then as long with real packets
	$(PROGRAMS)
	"$(TARGET)/debug/soak"
	"$(TARGET)/debug/soak-namespaces"

soak-namespaces: ## the second half alone; SECONDS=60 FIRST=1000 CONNECTIONS=1000 DATAGRAMS=10000 QUERIES=200 (a second)
	$(PROGRAMS)
	"$(TARGET)/debug/soak-namespaces"

# Needs a C++ compiler besides Rust, for libFuzzer; no nightly Rust and no cargo-fuzz. TARGETS="packet dns_message" picks some.
fuzz: ## any bytes to every decoder; SECONDS_EACH=30 a target
	$(CARGO) run --locked --quiet -p house --bin fuzz -- $(TARGETS)

doctor: ## what this machine allows
	$(PROGRAMS)
	"$(TARGET)/debug/doctor"

fmt: ## format everything
	$(CARGO) fmt --all
