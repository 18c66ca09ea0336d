"""Runs on trees and chains of growing horizon: which, with what settings, and how they are drawn.

python notebooks/horizon.py                  the grid that all arms were tuned with, and all experiments: seven hours
python notebooks/horizon.py forked           some of them (what is kept in results/ is not run again)
"""

import itertools
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from nanouft import METHODS, GivenAnswers  # noqa: E402
from notebooks.lab import QUICK, make, measured  # noqa: E402
from notebooks.report import COLORS  # noqa: E402
from train import Config  # noqa: E402

GRID = {
    "lr": (1e-3, 3e-3),
    "entropy_coef": (0.0, 0.02, 0.1, 0.3),
    "hint_coef": (0.02, 0.05, 0.1),
    "warmup": (10, 30, 100),
}
ARMS = {  # what of the grid makes a difference to which method
    "sft": ["lr"],
    "rft": ["lr", "entropy_coef"],
    "sft_rft": ["lr", "entropy_coef", "warmup"],
    "r3": ["lr", "entropy_coef"],
    "cosine": ["lr", "entropy_coef"],
    "hint_only": ["lr", "hint_coef"],
    "uft": ["lr", "entropy_coef", "hint_coef"],
    "uft_uniform": ["lr", "entropy_coef", "hint_coef"],
    "sasr": ["lr", "entropy_coef", "warmup"],
    "superrl": ["lr", "entropy_coef"],
    "luffy": ["lr", "entropy_coef"],
    "frontier": ["lr", "entropy_coef", "hint_coef"],
}
SAMPLING = [name for name, method in METHODS.items() if not isinstance(method, GivenAnswers)]
RELATIVES = {name: ["lr", "entropy_coef"] for name in SAMPLING if name not in ARMS}
RELATIVES["dft"] = ["lr"]  # family.ipynb's other arms: round one of the grid
PANELS = {  # at most four lines in each
    "no hints": ["rft", "sft", "sft_rft", "sasr"],
    "hints: prefixes of the demonstration": ["r3", "uft", "uft_uniform", "frontier"],
    "the whole demonstration (and uft_uniform)": ["superrl", "luffy", "uft_uniform"],
}
GRID_TREES = [(6, range(100, 105)), (16, range(100, 105)), (16, range(105, 115))]  # H and seeds that no figure shows
ROLLOUTS = 256  # a step: 8 draws of a hint, 32 rollouts from each
SEEDS, FIVE = (range(1), range(1)) if QUICK else (range(10), range(5))
HINTED, UNHINTED = ([2, 4], [2, 4]) if QUICK else ([4, 6, 8, 12, 16], [5, 6, 7, 8, 9, 10])  # horizons
CAP, FAR = (7_680, 7_680) if QUICK else (153_600, 512_000)  # rollouts; FAR for who must find B^H


def tree(method: str, H: int, seed: int, fork: int = 2, B: int = 4, **more) -> Config:
    """A forked tree, until the expected reward is 0.9 or the steps are used up. Hints and warm-up grow with H."""
    if "warmup" in more:
        more["warmup"] = more["warmup"] * H // 6
    common = dict(task=f"tree:horizon={H},B={B},fork={fork}", method=method, seed=seed, test=0, until=0.9, eval_every=5)
    return Config(**common | dict(steps=300 + 15 * H, hint_steps=30 * H, entropy_coef=0.0) | more)


