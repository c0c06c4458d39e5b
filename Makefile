# Everything starts here: `make reproduce` and `make test`. Python 3.11 or 3.12, git and make must be there; the rest goes into .venv.
SHELL := bash
MAKEFLAGS += --no-print-directory

VENV ?= .venv
PYTHON ?=
WORKERS ?= 2
EXTRAS := lab,dev,docs,pretrained,study
export PATH := $(abspath $(VENV))/bin:$(PATH)
export DVC_NO_ANALYTICS := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore
unexport PYTHONPATH PYTHONHOME

.PHONY: help setup reproduce studies test lab docs doctor clean clean-all

help: ## show this list
	@echo "make reproduce runs the whole experiment, make test checks the project. Each first installs what it needs into $(VENV)."
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 19
	@echo "  Variables: PYTHON=python3.12 (which Python to use), VENV=folder, WORKERS=2 (processes of the tests), LAB_ARGS, PYTEST_ARGS"

setup: ## make .venv with the pinned dependencies and this package; takes no time if that is done
	@bash .ci/setup "$(VENV)" "$(EXTRAS)" "$(PYTHON)"

reproduce: setup ## run every stage that is not up to date, then compare the results with the committed ones
	@echo "== The stages: forge, prepare, train, evaluate, attribute"
	@dvc repro
	@echo "== The results"
	@cad compare || { status=$$?; [ $$status -eq 2 ] || exit $$status; echo "All stages ran. There is no verdict, for the reason above."; }

studies: setup ## run the studies, with the stages that they need: trains every ablation with three seeds, under an hour on two cores
	@dvc repro nbs/studies/dvc.yaml

test: setup ## check that modules and notebooks agree, run the lessons in the notebooks, run the tests
	@echo "== 1/3 notebooks are clean, and the modules are what they export"
	@python .ci/check_export.py
	@cad deps
	@echo "== 2/3 the lessons in the notebooks"
	@set -o pipefail; OMP_NUM_THREADS=1 nbdev_test --n_workers $(WORKERS) --do_print | awk '/^Starting /{next} {sub(/^- Completed .*\/nbs\//, "  "); print; fflush()}'
	@echo "== 3/3 the tests"
	@OMP_NUM_THREADS=1 python -m pytest tests -q -n $(WORKERS) --dist loadfile $(PYTEST_ARGS)

lab: setup ## open the notebooks in JupyterLab
	@jupyter lab --ServerApp.root_dir="$(CURDIR)" --LabApp.default_url=/lab/tree/nbs/index.ipynb --LabApp.news_url= \
	  --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate $(LAB_ARGS)

docs: setup ## build the site into _docs/ from the notebooks and the reports, without a network
	@python docs/build.py

doctor: setup ## look at everything that a run needs, and say how to mend what is wrong
	@cad doctor

clean: ## remove what is quickly made again: reports, partial notebooks, the site, caches of tools
	rm -rf out/reports out/partial _docs _proc .pytest_cache .hypothesis build
	find cad_nb tests docs benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

clean-all: clean ## also remove the forged corpora and every result but out/metrics, with DVC's cache of them
	rm -rf corpora data out/features out/tokens out/models out/scores out/studies out/figures out/attributions .dvc/cache .dvc/tmp
