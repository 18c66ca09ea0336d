"""What exercises.ipynb asks, and whether an answer is right. Each function returns "right", or what is wrong.

The answers stand in tests/test_exercises.py.
"""

import contextlib
import io
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from data import make_task  # noqa: E402
from model import GPT  # noqa: E402
from nanouft import METHODS, Method, Step, cell, rollout  # noqa: E402
from notebooks import family  # noqa: E402, F401  more methods
from train import Config, run  # noqa: E402

GROUPS = [[1.0, 0.1, 0.1, 0.1], [1.0, 1.0, 0.0, 0.0], [0.1, 0.1, 0.1, 0.1]]  # rewards


def compared(found, wanted, what: str, rounding: float = 0.01) -> str:
    """Of numbers: equal up to rounding?"""
    found, wanted = (np.array(x.tolist() if torch.is_tensor(x) else x, float) for x in (found, wanted))
    if found.shape != wanted.shape:
        return f"{what}: expected the shape {wanted.shape}, not {found.shape}"
    if len(where := np.argwhere(~np.isclose(found, wanted, atol=rounding, rtol=0))):
        at = tuple(where[0].tolist())
        return f"{what}: {found[at]:.3f} is not right" + f" (at {list(at)})" * bool(at)
    return "right"


def small_step(seed: int, t: int = 0, **settings) -> Step:
    """A step on trees, with an untrained model: small, but with everything that a column of the table may look at."""
    cfg, task = Config(problems=3, group=4, **settings), make_task("tree:horizon=5", seed)
    model = GPT(task.vocab, 1, 16, 6, writable=task.writable)
    model.init_weights(torch.Generator().manual_seed(seed))
    problem = task.split("pool", 1, 0)[0]
    problems = [replace(problem, demo=problem.demo[:n]) for n in (5, 3, 2)]
    return Step(t, cfg, task, model, model, lambda _: problems, np.random.default_rng(seed), problems=problems)


def by_hand(advantages: list[list[float]]) -> str:
    """1. The advantages of the three GROUPS."""
    centred = [np.array(r) - np.mean(r) for r in GROUPS]
    wanted = [x / s if (s := math.sqrt((x @ x) / 3)) > 1e-9 else 0 * x for x in centred]
    return compared(advantages, np.array(wanted), "the advantages")


def endings() -> tuple[dict[str, float], dict[str, int]]:
    """What each method ends at on a forked tree, rounded to 0.1, 0.5 or 1.0, and after how many steps."""
    cfg = Config(task="tree:horizon=8,fork=2", steps=300, test=0, until=0.9)
    lasts = {name: run(replace(cfg, method=name))[-1] for name in ("uft", "cosine", "rft", "sft")}
    ends = {name: min((0.1, 0.5, 1.0), key=lambda x: abs(x - m["expected_reward"])) for name, m in lasts.items()}
    return ends, {name: m["step"] for name, m in lasts.items()}


def predicted(ends: dict[str, float], sooner: str, found: tuple | None = None) -> str:
    """2. Where each method ends, and which of uft and cosine (uft with hint_coef 0) gets there sooner."""
    measured, steps = found or endings()
    if wrong := [name for name in measured if ends.get(name) != measured[name]]:
        return f"{wrong[0]} does not end at {ends.get(wrong[0])}"
    if sooner != min(("uft", "cosine"), key=steps.get):
        return f"sooner: {sooner!r} is not right"
    print("\n".join(f"{name:6s} ended nearest to {measured[name]}, after {steps[name]} steps" for name in measured))
    return "right"


