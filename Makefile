# `make demo` and `make test` do all the set-up themselves. See README.md.
.DEFAULT_GOAL := help
SHELL := /bin/sh
CARGO ?= cargo
# docker-compose 1.29 where docker has no plugin for it.
COMPOSE ?= $(shell docker compose version >/dev/null 2>&1 && echo docker compose || echo docker-compose)

.PHONY: help setup build build-demo check test test-slow test-cluster cluster-up cluster-down docs fuzz bench sbom install uninstall demo demo-low-data golden pickles sqlx clean-demo

help: ## Show the targets.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

setup: ## Fetch libtorch and, where the system has none, Postgres binaries; name what is missing.
	@sh scripts/setup/setup.sh

build: setup ## Build every service and the CLI in release mode.
	$(CARGO) build --release --locked --bins

check: setup ## Formatting, lints, licenses and sources of dependencies, spelling, links, shell syntax, a few seconds of every fuzz target.
	$(CARGO) fmt --all --check
	cd fuzz && $(CARGO) fmt --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	CARGO="$(CARGO)" sh scripts/check/check-dependencies.sh
	sh scripts/check/check-prose.sh
	@for script in scripts/*/*.sh deploy/*/*.sh .ci/run; do bash -n $$script || exit 1; done
	FUZZ_SECONDS=$${FUZZ_SECONDS:-5} sh scripts/check/fuzz.sh

test: setup ## All tests that fit in CI; real Postgres, real files, real models.
	sh scripts/test/test.sh

test-slow: setup ## Long tests: kills, outages and failovers by the hundred, kill -9 in every phase of the demo.
	sh scripts/test/test-slow.sh

test-cluster: setup ## The cluster of docker-compose.yml, end to end, on this machine's docker; needs no registry.
	CARGO="$(CARGO)" sh scripts/cluster/test-cluster.sh

cluster-up: ## Start the cluster of docker-compose.yml; makes its secrets and images where there are none.
	@test -s .env || sh deploy/compose/init.sh
	$(COMPOSE) up -d

cluster-down: ## Stop it; its data stay in volumes.
	$(COMPOSE) down

fuzz: ## Look for files that break a reader: every target for FUZZ_SECONDS=60, or only FUZZ_TARGET=pickle.
	sh scripts/check/fuzz.sh

docs: setup ## Build the documentation as a book, target/book, and that of the crates, target/doc.
	sh scripts/docs/book.sh

sbom: ## Say what the programs are made of: sbom.cdx.json, CycloneDX 1.5, from Cargo.lock and scripts/setup/requirements.
	python3 scripts/check/sbom.py sbom.cdx.json

bench: build ## Measurements against named peers.
	sh scripts/bench/bench.sh

# For one user where that is not root, else for all.
PREFIX ?= $(if $(filter 0,$(shell id -u)),/usr/local,$(HOME)/.local)

install: setup ## Install the client and the server into PREFIX (~/.local; as root /usr/local); SERVICES=1: the four services too.
	$(CARGO) build --release --locked --bin inheritune --bin inheritune-standalone $(if $(SERVICES),--bins)
	sh scripts/setup/install.sh "$(PREFIX)"

uninstall: ## Remove what `make install` put into PREFIX.
	sh scripts/setup/install.sh --uninstall "$(PREFIX)"

build-demo: setup ## Build the two programs of the demo: the client and the server with every service in it.
	$(CARGO) build --release --locked --bin inheritune --bin inheritune-standalone

demo: build-demo ## Derive a small model from a reference, end to end, on real text (full-data recipe).
	sh scripts/demo/demo.sh deploy/recipes/demo-full-data.toml

demo-low-data: build-demo ## The low-data recipe and the paper's repetition experiment.
	sh scripts/demo/demo.sh deploy/recipes/demo-low-data.toml

golden: ## Make the golden files of crates/lm anew (needs torch, transformers and safetensors for Python).
	python3 scripts/golden/make-golden.py

pickles: ## Make the pickled checkpoints of crates/slicer/tests anew (needs torch, transformers and safetensors for Python).
	python3 scripts/golden/make-pickles.py

sqlx: setup ## Regenerate .sqlx, the offline cache of the checked queries.
	sh scripts/check/prepare-sqlx.sh

clean-demo: ## Remove what the demo made.
	rm -rf demo report
