"""Unified fine-tuning in one step and one table.

For a problem with prompt x and demonstration y* = (u_1 ... u_L), cut into units u (countdown: one equation each):

    row i  =  x  +  u_1..u_l        +  a suffix sampled from the policy
              \\__/   \\_______/          \\____________________________/
             ignored  coefficient c      advantage A_i of the row, clipped ratio

    loss   =  - 1/Z [ sum over hint tokens    c * log pi(token)
                    + sum over suffix tokens  min(ratio * A, clip(ratio) * A) - kl_coef * KL + entropy_coef * entropy ]

l = L and c = 1 is supervised fine-tuning. l = 0 is reinforcement fine-tuning. Everything else is a choice of l, of c and
of when to do which: a row of METHODS, at the end of this file. Read top to bottom; `train_step` puts it together.

What is kept of the papers, what is not, and why:
 1. UFT (2505.16984): hints, the cosine-annealed binomial length, objective (3.3). The paper has one beta for the hint's
    log-likelihood and for the KL; here they are hint_coef and kl_coef, because one is needed and the other seldom.
 2. GRPO (2402.03300): group-normalised advantage, clipped ratio, k3 estimate of the KL. Not its per-sequence mean: every
    sum is divided by one constant Z (problems x group x longest answer), so that neither hint lengths nor skipped rows
    nor the split into micro-batches changes the weight of a token.
 3. SASR (2505.13026): warm-up, then a coin whose bias is a ratio of gradient norms. The paper leaves its
    hyper-parameters open: "SASR, hyper-parameters ours".
 4. R3, Stage and cosine are UFT's own baselines; hint_only, static and mix are controls of ours, to tell what an effect
    is due to.
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
# Rows: a prompt, a hint, and what the policy makes of it.   P problems, G rows a group, N = P * G rows, T tokens.


@dataclass
class Rows:
    tokens: Tensor  # (N, T) prompt, hint, suffix, padding
    hint: Tensor  # (N, T) bool: this token is the demonstration's
    suffix: Tensor  # (N, T) bool: this token was sampled (the end token counts: stopping is a decision)
    logp: Tensor  # (N, T) log-probability of each suffix token when it was sampled
    reward: Tensor  # (N,)
    solved: Tensor  # (N,) bool: a reward at least the demonstration's
    copies: Tensor  # (N,) a group shares its hint, so its log-likelihood is computed on the first row, for all of them
    advantage: Tensor  # (N,)

    def __getitem__(self, rows: Tensor) -> "Rows":
        """Some of the rows, without the columns that only padding fills."""
        length = int((self.hint | self.suffix)[rows].any(0).nonzero().max()) + 1
        some = [getattr(self, f.name)[rows] for f in fields(self)]
        return Rows(*(x[:, :length] if x.dim() == 2 else x for x in some))


@torch.no_grad()
def rollout(
    model: GPT,
    task: Task,
    problems: list[Problem],
    hints: np.ndarray,
    group: int,
    temperature: float = 1.0,
    generator=None,
) -> Rows:
    """Start every problem from the first hints[p] units of its demonstration and let the policy finish it, G times."""
    device = model.embed.weight.device
    prompts = [task.encode(p.prompt) for p in problems]
    hint_ids = [sum(task.units(p)[:l], []) for p, l in zip(problems, hints)]
    P, G, A, pad = len(problems), group, task.answer_tokens, task.words.pad

    new = torch.full((P, G, A), pad, device=device)
    logp, count = torch.zeros(P, G, A, device=device), torch.zeros(P, G, dtype=torch.long, device=device)
    open_ = [i for i, p in enumerate(problems) if hints[i] < max(len(p.demo), 1)]  # a full hint leaves nothing to write
    if open_:
        prefixes, limits = [prompts[i] + hint_ids[i] for i in open_], [A - len(hint_ids[i]) for i in open_]
        some, some_logp, some_count = sample(model, prefixes, G, limits, task.words.end, pad, temperature, generator)
        width = some.shape[1]
        new[open_, :, :width], logp[open_, :, :width] = some.view(-1, G, width), some_logp.view(-1, G, width)
        count[open_] = some_count.view(-1, G)
    new, logp, count = new.view(P * G, A), logp.view(P * G, A), count.view(P * G)

    prefix, length = pad_rows([x + h for x, h in zip(prompts, hint_ids)], pad, device)  # (P, W), (P,)
    start = torch.tensor([len(x) for x in prompts], device=device)  # where the answer begins
    prefix, length, start = (x.repeat_interleave(G, 0) for x in (prefix, length, start))
    tokens = F.pad(prefix, (0, A), value=pad)  # (N, T)
    where = length[:, None] + torch.arange(A, device=device)  # (N, A) the columns of the suffix
    tokens.scatter_(1, where, new)
    column = torch.arange(tokens.shape[1], device=device)
    end = (length + count)[:, None]

    reward, best = [], [task.best(p) for p in problems]
    for row, (tail, n) in enumerate(zip(new.tolist(), count.tolist())):
        answer = hint_ids[row // G] + tail[:n]
        ended = bool(answer) and answer[-1] == task.words.end  # an answer without an end is no answer
        reward.append(task.reward(problems[row // G], task.decode(answer[:-1])) if ended else 0.0)
    reward = torch.tensor(reward, device=device)
    return Rows(
        tokens,
        (column >= start[:, None]) & (column < length[:, None]),
        (column >= length[:, None]) & (column < end),
        torch.zeros(tokens.shape, device=device).scatter_(1, where, logp),
        reward,
        reward >= torch.tensor(best, device=device).repeat_interleave(G),
        torch.tensor([G] + [0] * (G - 1), device=device).repeat(P),
        torch.zeros(P * G, device=device),
    )


def grpo_advantages(rewards: Tensor) -> Tensor:
    """(P, G) -> (P, G): how much better than its group a row did, (r - mean) / (std + 1e-6), std with G - 1.

    >>> grpo_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]]))       # one success in four: worth three failures
    tensor([[ 1.5000, -0.5000, -0.5000, -0.5000]])

    A group that did equally well throughout has nothing to compare: exactly 0, whatever rounding says of its mean.
    """
    centred = rewards - rewards.mean(1, keepdim=True)
    std = (centred.square().sum(1, keepdim=True) / max(rewards.shape[1] - 1, 1)).sqrt()
    uniform = (rewards == rewards[:, :1]).all(1, keepdim=True)
    return torch.where(uniform, 0.0, centred / (std + 1e-6))


# ---------------------------------------------------------------------------------------------------------------------
# The one loss, and one optimizer step on it.


def loss_and_metrics(
    model: GPT, base: GPT, rows: Rows, coef: Callable[[Tensor], Any], Z: float, cfg
) -> tuple[Tensor, dict]:
    """The loss of the docstring above, summed over some rows and divided by the step's one constant Z.

    With one update a batch the ratio is 1 and, as advantages sum to 0 in each group, the RL part's value is about 0.
    Its gradient is not: do not read progress off the loss.
    """
    inputs, targets = rows.tokens[:, :-1], rows.tokens[:, 1:]  # (N, T-1) column t predicts token t+1
    hint, suffix = rows.hint[:, 1:], rows.suffix[:, 1:]
    # A demonstration is read at temperature 1; the suffix in the distribution that it was sampled from.
    temperature = torch.where(suffix, cfg.temperature, 1.0)[:, :, None]
    distribution = F.log_softmax(model(inputs) / temperature, dim=-1)  # (N, T-1, V)
    logp = distribution.gather(-1, targets[:, :, None])[:, :, 0]  # (N, T-1)

    ratio = torch.where(suffix, logp - rows.logp[:, 1:], 0.0).exp()
    advantage = rows.advantage[:, None]
    clipped = ratio.clamp(1 - cfg.clip, 1 + cfg.clip) * advantage
    objective = suffix * torch.minimum(ratio * advantage, clipped)  # GRPO eq. 3
    objective = (
        objective + hint * rows.copies[:, None] * coef(logp.detach().exp()) * logp
    )  # UFT eq. 3.3: the hint's term

    metrics = {"clip_ratio": (suffix * (clipped < ratio * advantage)).sum() / Z}
    if cfg.kl_coef:
        with torch.no_grad():
            base_logp = F.log_softmax(base(inputs) / temperature, dim=-1).gather(-1, targets[:, :, None])[:, :, 0]
        gap = torch.where(suffix, base_logp - logp, 0.0)
        kl = gap.exp() - gap - 1  # k3: unbiased where the row was sampled, never negative (GRPO eq. 4)
        objective = objective - cfg.kl_coef * kl
        metrics["kl"] = kl.sum() / Z
    if cfg.entropy_coef:
        objective = objective - cfg.entropy_coef * suffix * (distribution.exp() * distribution).sum(-1)
    return -objective.sum() / Z, metrics


def update(model: GPT, base: GPT, optimizers: list, rows: Rows, coef: Callable, Z: float, cfg) -> dict:
    """One optimizer step. Rows all of whose weights are zero are skipped: they would cost time and change nothing."""
    explored = rows.suffix.any(1) & ((rows.advantage != 0) | bool(cfg.kl_coef or cfg.entropy_coef))
    imitated = rows.hint.any(1) & (rows.copies > 0)
    useful = (explored | imitated).nonzero()[:, 0]
    totals = {"trained_rows": len(useful), "loss": 0.0, "grad_norm": 0.0}
    if len(useful) == 0:
        return totals  # nothing to learn from: momentum must not move the parameters either
    model.zero_grad()
    for part in useful.split(cfg.micro_batch):
        loss, metrics = loss_and_metrics(model, base, rows[part], coef, Z, cfg)
        loss.backward()
        for name, value in {"loss": loss, **metrics}.items():
            totals[name] = totals.get(name, 0.0) + value.item()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.clip_grad).item()  # the norm before clipping
    totals["grad_norm"] = norm
    for name in ("loss", "grad_norm"):
        if not np.isfinite(totals[name]):
            raise FloatingPointError(
                f"{name} is {totals[name]}: the parameters were left as they were; try a smaller --lr"
            )
    for optimizer in optimizers:
        optimizer.step()
    return totals


# ---------------------------------------------------------------------------------------------------------------------
# What a method decides, and what it may look at when it does.


@dataclass
class Step:
    t: int  # optimizer steps so far
    units: np.ndarray  # (P,) L, the number of units in each demonstration
    cfg: Any
    rng: np.random.Generator
    switch: dict = field(default_factory=dict)  # what a switch remembers between steps; saved in checkpoints


# Hint lengths: Step -> (P,) units. A group shares its hint.


def none(s: Step) -> np.ndarray:
    """0"""
    return np.zeros_like(s.units)


def uniform(s: Step) -> np.ndarray:
    """Uniform{0..L}"""
    return s.rng.integers(0, s.units + 1)  # UFT's Algorithm 2; R3


def anneal(t: int, T_hint: int, low: float, high: float) -> float:
    """UFT's p(t): the share of the demonstration that is given away, falling from high to low along a cosine."""
    return low + (high - low) / 2 * (1 + np.cos(np.pi * (t + 1) / T_hint))


