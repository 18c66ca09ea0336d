PYTHON ?= python3

demo: .venv/ready  ## the main job: three to eight minutes on two CPU cores
	.venv/bin/python notebooks/compare.py --steps 400

test: .venv/ready  ## three minutes
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/python -m pytest -q

check: .venv/ready  ## half an hour: all notebooks, many kills, 100,000 made-up answers
	CHECK=100000 .venv/bin/python -m pytest -q -m "slow or fuzz"

# Estimated, not measured. A step samples 1,024 answers of 42 tokens (42 passes of some 5 ms) and trains on 61,000 tokens
# (6 * 10.7e6 * 61e3 = 4 TFLOP; 0.16 s at 25 TFLOP/s): 0.4 s. 1,500 steps of rft and uft and 750 of sft_rft: 25 minutes.
# SFT's steps, 4,000 of the base, validations and tests: 10 more. Fewer base_steps (1500, say) make the base a weak one.
# Nothing was tuned for it.
gpu: .venv/ready  ## a model of 10.7 million parameters, within an hour on one card with 24 GB
	.venv/bin/python notebooks/compare.py --task countdown:numbers=8,high=20,limit=99 --demos 16384 --layers 6 \
	--width 384 --base_steps 4000 --group 16 --micro_batch 1024 --steps 1500 --hint_steps 900 --warmup 750 \
	--eval_every 100 --lr 3e-4 --problems 64

.venv/ready: requirements.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.PHONY: demo test check gpu
