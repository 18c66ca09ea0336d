"""The wider family: other published mixtures of SFT and RL, each a row of METHODS, registered from outside.

Some are other columns only. The rest replace one stage of a step: Shaped the objective, Retry, Resample and Remember
how a step explores. Schedules go by T_hint; that, and numbers which a paper leaves open, are ours.

python notebooks/family.py --method luffy        like train.py
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))
from data import Problem  # noqa: E402
from nanouft import METHODS, Method, Rows, Step, all_sum, anneal, binomial, entropy, grpo, grpo_advantages, whole  # noqa: E402

# ---------------------------------------------------------------------------------------------------------------------
# Another objective: c spread over a hint's tokens, by what the policy thinks of each


@dataclass(frozen=True)
class Shaped(Method):
    """c times a factor for each token of a hint."""

    times: Callable | None = None  # (p = pi(token), entropy of the word in its place, which are hint) -> a factor on c

    def objective(self, s: Step, rows: Rows, logp: Tensor, words: Tensor) -> Tensor:
        factor = self.times(logp.detach().exp(), entropy(words.detach()), rows.hint)
        weight = torch.where(rows.hint, rows.weight * factor, rows.weight)
        return super().objective(s, replace(rows, weight=weight), logp, words)


def likely(p: Tensor, entropy: Tensor, hint: Tensor) -> Tensor:
    """p"""
    return p


def unsure(p: Tensor, entropy: Tensor, hint: Tensor) -> Tensor:
    """p (1 - p)"""
    return p * (1 - p)


def unlikely(p: Tensor, entropy: Tensor, hint: Tensor) -> Tensor:
    """0.1 p / (p + 0.1)^2"""
    return 0.1 * p / (p + 0.1) ** 2  # the slope of p / (p + 0.1), as a weight on log p


def open_ended(p: Tensor, entropy: Tensor, hint: Tensor) -> Tensor:
    """1 where entropy is highest, 20 % of the hint, else 0"""
    rank = (-entropy).masked_fill(~hint, 1.0).argsort(1).argsort(1)  # whatever is no hint comes last
    return rank < (0.2 * hint.sum(1, keepdim=True)).ceil()


# ---------------------------------------------------------------------------------------------------------------------
# Another way to explore


def put(rows: Rows, where: np.ndarray, others: Rows) -> Rows:
    """Other rows in the places `where`, all padded to one length."""
    problems = dict(enumerate(rows.problems)) | dict(zip(where.tolist(), others.problems, strict=True))
    T, found = max(rows.tokens.shape[1], others.tokens.shape[1]), {"problems": [*problems.values()]}
    for name in vars(rows).keys() - found:
        x, y = (getattr(some, name) for some in (rows, others))
        x, y = (F.pad(z, (0, T - z.shape[1])) if z.dim() == 2 else z for z in (x, y))
        found[name] = x.index_copy(0, torch.tensor(where, device=x.device), y)
    return Rows(**found)


def by_group(s: Step, x: Tensor) -> np.ndarray:
    """(N,) -> (P, G)"""
    return x.view(-1, s.cfg.group).cpu().numpy()


def instead(s: Step, rows: Rows, marked: np.ndarray, problems: list[Problem], hints: np.ndarray) -> Rows:
    """New groups, each from its problem and hint, in the place of those that are marked (P,)."""
    G = s.cfg.group
    others = s.rollout([problem for problem in problems for _ in range(G)], hints.repeat(G))
    return put(rows, np.flatnonzero(marked.repeat(G)), others)


@dataclass(frozen=True)
class Retry(Method):
    """Where a whole group fails, the problem again, in its place, from a longer hint."""

    again: Callable | None = None  # (l, L) -> the next l, if it is longer

    def explore(self, s: Step) -> Rows:
        rows, L = super().explore(s), s.L[:, 0]
        hints = np.zeros_like(L)
        while True:
            longer = self.again(hints, L)
            failed = ~by_group(s, rows.solved).any(1) & (longer > hints)
            if not failed.any():
                return rows
            hints = np.where(failed, longer, hints)
            rows = instead(s, rows, failed, [s.problems[i] for i in np.flatnonzero(failed)], hints[failed])


def unit_by_unit(l: np.ndarray, L: np.ndarray) -> np.ndarray:  # noqa: E741
    """a unit more, up to L-1"""
    return np.minimum(l + 1, L - 1)


def by_quarters(l: np.ndarray, L: np.ndarray) -> np.ndarray:  # noqa: E741
    """L/4 more, up to 3/4 L"""
    return np.minimum(l + -(-L // 4), 3 * L // 4)


def imitate(l: np.ndarray, L: np.ndarray) -> np.ndarray:  # noqa: E741
    """the demonstration"""
    return L


class Resample(Method):
    """Where a whole group does equally well, another problem in its place, up to 4 P in all; clip is 0.28 upwards."""

    def explore(self, s: Step) -> Rows:
        rows, left = super().explore(s), 3 * len(s.problems)  # so many may be drawn beside the first
        while True:
            rewards = by_group(s, rows.reward)
            alike = (rewards == rewards[:, :1]).all(1)
            n = min(alike.sum(), left)
            if n == 0:
                dropped = torch.from_numpy(alike.repeat(s.cfg.group)).to(rows.suffix.device)
                return replace(rows, suffix=rows.suffix & ~dropped[:, None])
            left -= n
            rows = instead(s, rows, alike & (alike.cumsum() <= n), s.draw(s.cfg.share)[:n], np.zeros(n, int))

    def objective(self, s: Step, rows: Rows, logp: Tensor, words: Tensor) -> Tensor:
        ratio = rows.ratio(logp)
        return torch.minimum(ratio * rows.weight, ratio.clamp(1 - s.cfg.clip, 1.28) * rows.weight)


@dataclass(frozen=True)
class Remember(Method):
    """Each problem keeps its interval, which moves"""

    after: Callable | None = None  # (rho, the interval's end, share of the group that succeeds, L) -> the next one

    def explore(self, s: Step) -> Rows:
        rows = super().explore(s)
        for problem, rho, share in zip(s.problems, s.memory["rho"], by_group(s, rows.solved).mean(1), strict=True):
            _, high = s.memory[problem.prompt]  # read anew, for it may come twice
            s.memory[problem.prompt] = self.after(rho, high, share, len(problem.demo))
        return rows


def narrower(rho: float, high: float, solved: float, L: int) -> tuple[float, float]:
    """to 0..rho where half of the group or more succeed, else to rho..its end"""
    return (0.0, rho) if solved >= 0.5 else (rho, max(rho, high))


def one_on(rho: float, high: float, solved: float, L: int) -> tuple[float, float]:
    """to one unit less than rho where half of the group or more succeed, else to one more"""
    return (min(max(rho + (-1 if solved >= 0.5 else 1) / L, 0.0), 1.0),) * 2


# ---------------------------------------------------------------------------------------------------------------------
# Columns: how long the hints are


def halves(s: Step) -> np.ndarray:
    """L/2; L/4 from T_hint on"""
    return s.L // (2 if s.t < s.cfg.hint_steps else 4)


def in_one_row(s: Step, lengths: np.ndarray) -> np.ndarray:
    return np.pad(lengths.astype(int), ((0, 0), (0, s.cfg.group - 1)))  # (P, 1) -> (P, G)


def demonstration(s: Step) -> np.ndarray:
    """L in one row of the group, else 0"""
    return in_one_row(s, s.L)


def falling(s: Step, high: float) -> float:
    return max(anneal(s.t, s.cfg.hint_steps, 0.05, high), 0.05)


def prefix(s: Step) -> np.ndarray:
    """u L in one row of the group, else 0; u uniform in v..0.95, v from 0.95 down a cosine to 0.05"""
    return in_one_row(s, s.rng.uniform(falling(s, 0.95), 0.95, s.L.shape) * s.L)


def interval(s: Step) -> np.ndarray:
    """rho L, rho uniform in the problem's own interval"""
    s.memory["rho"] = [float(s.rng.uniform(*s.memory.setdefault(p.prompt, (0.0, 1.0)))) for p in s.problems]
    return (np.array(s.memory["rho"])[:, None] * s.L).astype(int)


