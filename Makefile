# `make` alone lists what can be made. Paths are relative, so any folder name will do.
PYTHON ?= python3
PY := .venv/bin/python
.DEFAULT_GOAL := help
.PHONY: help lab test quick build export book test-book pdf epub constraints checkpoints clean setup

help:  ## list what can be made
	@grep -E '^[a-z -]+:.*##' Makefile | sed -E 's/^([a-z -]+):.*## (.*)/  make \1#\2/' | tr '#' '\t' | expand -t 20

setup:  ## install everything into .venv (instant when nothing changed)
	@$(PYTHON) tools/setup.py

lab: setup  ## open the course in JupyterLab
	@$(PY) tools/lab.py

test: setup  ## check everything: style, tests, every notebook, the book
	@$(PY) tools/check.py all

quick: setup  ## check all but what trains or starts many processes
	@$(PY) tools/check.py quick

build: setup  ## text twins -> notebooks -> minillm/ -> executed and stripped, where out of date
	@$(PY) tools/build.py

export: setup  ## text twins -> notebooks -> minillm/, nothing executed
	@$(PY) tools/build.py --only export

book: setup  ## render the notebooks, as they are stored, into book/_build/html
	@$(PY) tools/book.py

test-book: book  ## look at every page of it in Chromium: links, formulas, widgets, accessibility
	@$(PY) tools/check_book.py

pdf epub: book  ## the same book as book/_build/minillm.pdf, or .epub
	@$(PY) tools/print.py $@

checkpoints: setup  ## train the shipped models again (about 12 minutes of two cores)
	@$(PY) tools/checkpoints.py

constraints:  ## pin what is installed now into constraints.txt
	@$(PY) tools/setup.py --pin

clean:  ## remove what was built; your runs/ and the environment stay
	@rm -rf book/_build .pytest_cache .ruff_cache .hypothesis .jupyter_cache
	@find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
