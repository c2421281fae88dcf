# `make demo` and `make test` do all the set-up themselves. See README.md.
.DEFAULT_GOAL := help
SHELL := /bin/sh
CARGO ?= cargo

.PHONY: help setup build check test test-slow fuzz bench demo demo-low-data golden pickles sqlx clean-demo

help: ## Show the targets.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

setup: ## Fetch libtorch and, where the system has none, Postgres binaries; name what is missing.
	@sh scripts/setup.sh

build: setup ## Build every service and the CLI in release mode.
	$(CARGO) build --release --locked --bins

check: setup ## Formatting, lints, shell syntax.
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	cd fuzz && $(CARGO) fmt --check
	@for script in scripts/*.sh .ci/run; do sh -n $$script || exit 1; done

test: setup ## All tests that fit in CI; real Postgres, real files, real models.
	sh scripts/test.sh

test-slow: setup ## Long tests: kills, outages and failovers by the hundred, kill -9 in every phase of the demo.
	sh scripts/test-slow.sh

fuzz: ## Look for files that break a reader: every target for FUZZ_SECONDS=60, or only FUZZ_TARGET=pickle.
	sh scripts/fuzz.sh

bench: build ## Measurements against named peers.
	sh scripts/bench.sh

demo: build ## Derive a small model from a reference, end to end, on real text (full-data recipe).
	sh scripts/demo.sh deploy/recipes/demo-full-data.toml

demo-low-data: build ## The low-data recipe and the paper's repetition experiment.
	sh scripts/demo.sh deploy/recipes/demo-low-data.toml

golden: ## Make the golden files of crates/lm anew (needs torch, transformers and safetensors for Python).
	python3 scripts/make-golden.py

pickles: ## Make the pickled checkpoints of crates/slicer/tests anew (needs torch, transformers and safetensors for Python).
	python3 scripts/make-pickles.py

sqlx: setup ## Regenerate .sqlx, the offline cache of the checked queries.
	sh scripts/prepare-sqlx.sh

clean-demo: ## Remove what the demo made.
	rm -rf demo report