def chain(method: str, H: int, seed: int, B: int = 4, free: int = 0, **more) -> Config:
    """256 rollouts a step on chains, until 90 % of the validation problems are solved. Few exist while H is small."""
    sizes = dict(demos=min(1024, B**H // 2), validation=min(256, B**H // 20), test=0)
    common = dict(task=f"chain:horizon={H},B={B},free={free}", method=method, seed=seed, until=0.9, eval_every=10)
    return Config(**common | sizes | more)


def cells(method: str) -> list[dict]:
    names = (ARMS | RELATIVES)[method]
    return [dict(zip(names, values, strict=True)) for values in itertools.product(*(GRID[n] for n in names))]


def runs_of(method: str, some: list[dict], H: int, seeds: range, **more) -> list[list[dict]]:
    """Of each of some cells, a result for each seed."""
    found = measured("grid", [tree(method, H, seed, **cell | more) for cell in some for seed in seeds], quick=False)
    return [found[i * len(seeds) :][: len(seeds)] for i in range(len(some))]


def took(result: dict, what: str = "rollouts") -> float:
    """Rollouts (or sampled tokens) to 0.9; a run that did not get there counts as if hints had saved it none."""
    if result["reached"]:
        return result[what]
    spent = ROLLOUTS * result["step"]
    return spent if what == "rollouts" else result[what] * spent / max(result["rollouts"], 1)


def summary(results: list[dict]) -> tuple[int, float, float]:
    """Seeds at 0.9; median of what they took; mean expected reward at the end."""
    reached, score = sum(x["reached"] for x in results), np.mean([x["score"] for x in results])
    return reached, float(np.median([took(x) for x in results])), float(score)


def rank(rounds: list[list[dict]]) -> tuple[float, float, float]:
    """The least is the best: most trees solved; then, fewest rollouts; then, highest expected reward."""
    solved, rollouts, score = np.array([summary(results) for results in rounds]).sum(0)
    return -solved, rollouts, -score


def rounds(method: str) -> Iterator[tuple[list[dict], list[list[dict]]]]:
    """How an arm is tuned: in each of three rounds some cells, the best first, and all their results so far.

    All cells at H = 6; the best five there, and whichever solved as many trees as the best, at H = 16; those that now
    lead together, if they solve any, on ten more at H = 16.
    """
    some, results = cells(method), {}
    for i, (H, seeds) in enumerate(GRID_TREES):
        for cell, more in zip(some, runs_of(method, some, H, seeds), strict=True):
            results.setdefault(str(cell), []).append(more)
        ranks = {str(cell): rank(results[str(cell)]) for cell in some}
        some = sorted(some, key=lambda cell: ranks[str(cell)])
        yield some, [results[str(cell)][-1] for cell in some]
        if not any(x["reached"] for x in results[str(some[0])][-1]):
            return  # nothing to tell them apart by
        lead = [cell for cell in some if ranks[str(cell)][0] == ranks[str(some[0])][0]]
        some = lead if i else max(some[:5], lead, key=len)
        if len(some) == 1:
            return  # decided


@cache
def tuned(method: str) -> dict:
    *_, (some, _) = rounds(method)
    return dict(method=method) | some[0]


@cache
def tuned_for_four(method: str) -> dict:
    """The best of the five cells that led in the first round, where the demonstration turns off four steps before the
    end of twelve, on five trees that no figure shows."""
    some = next(rounds(method))[0][:5]
    found = runs_of(method, some, 12, range(100, 105), fork=4)
    return dict(method=method) | min(zip(some, found, strict=True), key=lambda x: rank([x[1]]))[0]


def race(arms: dict[str, dict], horizons: list[int], seeds: range, cap: int, name="horizon", **more) -> dict:
    """{arm: {H: a result for each seed}}; an arm is a method's name and settings."""
    cells = [(arm, H) for arm in arms for H in horizons]
    runs = [tree(H=H, seed=i, **arms[arm] | dict(steps=cap // ROLLOUTS) | more) for arm, H in cells for i in seeds]
    results, found = iter(measured(name, runs)), {arm: {} for arm in arms}
    for arm, H in cells:
        found[arm][H] = [next(results) for _ in seeds]
    return found


@cache
def forked() -> dict[str, dict[int, list[dict]]]:
    """The demonstration turns off two steps before the end. RFT's trees are smaller, and its budget is larger."""
    arms = {arm: tuned(arm) for arm in ARMS} | {"r3, no entropy": tuned("r3") | dict(entropy_coef=0.0)}
    found = race({"rft": arms.pop("rft")}, UNHINTED, SEEDS, FAR)
    bonus = {"rft, entropy 0.1": tuned("rft") | dict(entropy_coef=0.1)}
    return found | race(bonus, [2, 4] if QUICK else [5, 6, 8], SEEDS, CAP) | race(arms, HINTED, SEEDS, CAP)


@cache
def plain() -> dict[str, dict[int, list[dict]]]:
    """The demonstration is the best path."""
    arms = {arm: tuned(arm) for arm in ("sft", "hint_only", "uft")}
    arms |= {f"{arm}, entropy 0.1": tuned("r3") | dict(method=arm, entropy_coef=0.1) for arm in ("r3", "rft")}
    return race(arms, [2, 4] if QUICK else [2, 4, 6, 8, 12], SEEDS, CAP, fork=0)


@cache
def two() -> dict[str, dict[int, list[dict]]]:
    """Two choices a step instead of four, other seeds, settings not tuned again."""
    seeds = range(20, 21) if QUICK else range(20, 30)
    found = race({"rft": tuned("rft")}, [3, 4] if QUICK else [10, 11, 12, 14, 16, 18, 20], seeds, FAR, B=2)
    return found | race({arm: tuned(arm) for arm in ("uft", "uft_uniform")}, HINTED, seeds, CAP, B=2)


TURNED, FORKS = (4, [0, 3]) if QUICK else (12, [0, 2, 4, 6])  # H; steps between the fork and the end
PAST = ("sft_rft", "r3", "uft", "uft_uniform", "superrl", "frontier")  # k = 2 in most seeds, or most at k = 4
DEEP = (*PAST, "sasr", "luffy")


def turned(arms: dict[str, dict], forks: list[int]) -> dict[str, dict[int, list[dict]]]:
    found = {k: race(arms, [TURNED], FIVE, CAP, fork=k) for k in forks}
    return {arm: {k: found[k][arm][TURNED] for k in forks} for arm in arms}


@cache
def depths() -> dict[str, dict[int, list[dict]]]:
    """The demonstration turns off earlier and earlier, so that more leaves lie beyond. Settings as for k = 2."""
    return turned({arm: tuned(arm) for arm in DEEP}, FORKS)


@cache
def deeper() -> dict[str, dict[int, list[dict]]]:
    """The same with the settings that are best for k = 4."""
    return turned({arm: tuned_for_four(arm) for arm in PAST}, FORKS[-2:])


@cache
def blind() -> dict[str, dict[str, list[dict]]]:
    """So far away that RFT sees nothing."""
    arms = {arm: tuned(arm) for arm in ("rft", "uft_uniform")}
    found = {"B = 4": race(arms, [4 if QUICK else 16], SEEDS, CAP)}
    found["B = 2"] = race(arms, [4 if QUICK else 30], range(20, 21) if QUICK else range(20, 30), FAR, B=2)
    return found


def curve(results: dict[int, list[dict]], what: str = "rollouts") -> tuple[np.ndarray, ...]:
    """Horizons, and the quartiles over seeds (25 %, median, 75 %) of what the runs took."""
    quartiles = [np.percentile([took(x, what) for x in some], (25, 50, 75)) for some in results.values()]
    return np.array(list(results)), *np.array(quartiles).T


def slope(results: dict[int, list[dict]], horizons: list[int], power: bool) -> float:
    """Of ln(median rollouts) against H or, for a power law, against ln H."""
    H, _, median, _ = curve({h: results[h] for h in horizons})
    return float(np.polyfit(np.log(H) if power else H, np.log(median), 1)[0])


def draw(axis, results: dict[str, dict], what: str = "rollouts") -> None:
    """Medians and quartiles; hollow marks where at least half of the seeds never got there."""
    for arm, some in results.items():
        H, low, median, high = curve(some, what)
        color = COLORS[arm.partition(",")[0]]  # a variant has its method's
        failed = np.array([summary(x)[0] * 2 <= len(x) for x in some.values()])
        axis.plot(H, median, color=color, ls=":" if "," in arm else "-", label=arm)
        axis.fill_between(H, low, high, color=color, alpha=0.12, lw=0)
        axis.plot(H[~failed], median[~failed], "o", color=color, ms=4)
        axis.plot(H[failed], median[failed], "o", color=color, mfc="white", ms=7)
    axis.set(yscale="log", xlabel="horizon H", ylabel=what.replace("_", " "))


@cache
def far() -> dict[str, dict[int, list[dict]]]:
    """Twice as far as the grid went, with four times the budget: which entropy bonus is enough; and the best of them on
    ten more trees."""
    H, ten = ([4], range(1, 2)) if QUICK else ([24, 32], range(5, 15))
    arms = {f"uft_uniform, entropy {x:g}": tuned("uft_uniform") | dict(entropy_coef=x) for x in (0.02, 0.1, 0.3)}
    found = race(arms, H, FIVE, 4 * CAP)
    best = min(arms, key=lambda arm: rank(list(found[arm].values())))
    return found | {f"{best}, ten more": race({best: arms[best]}, H[-1:], ten, 4 * CAP)[best]}


def print_grid() -> None:
    """Trees solved, rollouts taken, mean expected reward, in the rounds that a cell was in."""
    for method in ARMS | RELATIVES:
        found = list(rounds(method)) if method in ARMS else [next(rounds(method))]
        for cell in cells(method):
            line = f"{method:12s}" + f"{', '.join(f'{name} {x:g}' for name, x in cell.items()):48s}"
            for some, results in found:
                if cell in some:
                    line += "{:3d}{:9,.0f}{:6.2f}  ".format(*summary(results[some.index(cell)]))
            print(line + "<- chosen" * (cell == found[-1][0][0]))


EXPERIMENTS = {"grid": print_grid} | {f.__name__: f for f in (forked, depths, deeper, far, plain, two, blind)}

if __name__ == "__main__":
    make(EXPERIMENTS, sys.argv[1:])
