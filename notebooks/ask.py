"""A trained model answers.

python notebooks/ask.py "6 2 10 3 9 -> 14"                        sixteen samples, each with its reward
python notebooks/ask.py --run out/countdown-seed0/uft          answers to validation problems, with and without a hint
python notebooks/ask.py --own mine.py --run ...                a task that is defined in a file of your own
"""

import argparse
import runpy
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from data import Task, make_task  # noqa: E402
from model import GPT  # noqa: E402
from nanouft import Rows, rollout  # noqa: E402
from notebooks.report import script  # noqa: E402
from train import Config, load, make_model, randomness  # noqa: E402


def trained(folder: Path) -> tuple[Config, Task, GPT]:
    """A run's settings, its task, and the model that it ended with."""
    saved = load(folder / "checkpoint.pt")
    cfg = replace(Config(**saved["config"]), device="cpu")
    task = make_task(cfg.task, cfg.seed)
    model = make_model(cfg, task)
    model.load_state_dict(saved["model"])
    return cfg, task, model


def show(task: Task, rows: Rows, everything: bool = True) -> str:
    """Answers in full, the hint in brackets; or of each kind (hinted or not, solved or not) the first two."""
    kinds = list(zip(rows.hint.any(1).tolist(), rows.solved.tolist(), strict=True))
    shown = [i for i in range(len(kinds)) if everything or kinds[:i].count(kinds[i]) < 2]
    lines = Counter()
    for i in sorted(shown, key=lambda i: (kinds[i][0], -rows.reward[i])):
        hint, suffix = (task.decode(rows.tokens[i, part[i]].tolist()) for part in (rows.hint, rows.suffix))
        said = [f"[{unit}]" for unit in hint.split()] + [unit or "\\n" for unit in suffix.split("\n") if suffix]
        said = "  ".join(said).replace("<end>", "")
        lines[f"  {rows.problems[i].prompt.strip():18s}  {said:36s}  reward {rows.reward[i]:.1f}"] += 1
    return "\n".join(line + f"  {n} times" * (n > 1) for line, n in lines.items())


def answers(folder: Path, text: str | None = None) -> str:
    """To the user's problem, or to validation problems, every other one behind a hint of one unit."""
    cfg, task, model = trained(folder)
    problems = task.split("validation", min(64, cfg.validation), 0) if text is None else [task.parse(text)] * 16
    hints = np.arange(len(problems)) % 2 if text is None else [0] * len(problems)
    rows = rollout(model, task, problems, hints, 1.0, randomness(cfg, 5)[1])
    return f"{cfg.method} answers, sampled; [given] and explored\n{show(task, rows, text is not None)}"


def read_flags(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Which run; and where its task and method are defined, if not here."""
    parser.add_argument("--run", type=Path, default="out/countdown-seed0/uft", help="folder of a run [%(default)s]")
    parser.add_argument("--own", metavar="FILE", help="a Python file that defines a task or a method of your own")
    flags = parser.parse_args()
    if flags.own:
        runpy.run_path(flags.own)
    return flags


def main() -> None:
    parser = argparse.ArgumentParser(description="A trained model answers.")
    parser.add_argument("problem", nargs="?", help="a problem, as the task writes it; without: validation problems")
    flags = read_flags(parser)
    print(answers(flags.run, flags.problem))


if __name__ == "__main__":
    script(main)
