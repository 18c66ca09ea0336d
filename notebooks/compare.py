"""Several methods side by side, from one base model: a table, some answers, and their curves.

python notebooks/compare.py                                        the main job, which `make demo` runs
python notebooks/compare.py --task tree:horizon=8,fork=2 --method sft rft uft

A file with a method or a task of its own ends in this main(): then the command line, and every process, knows it.
"""

import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import train  # noqa: E402
from data import make_task  # noqa: E402
from notebooks.ask import answers  # noqa: E402
from notebooks.lab import side_by_side, watched  # noqa: E402
from notebooks.report import report  # noqa: E402
from train import Config, base_model, pick_device  # noqa: E402

MAIN_JOB = ("sft", "rft", "sft_rft", "r3", "sasr", "uft")


def compare(runs: list[Config]) -> None:
    first, folder = runs[0], Path(runs[0].out).parent
    for cfg in runs:
        train.check(cfg)
        train.saved_run(cfg, cfg.steps)
    print(f"{len(runs)} methods on {first.task}, device {pick_device(first).type}, into {folder}/", flush=True)
    base_model(first, make_task(first.task, first.seed))  # once, before they begin
    for name, part in {"hint_steps": 0.6, "warmup": 0.5}.items():
        if (value := getattr(first, name)) >= first.steps:
            better = f"consider --{name} {int(part * first.steps)}"
            print(f"note: for methods that use it, --{name} {value} fills all --steps {first.steps}; {better}")
    outcomes = dict(zip([cfg.method for cfg in runs], side_by_side(runs, watched), strict=True))
    done = [name for name, x in outcomes.items() if isinstance(x, list)]
    if done:
        print("\n" + report(folder, done))
        print(f"\n{answers(folder / done[-1])}\n\nask for more: python notebooks/ask.py --run {folder / done[-1]}")
    for name, x in outcomes.items():
        if isinstance(x, BrokenProcessPool):
            raise ValueError("a run was killed, perhaps for memory; the same command goes on")
        if name not in done and not isinstance(x, (ValueError, OSError)):
            raise x  # a bug: with its traceback
    if failed := [f"{name}: {x}" for name, x in outcomes.items() if name not in done]:
        raise ValueError("; ".join(failed))


def main(argv: list[str] | None = None, methods: tuple = MAIN_JOB) -> None:
    train.main(argv, compare, methods)


if __name__ == "__main__":
    main()
