# Multitask BERT. `make` lists what there is to do. Each target sets up what it needs, in .venv and models/.

PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python
OUT ?= runs/sample
DATA ?= data/sample
FLAGS ?=
PRESET ?= sample
TABLES = runs/tables/$(PRESET)

help:  ## this list
	@grep -E '^[a-z0-9 _-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 24

train: $(VENV)/ready  ## fine-tune MiniLM on data/sample: 3 minutes on two cores (DATA=DIR OUT=DIR FLAGS="...")
	$(RUN) multitask.py --option finetune --data $(DATA) --out $(OUT) --resume $(if $(filter data/sample,$(DATA)),--epochs 4 --batch_size 16) $(FLAGS)

eval: $(VENV)/ready  ## score the trained model again and write its predictions (OUT=DIR)
	$(RUN) multitask.py --eval_only --out $(OUT)

predict: $(VENV)/ready  ## type sentences, see what the trained model says (OUT=DIR)
	$(RUN) predict.py --run $(OUT)

table1 table2 table3: $(VENV)/ready  ## reproduce a table, run by run, resumable (PRESET=sample|minilm|paper FLAGS="...")
	$(RUN) reproduce.py --table $(@:table%=%) --preset $(PRESET) $(FLAGS)

figures: $(VENV)/ready  ## draw the figures from the runs of table 2 into results/ (PRESET=...)
	$(RUN) visualize.py smart --plain $(TABLES)/simcse-pals-[0-9]* --weak $(TABLES)/simcse-pals-smart-weak-* --strong $(TABLES)/simcse-pals-smart-strong-* --out results/smart-$(PRESET).png
	$(RUN) visualize.py embeddings --runs $(TABLES)/finetune-11711 $(TABLES)/pals-11711 $(TABLES)/simcse-pals-11711 $(TABLES)/smart-weak-11711 $(TABLES)/simcse-finetune-11711 --out results/embeddings-$(PRESET).png
	$(RUN) visualize.py curves $(TABLES)/finetune-* --out results/curves-$(PRESET).png

test: $(VENV)/ready  ## the test suite, under 5 minutes on two cores
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n auto --dist loadfile

soak: $(VENV)/ready  ## kill a MiniLM run at 20 random instants; it must end as one that was never killed (30 minutes)
	$(RUN) tests/soak.py

compare: $(VENV)/ready $(VENV)/transformers  ## the encoder and its files against transformers and safetensors, live
	$(RUN) tests/compare.py

bench: $(VENV)/ready $(VENV)/transformers  ## speed and memory against transformers (DATA=DIR FLAGS="...")
	$(RUN) -m bench.speed --data $(DATA) $(FLAGS)

kernels: $(VENV)/ready  ## compile every Triton kernel for A100 and H100, no GPU needed: registers, spills, occupancy
	$(RUN) -m kernels.compile

data: $(VENV)/ready  ## fetch the CS224N files into data/cs224n (needs a network), for DATA=data/cs224n
	$(RUN) data/fetch.py

lint: $(VENV)/ready  ## ruff: style and format
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

clean:  ## remove the runs; the downloads stay
	rm -rf runs

$(VENV)/ready: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r requirements.txt
	$(RUN) -m support.downloads
	touch $@

$(VENV)/transformers: $(VENV)/ready
	$(VENV)/bin/pip install --quiet --disable-pip-version-check transformers safetensors sentence-transformers
	touch $@

.PHONY: help train eval predict table1 table2 table3 figures test soak compare bench kernels data lint clean
.DEFAULT_GOAL := help
