"""Runs on countdown: which, with what settings, and what of them is kept in results/countdown*.json.

python notebooks/countdown.py                  the grids that arms were tuned with, and all experiments
python notebooks/countdown.py arms dial        some of them (what is kept is not run again)
"""

import itertools
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from data import TASKS, Countdown, Problem, make_task  # noqa: E402
from nanouft import rollout  # noqa: E402
from notebooks.lab import QUICK, behaviour, make, measured  # noqa: E402
from train import Config, load, make_model, randomness, run, score, splits  # noqa: E402

RATES = (2.5e-4, 5e-4, 1e-3, 2e-3)
OTHERS = {  # what else is tried, at an arm's best rate: three cells each
    "sft": [dict(decay=0.1), dict(decay=1.0), dict(problems=128)],
    "sasr": [dict(gamma=3.0), dict(warmup=200), dict(kl_coef=0.03)],
    "r3": [dict(entropy_coef=0.01), dict(kl_coef=0.03), dict(kl_coef=0.1)],
    "rft": [dict(entropy_coef=0.01), dict(kl_coef=0.03), dict(kl_coef=0.1)],
    "sft_rft": [dict(warmup=200), dict(second_lr=5e-4), dict(kl_coef=0.03)],
    "uft": [dict(hint_coef=0.1), dict(hint_steps=160), dict(kl_coef=0.03)],
}
DIAL = (250, 300, 400, 800)  # steps of base training: from a base that hardly plays by the rules to the usual one
WORLDS = {  # what differs from train.py's settings
    "play": dict(task="countdown:plays=1,minuses=2"),
    "demo": dict(steps=400),  # the default task
    "six": dict(task="countdown:numbers=6", steps=400, problems=64),  # a number more; twice the problems in a step
}
FOUR = ("sft", "rft", "sft_rft", "uft")  # all arms of the last two
GRID_SEEDS = range(100, 102)  # bases, pools and samples of the grid, and of apart(), alone
TEN, FIVE, FEW = range(10), range(5), range(3)
NUMBERS = (4, 5, 6)
WIDTHS = (32, 64, 128)  # of the model
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the problems that need one minus, so many stay in training
TINY = dict(steps=8, warmup=4, hint_steps=5, eval_every=2, base_steps=20, validation=16, test=16, problems=8, demos=64)
BLOCK = 25  # steps that are averaged into one
COSTS = "rollouts sampled_tokens demo_tokens seconds".split()
AT_VALIDATIONS = ["step", *COSTS, "accuracy", "base_kl"]
AT_THE_END = "test test_chosen unseen unseen_chosen pass@1_test pass@8_test base_kl_test".split()
OVER_BLOCKS = "explored_solved supervised entropy grad_norm reward frac_reward_zero_std".split()


class Shares(Countdown):
    """Six numbers, but only a share of the problems that need one minus is trained on. Validation and test are those
    of "six"."""

    def __init__(self, share=1.0):
        super().__init__(numbers=6)
        self.share = share

    def problem(self, rng: np.random.Generator, split: str = "pool") -> Problem:
        self.minuses = 1 if split != "pool" or self.share == 1 or rng.random() < self.share else 2
        return super().problem(rng, split)


TASKS["shares"] = Shares


def by_the_rules(task, rows) -> float:
    """The share of answers that play as the base was taught, whatever they end at."""
    legal = 0
    for problem, ids, own in zip(rows.problems, rows.tokens, rows.suffix, strict=True):
        answer = task.read(ids[own].tolist())
        end = (answer or "").rpartition("=")[2]
        legal += end.isdigit() and task.reward(replace(problem, target=int(end)), answer) == 1
    return legal / len(rows.problems)


def minuses(problem: Problem) -> int:
    """How many numbers must be subtracted, at least."""
    lack, n = sum(problem.numbers) - problem.target, len(problem.numbers)
    return min(k for k in range(n) for some in itertools.combinations(problem.numbers, k) if 2 * sum(some) == lack)


@cache
def best_rule(world: str = "play", name: str = "test") -> float:
    """The share of a split that the best fixed rule solves: one order (as given, rising, falling) and one row of
    signs for all problems. Who is not well above it has learnt a trick."""
    cfg = Config(**WORLDS[world])
    problems: list[Problem] = make_task(cfg.task).split(name, cfg.test, 0)
    targets = np.array([p.target for p in problems])
    signs = np.array([*itertools.product([1, -1], repeat=len(problems[0].numbers))])  # (rules, numbers)
    orders = [lambda x: x, sorted, lambda x: sorted(x, reverse=True)]
    solved = [(signs @ np.array([order(p.numbers) for p in problems]).T == targets).mean(1) for order in orders]
    return float(np.max(solved))