def annealed(s: Step) -> np.ndarray:
    """Binomial(L, p(t)), 0 from T_hint on"""
    if s.t >= s.cfg.hint_steps:
        return none(s)
    return s.rng.binomial(s.units, anneal(s.t, s.cfg.hint_steps, s.cfg.hint_low, s.cfg.hint_high))


def staged(s: Step) -> np.ndarray:
    """L-1, L-2, .. 1, equally long, 0 from T_hint on"""
    if s.t >= s.cfg.hint_steps:
        return none(s)
    return s.units - 1 - s.t * (s.units - 1) // s.cfg.hint_steps


# The coefficient c on hint tokens: (Step, probability of each token) -> number or tensor. It carries no gradient.


def zero(s: Step, p: Tensor) -> float:
    """0"""
    return 0.0


def hint_coef(s: Step, p: Tensor) -> float:
    """hint_coef"""
    return s.cfg.hint_coef  # the paper's beta


# Gates: Step -> is this a supervised step (l = L, c = 1)?


def never(s: Step) -> bool:
    """-"""
    return False


def always(s: Step) -> bool:
    """every step"""
    return True


def first(s: Step) -> bool:
    """t < warmup"""
    return s.t < s.cfg.warmup


def alternate(s: Step) -> bool:
    """t < warmup, then every other step"""
    return first(s) or s.t % 2 == 0


