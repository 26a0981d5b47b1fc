PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[.a-z0-9-]+:.*## / { line = sprintf("  %-14s", $$1); count = split($$2, words, " "); \
		for (i = 1; i <= count; i++) { \
			if (length(line " " words[i]) > 80) { print line; line = sprintf("  %-14s", "") } \
			line = line " " words[i] } \
		print line }' $(MAKEFILE_LIST)
	@echo
	@echo "  PYTHON=python3.12 make demo   makes .venv with another Python (3.11+)"

.PHONY: install
install: $(INSTALLED) ## Create .venv with the tested versions of everything

# The stamp is written last, so an installation that was interrupted is taken up again.
$(INSTALLED): pyproject.toml constraints.txt requirements.lock
	@command -v $(PYTHON) >/dev/null || { \
		echo "error: '$(PYTHON)' was not found. Install Python 3.11 or newer, or name one: make PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "error: Python 3.11 or newer is needed, '$(PYTHON)' is $$($(PYTHON) -V 2>&1)." >&2; \
		echo "       Name another: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "error: '$(PYTHON)' cannot create environments: its venv or ensurepip module is missing." >&2; \
		echo "       On Debian and Ubuntu both are in the package python3-venv (apt install python3-venv)." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --require-hashes --no-deps -r requirements.lock
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	@touch $@

# All of it but PyTorch, which has a build of its own for each kind of device, and what its build for NVIDIA GPUs brings.
OF_PYTORCH := cuda-bindings cuda-toolkit nvidia-cudnn-cu13 nvidia-cusparselt-cu13 nvidia-nccl-cu13 nvidia-nvshmem-cu13
.PHONY: lock
lock: $(INSTALLED) ## Write requirements.lock anew, with the hashes of what `make install` installs; needs a network
	$(BIN)/python -m pip install -q uv
	printf '%s\n' $(OF_PYTORCH) | $(BIN)/uv pip compile -q pyproject.toml --extra dev --constraints constraints.txt --excludes - \
		--no-emit-package torch --universal --python-version 3.11 --generate-hashes --no-annotate \
		--custom-compile-command "make lock" -o requirements.lock

.PHONY: demo
demo: $(INSTALLED) ## Train CoPE on the counting task and print its error
	$(BIN)/python train.py pe=cope task=counting

# The runs and the table behind each table and figure of the paper, as configs/table/ describes them. Finished runs are not run
# again. SCALE=smoke|laptop|night|paper, SEEDS=how many, JOBS=runs at once, DRY=1 only lists the runs, SET="key=value ..." sets
# more, LAUNCHER=submitit_slurm or ray runs them on a cluster (docs/cluster.md).
SCALE ?= laptop
REPORT ?= outputs/report
IS_DRY := $(filter-out 0,$(DRY))
$(if $(filter-out 0 1,$(DRY)),$(error DRY=$(DRY) is not known; allowed: 1, 0))
COMMA := ,
SPACE := $(subst ,, )
# Whatever is typed is one word for the shell; SET, TUNE and PROBE are several, as they would be typed after a command.
quoted = '$(subst ','\'',$(1))'
$(foreach own,scale seeds,$(if $(filter $(own)=%,$(SET)),$(error SET="$(filter $(own)=%,$(SET))": what make has a variable for is set by that; allowed: SCALE=, SEEDS=)))
SETTINGS = scale=$(call quoted,$(SCALE)) $(if $(SEEDS),seeds=$(call quoted,$(SEEDS))) $(SET)
QUEUE = $(if $(LAUNCHER),hydra/launcher=$(call quoted,$(LAUNCHER))) $(if $(JOBS),hydra.launcher.jobs=$(call quoted,$(JOBS)))
OF_HEADS = $(if $(WINDOWS),windows=$(call quoted,$(WINDOWS)))
TABLE = $(BIN)/python scripts/table.py table=$(call quoted,$(subst $(SPACE),$(COMMA),$(1))) action=$(if $(IS_DRY),list,run) \
	$(SETTINGS) $(QUEUE) $(OF_HEADS)
TABLES := table2 table3 table4 table5 table7 table8
FIGURES := figure2 figure3 figure4 figure5 figure6

.PHONY: $(TABLES) $(FIGURES)
$(TABLES) figure2 figure3 figure5: $(INSTALLED)
	$(call TABLE,$@)

# Both are heads of the same runs, over WINDOWS windows of text.
figure4 figure6: $(INSTALLED)
	$(call TABLE,figure4)

.PHONY: tables
tables: $(INSTALLED) ## Every table of the paper that is made of runs (SCALE=, SEEDS=, JOBS=, DRY=1); also table2, table3, ...
	$(call TABLE,$(TABLES))

.PHONY: figures
figures: $(INSTALLED) ## The runs behind every figure; also figure2, figure3, ...
	$(call TABLE,figure2 figure3 figure4 figure5)

ABLATIONS := flip_flop counting selective_copy wikipedia code
.PHONY: ablations
ablations: $(INSTALLED) ## What CoPE's scale, start, positions and gate bias change, task by task (SCALE=, SEEDS=, JOBS=, DRY=1, ABLATIONS=)
	$(call TABLE,$(addprefix ablations/,$(ABLATIONS)))
	$(if $(IS_DRY),,$(BIN)/python scripts/position_term.py)