def brief(cfg: Config) -> dict:
    """A run in short: its last record; columns with a number for each validation, and for each block of steps."""
    with TemporaryDirectory() as folder:
        out = Path(folder, cfg.method)
        metrics = run(replace(cfg, out=str(out)), behaviour)
        saved = load(out / "checkpoint.pt")
    task = make_task(cfg.task, cfg.seed)
    sets, model, last = splits(cfg, task), make_model(cfg, task), {}
    model.load_state_dict(saved["model"])
    last["pool"] = rollout(model, task, sets["pool"], [0] * len(sets["pool"]), 0.0).solved.float().mean().item()
    some = sets["validation"]
    last["legal"] = by_the_rules(task, rollout(model, task, some, [0] * len(some), 1.0, randomness(cfg, 9)[1]))
    solved, least = rollout(model, task, some, [0] * len(some), 0.0).solved.numpy(), np.array([*map(minuses, some)])
    last |= {f"minus_{k}": solved[least == k].mean() for k in {*least.tolist()}}
    last |= {name: metrics[-1][name] for name in (*COSTS, *AT_THE_END) if name in metrics[-1]}
    last["chosen_step"] = max(metrics, key=score)["step"]
    validations = [m for m in metrics if "evaluated" in m]
    steps = metrics[1:]
    blocks = [steps[i : i + BLOCK] for i in range(0, len(steps), BLOCK)]
    found = {"last": {name: brief_number(x) for name, x in last.items()}}
    found |= {name: [brief_number(m[name]) for m in validations] for name in AT_VALIDATIONS}
    for name in OVER_BLOCKS:
        means = [[m[name] for m in block if name in m] for block in blocks]
        found[f"block_{name}"] = [brief_number(np.mean(x)) if x else None for x in means]
    if cfg.method == "sasr":
        found["p_sft"] = [brief_number(m["p_sft"]) for m in steps[cfg.warmup :]]
    return found


def brief_number(x: float) -> float | int:
    return x if isinstance(x, int) else float(f"{x:.4g}") if abs(x) < 1000 else round(x)


def several(
    cells: dict[Any, dict], seeds: range, world: str = "play", name: str = "countdown", quick: bool = QUICK, **common
) -> dict[Any, list[dict]]:
    """{label: a result for each seed}, for {label: settings}. What several experiments ask for is run once."""
    seeds, small = (seeds[:2], TINY) if quick else (seeds, {})
    runs = [Config(seed=seed, **WORLDS[world] | common | cell | small) for seed in seeds for cell in cells.values()]
    results = iter(measured(name, runs, points=True, quick=quick, work=brief))
    found = [dict(zip(cells, results, strict=False)) for _ in seeds]
    return {label: [one[label] for one in found] for label in cells}


def steady(result: dict) -> float:
    """What the grid goes by: the best three validations in a row, so that an arm which overfits loses nothing."""
    return float(np.convolve(result["accuracy"], np.ones(3) / 3, "valid").max())


def said(settings: dict) -> str:
    return ", ".join(f"{name} {x:g}" if isinstance(x, float | int) else f"{name} {x}" for name, x in settings.items())


@cache
def grid(world: str = "play") -> dict[str, dict[str, tuple[dict, list[float]]]]:
    """{arm: {what is set: (settings, a score for each seed)}}, on validation: every learning rate, without a KL; and
    with the best of them what else an arm has."""
    found = {arm: {} for arm in (OTHERS if world == "play" else FOUR)}
    common = dict(test=0, world=world, name="countdown_grid", quick=False)

    def try_out(cells: dict[tuple[str, str], dict]) -> None:
        runs = {(arm, what): dict(method=arm) | cell for (arm, what), cell in cells.items()}
        for (arm, what), results in several(runs, GRID_SEEDS, **common).items():
            found[arm][what] = cells[arm, what], [steady(x) for x in results]

    try_out({(arm, said(dict(lr=lr))): dict(lr=lr, kl_coef=0.0) for lr in RATES for arm in found})
    best = {arm: chosen(cells) for arm, cells in found.items()}
    try_out({(arm, said(cell)): best[arm] | cell for arm in found for cell in OTHERS[arm]})
    return found


def chosen(cells: dict[str, tuple[dict, list[float]]]) -> dict:
    """The settings with the best mean; another than a learning rate only if it gains a point: less is noise, and a
    setting more to explain."""
    means = {what: np.mean(scores) for what, (_, scores) in cells.items()}
    return cells[max(means, key=lambda what: means[what] - 0.01 * (not what.startswith("lr")))][0]


@cache
def tuned(world: str = "play") -> dict[str, dict]:
    return {arm: dict(method=arm) | chosen(cells) for arm, cells in grid(world).items()}


@cache
def arms() -> dict[str, list[dict]]:
    """Every arm, and the base, what all begin with."""
    return several(tuned() | {"base": dict(steps=0)}, TEN)


@cache
def demo() -> dict[str, list[dict]]:
    """What `make demo` trains, with its settings."""
    return several({arm: dict(method=arm) for arm in FOUR} | {"base": dict(steps=0)}, TEN, "demo")


@cache
def six() -> dict[str, list[dict]]:
    """Four arms, tuned, on six numbers."""
    return several(tuned("six") | {"base": dict(steps=0)}, TEN, "six")


