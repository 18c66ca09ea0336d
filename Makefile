PYTHON ?= python3

demo: .venv/ready  ## the main job: nine minutes on two CPU cores
	.venv/bin/python notebooks/compare.py

test: .venv/ready  ## three minutes
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/python -m pytest -q

check: .venv/ready  ## half an hour: all notebooks, many kills, 100,000 made-up answers
	CHECK=100000 .venv/bin/python -m pytest -q -m "slow or fuzz"

gpu: .venv/ready  ## a model of 10.7 million parameters, for one card with 24 GB (not yet measured)
	.venv/bin/python notebooks/compare.py --task countdown:numbers=8,high=20,limit=99 --demos 16384 --layers 6 \
	--width 384 --base_steps 4000 --group 16 --micro_batch 1024 --steps 1500 --hint_steps 900 --warmup 750 \
	--eval_every 100 --lr 3e-4 --problems 64

.venv/ready: requirements.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.PHONY: demo test check gpu