# Columns: A, and c where it is no number of its own


def centred(s: Step, rows: Rows) -> Tensor:
    """r - mean"""
    rewards = rows.reward.view(-1, s.cfg.group)
    return rewards - rewards.mean(1, keepdim=True)


def token_mean(s: Step, rows: Rows) -> Tensor:
    """(r - mean) / std, and Z = the tokens that this trains"""
    A, Z = grpo(s, rows), s.cfg.problems * s.cfg.group * s.task.answer_tokens
    return A * Z / all_sum((rows.suffix * (A.view(-1, 1) != 0)).sum()).clamp(1)


def stages(s: Step) -> np.ndarray:
    """L-1, L-2, ... 1, each for as many steps; 0 from T_hint on"""
    return s.L - 1 - (s.t * (s.L - 1)) // s.cfg.hint_steps if s.t < s.cfg.hint_steps else 0 * s.L


def alternate(s: Step) -> float:
    """1 in every second step, else 0"""
    return s.t % 2 == 0


def success(s: Step, rows: Rows) -> Tensor:
    """1 if solved, else 0"""
    return rows.solved.float().view(-1, s.cfg.group)


def mu_G(s: Step, rows: Rows) -> float:
    """mu G; mu from 0.9 down a cosine to 0.05"""
    return falling(s, 0.9) * s.cfg.group


