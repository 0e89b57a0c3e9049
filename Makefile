# One way to do a thing: every target makes .venv first when there is none, or when its list of packages has changed.
PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python3)
BIN := .venv/bin
.PHONY: demo test test-slow lint bench bench-peers docs docs-links dist-check ship-check clean venv

demo: venv
	@$(BIN)/python -m jobs.demo --out demo

# In three processes of one thread each, since tests wait as much as they compute, those of faults first, since they take
# the longest; make test JOBS=0 in one. More arguments for pytest: make test ARGS="-k plan"
JOBS ?= 3
# Compiled once and kept, also where the environment says not to: pytest rewrites each assert, for seconds in each process.
unexport PYTHONDONTWRITEBYTECODE
test: venv
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

test-slow: venv
	$(BIN)/python -m pytest -m 'slow and not gpu' $(ARGS)

lint: venv
	$(BIN)/ruff format --check -q .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python .ci/audit.py

bench: venv
	@$(BIN)/python -m benchmarks

# The loader's peers, in an environment of their own; make bench does it too when they are missing.
bench-peers: venv
	@$(BIN)/python -m benchmarks.peers.environment

# The site, into site/; a broken link is an error.
docs: .venv-docs/.done
	@.venv-docs/bin/python -m sphinx -q -W --keep-going -b html -c docs -d site/.doctrees . site
	@echo "site/index.html"

# Every link to elsewhere, asked for over the network; minutes, and for who has one.
docs-links: .venv-docs/.done
	@.venv-docs/bin/python -m sphinx -q --keep-going -b linkcheck -c docs -d site/.doctrees . site/links
	@echo "every link to elsewhere answers: site/links/output.txt"

# An environment of its own that sees .venv's packages behind its own: docstrings are read by importing the package.
.venv-docs/.done: .venv/.done
	@rm -rf .venv-docs && $(PYTHON) -m venv .venv-docs
	@$(BIN)/python -c 'import site; print("import site; site.addsitedir(%r)" % site.getsitepackages()[0])' \
	    > "$$(.venv-docs/bin/python -c 'import site; print(site.getsitepackages()[0])')/behind.pth"
	@echo "installing into .venv-docs (seconds, once)" >&2
	@.venv-docs/bin/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[docs]'
	@touch $@

# Both distributions, built, checked, and each installed into a bare environment and used; DIST_PYTHONS="python3.11 python3.12"
# for several interpreters.
DIST_PYTHONS ?= $(PYTHON)
dist-check:
	@$(PYTHON) .ci/dist.py --python $(DIST_PYTHONS)

# What only a hosting service or an engine would read, against its own schemas.
ship-check: venv
	@$(BIN)/python -m pytest -m 'slow or not slow' tests/test_shipping.py $(ARGS)

clean:
	rm -rf .venv .venv-* site benchmarks/peers/.venv demo artifacts build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

venv: .venv/.done

.venv/.done: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "rhostream needs Python 3.11 or newer, and $(PYTHON) is not; say which to take: make PYTHON=/path/to/python3.11"; exit 2; } >&2
	@$(PYTHON) -c 'import ensurepip, venv' || { \
	    echo "$(PYTHON) can't make a virtual environment; on Debian and Ubuntu: apt-get install python3-venv"; exit 2; } >&2
	@test -x $(BIN)/pip || { rm -rf .venv && $(PYTHON) -m venv .venv; }
	@echo "installing into .venv (a minute or two, once)" >&2
	@$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[dev]'
	@touch $@