@cache
def numbers() -> dict[tuple[int, str], list[dict]]:
    """Training until half of the validation problems are solved, from four numbers to six: the settings of six, and at
    most four times its steps."""
    more = dict(until=0.5, steps=4 * WORLDS["six"]["steps"], eval_every=25, test=0)
    some = {arm: tuned("six")[arm] | more for arm in ("rft", "sft_rft", "uft")}
    cells = {(n, arm): cell | dict(task=f"countdown:numbers={n}") for n in NUMBERS for arm, cell in some.items()}
    return several(cells, FEW, "six")


def until_half(result: dict) -> str:
    """The steps that it took; in brackets, the percent that the last one of all solved."""
    end = result["accuracy"][-1]
    return str(result["step"][-1]) if end >= 0.5 else f"({100 * end:.0f})"


@cache
def shares() -> dict[tuple[float, str], list[dict]]:
    """From no problems that need one minus to all that there are, on six numbers, with the settings of "six"."""
    some = {arm: tuned("six")[arm] for arm in ("rft", "sft_rft", "uft")}
    tasks = {x: f"shares:share={x:g}" if x < 1 else "countdown:numbers=6" for x in SHARES}
    return several({(x, arm): cell | dict(task=tasks[x]) for x in SHARES for arm, cell in some.items()}, FIVE, "six")


@cache
def sizes() -> dict[tuple[int, str], list[dict]]:
    """Smaller and larger models on six numbers, with the settings that were found for the usual one."""
    some = {"base": dict(steps=0)} | tuned("six")
    return several({(n, arm): dict(width=n) | cell for n in WIDTHS for arm, cell in some.items()}, FEW, "six")


@cache
def apart() -> dict[tuple[str, int, int], list[dict]]:
    """What differs between "six" and "play", one at a time: how targets are drawn, and how many minuses they take."""
    some = [("rft", 20, 1), ("rft", 1, 1), ("rft", 20, 2), ("rft", 1, 2), ("uft", 20, 1), ("uft", 20, 2)]
    tasks = {x: "countdown:numbers=6,plays={},minuses={}".format(*x[1:]) for x in some}
    cells = {x: tuned("six")[x[0]] | dict(task=task, test=0) for x, task in tasks.items()}
    return several(cells, GRID_SEEDS, "six", "countdown_grid")


@cache
def dial() -> dict[tuple[int, str], list[dict]]:
    """From a weak base to the usual one, with the settings of the usual one."""
    some = {"base": dict(steps=0)} | {arm: tuned()[arm] for arm in ("rft", "sft_rft", "uft")}
    return several({(n, arm): dict(base_steps=n) | cell for n in DIAL for arm, cell in some.items()}, FEW)


@cache
def longer() -> dict[str, list[dict]]:
    """Twice the steps: does UFT catch up? The two of ten seeds in which it does worst."""
    return several({arm: tuned()[arm] | dict(steps=2 * Config.steps) for arm in ("rft", "sft_rft", "uft")}, FIVE[:2])


@cache
def switches() -> dict[str, list[dict]]:
    """SASR, and two switches that do not look: every second step, and a coin with SASR's own share."""
    settings, sasr = tuned()["sasr"], arms()["sasr"][: len(FIVE)]
    start = min(settings.get("warmup", Config.warmup) // BLOCK, len(sasr[0]["block_supervised"]) - 1)
    share = float(np.mean([x["block_supervised"][start:] for x in sasr]))
    kept = {name: x for name, x in settings.items() if name != "gamma"}
    cells = {"static": kept | dict(method="static"), "mix": kept | dict(method="mix", share=round(share, 2))}
    return {"sasr": sasr} | several(cells, FIVE)


@cache
def hints() -> dict[str, list[dict]]:
    """UFT with one thing changed: what hints weigh, how they end, and a length of its own for each problem."""
    cells = {"uft": {}, "c = 0": dict(hint_coef=0.0), "frontier": dict(method="frontier")}
    cells |= {f"p = {x:g}, then 0": dict(hint_low=x, hint_high=x) for x in (0.5, 0.95)}
    return several({name: tuned()["uft"] | cell for name, cell in cells.items()}, FEW)


def print_grid(world: str = "play") -> None:
    """The best three validations in a row, percent, for each seed; * is what was chosen."""
    for arm, cells in grid(world).items():
        best = chosen(cells)
        marked = [f"{w} {'/'.join(f'{100 * x:.1f}' for x in s)}{'*' * (c == best)}" for w, (c, s) in cells.items()]
        print(f"{arm:9s}" + "   ".join(marked), flush=True)


def both_grids() -> None:
    for world in ("six", "play"):
        print(WORLDS[world]["task"])
        print_grid(world)


RUNS = (six, apart, numbers, shares, sizes, demo, arms, dial, longer, switches, hints)
EXPERIMENTS = {"grid": both_grids} | {f.__name__: f for f in RUNS}

if __name__ == "__main__":
    make(EXPERIMENTS, sys.argv[1:])
