"""Both README.md say what the code says, and what the kept results say."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from notebooks import claims, lab

ROOT = Path(__file__).parent.parent


def test_tables(monkeypatch):
    """A number on a page that is not the kept results'; a method, or a line of code, that has changed since."""

    def run_all(runs, *_):
        assert not runs, f"no kept result for {runs[0]}"  # it would take hours here
        return []

    monkeypatch.setattr(lab, "side_by_side", run_all)
    for page, tables in claims.pages().items():
        text = page.read_text()
        for name, table in tables.items():
            assert f"<!-- {name} -->\n{table}\n<!-- end -->" in text, f"{page}: python notebooks/claims.py"


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "notebooks/README.md"], ids=str)
def test_every_file_that_it_names_exists(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        assert target.startswith("http") or (page.parent / target).exists(), target
    for script in re.findall(r"python ((?:notebooks|tests)/\w+\.py)", page.read_text()):
        assert (ROOT / script).exists(), script


SMALL = "--steps 2 --base_steps 2 --test 8 --validation 8 --demos 8 --problems 4".split()


@pytest.mark.parametrize("command", ["mine.py --method mine", "sorting.py --task sorting:digits=6 --method sft"])
def test_a_method_and_a_task_of_your_own(tmp_path, command):
    """Copied from the page, it runs; and so does the task that the page points to."""
    script, *words = command.split()
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    (tmp_path / "mine.py").write_text(code)
    path = tmp_path / script if script == "mine.py" else ROOT / "tests" / script
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, path, *words, *SMALL]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and re.search(r"^(mine|sft) +\d+\.\d%", done.stdout, re.M), done.stderr
