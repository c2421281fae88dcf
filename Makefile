# `make demo` and `make test` set up everything themselves. See README.md.
.DEFAULT_GOAL := help
SHELL := /bin/sh
CARGO ?= cargo
# docker-compose 1.29 if docker has no compose plugin.
COMPOSE ?= $(shell docker compose version >/dev/null 2>&1 && echo docker compose || echo docker-compose)

.PHONY: help setup build build-demo check test test-slow test-cluster cluster-up cluster-down docs release-check fuzz bench sbom install uninstall demo demo-low-data golden pickles sqlx clean-demo

help: ## Show the targets.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

setup: ## Fetch libtorch and, if the system has none, Postgres binaries; name missing packages.
	@sh scripts/setup/setup.sh

build: setup ## Build every service and the CLI in release mode.
	$(CARGO) build --release --locked --bins

check: setup ## Check formatting, lints, dependencies' licenses and sources, spelling, links, shell syntax, and every fuzz target for a few seconds.
	$(CARGO) fmt --all --check
	cd fuzz && $(CARGO) fmt --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	CARGO="$(CARGO)" sh scripts/check/check-dependencies.sh
	sh scripts/check/check-prose.sh
	@for script in scripts/*/*.sh deploy/*/*.sh .ci/run; do bash -n $$script || exit 1; done
	FUZZ_SECONDS=$${FUZZ_SECONDS:-5} sh scripts/check/fuzz.sh

test: setup ## Run all tests that fit in CI; real Postgres, real files, real models.
	sh scripts/test/test.sh

test-slow: setup ## Run the long tests: hundreds of kills, outages and failovers, kill -9 in every phase of the demo.
	sh scripts/test/test-slow.sh

test-cluster: setup ## Test the cluster of docker-compose.yml end to end, on this machine's docker; needs no registry.
	CARGO="$(CARGO)" sh scripts/cluster/test-cluster.sh

cluster-up: ## Start the cluster of docker-compose.yml; creates missing secrets and images.
	@test -s .env || sh deploy/compose/init.sh
	$(COMPOSE) up -d

cluster-down: ## Stop the cluster; its data stays in volumes.
	$(COMPOSE) down

fuzz: ## Run every fuzz target for FUZZ_SECONDS=60, or only FUZZ_TARGET=pickle.
	sh scripts/check/fuzz.sh

docs: setup ## Build the documentation as a book (target/book) and the crates' API documentation (target/doc).
	sh scripts/docs/book.sh

release-check: ## Check that this commit can become a release: versions, changelog, migrations, bill of materials.
	sh scripts/check/release.sh

sbom: ## Write a bill of materials, sbom.cdx.json (CycloneDX 1.5), from Cargo.lock and scripts/setup/requirements.
	python3 scripts/check/sbom.py sbom.cdx.json

bench: build ## Measure speed and memory against named peers.
	sh scripts/bench/bench.sh

# For all users as root, otherwise only for the current one.
PREFIX ?= $(if $(filter 0,$(shell id -u)),/usr/local,$(HOME)/.local)

install: setup ## Install the client and the server into PREFIX (~/.local; as root /usr/local); SERVICES=1 adds the four services.
	$(CARGO) build --release --locked --bin inheritune --bin inheritune-standalone $(if $(SERVICES),--bins)
	sh scripts/setup/install.sh "$(PREFIX)"

uninstall: ## Remove what `make install` put into PREFIX.
	sh scripts/setup/install.sh --uninstall "$(PREFIX)"

build-demo: setup ## Build the demo's two programs: the client and the standalone server.
	$(CARGO) build --release --locked --bin inheritune --bin inheritune-standalone

demo: build-demo ## Derive a small model from a reference, end to end, on real text (full-data recipe).
	sh scripts/demo/demo.sh deploy/recipes/demo-full-data.toml

demo-low-data: build-demo ## Run the low-data recipe and the paper's repetition experiment.
	sh scripts/demo/demo.sh deploy/recipes/demo-low-data.toml

golden: ## Regenerate the golden files of crates/lm (needs torch, transformers and safetensors for Python).
	python3 scripts/golden/make-golden.py

pickles: ## Regenerate the pickled checkpoints of crates/slicer/tests (needs torch, transformers and safetensors for Python).
	python3 scripts/golden/make-pickles.py

sqlx: setup ## Regenerate .sqlx, the offline cache of the checked queries.
	sh scripts/check/prepare-sqlx.sh

clean-demo: ## Remove the demo's files and report.
	rm -rf demo report
