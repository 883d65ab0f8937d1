# The commands of this repository. `make run` and `make test` need nothing but make and a Rust toolchain beforehand:
# they install what else the build needs (Debian and Ubuntu) or say in one line what to install (elsewhere).

# Outside the work tree, so that clones, branches and CI share what is slow to build: the dependencies.
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/voiceassistant
export CARGO_TARGET_DIR ?= $(CACHE)/target
export VA_CORPORA ?= $(CACHE)/corpora

.DEFAULT_GOAL := help
.PHONY: help run test sim chaos lint fmt bench docs release setup corpora

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: setup ## build, start everything in one process with a sample corpus, print the address
	@deploy/dev/run.sh

test: ## run every test, then say what was skipped; ARGS="-p va-catalog" narrows it
	@deploy/dev/test.sh $(ARGS)

sim: setup ## run 50,000 simulated schedules of checkpoints, crashes and rebalances; VA_SIM_SEED=n repeats one
	VA_SIM_SEEDS=$(or $(VA_SIM_SEEDS),50000) cargo test --workspace --locked --lib simulation -- --nocapture

chaos: setup ## kill and cut 220 times under load on three brokers and three workers, judge, and write RELIABILITY.md
	@deploy/dev/setup.sh test
	VA_CHAOS_FAULTS=$(or $(VA_CHAOS_FAULTS),220) VA_CHAOS_REPORT=$(CURDIR)/RELIABILITY.md cargo test --workspace \
		--features va-serving/kafka --locked --test platform chaos -- --nocapture

lint: ## formatting, clippy, dependency rules, words that must not be in the repository
	@deploy/dev/lint.sh

fmt: ## format the code
	cargo fmt --all

bench: setup ## run one benchmark: make bench NAME=... [ARGS=...]
	@deploy/dev/bench.sh $(NAME)

docs: setup ## build the API documentation
	cargo doc --workspace --no-deps

release: setup ## build an optimised `va` with every connector
	@deploy/dev/setup.sh kafka
	cargo build --release --locked --workspace --bins --features va-serving/kafka
	@echo "built $(CARGO_TARGET_DIR)/release/va"

corpora: ## fetch the documents that tests use
	@deploy/dev/fetch-corpora.sh

setup:
	@deploy/dev/setup.sh build
