"""The figure of the front page: one problem as a board of tokens, countdown's curves, and the horizon.

python notebooks/front.py          from the kept results; a minute the first time, for the board's base model
"""

import sys
from dataclasses import replace
from pathlib import Path

import matplotlib.figure
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from data import make_task  # noqa: E402
from nanouft import METHODS, Step  # noqa: E402
from notebooks import countdown, horizon  # noqa: E402
from notebooks.report import COLORS, weighed  # noqa: E402
from train import Config, base_model, splits  # noqa: E402


def boards(axes) -> None:
    """SFT, RFT and UFT on the same problem: what each token weighs. The seed is the first with which one of UFT's four
    answers is right, and RFT's earn the same, as those of most groups of four do from this base."""
    cfg = Config(task="countdown:plays=1,minuses=2", problems=1, group=4)
    task = make_task(cfg.task)
    base, problem = base_model(cfg, task), splits(cfg, task)["pool"][6]
    titles = {
        "sft": "SFT: the demonstration, copied (by all four rows)",
        "rft": "RFT: four tries, this time with equal rewards, so nothing to learn from",
        "uft": "UFT: four tries from a hint; what ends well is pushed up, the rest down, and the hint up a little",
    }
    methods = {"sft": METHODS["sft"], "rft": METHODS["rft"], "uft": replace(METHODS["uft"], length=1)}

    def explored(name: str, seed: int):
        rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
        s = Step(0, cfg, task, base, base, None, rng, generator=generator, problems=[problem])
        rows = methods[name].explore(s)
        rows.weight = methods[name].weigh(s, rows)
        return rows

    def telling(seed: int) -> bool:
        return explored("uft", seed).solved.sum() == 1 and len(explored("rft", seed).reward.unique()) == 1

    seed = next(seed for seed in range(1000) if telling(seed))
    for axis, (name, title) in zip(axes, titles.items(), strict=True):
        rows = explored(name, seed)
        weighed(axis, task, rows.take(torch.arange(1 if name == "sft" else 4)), title)
    *numbers, target = problem.prompt.replace("->", "").split()
    axes[0].figure.suptitle(f"reach {target} from {', '.join(numbers)}, each used once", x=0.01, ha="left")


def curves(axis, world: str, found: dict) -> None:
    """Mean of the seeds, and a band from the lowest to the highest."""
    for arm in (arm for arm in COLORS if arm in found):
        accuracy = 100 * np.array([x["accuracy"] for x in found[arm]])
        steps = found[arm][0]["step"]
        axis.plot(steps, accuracy.mean(0), color=COLORS[arm], label=arm)
        axis.fill_between(steps, accuracy.min(0), accuracy.max(0), color=COLORS[arm], alpha=0.12, lw=0)
    solved = countdown.best_rule(world, "validation")
    axis.axhline(100 * solved, color="k", ls=":", lw=1, label="best fixed rule")
    axis.set(xlabel="step", ylim=(0, 90))
    axis.legend(frameon=False, fontsize=8)


def rollouts(axis) -> None:
    horizon.draw(axis, {arm: horizon.forked()[arm] for arm in ("rft", "sft_rft", "superrl", "uft", "uft_uniform")})
    axis.set(
        title="trees with 4^H leaves", xlabel="horizon H: steps of an answer", ylabel="rollouts until it is solved"
    )
    axis.legend(frameon=False, fontsize=9)


def main() -> None:
    matplotlib.rcParams.update({"font.size": 10})
    figure = matplotlib.figure.Figure(figsize=(12, 8.2), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[1, 1])
    boards(above.subplots(3, 1, height_ratios=[1, 4, 4]))
    left, middle, right = below.subplots(1, 3)
    curves(left, "six", countdown.six())
    curves(middle, "play", countdown.arms())
    left.set(title="countdown:numbers=6", ylabel="% of validation problems solved, no hints")
    middle.set(title="countdown:plays=1,minuses=2")
    rollouts(right)
    figure.savefig(Path(__file__).parent / "figures/front.png", dpi=110)


if __name__ == "__main__":
    main()