def of_the_others(s: Step, rows: Rows) -> Tensor:
    """(1 - mu) (r - mean) / std of the sampled rows"""
    return F.pad((1 - falling(s, 0.9)) * grpo_advantages(rows.reward.view(-1, s.cfg.group)[:, 1:]), (1, 0))


# fmt: off
METHODS |= {
    #                           paper                             l              c        A
    "stage":            Method("R3 2402.05808",                   stages,        0,       grpo),
    "static":           Method("SASR 2505.13026, baseline",       0,             0,       grpo, True, alternate),
    "mix":              Method("control",                         0,             0,       grpo, True, "share"),
    "cosine":           Method("UFT 2505.16984, baseline",        binomial,      0,       grpo),
    "dft":              Shaped("DFT 2508.05629",                  whole,         1,       0, times=likely),
    "dr_grpo":          Method("Dr. GRPO 2503.20783",             0,             0,       centred),
    "dapo":             Resample("DAPO 2503.14476",               0,             0,       token_mean),
    "expert_iteration": Method("STaR 2203.14465",                 0,             0,       success),
    "questa":           Method("QuestA 2507.13266",               halves,        0,       grpo),
    "adaback":          Remember("AdaBack 2506.18110",            interval,      0,       grpo, after=narrower),
    "frontier":         Remember("ours",                          interval,  "hint_coef", grpo, after=one_on),
    "bread":            Retry("BREAD 2506.17211",                 0,             0,       grpo, again=unit_by_unit),
    "ghpo":             Retry("GHPO 2507.10628",                  0,             0,       grpo, again=by_quarters),
    "superrl":          Retry("SuperRL 2506.01096 = HPT 2509.04419, gate 0", 0,  1,       grpo, again=imitate),
    "luffy":            Shaped("LUFFY 2504.14945",                demonstration, centred, centred, times=unlikely),
    "prefix_rft":       Shaped("Prefix-RFT 2507.01679",           prefix,        grpo,    grpo, times=open_ended),
    "chord":            Shaped("CHORD-phi 2508.11408",            demonstration, mu_G,    of_the_others, times=unsure),
}
# fmt: on

if __name__ == "__main__":
    from train import main

    main()