def coin(s: Step) -> bool:
    """t < warmup, then with probability mix"""
    return first(s) or s.rng.random() < s.cfg.mix


def gradient_norm(s: Step) -> bool:
    """t < warmup, then with probability G / (G + gamma G_warmup)"""
    if first(s):
        return True
    G_warmup, G_last = s.switch["G_warmup"], s.switch["G_last"]
    # L_SFT = H(p*) + KL(p* || pi): a large norm says that the policy is far from the demonstrations, a small one nothing.
    s.switch["p_sft"] = G_last / (G_last + s.cfg.gamma * G_warmup)
    return s.rng.random() < s.switch["p_sft"]


# ---------------------------------------------------------------------------------------------------------------------
# The step that every method shares.


def train_step(
    method: "Method",
    model: GPT,
    base: GPT,
    optimizers: list,
    task: Task,
    problems: list[Problem],
    s: Step,
    generator: torch.Generator,
) -> dict:
    """One step: decide hints, explore from them, weigh, update. Returns its metrics."""
    cfg = s.cfg
    supervised = method.supervised(s)
    hints = s.units if supervised else method.hint(s)
    rows = rollout(model, task, problems, hints, cfg.group, cfg.temperature, generator)
    rewards = rows.reward.view(len(problems), cfg.group)
    rows.advantage = method.rl * grpo_advantages(rewards).flatten()
    imitates = supervised or method.coef is not zero
    rows.copies *= imitates
    coef = (lambda p: 1.0) if supervised else (lambda p: method.coef(s, p))
    for _ in range(cfg.updates):
        totals = update(model, base, optimizers, rows, coef, len(problems) * cfg.group * task.answer_tokens, cfg)
    if supervised:
        s.switch["G_last"] = totals["grad_norm"]
        if first(s):
            s.switch["G_warmup"] = totals["grad_norm"]

    explored = rows.suffix.any(1)
    sampled = int(rows.suffix.sum())
    return {
        **totals,
        "reward": rewards.mean().item(),
        "frac_reward_zero_std": (rewards == rewards[:, :1]).all(1).float().mean().item(),
        "entropy": -rows.logp[rows.suffix].mean().item() if sampled else None,
        "completion_length": rows.suffix.sum(1)[explored].float().mean().item() if sampled else None,
        "explored_solved": rows.solved[explored].float().mean().item() if sampled else None,
        "hint_share": float(np.mean(hints / s.units)),
        "supervised": int(supervised),
        "p_sft": s.switch.get("p_sft"),
        "rollouts": int(explored.sum()),
        "sampled_tokens": sampled,
        "demo_tokens": int(rows.hint[rows.copies > 0].sum()),
    }


@dataclass(frozen=True)
class Method:
    """One row of the table."""

    paper: str
    hint: Callable[[Step], np.ndarray] = none  # l
    coef: Callable[[Step, Tensor], Any] = zero  # c on hint tokens
    rl: float = 1.0  # factor on the advantage A
    supervised: Callable[[Step], bool] = never  # the gate


METHODS = {
    "sft": Method("-", supervised=always),
    "rft": Method("GRPO 2402.03300"),
    "sft_rft": Method("-", supervised=first),
    "r3": Method("R3 2402.05808", hint=uniform),
    "stage": Method("R3 2402.05808", hint=staged),
    "cosine": Method("UFT 2505.16984, ablation", hint=annealed),
    "hint_only": Method("control", hint=annealed, coef=hint_coef, rl=0.0),
    "uft": Method("UFT 2505.16984", hint=annealed, coef=hint_coef),
    "uft_uniform": Method("UFT 2505.16984, Theorem 4.3", hint=uniform, coef=hint_coef),
    "sasr": Method("SASR 2505.13026", supervised=gradient_norm),
    "static": Method("SASR 2505.13026, baseline", supervised=alternate),
    "mix": Method("control", supervised=coin),
}
