# `make tour` and `make test` are the whole set-up: each installs what it needs into .venv once.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
SPECS  := pyproject.toml constraints.txt

.PHONY: tour app test test-slow lint types docs dev clean
tour: $(VENV)/.stamp-app
	$(BIN)/mm tour --out out/tour

app: $(VENV)/.stamp-app
	$(BIN)/mm app

test: $(VENV)/.stamp-dev
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(VENV)/.stamp-dev
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.stamp-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy and import-linter don't read the folder mapping, so they look at an unpacked wheel.
types: $(VENV)/.stamp-dev
	rm -rf build && $(BIN)/python -m build -q --wheel --no-isolation --outdir build/wheel
	$(BIN)/python -m zipfile -e build/wheel/*.whl build/unpacked
	cd build/unpacked && PYTHONPATH=. $(abspath $(BIN))/mypy --config-file $(abspath pyproject.toml) -p mm
	cd build/unpacked && PYTHONPATH=. $(abspath $(BIN))/lint-imports --config $(abspath pyproject.toml)

# Strict: a dead link, an unknown name in a docstring's place or a page outside the navigation fails.
docs: $(VENV)/.stamp-dev
	$(BIN)/python docs/pictures/draw.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

# For editors: static tools see strict editable installs, not import hooks.
dev: $(VENV)/.stamp-dev
	$(BIN)/pip install -q -c constraints.txt --config-settings editable_mode=strict -e '.[dev]'

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -U pip

$(VENV)/.stamp-core: $(BIN)/python $(SPECS)
	$(BIN)/pip install -q -c constraints.txt -e .
	touch $@

$(VENV)/.stamp-app: $(VENV)/.stamp-core
	$(BIN)/pip install -q -c constraints.txt -e '.[app,audio,cad,medical,train,video]'
	touch $@

$(VENV)/.stamp-dev: $(VENV)/.stamp-core
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf build dist out
