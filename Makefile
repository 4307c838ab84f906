# make demo   build the example and ask it one thing        make check  lint, types, import rules
# make test   check, then every test                        make bench  load time, memory and speed of the demo bundle
#             (and a part of make browser and make arm, if what they need can be installed)
# make coverage   every test, and which lines of qia3/ they ran
# make families   every family of docs/families.md (make test skips those that resemble another one)
# make browser    reports, the server's page, a bundle's page, and bundles in qia3.mjs and transformers.js, tested in Chromium:
#                 console, network, axe-core, answers, pictures in .browser/pictures
# make types      web/types, the TypeScript declarations of qia3.mjs, from its JSDoc
# make arm        the 4-bit products, folds and the runtime on three ARM processors under QEMU
# make docs       the pages of docs/ as a site, in docs/_build
# make dist-check build and check the wheel and the source archive (twine, check-wheel-contents); install the wheel
#                 with [build] into a fresh environment
# make interop    optimum-onnx, transformers.js and OpenVINO, in separate environments (.venv-interop; npm), open bundles
#                 of every family and must give our tokens
# make store      adapters in an object store: a server with s3fs, and moto as the store, in a separate environment (.venv-store)
#
# Needs Python 3.11 or newer and make; the rest goes into .venv, at the versions in constraints.txt.

PYTHON ?= python3
BIN := .venv/bin
BUILT := .venv/built
STAMP := .venv/ready
INTEROP := .venv-interop
STORE := .venv-store
BROWSER := .browser
ARM := .arm
DIST := .dist-check
DEMO := dist/home-intents

.PHONY: demo test coverage families interop store browser types arm check docs dist-check bench clean

