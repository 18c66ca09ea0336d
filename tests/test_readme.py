"""The front page says what the code says, and what the kept results say."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from notebooks import claims, lab
from notebooks.report import CORE, METHODS, equations_table, methods_table

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.fixture
def kept(monkeypatch):
    """No run may be missing from notebooks/results/: it would take hours here."""

    def run_all(runs, *_):
        assert not runs, f"no kept result for {runs[0]}"
        return []

    monkeypatch.setattr(lab, "side_by_side", run_all)


def test_tables_of_the_code():
    """A method, or a line that an equation points to, that has changed since."""
    assert methods_table(CORE) in README
    assert methods_table([name for name in METHODS if name not in CORE]) in README
    assert equations_table() in README


def test_results(kept):
    """A number on the front page that is not the kept results'."""
    assert claims.results_table() in README
    assert claims.claims_table() in README


def test_every_file_that_it_names_exists():
    for target in re.findall(r"\]\(([^)#]+)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target


@pytest.mark.parametrize(
    "options", ["mine.py --method mine sft", "sorting.py --task sorting:digits=6 --method sft uft"]
)
def test_what_it_says_about_methods_and_tasks_of_your_own(tmp_path, options):
    """Copied from the page, it runs."""
    (code,) = (x for x in re.findall(r"```python\n(.*?)```", README, re.S) if x.startswith(f"# {options.split()[0]}"))
    (tmp_path / options.split()[0]).write_text(code)
    small = "--steps 2 --base_steps 2 --test 8 --validation 8 --demos 8 --problems 4".split()
    command = [sys.executable, *options.split(), *small]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TQDM_DISABLE": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and re.search(r"^sft +\d+\.\d%", done.stdout, re.M), done.stderr
