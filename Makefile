# Wardround: two commands do everything on a machine with Python 3.11 and make.
#   make demo   watch a federation of three hospitals on this machine
#   make test   all tests
PYTHON ?= python3.11
PIP := 26.3
SETUPTOOLS := 84.2.1
BIN := .venv/bin
STAMP := .venv/.installed
# files side by side, in their order; half of what the slow ones do is wait for each other's processes
WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: demo test check bench docs install lock clean servers

$(STAMP): pyproject.toml infra/requirements.lock
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	# the pip that comes with Python 3.11 takes two minutes more to look at the same index
	$(BIN)/pip install --quiet --upgrade pip==$(PIP) setuptools==$(SETUPTOOLS)
	# the lock is complete and is not resolved again: a resolver would fetch gigabytes of CUDA packages for torch
	$(BIN)/pip install --quiet --no-deps --no-compile -r infra/requirements.lock
	# byte code here, on all cores, instead of on one by pip
	$(BIN)/python -m compileall -q -j 0 -x '/tests?/' .venv/lib > .venv/compile.log 2>&1 || true
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
	$(PYTEST) $(ARGS)

check: $(STAMP) servers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(PYTEST) --cov --cov-report=term-missing:skip-covered --cov-fail-under=100 $(ARGS)

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
