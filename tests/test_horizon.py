"""The exponential wall, and what gets past it, as scaling: the real model and the real methods, on trees.

A tree has 4^H leaves, and one of them is good. Whoever explores without hints needs some 4^H tries just to see it. The
demonstration of a forked tree turns off one step before the end, to a leaf worth half: whoever copies it stays there.
UFT explores from hints, and its rollouts grow like a small power of H. Both have the same largest budget.
"""

from dataclasses import replace

import numpy as np
import torch

import train
from data import make_task
from nanouft import METHODS, Step, anneal, train_step
from notebooks.horizon import ROLLOUTS, tree
from train import base_model, randomness, run

BUDGET = 153_600  # rollouts
SETTINGS = dict(lr=3e-3, entropy_coef=0.3, hint_coef=0.05)  # the grid's choice for uft


def all_of(model) -> torch.Tensor:
    return torch.cat([p.flatten() for p in model.state_dict().values()])


def rollouts_to_the_first_reward(H: int, seed: int) -> int:
    """Until then RFT may not have moved a bit."""
    cfg = tree("rft", H, seed, fork=0)
    task = make_task(cfg.task, seed)
    model = base_model(cfg, task)
    optimizer, start = torch.optim.AdamW(model.parameters(), lr=3e-3, fused=True), all_of(model).clone()
    for t in range(BUDGET // ROLLOUTS):
        assert torch.equal(all_of(model), start)
        rng, generator = randomness(cfg, 0, t)
        s = Step(t, cfg, task, model, model, lambda _: task.split("pool", 8, 0), rng, generator=generator)
        train_step(METHODS["rft"], s, [optimizer])
        if s.rows.solved.any():
            return t * ROLLOUTS + int(s.rows.solved.nonzero()[0]) + 1
    return BUDGET


def test_rft_needs_b_times_the_rollouts_for_each_further_step():
    """Hints, or a reward, that leak into RFT; a leaf that is drawn twice as often as another."""
    horizons = [3, 4, 5, 6]
    means = [np.mean([rollouts_to_the_first_reward(H, seed) for seed in range(32)]) for H in horizons]
    growth = np.exp(np.polyfit(horizons, np.log(means), 1)[0])
    assert 3 < growth < 6, (growth, means)  # B = 4, or a little more: an untrained policy is not quite uniform


def test_ufts_rollouts_grow_like_a_small_power_of_the_horizon():
    """The RL term left out, or the hint's log-likelihood; hints that do not reach every depth."""
    horizons, took = [4, 8, 16], []
    for H in horizons:
        runs = [run(tree("uft", H, seed, fork=1, steps=BUDGET // ROLLOUTS, **SETTINGS)) for seed in range(2)]
        assert all(metrics[-1]["expected_reward"] >= 0.9 for metrics in runs), H
        took += [np.mean([metrics[-1]["rollouts"] for metrics in runs])]
    power = np.polyfit(np.log(horizons), np.log(took), 1)[0]
    assert power < 2 and max(took) < BUDGET / 2, (power, took)


def test_annealed_hints_leave_a_policy_that_walks_alone():
    """Hints that never end, or that end before there is anything to go on from."""
    metrics = run(tree("uft", 4, 0, fork=1, steps=130, **SETTINGS | dict(until=2.0)))
    given = 4 - np.diff([m["sampled_tokens"] for m in metrics]) / 256  # of 4 units: the mean of a step's eight draws
    expected = np.array([4 * anneal(t, 120, 0.05, 0.95) for t in range(130)])
    assert expected[119] < 0.25 and not given[120:].any()
    assert all(abs(given[i : i + 20].mean() - expected[i : i + 20].mean()) < 0.3 for i in range(0, 120, 20))
    assert metrics[-1]["expected_reward"] > 0.9


def test_imitation_stops_at_the_teacher():
    """A method called imitation that in truth sees rewards; a fork that the demonstration does not take."""
    metrics = run(tree("sft", 6, 0, steps=60, lr=3e-3))
    scores = [m["expected_reward"] for m in metrics if "evaluated" in m]
    assert max(scores) < 0.55 and scores[-1] > 0.45


def test_the_hint_never_leaks(tmp_path):
    """Two demonstrations of the same tree, one forked: without hints they may not make a bit of difference."""

    def after(method: str, fork: int) -> torch.Tensor:
        cfg = replace(tree(method, 10, 0, steps=10, fork=fork), out=str(tmp_path / f"{method}{fork}"))
        run(cfg)
        return torch.cat([w.flatten() for w in train.load(f"{cfg.out}/checkpoint.pt")["model"].values()])

    assert torch.equal(after("rft", 2), after("rft", 0))
    assert not torch.equal(after("uft", 2), after("uft", 0))
