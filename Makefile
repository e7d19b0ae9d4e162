# Two commands do everything: `make demo` and `make test`. Both set up the environment in .venv first.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PACKAGES := reference export calibration engines runtime

.PHONY: demo test lint format bench clean

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt -e ".[cpu,openvino,export,train,eval,dev]"
	touch $@

demo: $(VENV)/installed
	$(BIN)/ris-export --out demo/ris-bundle --force
	$(BIN)/ris-parity demo/ris-bundle
	$(BIN)/ris-infer examples/park.png "left man" "the red ball on the right" --bundle demo/ris-bundle --out demo
	@echo "Look at demo/park.left-man.overlay.png (the demo's weights are made up, so the mask means nothing yet)"

test: lint
	$(BIN)/python -m pytest

# mypy sees the folders under their import name, ris.*, through links
lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@mkdir -p build/types/ris
	@for name in $(PACKAGES); do ln -sfn ../../../$$name build/types/ris/$$name; done
	MYPYPATH=build/types $(BIN)/mypy --explicit-package-bases -p ris.reference -p ris.export -p ris.calibration -p ris.engines -p ris.runtime

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The full-size model with made-up weights, beside PyTorch eager in the same run (about 10 minutes on two cores)
bench: $(VENV)/installed
	test -d bench/full-size || $(BIN)/ris-export --random-weights 0 --out bench/full-size
	$(BIN)/ris-bench bench/full-size --pytorch

clean:
	rm -rf $(VENV) build demo bench *.egg-info
