"""Runs on countdown: which, with what settings, and what of them is kept in results/countdown*.json.

python notebooks/countdown.py                  the grid that all arms were tuned with, and all experiments
python notebooks/countdown.py sizes hints      some of them (what is kept is not run again)
"""

import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from data import make_task  # noqa: E402
from nanouft import rollout  # noqa: E402
from notebooks.lab import QUICK, behaviour, measured  # noqa: E402
from train import Config, base_model, load, make_model, randomness, run, score, splits  # noqa: E402

ARMS = ["sft", "sasr", "r3", "rft", "sft_rft", "uft"]
SIZES = {"30k": 32, "105k": 64, "400k": 128}  # parameters: width, of two blocks
EXTRA = ["static", "mix"]  # at 105k only
RATES = (1e-4, 3e-4, 1e-3, 3e-3)
OTHERS = {  # what else is left to set, one at a time, at 105k
    "sasr": [("warmup", 100), ("warmup", 200), ("gamma", 0.3), ("gamma", 3.0)],
    "r3": [("entropy_coef", 0.01)],
    "rft": [("entropy_coef", 0.003), ("entropy_coef", 0.02), ("kl_coef", 0.03)],
    "sft_rft": [("warmup", 100), ("warmup", 200), ("warmup", 500)] + [("second_lr", lr) for lr in RATES[:3]],
    "uft": [("hint_coef", 0.03), ("hint_coef", 0.3), ("hint_steps", 280), ("hint_steps", 560)],
}
EVERYWHERE = ("warmup", "second_lr")  # but these at every size
GRID_SEEDS = range(100, 102)  # a base, a pool and samples that no figure shows
SEEDS = range(5)
FEW, FEW_ARMS = range(3), ["sft", "rft", "sft_rft", "uft"]  # of the smaller questions
DEMOS = (64, 256, 1024, 4096, 6500)  # some 7,000 problems exist
LARGER = dict(high=15, validation=256, test=400)  # of three numbers up to 10 there are too few problems
TINY = dict(steps=8, warmup=4, hint_steps=5, eval_every=2, base_steps=20, validation=16, test=16, problems=8, demos=64)
BLOCK = 25  # steps that are averaged into one
COSTS = "rollouts sampled_tokens demo_tokens seconds".split()
AT_VALIDATIONS = ["step", *COSTS, "accuracy", "pass@1", "base_kl"]
AT_THE_END = [f"{x}{of}" for of in ("", "_chosen", "_base") for x in ("test", "unseen", "pass@1_test")]
AT_THE_END += ["base_kl_test"]
OVER_BLOCKS = "explored_solved supervised entropy grad_norm reward frac_reward_zero_std".split()


def config(method: str, seed: int, **more) -> Config:
    task = f"countdown:numbers={more.pop('numbers', 4)},high={more.pop('high', 10)}"
    return Config(task=task, method=method, seed=seed, **more)


def by_the_rules(model, task, problems, generator) -> float:
    """The share of sampled answers that play as the base was taught, whatever they end at."""
    rows = rollout(model, task, problems, [0] * len(problems), 1.0, generator)
    answers = [task.decode(ids[own].tolist()) for ids, own in zip(rows.tokens, rows.suffix, strict=True)]
    legal = 0
    for problem, answer in zip(problems, answers, strict=True):
        answer = answer.removesuffix("<end>")
        end = answer.rpartition("=")[2]
        legal += end.isdigit() and task.reward(replace(problem, target=int(end)), answer) == 1
    return legal / len(problems)


def greedy(model, task, sets) -> dict[str, float]:
    """The share of problems solved: all, those that adding all numbers solves, and the others; and how many of the
    answers do nothing but add."""
    found = {}
    for name, problems in sets.items():
        if not problems:
            continue
        rows = rollout(model, task, problems, [0] * len(problems), 0.0)
        texts = [task.decode(ids[own].tolist()) for ids, own in zip(rows.tokens, rows.suffix, strict=True)]
        sums = np.array([sum(p.numbers) == p.target for p in problems])
        solved = rows.solved.flatten().numpy()
        found |= {f"{name}_sums": solved[sums].sum() / max(sums.sum(), 1)}
        found |= {f"{name}_others": solved[~sums].mean(), name: solved.mean()}
        found |= {f"{name}_adds": np.mean([set("+-*/") & set(text) == {"+"} for text in texts])}
    return found


