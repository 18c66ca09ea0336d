PYTHON ?= python3

demo: .venv/ready  ## the main job: 6 to 16 minutes on two CPU cores
	.venv/bin/python notebooks/compare.py

test: .venv/ready
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/python -m pytest -q

.venv/ready: requirements.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.PHONY: demo test