def shorter(length: Callable) -> str:
    """3. The column `length`: L - 1 units in the first 100 steps, and one less every 100 steps, until none is left."""
    for t in (0, 99, 100, 101, 250, 399, 400, 1000):
        s = small_step(0, t)
        found = np.array(cell(length, s))
        if "int" not in str(found.dtype):
            return f"units are whole numbers, not {found.dtype}"
        if (told := compared(found, np.maximum(s.L - 1 - t // 100, 0), f"in step t = {t}")) != "right":
            return told
    return "right"


def centred(advantage: Callable) -> str:
    """4. Dr. GRPO's column `advantage`: r - mean, for each group."""
    for seed in range(3):
        s, random = small_step(seed), np.random.default_rng(seed)
        rows = rollout(s.model, s.task, [p for p in s.problems for _ in range(4)], [0] * 12)
        rows.reward = torch.tensor(random.choice([0.0, 0.1, 1.0], 12), dtype=torch.float32)
        wanted = [r - r.mean() for r in rows.reward.view(3, 4)]
        if (told := compared(advantage(s, rows), torch.stack(wanted), "r - mean")) != "right":
            return told
    return "right"


def switch(p_sft: Callable) -> str:
    """5. SASR's column `p_sft`, from s.memory and s.cfg.gamma."""
    for g, g_warmup, gamma in ((1.0, 1.0, 1.0), (3.0, 1.0, 1.0), (1.0, 2.0, 4.0), (0.0, 2.0, 1.0)):
        s = small_step(0, t=Config.warmup, gamma=gamma)
        s.memory |= {"g": g, "g_warmup": g_warmup}
        what = f"g {g}, g_warmup {g_warmup}, gamma {gamma}"
        if (told := compared(p_sft(s), g / (g + gamma * g_warmup), what)) != "right":
            return told
    return "right"


def noticed(objective: Callable, test: str) -> str:
    """6. An objective with pi as a ratio on the hint, and a test in tests/test_nanouft.py that notices."""

    def passes(mine: Callable) -> bool:
        kept, Method.objective = Method.objective, mine
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                command = ["-q", "-p", "no:xdist", "-p", "no:cacheprovider", "-o", "addopts="]
                name = test.rpartition("::")[2] or "none"
                return pytest.main([*command, f"{ROOT}/tests/test_nanouft.py::{name}"]) == 0
        finally:
            Method.objective = kept

    s = small_step(1, hint_steps=10**6)
    rows = METHODS["uft"].explore(s)
    rows.weight = METHODS["uft"].weigh(s, rows)
    logp = (-torch.rand(rows.tokens.shape, generator=torch.Generator().manual_seed(0))).requires_grad_()

    def gradient(objective: Callable) -> torch.Tensor:
        return torch.autograd.grad(objective(METHODS["uft"], s, rows, logp, None).sum(), logp)[0]

    ours, yours = gradient(Method.objective), gradient(objective)
    if not torch.allclose(ours[rows.suffix], yours[rows.suffix]):
        return "your objective also changes what sampled tokens add"
    if torch.allclose(ours[rows.hint], yours[rows.hint]):
        return "your objective treats the hint as ours does"
    if not torch.allclose((ours * logp.exp())[rows.hint], yours[rows.hint]):
        return "the mistake makes the gradient on the hint c times pi; yours is something else"
    if not passes(Method.objective):
        return f"there is no test {test!r}, or it fails with our own objective, too"
    return f"{test} passes with your objective" if passes(objective) else "right"


def weight_of_a_score(c: Callable) -> str:
    """7. c(r_hat, score, beta): what the tokens of a scored answer weigh under cross-entropy."""
    random = np.random.default_rng(0)
    for _ in range(20):
        logp, score, beta = random.normal(0, 5), random.uniform(), random.uniform(0.05, 1)
        x = torch.tensor(logp, requires_grad=True)  # log(pi / base)
        sigma = (beta * x).sigmoid()
        (-score * sigma.log() - (1 - score) * (1 - sigma).log()).backward()
        what = f"r_hat {beta * logp:.2f}, score {score:.2f}, beta {beta:.2f}"
        if (told := compared(c(beta * logp, score, beta), -x.grad, what, rounding=1e-4)) != "right":
            return told
    return "right"


WALL = dict(task="tree:horizon=6,fork=2", method="rft", test=0, until=0.9)
MOST = 64_000  # rollouts
MINE = {"lr", "entropy_coef", "kl_coef", "group", "problems", "steps", "clip", "updates", "decay"}


def past_the_wall(settings: dict) -> str:
    """8. Settings with which RFT solves most of three trees with 4^6 leaves, in at most 64,000 rollouts each."""
    if kept := settings.keys() - MINE:
        return f"{kept.pop()} is not yours to choose here: only {', '.join(sorted(MINE))} are"
    cfg = Config(**WALL | settings)
    if (rollouts := cfg.steps * cfg.problems * cfg.group) > MOST:
        return f"steps x problems x group are {rollouts:,} rollouts: {MOST:,} at most"
    ends = [run(replace(cfg, seed=seed))[-1]["expected_reward"] for seed in range(3)]
    print("expected rewards of the three:", *(f"{x:.2f}" for x in ends))
    solved = sum(x >= 0.9 for x in ends)
    return "right" if solved > 1 else f"solved: {solved} of 3"