@cache
def always_adding(seed: int = 0, **more) -> dict[str, float]:
    """What it solves to add all numbers, whatever is asked: percent of the problems."""
    cfg = config("sft", seed, **more)
    sets = splits(cfg, make_task(cfg.task))
    return {name: 100 * np.mean([sum(p.numbers) == p.target for p in sets[name]]) for name in sets}


def brief(cfg: Config) -> dict:
    """A run in short: its last record; columns with a number for each validation, and for each block of steps."""
    with TemporaryDirectory() as folder:
        metrics = run(replace(cfg, out=folder), behaviour)
        saved = load(Path(folder) / "checkpoint.pt")
    task = make_task(cfg.task, cfg.seed)
    sets = splits(cfg, task)
    weights = {"": saved["model"], "_chosen": saved["best"], "_base": base_model(cfg, task).state_dict()}
    last = {}
    for of, w in weights.items():
        model = make_model(cfg, task)
        model.load_state_dict(w)
        legal = by_the_rules(model, task, sets["validation"], randomness(cfg, 9)[1])
        last |= {name + of: x for name, x in {"legal": legal, **greedy(model, task, sets)}.items()}
        if cfg.test:
            last[f"pass@8{of}"] = metrics[-1][f"pass@8_test{of}"]
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
    cells: dict[Any, dict], seeds: range, name: str = "countdown", quick: bool = QUICK, **common
) -> dict[Any, list[dict]]:
    """{label: a result for each seed}, for {label: settings}. What several experiments ask for is run once."""
    seeds, small = (seeds[:2], TINY) if quick else (seeds, {})
    runs = [config(seed=seed, **common | cell | small) for cell in cells.values() for seed in seeds]
    results = iter(measured(name, runs, points=True, quick=quick, work=brief))
    return {label: [next(results) for _ in seeds] for label in cells}


def steady(result: dict) -> float:
    """What the grid goes by: the best three validations in a row, so that an arm which overfits loses nothing."""
    return float(np.convolve(result["accuracy"], np.ones(3) / 3, "valid").max())


def grid(size: str) -> dict[str, dict[str, tuple[dict, list[float]]]]:
    """{arm: {what is set: (settings, a score for each seed)}}, on validation. Every learning rate; with the best of
    them what else an arm has. A second_lr is that of the second half, behind SFT's own best rate in the first."""
    found = {arm: {} for arm in ARMS + EXTRA * (size == "105k")}
    start = tuned() if size != "105k" else dict.fromkeys(found, {}) | {"uft": dict(hint_coef=0.1)}
    common = dict(width=SIZES[size], test=0, validation=900, name="countdown_grid", quick=False)

    def score(cells: dict[tuple[str, str], dict]) -> None:
        runs = {(arm, what): dict(method=arm) | cell for (arm, what), cell in cells.items()}
        for (arm, what), results in several(runs, GRID_SEEDS, **common).items():
            found[arm][what] = cells[arm, what], [steady(x) for x in results]

    score({(arm, f"lr {lr:g}"): start[arm] | dict(lr=lr) for arm in found for lr in RATES})
    others = [(a, n, x) for a in OTHERS for n, x in OTHERS[a] if size == "105k" or n in EVERYWHERE]
    first = {"second_lr": dict(lr=chosen(found["sft"])["lr"])}
    cells = {(a, f"{n} {x:g}"): chosen(found[a]) | first.get(n, {}) | {n: x} for a, n, x in others}
    score({key: cell for key, cell in cells.items() if cell.get("second_lr") != cell["lr"]})
    return found


def chosen(cells: dict[str, tuple[dict, list[float]]]) -> dict:
    """The settings with the best mean; another than a learning rate only if it gains half a point: less is noise, and a
    setting more to explain."""
    means = {what: np.mean(scores) for what, (_, scores) in cells.items()}
    return cells[max(means, key=lambda what: means[what] - 0.005 * (not what.startswith("lr")))][0]


