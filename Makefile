# Wardround: two commands do everything on a machine with Python 3.11 and make.
#   make demo   watch a federation of three hospitals on this machine
#   make test   all tests
PYTHON ?= python3.11
TORCH := $(shell sed -n 's/^torch==//p' infra/requirements.lock)
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: demo test check bench docs install lock clean servers

$(STAMP): pyproject.toml infra/requirements.lock
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	# torch first and pinned: a later resolver would fetch gigabytes of CUDA packages on a CPU machine
	$(BIN)/pip install --quiet torch==$(TORCH)
	# the lock is complete, so there is nothing to resolve: minutes less with the pip that comes with Python 3.11
	$(BIN)/pip install --quiet --no-deps -r infra/requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

install: $(STAMP)

# make demo ARGS="--rounds 3 --keep-running"
demo: $(STAMP)
	rm -rf workdir
	$(BIN)/wardround demo --workdir workdir --rounds 5 $(ARGS)

# servers that tests need: PostgreSQL from the distribution, where we may install it
servers:
	sh infra/install-test-servers.sh

test: $(STAMP) servers
	$(BIN)/python -m pytest $(ARGS)

check: $(STAMP) servers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest --cov --cov-report=term-missing:skip-covered --cov-fail-under=100 $(ARGS)

# make bench ONLY=round-25mb JSON=out.json
bench: $(STAMP)
	$(BIN)/python -m infra.bench $(if $(ONLY),--only $(ONLY)) $(if $(JSON),--json $(JSON))

# regenerate what is generated; CI fails when that changes anything
docs: $(STAMP)
	$(BIN)/python -m flows.relay.openapi > docs/openapi.json

lock: $(STAMP)
	$(BIN)/pip freeze --exclude-editable | sed 's/+cpu//' | grep -v -i '^setuptools=' > infra/requirements.lock

clean:
	rm -rf workdir .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