.PHONY: tune
tune: $(INSTALLED) ## Tune encodings on a task, equally: make tune TUNE="task=flip_flop pe=cope,rope" (JOBS=)
	$(BIN)/python scripts/tune.py $(TUNE) $(if $(JOBS),jobs=$(call quoted,$(JOBS)))

.PHONY: field
field: $(INSTALLED) ## CoPE among the encodings published before and after it: tables, rankings and a heat map in outputs/field (SCALE=, SEEDS=, JOBS=, DRY=1)
	$(BIN)/python scripts/field.py action=$(if $(IS_DRY),list,run) $(SETTINGS) $(QUEUE)

.PHONY: table1
table1: $(INSTALLED) ## Ask a language model the paper's counting questions: make table1 PROBE="endpoint=http://host:port/v1 model=NAME"
	$(BIN)/python scripts/probe_llm.py $(PROBE)

NO_SEEDS = $(if $(SEEDS),$(error SEEDS= has no effect here: what is finished of the seeds in configs/plan.yaml is read))
DECIDE = $(BIN)/python scripts/decide.py $(if $(CLAIMS),claims=$(call quoted,$(CLAIMS))) $(SETTINGS) $(QUEUE) $(OF_HEADS)

.PHONY: decide
decide: $(INSTALLED) ## Run what claims of the paper still need until each is decided (configs/plan.yaml): CLAIMS=1,2 SCALE= SEEDS= JOBS=
	$(if $(IS_DRY),$(error DRY=1 is not for make decide; allowed: make reproduce DRY=1, make claims))
	$(DECIDE)

WRITE = $(BIN)/python scripts/report.py to=$(call quoted,$(1)) scale=$(call quoted,$(SCALE)) $(SET) $(QUEUE)

.PHONY: claims
claims: $(INSTALLED) ## Print the verdict on each claim of the paper, from finished runs; WHY=9 tells all of one
	$(NO_SEEDS)
	$(BIN)/python scripts/report.py claims=true $(if $(WHY),why=$(call quoted,$(WHY))) scale=$(call quoted,$(SCALE)) $(SET) $(QUEUE)

.PHONY: report
report: $(INSTALLED) ## Write outputs/report/ (or REPORT=): verdicts, tables, figures, one page
	$(NO_SEEDS)
	$(call WRITE,$(REPORT))

.PHONY: published-runs
published-runs: $(INSTALLED) ## Take the runs behind docs/results for finished ones (in outputs/), so that only others are run
	$(BIN)/python scripts/published_runs.py

.PHONY: publish
publish: $(INSTALLED) ## Write docs/results/ (docs/results-night/ for SCALE=night) from the runs in outputs/, with what each run found
	$(NO_SEEDS)
	$(call WRITE,docs/results$(if $(filter-out laptop,$(SCALE)),-$(SCALE))) with_runs=true

# Claims first, then what tables and figures have beside them. A failed run (exit status 3) does not keep the report from being
# written; a refused command does.
.PHONY: reproduce
reproduce: $(INSTALLED) ## Decide the claims, run the rest of every table and figure, then write the report
	$(if $(IS_DRY),$(call TABLE,all),$(DECIDE); decided=$$?; [ $$decided -eq 0 ] || [ $$decided -eq 3 ] || exit $$decided; \
		$(call TABLE,all); status=$$?; [ $$status -eq 0 ] || [ $$status -eq 3 ] || exit $$status; \
		$(call WRITE,$(REPORT)) && exit $$((decided | status)))

.PHONY: native
native: $(INSTALLED) ## Compile the C++ kernel ahead of time (else the first run does)
	$(BIN)/python -m cope.kernels.native

.PHONY: benchmark
benchmark: $(INSTALLED) ## Time CoPE attention beside ordinary attention, with 1 and 2 threads
	$(BIN)/python benchmarks/attention.py threads=1,2
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/profile_step.py

.PHONY: gpu-check
gpu-check: $(INSTALLED) ## On one GPU, in at most eight minutes: are the kernels right, what do attention and training cost; one page
	$(BIN)/python benchmarks/gpu_check.py to=outputs/gpu-check

.PHONY: sanitize
sanitize: $(INSTALLED) ## Run the C++ kernel under AddressSanitizer and UBSan, and two threads of it under ThreadSanitizer
	$(BIN)/python scripts/sanitize.py

.PHONY: faults
faults: $(INSTALLED) ## Break runs in many ways and count those that came out as unbroken ones; minutes to hours (TRIES=10)
	$(BIN)/python benchmarks/faults.py $(if $(TRIES),tries=$(call quoted,$(TRIES)))

# OSV, which fails where it cannot be asked; of PyPI's own database, behind a mirror, each package is skipped and nothing "found".
.PHONY: audit
audit: $(INSTALLED) ## Ask the vulnerability database about the installed packages; needs a network
	$(BIN)/python -m pip install -q -c constraints.txt pip-audit
	$(BIN)/python -m pip_audit --skip-editable --vulnerability-service osv

.PHONY: test
test: $(INSTALLED) ## Run the tests, without those marked slow
	$(BIN)/python -m pytest

.PHONY: lint
lint: $(INSTALLED) ## Check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: clean
clean: ## Remove build artefacts and caches; leaves .venv, data/ and outputs/ alone
	rm -rf build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . \( -path ./$(VENV) -o -path ./data -o -path ./outputs \) -prune -o -type d -name __pycache__ -print0 | xargs -0 rm -rf
