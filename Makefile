# The same commands for people and for CI. A fresh machine needs Python 3.11 or newer, git and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ARGS ?=

.PHONY: install demo test test-slow test-pgoutput lint lint-rules lint-format lint-types lint-layers bench bench-quick bench-dlt lock format clean
.DEFAULT_GOAL := install

install: $(STAMP)

# The stamp is newer than the lock file after a complete installation only, so a broken one is repeated.
$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; run: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(STAMP)
	$(BIN)/rosetta demo $(ARGS)

test: $(STAMP)
	$(BIN)/python -m pytest -m "not slow" $(ARGS)

# The long ones: thirty kills under load with an update of a million rows, the demo as a person calls it.
test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow $(ARGS)

# One target a tool, so that `make --keep-going lint` shows every finding at once.
lint: lint-rules lint-format lint-types lint-layers

lint-rules: $(STAMP)
	$(BIN)/ruff check .

lint-format: $(STAMP)
	$(BIN)/ruff format --check .

lint-types: $(STAMP)
	$(BIN)/mypy

lint-layers: $(STAMP)
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)
	$(BIN)/python -m bench $(ARGS)

bench-quick: $(STAMP)
	$(BIN)/python -m bench --quick $(ARGS)

# A peer of the benchmark, in an environment of its own.
bench-dlt:
	@test -x .venv-dlt/bin/python || $(PYTHON) -m venv .venv-dlt
	.venv-dlt/bin/python -m pip install --quiet --disable-pip-version-check "dlt[postgres,sql_database]==1.31.0" "sqlalchemy>=2,<2.1" pyarrow psycopg2-binary

# Every test of a pipeline, the long ones too, with the engine pgoutput.
test-pgoutput: $(STAMP)
	ROSETTA_TEST_ENGINE=pgoutput $(BIN)/python -m pytest -m "slow or not slow" tests/integration/pipeline tests/faults \
	  tests/integration/capture/test_pgoutput_stream.py tests/integration/capture/test_pgoutput_transactions.py $(ARGS)

# Hashes of the package index; nothing of this machine's pip settings may leak into the lock file.
lock: $(STAMP)
	env -u PIP_FIND_LINKS -u UV_FIND_LINKS -u PIP_EXTRA_INDEX_URL -u UV_EXTRA_INDEX_URL \
	  $(BIN)/uv pip compile --no-config --universal --python-version 3.11 --extra dev --generate-hashes --no-strip-extras \
	  --custom-compile-command 'make lock' --quiet --output-file requirements.lock pyproject.toml

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