# What a build needs. --no-compile: pip would compile every file of every package, one after the other and for half of
# the time that this takes; Python compiles what it imports.
$(BUILT): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("QIA3 needs Python 3.11 or newer: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	PYTHONWARNINGS="ignore:Editable installation" $(BIN)/python -m pip install --quiet --no-compile -c constraints.txt -e ".[build]"
	touch $@

# The rest, all of it compiled, on every core: tests start Python often. (torch has a file that Python 3.11 cannot read.)
# pip supports --group since 25.1. setuptools is for tests/test_packaging.py, which builds a wheel without a network.
$(STAMP): $(BUILT)
	PYTHONWARNINGS="ignore:Editable installation" $(BIN)/python -m pip install --quiet --no-compile -c constraints.txt setuptools -e ".[build,serve,cluster]" --group dev
	$(BIN)/python -m compileall -qq -j 0 .venv/lib || true
	touch $@

demo: $(BUILT)
	$(BIN)/qia3 build examples/home-intents/qia3.toml --output $(DEMO)
	$(BIN)/qia3 run $(DEMO) "could you dim the hall a bit" --adapter home-intents

# One worker per core, and each file in one worker, since fixtures shared by a file's tests are slow to make.
# tests/places.py adds a part of `make browser` and `make arm` where their packages can be had.
test: check
	$(BIN)/python tests/places.py $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# Lines that were run only in a process that a test killed are not counted.
coverage: $(STAMP)
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder --cov --cov-report=term:skip-covered

# Every family; `make test` skips those that add nothing new.
families: $(STAMP)
	QIA3_ALL_FAMILIES=1 $(BIN)/python -m pytest -n logical --maxprocesses 4 tests/test_families.py tests/test_families_pairs.py tests/test_gradients.py tests/test_base_sensitivity.py tests/test_ia3_shapes.py tests/test_ia3_activations.py tests/test_graph_seq2seq.py tests/test_runtime_seq2seq_real.py tests/test_many.py

# optimum-onnx needs transformers below 4.58, so it cannot be a dependency.
$(INTEROP)/ready: tests/interop.txt
	$(PYTHON) -m venv $(INTEROP)
	$(INTEROP)/bin/python -m pip install --quiet -r tests/interop.txt
	touch $@

# Without install scripts: that of onnxruntime-node downloads GPU libraries.
$(INTEROP)/js/ready: tests/interop.txt
	npm install --silent --ignore-scripts --no-audit --no-fund --prefix $(INTEROP)/js @huggingface/transformers@4.3.2
	touch $@

$(INTEROP)/openvino/ready:
	$(PYTHON) -m venv $(INTEROP)/openvino
	$(INTEROP)/openvino/bin/python -m pip install --quiet openvino==2026.4.1
	touch $@

interop: $(STAMP) $(INTEROP)/ready $(INTEROP)/js/ready $(INTEROP)/openvino/ready
	QIA3_OPTIMUM=$(INTEROP)/bin/python QIA3_TRANSFORMERS_JS=$(CURDIR)/$(INTEROP)/js QIA3_OPENVINO=$(INTEROP)/openvino/bin/python \
		$(BIN)/python -m pytest -s tests/test_openvino.py tests/test_interop.py tests/test_interop_labels.py tests/test_loaders.py tests/test_transformers_js.py tests/test_graph_seq2seq_js.py

# s3fs asks for one version of fsspec, and moto for 50 packages.
$(STORE)/ready: tests/store.txt pyproject.toml
	$(PYTHON) -m venv $(STORE)
	$(STORE)/bin/python -m pip install --quiet -e ".[serve]" -r tests/store.txt
	touch $@

store: $(STAMP) $(STORE)/ready
	QIA3_STORE=$(CURDIR)/$(STORE)/bin/python $(BIN)/python -m pytest tests/test_server_store.py

# From PyPI and npm, what the system does not have; tests/browser/setup.sh.
$(BROWSER)/ready: tests/browser/setup.sh tests/browser/package.json web/package.json
	PYTHON=$(CURDIR)/$(BIN)/python bash tests/browser/setup.sh $(BROWSER)
	touch $@

$(BROWSER)/whole: tests/browser/setup.sh tests/browser/package.json web/package.json
	PYTHON=$(CURDIR)/$(BIN)/python bash tests/browser/setup.sh $(BROWSER) --whole
	touch $(BROWSER)/ready $@

browser: $(STAMP) $(BROWSER)/whole
	PATH=$(CURDIR)/$(BROWSER)/bin:$$PATH QIA3_WHOLE=1 QIA3_BROWSER=$(CURDIR)/$(BROWSER)/node_modules \
		QIA3_WEB=$(CURDIR)/$(BROWSER)/web/node_modules QIA3_PICTURES=$(CURDIR)/$(BROWSER)/pictures \
		$(BIN)/python -m pytest -s tests/test_browser.py tests/test_browser_bundle.py tests/test_server_page.py tests/test_web.py tests/test_web_encoder.py tests/test_page.py

types: $(BROWSER)/ready
	rm -rf $(BROWSER)/types
	$(BROWSER)/bin/node $(BROWSER)/node_modules/typescript/lib/tsc.js --project tests/browser/tsconfig.json --outDir $(BROWSER)/types
	rm -rf web/types
	cp -r $(BROWSER)/types/web web/types

# Debian on x64. QEMU gives a device's numbers, but not its speed.
$(ARM)/ready: tests/arm/setup.sh constraints.txt
	PYTHON=$(BIN)/python bash tests/arm/setup.sh $(ARM) -c constraints.txt onnxruntime numpy tokenizers click platformdirs pydantic rich safetensors
	touch $@

arm: $(STAMP) $(ARM)/ready
	QIA3_WHOLE=1 QIA3_ARM=$(CURDIR)/$(ARM) $(BIN)/python -m pytest -s tests/test_arm.py

check: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check --quiet
	$(BIN)/mypy
	$(BIN)/lint-imports

# Sphinx with MyST: both are well maintained, read our Markdown as it is, and fail on broken links.
docs: $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt --group docs
	$(BIN)/sphinx-build -q -W --keep-going -b html docs docs/_build

# Built in a separate environment, and from scratch each time, since this is what would be uploaded.
dist-check:
	rm -rf $(DIST)
	$(PYTHON) -m venv $(DIST)
	$(DIST)/bin/python -m pip install --quiet build check-wheel-contents twine
	$(DIST)/bin/python -m build --outdir $(DIST)/made .
	$(DIST)/bin/twine check --strict $(DIST)/made/*
	$(DIST)/bin/check-wheel-contents $(DIST)/made/*.whl
	$(PYTHON) -m venv $(DIST)/fresh
	$(DIST)/fresh/bin/python -m pip install --quiet -c constraints.txt "qia3[build] @ file://$(CURDIR)/$$(ls $(DIST)/made/*.whl)"
	cd $(DIST) && fresh/bin/qia3 --version && fresh/bin/python -c "import qia3.build, qia3.publish"

bench: $(BUILT)
	$(BIN)/qia3 bench $(DEMO)

clean:
	rm -rf .venv docs/_build $(INTEROP) $(STORE) $(BROWSER) $(ARM) $(DIST) dist build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage .coverage.*
