# Everything runs in .venv, which `make install` makes. PIP_ARGS goes to pip, PYTHON makes the environment.
#
#   make demo
#   make install PYTHON=python3.12
#   make install PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"     # torch without CUDA, 0.2 GB

PYTHON ?= python3
PIP_ARGS ?=
PYTEST_ARGS ?=
BIN := .venv/bin
SOURCES := pipeline flows selftrain.py tests benchmarks

.DEFAULT_GOAL := help
.PHONY: help install install-demo install-dev demo moons team test test-fast test-slow test-team test-gpu gpu lint format bench clean

help:
	@echo "make install      .venv with selftrain in it"
	@echo "make demo         the whole loop on handwritten digits, about 2 minutes"
	@echo "make moons        Meta Pseudo Labels on points in the plane, about 3 minutes"
	@echo "make team         a Prefect server with pools, workers and deployments on this machine, on the digits; Ctrl-C ends it"
	@echo "make test         tests; also test-fast (those without processes), test-slow, test-gpu"
	@echo "make test-team    runs that are stopped and killed on a real Prefect server, worker and PostgreSQL"
	@echo "make gpu          the tests that need a GPU, and what it does in 6 minutes"
	@echo "make lint         formatting, ruff, mypy, spelling; make format fixes what can be fixed"
	@echo "make bench        benchmarks"
	@echo "make clean        remove .venv and caches; data and runs stay"

install: .venv/installed
install-demo: .venv/installed-demo
install-dev: .venv/installed-dev

# One pip call: the constraints decide which torch is downloaded, so no other build of it ever is.
.venv/installed-demo: EXTRA = [demo]
.venv/installed-dev: EXTRA = [dev]
.venv/installed-dev: HOLDS = .venv/installed-demo
.venv/installed .venv/installed-demo .venv/installed-dev: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install $(PIP_ARGS) -c constraints.txt -e ".$(EXTRA)"
	touch .venv/installed $(HOLDS) $@

demo: install-demo
	$(BIN)/python -m pipeline.demos.digits shards/digits
	$(BIN)/selftrain run configs/digits.yaml --run-dir runs/demo

moons: install
	$(BIN)/python -m pipeline.demos.moons.data shards/two_moons
	$(BIN)/python -m pipeline.demos.moons configs/two_moons.yaml --out runs/two_moons

# TEAM is a folder with train.yaml and shards; where it has none it becomes one with the digits. The database is that of
# PREFECT_SERVER_DATABASE_CONNECTION_URL, else SQLite. TEAM_ARGS="--port 4300" takes another port than 4200.
TEAM ?= runs/team
team: install-demo
	mkdir -p $(TEAM)
	test -e $(TEAM)/train.yaml || { $(BIN)/python -m pipeline.demos.digits $(TEAM)/shards && \
		sed 's|root: shards/digits|root: shards|' configs/digits.yaml >$(TEAM)/train.yaml; }
	$(BIN)/python -m flows.team $(TEAM) $(TEAM_ARGS)

# A file stays in one process, so that its fixtures are made once.
test: install-dev
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

test-fast: install-dev
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder -m 'not slow and not gpu and not process' \
		$(PYTEST_ARGS)

test-slow: install-dev
	$(BIN)/python -m pytest -m slow --ignore tests/team --ignore tests/flows/test_team.py $(PYTEST_ARGS)

test-team: install-dev
	$(BIN)/python -m pytest -m slow tests/team tests/flows/test_team.py $(PYTEST_ARGS)

test-gpu: install-dev
	$(BIN)/python -m pytest -m gpu $(PYTEST_ARGS)

# At most 9 minutes together. It installs nothing: where there is no .venv it takes the packages of PYTHON.
GPU_DATA ?= $(or $(SELFTRAIN_DATA),shards)
GPU_OUT ?= $(or $(SELFTRAIN_RESULTS),runs/gpu)
GPU_ARGS ?= --device cuda --minutes 6
gpu: HERE = $(firstword $(wildcard $(BIN)/python) $(PYTHON))
gpu:
	mkdir -p $(GPU_OUT)
	@status=0; \
	timeout 165 $(HERE) -m pytest -v -m gpu --durations=10 -p no:cacheprovider tests/gpu >$(GPU_OUT)/tests.txt 2>&1 || \
		status=$$?; \
	tail -n 60 $(GPU_OUT)/tests.txt; \
	timeout 370 $(HERE) -m benchmarks gpu --data $(GPU_DATA) --out $(GPU_OUT) $(GPU_ARGS) || status=$$?; \
	exit $$status

lint: install-dev
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/codespell $(SOURCES) docs configs shards/README.md README.md CHANGELOG.md Makefile pyproject.toml

format: install-dev
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

bench: install
	for file in benchmarks/bench_*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +
