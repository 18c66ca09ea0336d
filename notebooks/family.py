"""The wider family: other published mixtures of SFT and RL, each a row of METHODS, registered from outside.

Each is its paper's rule for the hint l, the coefficient c on demonstration tokens, the advantage A, and what to roll
out again, over the step of nanouft.py. Schedules go by T_hint; that, and numbers which a paper leaves open, are ours.
train.py imports this file, so `python train.py --method luffy` works like any other.
"""

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from data import Problem
from nanouft import METHODS, Method, Step, all_sum, anneal, grpo_advantages, one, whole, zero

# How a row's c is spread over its hint: (p = pi(token), log-probabilities of all words, which are hint) -> a factor.


def likely(p: Tensor, distribution: Tensor, hint: Tensor) -> Tensor:
    """p"""
    return p


def unsure(p: Tensor, distribution: Tensor, hint: Tensor) -> Tensor:
    """p (1 - p)"""
    return p * (1 - p)


def unlikely(p: Tensor, distribution: Tensor, hint: Tensor) -> Tensor:
    """0.1 p / (p + 0.1)^2"""
    return 0.1 * p / (p + 0.1) ** 2  # the slope of p / (p + 0.1), as a weight on log p


def open_ended(p: Tensor, distribution: Tensor, hint: Tensor) -> Tensor:
    """1 where entropy is highest, 20 % of the hint, else 0"""
    minus_entropy = (distribution.exp() * distribution).sum(-1).masked_fill(~hint, 1.0)  # (N, T); others come last
    rank = minus_entropy.argsort(1).argsort(1)
    return rank < (0.2 * hint.sum(1, keepdim=True)).ceil()


# How long the hints are: (P,), or (P, G) where one row of each group has a hint of its own.


def halves(s: Step) -> np.ndarray:
    """L/2; L/4 from T_hint on"""
    return s.units // (2 if s.t < s.cfg.hint_steps else 4)


def in_one_row(s: Step, lengths: np.ndarray) -> np.ndarray:
    hints = np.zeros((len(s.problems), s.cfg.group), int)
    hints[:, 0] = lengths
    return hints


def demonstration(s: Step) -> np.ndarray:
    """L in one row of the group, else 0"""
    return in_one_row(s, s.units)


def prefix(s: Step) -> np.ndarray:
    """u L in one row of the group, else 0; u uniform in v..0.95, v from 0.95 down a cosine to 0.05"""
    v = anneal(min(s.t, s.cfg.hint_steps - 1), s.cfg.hint_steps, 0.05, 0.95)
    return in_one_row(s, s.rng.uniform(v, 0.95, len(s.problems)) * s.units)


def interval(s: Step) -> np.ndarray:
    """rho L, rho uniform in the problem's own interval"""
    rho = [s.rng.uniform(*s.memory.get(problem.prompt, (0.0, 1.0))) for problem in s.problems]
    s.memory["rho"] = rho
    return (np.array(rho) * s.units).astype(int)


# What comes after the rollouts: [(problem, l), ...] to roll out as well.


def move_interval(s: Step) -> list:
    """nothing, but the interval moves: to 0..rho if half of the group succeed, else to rho..its end"""
    for problem, rho, solved in zip(s.problems, s.memory["rho"], s.solved.float().mean(1).tolist(), strict=True):
        _, high = s.memory.get(problem.prompt, (0.0, 1.0))
        s.memory[problem.prompt] = (0.0, rho) if solved >= 0.5 else (rho, max(rho, high))  # a problem may come twice
    return []


def instead(s: Step, lengths: np.ndarray) -> list[tuple[Problem, int]]:
    """Where a whole group failed: the same problem, if that means a longer hint, and the group counts no more."""
    failed = s.live & ~s.solved.any(1).cpu().numpy() & (lengths > s.hints)
    s.live[failed] = False
    return [(s.problems[i], lengths[i]) for i in np.flatnonzero(failed)]


def unit_by_unit(s: Step) -> list[tuple[Problem, int]]:
    """if all failed, from a unit more, up to L-1"""
    return instead(s, np.minimum(s.hints + 1, s.units - 1))


def by_quarters(s: Step) -> list[tuple[Problem, int]]:
    """if all failed, from L/4 more, up to 3/4 L"""
    return instead(s, np.minimum(s.hints + -(-s.units // 4), 3 * s.units // 4))


def imitate(s: Step) -> list[tuple[Problem, int]]:
    """if all failed, the demonstration"""
    return instead(s, s.units)


def other_problems(s: Step) -> list[tuple[Problem, int]]:
    """if all did equally well, other problems, up to 4 P"""
    alike = s.live & (s.rewards == s.rewards[:, :1]).all(1).cpu().numpy()
    s.live[alike] = False
    return [(problem, 0) for problem in s.more(min(alike.sum(), 4 * s.cfg.problems - len(s.problems)))]


# A, and c where it is no number of its own.


def centred(s: Step) -> Tensor:
    """r - mean"""
    return s.rewards - s.rewards.mean(1, keepdim=True)


def token_mean(s: Step) -> Tensor:
    """(r - mean) / std, and Z = the tokens that this trains"""
    A = grpo_advantages(s.rewards)
    return A * s.Z / all_sum((s.rows.suffix * (A.view(-1, 1) != 0)).sum()).clamp(1)


def success(s: Step) -> Tensor:
    """1 if solved, else 0"""
    return s.solved.float()


def own_advantage(s: Step) -> Tensor:
    """A"""
    return s.rows.advantage.view(-1, s.cfg.group)


def mu(s: Step) -> float:
    """mu G; mu from 0.9 down a cosine to 0.05"""
    return s.cfg.group * anneal(min(s.t, s.cfg.hint_steps - 1), s.cfg.hint_steps, 0.05, 0.9)


def of_the_others(s: Step) -> Tensor:
    """(1 - mu) (r - mean) / std of the sampled rows"""
    return F.pad((1 - mu(s) / s.cfg.group) * grpo_advantages(s.rewards[:, 1:]), (1, 0))


METHODS |= {
    "dft": Method("DFT 2508.05629", hint=whole, c=one, focus=likely, advantage=zero),
    "dr_grpo": Method("Dr. GRPO 2503.20783", advantage=centred),
    "dapo": Method("DAPO 2503.14476", advantage=token_mean, again=other_problems, settings={"clip_high": 0.28}),
    "expert_iteration": Method("STaR 2203.14465", advantage=success),
    "questa": Method("QuestA 2507.13266", hint=halves),
    "adaback": Method("AdaBack 2506.18110", hint=interval, again=move_interval),
    "bread": Method("BREAD 2506.17211", again=unit_by_unit),
    "ghpo": Method("GHPO 2507.10628", again=by_quarters),
    "superrl": Method("SuperRL 2506.01096 = HPT 2509.04419, gate 0", c=one, again=imitate),
    "luffy": Method("LUFFY 2504.14945", hint=demonstration, c=own_advantage, focus=unlikely, advantage=centred),
    "prefix_rft": Method("Prefix-RFT 2507.01679", hint=prefix, c=own_advantage, focus=open_ended),
    "chord": Method("CHORD-phi 2508.11408", hint=demonstration, c=mu, focus=unsure, advantage=of_the_others),
}
