"""Several methods side by side, from one base model: a table, some answers, and their curves.

python notebooks/compare.py --steps 400                            the main job, as `make demo` runs it
python notebooks/compare.py --task tree:horizon=8,fork=2 --method sft rft uft

A file with a method or a task of its own ends in this main(): then the command line, and every process, knows it.
"""

import copy
import sys
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
import train  # noqa: E402
from nanouft import METHODS, GivenAnswers, Step  # noqa: E402
from notebooks import lab  # noqa: E402
from notebooks.ask import show  # noqa: E402
from notebooks.lab import side_by_side  # noqa: E402
from notebooks.report import report  # noqa: E402
from train import Config, pick_device, run  # noqa: E402

MAIN_JOB = ("sft", "sft_rft", "rft", "uft")


def watch(name: str, s: Step) -> dict:
    """What the table and the curves show; and at the start, after a third, two thirds and at the end what the method
    explores on two validation problems."""
    shown = name != "validation" or not all(problem.demo for problem in s.problems)  # the skills have curves
    found = lab.behaviour(name, s) if shown else {}
    third = s.cfg.eval_every * max(1, round(s.cfg.steps / s.cfg.eval_every / 3))
    method, two = METHODS[s.cfg.method], s.problems[:2]
    if name == "validation" and s.t in (0, third, 2 * third, s.cfg.steps) and not isinstance(method, GivenAnswers):
        few = replace(s, problems=two, explored=[], draw=lambda _: two, memory=copy.deepcopy(s.memory))
        rows = method.explore(few)
        some = [i * s.cfg.group + j for i in range(len(rows.tokens) // s.cfg.group) for j in range(min(2, s.cfg.group))]
        found["explored"] = show(s.task, rows.take(torch.tensor(some)))
    return found


def watched(cfg: Config) -> list[dict]:
    return run(cfg, watch)


def compare(runs: list[Config]) -> None:
    first, folder = runs[0], Path(runs[0].out).parent
    same = ("task", "seed", "layers", "width", "base_steps", "validation", "test", "device", "cache")
    base = Config(**{name: getattr(first, name) for name in same}, steps=0, out=str(folder / "base"))
    for cfg in [base, *runs]:
        train.check(cfg)
        train.saved_run(cfg, cfg.steps)
    print(f"{len(runs)} methods on {first.task}, device {pick_device(first).type}, into {folder}/", flush=True)
    lab.base(first)  # once, before they begin
    for name, part in {"hint_steps": 0.6, "warmup": 0.5}.items():
        if (value := getattr(first, name)) >= first.steps:
            better = f"consider --{name} {int(part * first.steps)}"
            print(f"note: for methods that use it, --{name} {value} fills all --steps {first.steps}; {better}")
    outcomes = side_by_side([base, *runs], watched)  # the base: what all begin with
    outcomes = dict(zip(["base", *(cfg.method for cfg in runs)], outcomes, strict=True))
    done = [name for name, x in outcomes.items() if isinstance(x, list)]
    if len(done) > 1:
        print("\n" + report(folder, done))
        print(f"\n{done[-1]} explores, [given] and sampled:")
        for m in (m for m in outcomes[done[-1]] if "explored" in m):
            print(f"step {m['step']}\n{m['explored']}")
        print(f"\nask for more: python notebooks/ask.py --run {folder / done[-1]}")
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
