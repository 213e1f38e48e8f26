# make setup      the environment in $(VENV), mmcv's operators compiled
# make demo       train, evaluate and draw a small Mask R-CNN with iViT
# make demo-seg   the same for segmentation, with UperNet
# make test       the tests
# make test-quick those that neither train nor start processes
# make test-timm  timm's own tests of models, on all five iViT
# make test-recipes  docs/recipes.md, with peft, transformers and wandb in an environment on top
# make test-faults  training killed 20 times in a row, full disks, dead processes: the long form
# make fuzz       a coverage-guided fuzzer on what reads strangers' files; SECONDS=600 for each
# make test-matrix  the tests marked matrix with three stacks of versions, and the README's table
# make lint       ruff, the floors of the package, types, the metafiles; and nothing changed
# make clean      remove the environment and everything the commands here wrote
#
# Every target does what it needs first, and again only what is missing.

SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
SECONDS ?= 600
# Where make test-matrix makes its other environments: 6 GB each, and once 7 minutes of compiling.
MATRIX ?= .matrix
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check install --quiet --constraint $(VENV)/constraints.txt
# Which versions: those of requirements, or with STACK=torch-2.1 or STACK=forks those of a folder of
# requirements/matrix, which says what differs. Give each a VENV of its own.
STACK ?=
OWN := $(if $(STACK),requirements/matrix/$(STACK))
OPENMMLAB := $(firstword $(if $(STACK),$(wildcard $(OWN)/openmmlab.txt)) requirements/openmmlab.txt)

.PHONY: setup demo demo-seg test test-quick test-timm test-recipes test-faults test-matrix fuzz lint clean
.DELETE_ON_ERROR:

setup: $(VENV)/.ready

$(VENV)/.python: requirements/check_machine.py
	@[ -n "$(PYTHON)" ] || { echo 'Python 3.11 is needed (Debian, Ubuntu: apt install python3.11 python3.11-dev python3.11-venv)'; exit 1; }
	@"$(PYTHON)" requirements/check_machine.py
	@echo "==> Making the environment in $(VENV) (seconds)"
	@"$(PYTHON)" -m venv $(VENV)
	@touch $@

# The first pin of a name counts, and a fork's stands for its original's too.
$(VENV)/constraints.txt: $(VENV)/.python $(STACK:%=$(OWN)/constraints.txt) requirements/constraints.txt
	@awk -F = '{ name = $$1; sub(/^onedl-/, "", name); sub(/^mmdetection$$/, "mmdet", name) } \
		!pinned[name]++' $(filter %.txt,$^) > $@

$(VENV)/.torch: $(VENV)/constraints.txt requirements/torch.txt
	@echo "==> Installing torch (1 to 5 minutes, a download of 2.5 GB)"
	@$(PIP) --requirement requirements/torch.txt
	@touch $@

$(VENV)/.stack: $(VENV)/.torch requirements/runtime.txt $(OPENMMLAB) requirements/dev.txt
	@echo "==> Installing mmengine, mmdet, mmsegmentation, timm (about half a minute)"
	@$(PIP) --requirement requirements/runtime.txt --requirement requirements/dev.txt
	@$(PIP) --no-deps --requirement $(OPENMMLAB)
	@touch $@

$(VENV)/.mmcv: $(VENV)/.stack requirements/build_mmcv.sh
	@requirements/build_mmcv.sh $(VENV)
	@touch $@

# timm's tests are in its source package alone.
$(VENV)/.timm-tests: $(VENV)/.stack requirements/constraints.txt
	@rm -rf $(VENV)/timm-tests && mkdir $(VENV)/timm-tests
	@$(PY) -m pip --disable-pip-version-check download --quiet --no-deps --no-binary timm \
		--constraint $(VENV)/constraints.txt --dest $(VENV)/timm-tests timm
	@tar --extract --gzip --file $(VENV)/timm-tests/timm-*.tar.gz --strip-components 2 \
		--directory $(VENV)/timm-tests --wildcards '*/tests/*'
	@touch $@

$(VENV)/.ready: $(VENV)/.mmcv $(VENV)/.timm-tests setup.py
	@echo "==> Installing mmivit, editable (seconds)"
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@
	@echo "==> Ready. Use it with: source $(VENV)/bin/activate"

demo: setup
	@$(call run_demo,mask_rcnn_ivit_shapes,Mask R-CNN with iViT-Nano,demo)

demo-seg: setup
	@$(call run_demo,upernet_ivit_shapes,UperNet with iViT-Nano,demo-seg)

# $(1) config, $(2) what is trained, $(3) work dir
define run_demo
set -e; \
echo "==> Drawing the data set (20 seconds)"; \
$(PY) tools/make_shapes.py data/shapes; \
echo "==> Training $(2) from scratch (4 to 8 minutes on 2 cores)"; \
$(PY) tools/train.py configs/$(1).py --work-dir work_dirs/$(3) --resume; \
last=$$(cat work_dirs/$(3)/last_checkpoint); \
echo "==> Evaluating on held-out images (20 seconds)"; \
$(PY) tools/test.py configs/$(1).py "$$last" --work-dir work_dirs/$(3); \
echo "==> Drawing predictions (20 seconds)"; \
$(PY) tools/predict.py configs/$(1).py "$$last" data/shapes/images/validation/00000*.jpg \
	--score-thr 0.5 --out work_dirs/$(3) --force
endef

test: setup
	@$(PY) -m pytest

test-quick: setup
	@$(PY) -m pytest -m 'not slow'

test-timm: setup
	@$(PY) -m pytest -p tests.timm_only_ivit -q -W ignore -c /dev/null --rootdir $(VENV)/timm-tests \
		-p no:cacheprovider -n 2 -k 'ivit_ and not flexivit and not torchscript' $(VENV)/timm-tests/test_models.py

# An environment that sees all of $(VENV), and adds to it.
$(VENV)/.recipes: $(VENV)/.ready requirements/recipes.txt
	@$(PY) -m venv $(VENV)/recipes
	@$(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> "$$($(VENV)/recipes/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/beneath.pth"
	@$(VENV)/recipes/bin/python -m pip --disable-pip-version-check install --quiet \
		--constraint $(VENV)/constraints.txt --requirement requirements/recipes.txt
	@touch $@

test-recipes: setup $(VENV)/.recipes
	@$(VENV)/recipes/bin/python -m pytest tests/test_recipes.py -n 0

test-faults: setup
	@MMIVIT_KILLS=20 $(PY) -m pytest tests/test_faults.py -n 0 -s

$(VENV)/.atheris: $(VENV)/.stack requirements/constraints.txt
	@$(PIP) atheris
	@touch $@

fuzz: setup $(VENV)/.atheris
	@$(PY) -m tests.fuzz.run $(SECONDS)

test-matrix: setup
	@for stack in torch-2.1 forks; do $(MAKE) setup STACK=$$stack VENV=$(MATRIX)/$$stack || exit 1; done
	@$(PY) -m tests.matrix torch-2.1=$(MATRIX)/torch-2.1 pinned=$(VENV) forks=$(MATRIX)/forks

lint: setup
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(VENV)/bin/lint-imports --no-logo
	@$(PY) -m mypy
	@$(PY) tools/check_metafiles.py

clean:
	rm -rf $(VENV) $(MATRIX) build *.egg-info mmivit/.mim data/shapes work_dirs/demo work_dirs/demo-seg .pytest_cache .ruff_cache .mypy_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