@cache
def tuned(size: str = "105k") -> dict[str, dict]:
    return {arm: chosen(cells) for arm, cells in grid(size).items()}


@cache
def sizes(which=tuple(SIZES)) -> dict[tuple[str, str], list[dict]]:
    """Every arm at every size: the notebook's sections 1, 3, 4, 5."""
    cells = {(size, arm): dict(method=arm, width=SIZES[size]) | tuned(size)[arm] for size in which for arm in ARMS}
    return several(cells, SEEDS)


def share_of_sft(results: list[dict], warmup: int) -> float:
    """Realised after the warm-up, over all seeds."""
    blocks = np.array([x["block_supervised"] for x in results])
    return float(blocks[:, min(warmup // BLOCK, blocks.shape[1] - 1) :].mean())


def switches() -> dict[str, list[dict]]:
    """Section 2: SASR, and two switches that do not look: every second step, and a coin with SASR's own share."""
    settings = tuned()
    sasr = sizes(("105k",))["105k", "sasr"]
    same = {name: x for name, x in settings["sasr"].items() if name == "warmup"}
    mix = dict(method="mix", mix=round(share_of_sft(sasr, same.get("warmup", Config.warmup)), 2))
    cells = {"static": dict(method="static") | settings["static"] | same, "mix": mix | settings["mix"] | same}
    return {"sasr": sasr} | several(cells, SEEDS)


def demonstrations() -> dict[tuple[int, str], list[dict]]:
    """Section 7: more and fewer problems with a demonstration."""
    cells = {(n, arm): dict(method=arm, demos=n) | tuned()[arm] for n in DEMOS for arm in FEW_ARMS}
    return several(cells, FEW)


def hints() -> dict[str, list[dict]]:
    """Sections 4 and 6: UFT's hints, how they end, how long they last, what they weigh; and an entropy bonus. Where a
    claim hangs on it, on all seeds."""
    cells = {f"hint_coef {x:g}": dict(hint_coef=x) for x in (0.0, 0.001, 0.01, 0.1, 0.3, 1.0)}
    cells |= {"hint_coef 0, lr 0.0003": dict(hint_coef=0.0, lr=3e-4)}  # without it, R3's rate might suit better
    cells |= {f"T_hint {x}": dict(hint_steps=x) for x in (140, 280, 420, 560, 700)}
    cells |= {f"p = {x:g}, then 0": dict(hint_low=x, hint_high=x) for x in (0.5, 0.95)}
    cells |= {f"entropy_coef {x:g}": dict(entropy_coef=x) for x in (0.003, 0.02)}
    cells = {name: tuned()["uft"] | cell for name, cell in cells.items()}
    tested = ("hint_coef 0", "hint_coef 0, lr 0.0003", "hint_coef 0.3", "p = 0.5, then 0", "p = 0.95, then 0")
    found = several(cells, FEW, method="uft")
    return found | several({name: cells[name] for name in tested}, SEEDS, method="uft")


def numbers() -> dict[tuple[int, str], list[dict]]:
    """Section 8: two, three and four equations."""
    cells = {(n, arm): dict(method=arm, numbers=n) | tuned()[arm] for n in (3, 4, 5) for arm in FEW_ARMS}
    return several(cells, FEW, **LARGER)


EXPERIMENTS = {f.__name__: f for f in (sizes, switches, demonstrations, hints, numbers)}  # by their importance


def print_grid(size: str) -> None:
    """The best three validations in a row, percent, for each seed; * is what was chosen."""
    for arm, cells in grid(size).items():
        best = chosen(cells)
        marked = [f"{w} {'/'.join(f'{100 * x:.1f}' for x in s)}{'*' * (c == best)}" for w, (c, s) in cells.items()]
        print(f"{size:6s}{arm:9s}" + "   ".join(marked), flush=True)


def main(names: list[str]) -> None:
    if unknown := set(names) - set(EXPERIMENTS):
        sys.exit(f"{unknown.pop()}: expected some of {', '.join(EXPERIMENTS)}")
    for size in SIZES:
        print_grid(size)
    for name in names or EXPERIMENTS:
        EXPERIMENTS[name]()


if __name__ == "__main__":
    main(sys.argv[1:])
