# make setup      the environment in $(VENV), mmcv's operators compiled
# make demo       train, evaluate and draw a small Mask R-CNN with iViT
# make test       the tests
# make lint       ruff, and nothing changed
# make clean      remove the environment and everything the commands here wrote
#
# Every target does what it needs first, and again only what is missing.

SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
DEMO := work_dirs/demo
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check install --quiet --constraint requirements/constraints.txt

.PHONY: setup demo test lint clean
.DELETE_ON_ERROR:

setup: $(VENV)/.ready

$(VENV)/.python: requirements/check_machine.py
	@[ -n "$(PYTHON)" ] || { echo 'Python 3.11 is needed (Debian, Ubuntu: apt install python3.11 python3.11-dev python3.11-venv)'; exit 1; }
	@"$(PYTHON)" requirements/check_machine.py
	@echo "==> Making the environment in $(VENV) (seconds)"
	@"$(PYTHON)" -m venv $(VENV)
	@touch $@

$(VENV)/.torch: $(VENV)/.python requirements/torch.txt requirements/constraints.txt
	@echo "==> Installing torch (1 to 5 minutes, a download of 2.5 GB)"
	@$(PIP) --requirement requirements/torch.txt
	@touch $@

$(VENV)/.stack: $(VENV)/.torch requirements/runtime.txt requirements/openmmlab.txt requirements/dev.txt
	@echo "==> Installing mmengine, mmdet, mmsegmentation, timm (about half a minute)"
	@$(PIP) --requirement requirements/runtime.txt --requirement requirements/dev.txt
	@$(PIP) --no-deps --requirement requirements/openmmlab.txt
	@touch $@

$(VENV)/.mmcv: $(VENV)/.stack requirements/build_mmcv.sh
	@requirements/build_mmcv.sh $(VENV)
	@touch $@

$(VENV)/.ready: $(VENV)/.mmcv setup.py
	@echo "==> Installing mmivit, editable (seconds)"
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@
	@echo "==> Ready. Use it with: source $(VENV)/bin/activate"

demo: setup
	@echo "==> Drawing the data set (20 seconds)"
	@$(PY) tools/make_shapes.py data/shapes
	@echo "==> Training Mask R-CNN with iViT-Nano from scratch (4 minutes on 2 cores)"
	@$(PY) tools/train.py configs/mask_rcnn_ivit_shapes.py --work-dir $(DEMO) --resume
	@echo "==> Evaluating on held-out images (20 seconds)"
	@$(PY) tools/test.py configs/mask_rcnn_ivit_shapes.py "$$(cat $(DEMO)/last_checkpoint)" --work-dir $(DEMO)
	@echo "==> Drawing predictions (20 seconds)"
	@$(PY) tools/predict.py configs/mask_rcnn_ivit_shapes.py "$$(cat $(DEMO)/last_checkpoint)" \
		data/shapes/images/validation/00000*.jpg --score-thr 0.5 --out $(DEMO) --force

test: setup
	@$(PY) -m pytest

lint: setup
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .

clean:
	rm -rf $(VENV) build *.egg-info mmivit/.mim data/shapes $(DEMO) .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
