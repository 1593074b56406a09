# Two commands matter: `make demo` and `make test`. Both do all set-up themselves.

PYTHON ?= $(or $(shell command -v python3.11 || command -v python3),python3.11)
BIN := .venv/bin
export PYTHONUNBUFFERED := 1
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: help setup demo up test check format lock clean bench-collection bench-datasets bench-training bench-reward

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

setup: .venv/.installed  ## virtual environment and locked dependencies

.venv/.installed: requirements.lock requirements-nodeps.lock
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and f"Laurel needs Python 3.11; {sys.executable} is {sys.version.split()[0]}. Install it, or say where it is: make PYTHON=/path/to/python3.11")'
	"$(PYTHON)" -m venv .venv
	$(BIN)/pip install --quiet --requirement requirements.lock
	$(BIN)/pip install --quiet --no-deps --requirement requirements-nodeps.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

demo: setup  ## the whole loop with simulated annotators; ONCE=1 ends after it
	$(BIN)/python -m config.demo $(if $(ONCE),--once) $(if $(PREFERENCE),--preference $(PREFERENCE)) $(if $(METHOD),--method $(METHOD))

up: setup  ## every process, until Ctrl-C
	@$(BIN)/python -m config.supervisor

test: setup check  ## everything that can run on this machine
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile $(ARGS)

check: setup  ## linters, types, floors, templates
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	find templates -name '*.html' -print0 | xargs -0r $(BIN)/djade --check --target-version 5.2
	$(BIN)/djlint --quiet --lint templates

format: setup  ## put code and templates into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	find templates -name '*.html' -print0 | xargs -0r $(BIN)/djade --target-version 5.2

lock:  ## requirements.in -> requirements.lock, in a fresh environment
	"$(PYTHON)" -m venv --clear var/lock
	var/lock/bin/pip install --quiet --requirement requirements.in
	(echo "# Made by \`make lock\` from requirements.in: edit that one. What torch wants for its own"; \
	 echo "# platform (nvidia-*, triton) follows from torch's exact version and is not listed."; \
	 var/lock/bin/pip list --format=freeze --exclude pip --exclude setuptools \
	 | sed -E 's/\+cpu$$//; /^(nvidia-|triton|cuda-)/d' | LC_ALL=C sort -f) > requirements.lock

bench-collection: setup  ## judgements per second; JSON=path writes the figures
	$(BIN)/python -m benchmarks.collection $(if $(JSON),--json $(JSON))

bench-datasets: setup  ## pairs per second; JSON=path writes the figures
	$(BIN)/python -m benchmarks.datasets $(if $(JSON),--json $(JSON))

bench-training: setup  ## the rank tree against TRL; QUICK=1, JSON=path writes the figures
	$(BIN)/python -m benchmarks.training $(if $(QUICK),--quick) $(if $(JSON),--json $(JSON))

bench-reward: setup  ## a reward model on human comparisons; DATA=path, JSON=path
	$(BIN)/python -m benchmarks.reward $(if $(DATA),--data $(DATA)) $(if $(JSON),--json $(JSON))

clean:  ## stop the servers; delete data and environment
	-$(BIN)/python -m config.services remove
	rm -rf var .venv
