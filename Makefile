# The README's two commands: `make demo` and `make test`. Both set themselves up from a bare clone with Python 3.11 to 3.13.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH := .venv-torch
export UV_PYTHON_DOWNLOADS := never

.PHONY: demo test test-slow test-torch lint types docs wheel clean

demo: $(VENV)/.demo
	$(BIN)/lopt demo

test: $(VENV)/.dev
	$(BIN)/pytest -m "not slow" -n 2 --dist loadgroup

test-slow: $(VENV)/.dev
	$(BIN)/pytest -m "slow and not optimised and not ray" -n 2 --dist loadgroup
	XLA_FLAGS=--xla_cpu_multi_thread_eigen=false $(BIN)/pytest -m optimised -n 2 --dist loadgroup
	$(BIN)/pytest -m ray tests/test_cluster.py

# PyTorch: what is not slow, or with WHICH=slow what is.
test-torch: $(TORCH)/.dev
	$(TORCH)/bin/pytest -m "$(or $(WHICH),not slow)" -n 2 --dist loadgroup tests/test_torch*.py tests/test_examples.py -k "torch or trainer"

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-logo

types: $(VENV)/.dev
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(VENV)/.docs
	$(BIN)/python docs/coverage.py
	PYTHONPATH=docs $(BIN)/zensical build --clean --strict

wheel:
	.ci/wheel

clean:
	rm -rf $(VENV) $(TORCH) .cache site runs

# uv where it is installed, venv and pip where not; pins come from constraints.txt in both.
$(VENV)/.demo: pyproject.toml constraints.txt src/lopt/version.py
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else f"lopt needs Python 3.11 to 3.13, {sys.executable} is {v[0]}.{v[1]}; name another with make PYTHON=...")'
	@test -x $(BIN)/python || uv venv -q --python $(PYTHON) $(VENV) 2>/dev/null || $(PYTHON) -m venv $(VENV)
	@$(call install,.[cli$(comma)data$(comma)plot])
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	@$(call install,.[dev])
	@touch $@

$(VENV)/.docs: $(VENV)/.dev
	@$(call install,.[docs])
	@touch $@

# PyTorch has an environment of its own. pip fills it: uv would take the CUDA build of several gigabytes, as pip does on Linux unless
# PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu is set.
$(TORCH)/.dev: pyproject.toml constraints.txt
	@$(PYTHON) -m venv $(TORCH)
	@$(TORCH)/bin/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev,torch]' torch==2.13.0 lightning accelerate transformers
	@touch $@

comma := ,
install = if uv --version >/dev/null 2>&1; \
	then uv pip install -q --python $(BIN)/python -c constraints.txt -e '$(1)'; \
	else test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV); $(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '$(1)'; fi
