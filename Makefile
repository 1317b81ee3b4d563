# `make` lists what there is to do.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
export PATH := $(CURDIR)/.venv/bin:$(PATH)
# Python without bytecode imports TensorFlow in 11 s instead of 5.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 24

.PHONY: run
run: .venv/installed ## Run the study with the settings in params.yaml, and print its results
	dropout-study check
	dvc repro
	@echo
	@dropout-study results

.PHONY: figures
figures: .venv/installed ## Draw the pictures again, the README's among them, from the results that are there
	dvc repro --single-item --force plot

.PHONY: results-page
results-page: .venv/installed ## Write docs/results.md, and the README's results, from results/
	python -m dropout_study.published.page

.PHONY: test
test: .venv/installed-test ## Run the test suite, on all cores
	pytest -n auto --dist worksteal

.PHONY: test-slow
test-slow: .venv/installed-test ## Run the slow tests: every command of the documents, sweeps on clusters
	pytest -n auto --dist worksteal -m "slow and not stress and not full_size"

.PHONY: test-all
test-all: test test-slow ## Run the test suite and the slow tests

.PHONY: test-fast
test-fast: .venv/installed-test ## Run the tests that need nothing big, in a minute or two
	pytest -n auto --dist worksteal -m "not pipeline and not slow and not stress and not full_size"

.PHONY: stress
stress: .venv/installed-test ## Kill, cut off and fill up what the study runs on, for an hour; needs an SSH server and root
	@command -v sshd /usr/sbin/sshd > /dev/null || apt-get install --quiet=2 --no-install-recommends openssh-server
	pytest -m stress

.PHONY: bench
bench: .venv/installed ## Compare the speed of training with stock Keras and PyTorch; JSON=FILE writes the result, too
	python -m benchmarks.training $(if $(JSON),--json $(JSON))

.PHONY: lint
lint: .venv/installed-test ## Check style, format and types
	ruff check .
	ruff format --check .
	mypy

.PHONY: format
format: .venv/installed-test ## Put the code into its standard form
	ruff check --fix .
	ruff format .

.PHONY: requirements
requirements: .venv/installed-test ## Compile the pinned requirements*.txt from pyproject.toml
	uv pip compile --quiet --universal --python-version 3.11 pyproject.toml -o requirements.txt
	uv pip compile --quiet --universal --python-version 3.11 pyproject.toml --extra test --extra cluster -c requirements.txt -o requirements-test.txt

.PHONY: clean
clean: ## Remove the environment and what tools leave behind; results and DVC's cache stay
	rm -rf .venv dvc_plots .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +

.venv/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	  { echo "Python 3.11 to 3.13 is needed, which TensorFlow supports; name it with: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv .venv

.venv/installed: requirements.txt pyproject.toml | .venv/bin/pip
	@echo "installing the pinned dependencies: a minute or two"
	pip install --quiet --requirement requirements.txt
	pip install --quiet --no-deps --editable .
	@touch $@

.venv/installed-test: requirements-test.txt pyproject.toml | .venv/bin/pip
	@echo "installing the pinned dependencies and the test tools: a minute or two"
	pip install --quiet --requirement requirements-test.txt
	pip install --quiet --no-deps --editable .
	@touch $@ .venv/installed
