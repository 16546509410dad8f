# What one types in a clone. Needs Python 3.11 or later with venv, and make; the rest goes into .venv.
#
# Every install leaves a stamp in .venv, newer than setup.cfg and pyproject.toml, so that a second
# call installs nothing. The install is editable, in the "compat" way: setuptools' other ways hide
# twisted/plugins from twistd.

PYTHON ?= python3
TRIALFLAGS ?=
BENCHFLAGS ?=
LABFLAGS ?=

VENV := .venv
BIN := $(VENV)/bin
SETTINGS := setup.cfg pyproject.toml
INSTALL := $(BIN)/python -m pip install -q --disable-pip-version-check \
	--config-settings editable_mode=compat -e
TRIAL := -m twisted.trial

# wire/ and core/ answer for every branch by their own tests; the house as a whole for most.
OWN_TESTS := $(wildcard tests/wire tests/core)
TOTAL_BOUND := 90
OWN_BOUND := 100

# Absolute, for processes that the tests start elsewhere; two names that do not prefix each other
# with a dot between, for `coverage combine` takes every NAME.*
COVERAGE_ALL := COVERAGE_FILE=$(CURDIR)/.coverage
COVERAGE_OWN := COVERAGE_FILE=$(CURDIR)/.coverage_own
COVERAGE := $(BIN)/python -m coverage
# The processes that tests start are measured, too.
MEASURING := $(COVERAGE_ALL) COVERAGE_PROCESS_START=$(CURDIR)/pyproject.toml

.DEFAULT_GOAL := help
.PHONY: help run test lint coverage docs lab-docs dashboard-shot bench clean
# Two pips in one environment at once would spoil it.
.NOTPARALLEL:

help:
	@echo 'make run       start the demonstration: every mode, with its origins; Ctrl-C stops it'
	@echo 'make test      the tests; TRIALFLAGS="-j4" or the like is passed on'
	@echo 'make lint      ruff and mypy'
	@echo 'make coverage  the tests again, measured; fails under the bounds'
	@echo 'make docs      the documentation, into docs/_build/html'
	@echo 'make lab-docs  the experiments again, for docs/lab; LABFLAGS="--quick" or the like'
	@echo 'make dashboard-shot  docs/dashboard.png again: needs chromium, and some minutes'
	@echo 'make bench     CPU per unit of work beside other proxies; BENCHFLAGS="--quick" or the like'
	@echo 'make clean     remove all that was made, .venv too'
	@echo 'PYTHON=python3.12 make ... chooses the Python that .venv is made with'

run: $(VENV)/.installed
	$(BIN)/twistd -n --pidfile= proxykit demo

# Under Twisted's own reactor and under ours; both run, even if the first one fails. With MEASURE=1
# the first run is measured at the same time, and `make coverage MEASURED=1` goes on from there.
test: $(VENV)/.installed-test
ifneq ($(MEASURE),)
	rm -f .coverage .coverage.*
endif
	status=0; \
	echo 'reactor: default'; \
	$(if $(MEASURE),$(MEASURING) $(COVERAGE) run,$(BIN)/python) \
		$(TRIAL) --reactor=default $(TRIALFLAGS) tests || status=1; \
	echo 'reactor: proxykit'; \
	$(BIN)/python $(TRIAL) --reactor=proxykit $(TRIALFLAGS) tests || status=1; \
	exit $$status

lint: $(VENV)/.installed-lint
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

coverage: $(VENV)/.installed-test
	rm -f .coverage_own .coverage_own.*
ifeq ($(MEASURED),)
	rm -f .coverage .coverage.*
	$(MEASURING) $(COVERAGE) run $(TRIAL) $(TRIALFLAGS) tests
endif
	$(COVERAGE_ALL) $(COVERAGE) combine -q
ifneq ($(OWN_TESTS),)
	$(COVERAGE_OWN) $(COVERAGE) run $(TRIAL) $(TRIALFLAGS) $(OWN_TESTS)
	$(COVERAGE_OWN) $(COVERAGE) combine -q
	@echo 'wire and core, by their own tests:'
	$(COVERAGE_OWN) $(COVERAGE) report --fail-under=$(OWN_BOUND) \
		--include='proxykit/wire/*,proxykit/core/*'
endif
	@echo 'the whole, by all tests:'
	$(COVERAGE_ALL) $(COVERAGE) report --fail-under=$(TOTAL_BOUND)

docs: $(VENV)/.installed-docs
	$(BIN)/python -m sphinx -q -W --keep-going -n -b html docs docs/_build/html
	@echo 'docs/_build/html/index.html'

# Some minutes, as root or where users may make namespaces; what it writes is kept in git, for the
# documentation is built where none of this can be done.
lab-docs: $(VENV)/.installed-lab
	$(BIN)/python -m proxykit lab all --docs docs/lab $(LABFLAGS)

# Of a real service, in a network namespace; kept in git like the plots of the lab.
dashboard-shot: $(VENV)/.installed-test
	$(BIN)/python docs/dashboard_shot.py

# Never a part of the tests: its figures are the machine's.
bench: $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks $(BENCHFLAGS)

clean:
	rm -rf $(VENV) build dist *.egg-info docs/_build htmlcov examples/*/build examples/*/*.egg-info
	rm -rf _trial_temp* .hypothesis .mypy_cache .ruff_cache .coverage .coverage.* .coverage_own*
	find . -name .git -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
	find . -name .git -prune -o -name dropin.cache -exec rm -f {} +

# Stamped at the end, so that an environment whose making was interrupted is made again.
$(VENV)/.made:
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: $(SETTINGS) | $(VENV)/.made
	$(INSTALL) .
	@touch $@

$(VENV)/.installed-%: $(SETTINGS) | $(VENV)/.made
	$(INSTALL) '.[$*]'
	@touch $@ $(VENV)/.installed
