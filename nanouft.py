"""Unified fine-tuning: one step and one table.

For a problem with prompt x and demonstration y* = (u_1 ... u_L), cut into units u (countdown: one equation each):

    row i  =  x  +  u_1..u_l      +  a suffix sampled from the policy
              \\__/   \\_______/       \\______________________________/
             ignored  coefficient c   advantage A_i of the row, clipped ratio

    loss   =  - 1/Z [ sum over hint tokens    c * log pi(token)
                    + sum over suffix tokens  min(ratio * A, clip(ratio) * A) - kl_coef * KL + entropy_coef * entropy ]

l = L and c = 1 is supervised fine-tuning (SFT). l = 0 is reinforcement fine-tuning (RFT). Everything between them is a
choice of l, of c, and of when to do which: a row of METHODS, at the end of this file. Read from top to bottom.

What is kept of the papers, what is not, and why:
 1. UFT (2505.16984): hints, the cosine-annealed binomial length, objective (3.3). Its one beta, for the hint's
    log-likelihood and for the KL, is two flags here, hint_coef and kl_coef: the first is needed, the second seldom.
 2. GRPO (2402.03300): advantages normalised in the group, clipped ratio, k3 estimate of the KL. Not its mean over each
    sequence: all sums are divided by one constant Z (problems x group x longest answer), so that neither the length of
    a hint, nor rows left out, nor the split into micro-batches changes the weight of a token.
 3. SASR (2505.13026): a warm-up, then a coin whose bias is a ratio of gradient norms. The paper does not tell its
    hyper-parameters: call this "SASR, hyper-parameters ours".
 4. R3, stage and cosine are UFT's baselines; hint_only, static and mix are controls, to tell what an effect is due to.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data import Problem, Task
from model import GPT, pad_rows, sample

# ---------------------------------------------------------------------------------------------------------------------
# Rows: prompt, hint, and what the policy makes of them.     P problems x G rows in a group = N rows of T tokens


@dataclass
class Rows:
    tokens: Tensor  # (N, T) prompt, hint, suffix, padding
    hint: Tensor  # (N, T) bool: the token is the demonstration's
    suffix: Tensor  # (N, T) bool: the token was sampled; so was the end token: to stop is a decision
    logp: Tensor  # (N, T) log-probability of each suffix token, when it was sampled
    reward: Tensor  # (N,)
    solved: Tensor  # (N,) bool: a reward at least the demonstration's
    share: Tensor  # (N,) rows this one's hint stands for: the group has it in common, so its first row does it for all
    advantage: Tensor | None = None  # (N,)

    def take(self, index: Tensor) -> "Rows":
        """Some of the rows, without the columns in which they have nothing but padding."""
        length = int((self.hint | self.suffix)[index].any(0).nonzero().max()) + 1
        some = [getattr(self, f.name)[index] for f in fields(self)]
        return Rows(*(x[:, :length] if x.dim() == 2 else x for x in some))


def rollout(
    model: GPT, task: Task, problems: list[Problem], hints: np.ndarray, group: int, temperature=1.0, generator=None
) -> Rows:
    """From the first hints[p] units of problem p's demonstration, let the policy finish the answer, `group` times."""
    device, longest = model.embed.weight.device, task.answer_tokens
    prompts = [task.encode(p.prompt) for p in problems]
    given = [sum(task.units(p)[:n], []) for p, n in zip(problems, hints, strict=True)]  # the hints, as ids
    prefixes = [x + h for x, h in zip(prompts, given, strict=True)]
    # A full hint ends the answer: nothing is left to write.
    limits = [0 if h[-1:] == [task.end] else longest - len(h) for h in given]
    new, logp, count = sample(model, prefixes, group, limits, task.end, task.pad, temperature, generator)

    prefix, end = (x.repeat_interleave(group, 0) for x in pad_rows(prefixes, task.pad, device))
    start = torch.tensor([len(x) for x in prompts], device=device).repeat_interleave(group)  # where the answer begins
    tokens = F.pad(prefix, (0, new.shape[1]), value=task.pad)  # (N, T)
    where = end[:, None] + torch.arange(new.shape[1], device=device)  # the suffix's columns
    column = torch.arange(tokens.shape[1], device=device)

    reward, best = [], [task.best(p) for p in problems]
    for i, (tail, n) in enumerate(zip(new.tolist(), count.tolist(), strict=True)):
        answer = given[i // group] + tail[:n]
        ended = answer[-1:] == [task.end]  # what has no end is no answer
        reward.append(task.reward(problems[i // group], task.decode(answer[:-1])) if ended else 0.0)
    reward = torch.tensor(reward, device=device)
    return Rows(
        tokens=tokens.scatter(1, where, new),
        hint=(column >= start[:, None]) & (column < end[:, None]),
        suffix=(column >= end[:, None]) & (column < (end + count)[:, None]),
        logp=torch.zeros(tokens.shape, device=device).scatter(1, where, logp),
        reward=reward,
        solved=reward >= torch.tensor(best, device=device).repeat_interleave(group),
        share=torch.tensor([group] + [0] * (group - 1), device=device).repeat(len(problems)),
    )


def grpo_advantages(rewards: Tensor) -> Tensor:
    """(P, G) -> (P, G): how much better than its group a row did, (r - mean) / (std + 1e-6), std over G - 1.

    >>> grpo_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]]))       # one success weighs as much as three failures
    tensor([[ 1.5000, -0.5000, -0.5000, -0.5000]])

    Where all did equally well there is nothing to compare: exactly 0, however the mean was rounded.
    """
    centred = rewards - rewards.mean(1, keepdim=True)
    std = (centred.square().sum(1, keepdim=True) / max(rewards.shape[1] - 1, 1)).sqrt()
    return torch.where((rewards == rewards[:, :1]).all(1, keepdim=True), 0.0, centred / (std + 1e-6))


# ---------------------------------------------------------------------------------------------------------------------
# The one loss, and one optimizer step on it


def loss_terms(model: GPT, base: GPT, rows: Rows, coef: Callable[[Tensor], Any], cfg) -> dict[str, Tensor]:
    """Sums over the rows' tokens, not yet divided by Z: the loss of the docstring above, and what is logged beside it.

    With one update a batch the ratio is 1, and as a group's advantages sum to 0, so does the RL part, but for answers
    of different lengths. Its gradient does not: progress cannot be read off the loss.
    """
    inputs, targets = rows.tokens[:, :-1], rows.tokens[:, 1:, None]  # column t predicts token t + 1
    hint, suffix = rows.hint[:, 1:], rows.suffix[:, 1:]
    # Demonstrations are read at temperature 1, the suffix in the distribution that it was sampled from.
    temperature = torch.where(suffix, cfg.temperature, 1.0)[:, :, None]
    distribution = F.log_softmax(model(inputs) / temperature, dim=-1)  # (N, T-1, V)
    logp = distribution.gather(-1, targets)[:, :, 0]  # (N, T-1)

    ratio = torch.where(suffix, logp - rows.logp[:, 1:], 0.0).exp()
    free, clipped = (r * rows.advantage[:, None] for r in (ratio, ratio.clamp(1 - cfg.clip, 1 + cfg.clip)))
    imitation = hint * rows.share[:, None] * coef(logp.detach().exp()) * logp  # UFT (3.3), the sum over h < l
    objective = imitation + suffix * torch.minimum(free, clipped)  # GRPO (3)
    terms = {"clip_ratio": suffix * (clipped < free)}
    if cfg.kl_coef:
        with torch.no_grad():
            base_logp = F.log_softmax(base(inputs) / temperature, dim=-1).gather(-1, targets)[:, :, 0]
        gap = torch.where(suffix, base_logp - logp, 0.0)
        terms["kl"] = gap.exp() - gap - 1  # GRPO (4), "k3": unbiased on what was sampled, and never negative
        objective = objective - cfg.kl_coef * terms["kl"]
    if cfg.entropy_coef:
        objective = objective - cfg.entropy_coef * suffix * (distribution.exp() * distribution).sum(-1)
    return {"loss": -objective.sum(), **{name: x.sum().detach() for name, x in terms.items()}}


def update(model: GPT, base: GPT, optimizers: list, rows: Rows, coef: Callable, Z: int, cfg) -> dict[str, float]:
    """One optimizer step. Rows all of whose weights are zero are left out: they cost time and change nothing."""
    explores = rows.suffix.any(1) & ((rows.advantage != 0) | bool(cfg.kl_coef or cfg.entropy_coef))
    imitates = rows.hint.any(1) & (rows.share > 0)
    useful = (explores | imitates).nonzero()[:, 0]
    totals = {"loss": 0.0, "grad_norm": 0.0, "trained_rows": len(useful)}
    if len(useful) == 0:
        return totals  # nothing to learn from; momentum must not move the parameters either
    model.zero_grad()
    for part in useful.split(cfg.micro_batch):
        terms = {name: total / Z for name, total in loss_terms(model, base, rows.take(part), coef, cfg).items()}
        terms["loss"].backward()
        totals |= {name: totals.get(name, 0.0) + term.item() for name, term in terms.items()}
    totals["grad_norm"] = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item()  # before clipping
    for name in ("loss", "grad_norm"):
        if not np.isfinite(totals[name]):
            raise FloatingPointError(f"the {name} is {totals[name]}: try a smaller --lr, or resume the last checkpoint")
    for optimizer in optimizers:
        optimizer.step()
    return totals


# ---------------------------------------------------------------------------------------------------------------------
# What a method decides


@dataclass
class Step:
    """What it may look at when it does."""

    t: int  # steps so far
    cfg: Any
    rng: np.random.Generator
    switch: dict = field(default_factory=dict)  # what a gate remembers from step to step; part of the checkpoint
    units: np.ndarray | None = None  # (P,) L, the units in each demonstration


# Hint lengths l: Step -> (P,) units. One for each problem: a group shares its hint.


def none(s: Step) -> np.ndarray:
    """0"""
    return np.zeros_like(s.units)


def uniform(s: Step) -> np.ndarray:
    """uniform in {0..L}"""
    return s.rng.integers(0, s.units + 1)


def anneal(t: int, T_hint: int, low: float, high: float) -> float:
    """UFT's p(t): the share of the demonstration given away, down a cosine from `high` to `low` in T_hint steps."""
    return low + (high - low) / 2 * (1 + np.cos(np.pi * (t + 1) / T_hint))


def annealed(s: Step) -> np.ndarray:
    """Binomial(L, p(t)); 0 from T_hint on"""
    p = anneal(s.t, s.cfg.hint_steps, s.cfg.hint_low, s.cfg.hint_high) if s.t < s.cfg.hint_steps else 0.0
    return s.rng.binomial(s.units, p)


def staged(s: Step) -> np.ndarray:
    """L-1, L-2, ... 1, equally long; 0 from T_hint on"""
    return s.units - 1 - s.t * (s.units - 1) // s.cfg.hint_steps if s.t < s.cfg.hint_steps else none(s)


# Coefficients c on hint tokens: (Step, the policy's probability of each) -> number or tensor, without gradient.


def zero(s: Step, p: Tensor) -> float:
    """0"""
    return 0.0


def beta(s: Step, p: Tensor) -> float:
    """hint_coef"""
    return s.cfg.hint_coef


# Gates: Step -> bool, "this step is supervised": l = L and c = 1, whatever the row's other cells say.


def never(s: Step) -> bool:
    """never"""
    return False


def always(s: Step) -> bool:
    """always"""
    return True


def warmup(s: Step) -> bool:
    """t < warmup"""
    return s.t < s.cfg.warmup


def alternate(s: Step) -> bool:
    """t < warmup, then every second step"""
    return warmup(s) or s.t % 2 == 0


def coin(s: Step) -> bool:
    """t < warmup, then with probability mix"""
    return warmup(s) or s.rng.random() < s.cfg.mix


def gradient_norm(s: Step) -> bool:
    """t < warmup, then with probability G / (G + gamma G_warmup)"""
    if warmup(s):
        return True
    # L_SFT = H(p*) + KL(p* || pi): a large gradient means far from the demonstrations. A small one means nothing, and
    # the norm is only seen on supervised steps: between them the switch cannot notice how far RL has drifted.
    s.switch["p_sft"] = s.switch["G"] / (s.switch["G"] + s.cfg.gamma * s.switch["G_warmup"])
    return s.rng.random() < s.switch["p_sft"]


# ---------------------------------------------------------------------------------------------------------------------
# The table, and the step that all of it shares


@dataclass(frozen=True)
class Method:
    paper: str
    hint: Callable[[Step], np.ndarray] = none  # l
    coef: Callable[[Step, Tensor], Any] = zero  # c
    rl: float = 1.0  # factor on A
    supervised: Callable[[Step], bool] = never


METHODS = {
    "sft": Method("-", supervised=always),
    "rft": Method("GRPO 2402.03300"),
    "sft_rft": Method("-", supervised=warmup),
    "r3": Method("R3 2402.05808", hint=uniform),
    "stage": Method("R3 2402.05808", hint=staged),
    "cosine": Method("UFT 2505.16984, ablation", hint=annealed),
    "hint_only": Method("control", hint=annealed, coef=beta, rl=0.0),
    "uft": Method("UFT 2505.16984", hint=annealed, coef=beta),
    "uft_uniform": Method("UFT 2505.16984, theorem 4.3", hint=uniform, coef=beta),
    "sasr": Method("SASR 2505.13026", supervised=gradient_norm),
    "static": Method("SASR 2505.13026, baseline", supervised=alternate),
    "mix": Method("control", supervised=coin),
}


def train_step(
    method: Method, model: GPT, base: GPT, optimizers: list, task: Task, problems: list[Problem], s: Step, generator
) -> dict:
    """Decide the hints, explore from them, weigh what came out, update. Returns the step's metrics."""
    cfg, P, G = s.cfg, len(problems), s.cfg.group
    s.units = np.array([len(p.demo) for p in problems])
    supervised = method.supervised(s)
    hints = s.units if supervised else method.hint(s)
    rows = rollout(model, task, problems, hints, G, cfg.temperature, generator)
    rewards = rows.reward.view(P, G)
    rows.advantage = method.rl * grpo_advantages(rewards).flatten()
    rows.share *= supervised or method.coef is not zero  # no coefficient, no rows to read for it
    coef = (lambda p: 1.0) if supervised else (lambda p: method.coef(s, p))
    for _ in range(cfg.updates):
        totals = update(model, base, optimizers, rows, coef, P * G * task.answer_tokens, cfg)
    if supervised:
        s.switch |= {"G": totals["grad_norm"]} | ({"G_warmup": totals["grad_norm"]} if warmup(s) else {})

    explored, sampled = rows.suffix.any(1), int(rows.suffix.sum())
    seen = {  # of what was sampled; a step of full hints samples nothing
        "entropy": -rows.logp[rows.suffix].mean().item(),
        "completion_length": sampled / int(explored.sum()),
        "explored_solved": rows.solved[explored].float().mean().item(),
    } if sampled else {}  # fmt: skip
    return totals | seen | {
        "reward": rewards.mean().item(),
        "frac_reward_zero_std": (rewards == rewards[:, :1]).all(1).float().mean().item(),
        "hint_share": float(np.mean(hints / s.units)),
        "supervised": int(supervised),
        "p_sft": s.switch.get("p_sft"),
        "rollouts": int(explored.sum()),
        "sampled_tokens": sampled,
        "demo_tokens": int(rows.hint[rows.share > 0].sum()),
    }  # fmt: skip


def methods_table() -> str:
    """The README's table of methods, out of the code itself."""
    lines = [["method", "paper", "hint length l", "c on hint tokens", "advantage A", "supervised (l = L, c = 1)"]]
    lines += [["---"] * len(lines[0])]
    for name, m in METHODS.items():
        advantage = "(r - mean) / std" if m.rl else "0"
        lines += [[f"`{name}`", m.paper, m.hint.__doc__, m.coef.__doc__, advantage, m.supervised.__doc__]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
