r"""Unified fine-tuning: one step and one table.

For a problem with prompt x and demonstration y* = (u_1 ... u_L), cut into units u (countdown: one equation each):

    row i  =  x  +  u_1..u_l      +  a suffix sampled from the policy
              \__/   \_______/       \______________________________/
              read   coefficient c   advantage A_i of the row, clipped ratio

    loss   =  - 1/Z ( sum over hint tokens    c * log pi(token)
                    + sum over suffix tokens  [ min(ratio * A, clip(ratio) * A) - kl_coef * KL + entropy_coef * S ] )

l = L and c = 1 is supervised fine-tuning (SFT). l = 0 is reinforcement fine-tuning (RFT). What lies between them is a
choice of l, of c, of A, and of when to do which: a row of METHODS, near the end of this file. Look there first, then at
train_step below it, then read from here. (Learning from scored answers, as in DPO, is the same again: whole answers are
given, and c follows from a score.)

The words: the *policy* pi is the model in training, the *base* a frozen copy of it from before fine-tuning. A
*rollout* samples an answer, a *reward* says how good it is (1.0 right, 0.1 well-formed but wrong, 0 neither), a *group*
is several rows of one problem, and a row's *advantage* is how much better than its group it did. S is the entropy of
the next token. The *ratio* is a token's probability now over its probability when it was sampled: rows may be used for
several updates, and from the second on the policy is no longer the one that wrote them; clip keeps the ratio
near 1. KL is an estimate, for each token, of how far the policy has moved from the base. Z is one constant a step:
problems x group x longest answer allowed.

What is kept of the papers, what is not, and why:
 1. UFT (2505.16984): hints, the cosine-annealed binomial length, objective (3.3). Its one beta, for the hint's
    log-likelihood and for the KL, is two flags here, hint_coef and kl_coef: the first is needed, the second seldom.
 2. GRPO (2402.03300): advantages normalised in the group, clipped ratio, k3 estimate of the KL. Not its mean over each
    sequence: with one Z, neither the length of a hint, nor rows left out, nor the split into micro-batches changes the
    weight of a token.
 3. SASR (2505.13026): a warm-up, then a coin whose bias is a ratio of gradient norms. The paper does not tell its
    hyper-parameters: call this "SASR, hyper-parameters ours".
 4. R3, stage and cosine are UFT's baselines, static is SASR's; hint_only and mix are controls of ours.
 5. Implicit-reward UFT (2410.21438): one stage for demonstrations and scored answers. Its loss becomes a coefficient c
    like the others; the paper's own Z(x), a normaliser whose logarithm it sets to 0, is left out here too.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from data import Problem, Task
from model import GPT, pad_rows, sample

# ---------------------------------------------------------------------------------------------------------------------
# Rows: prompt, hint, and what the policy makes of them.     P problems x G rows in a group = N rows of T tokens


@dataclass
class Rows:
    # tokens   1 2 3 -> 9 \n 1 + 2 = 3 \n 3 * 3 = 9 <end> <pad> <pad>      prompt, hint, suffix, padding
    # hint                   x x x x x x
    # suffix                             x x x x x x
    tokens: Tensor  # (N, T)
    hint: Tensor  # (N, T) bool: the token was given: the demonstration's, or all of a scored answer
    suffix: Tensor  # (N, T) bool: the token was sampled; so was the end token: to stop is a decision
    logp: Tensor  # (N, T) log-probability of each suffix token, when it was sampled
    reward: Tensor  # (N,)
    solved: Tensor  # (N,) bool: a reward at least the demonstration's
    advantage: Tensor | None = None  # (N,) A, the same for all suffix tokens of a row
    hint_weight: Tensor | None = None  # (N,) c

    def join(self, other: "Rows") -> "Rows":
        """These rows and the others, padded to one length, before they have A and c."""
        pairs = [(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)[:-2]]
        return Rows(*(pad_sequence([*x, *y], True) if x.dim() == 2 else torch.cat([x, y]) for x, y in pairs))

    def take(self, index: Tensor) -> "Rows":
        """Some of the rows, without the columns in which they have nothing but padding."""
        length = int((self.hint | self.suffix)[index].any(0).nonzero().max()) + 1
        some = [getattr(self, f.name)[index] for f in fields(self)]
        return Rows(*(x[:, :length] if x.dim() == 2 else x for x in some))


def rollout(
    model: GPT, task: Task, problems: list[Problem], hints: np.ndarray, group: int, temperature=1.0, generator=None
) -> Rows:
    """From the first hints[p] units of problem p's demonstration, let the policy finish the answer, `group` times; or
    once from each of its hints[p, i]."""
    device, longest = model.embed.weight.device, task.answer_tokens
    if hints.ndim == 2:
        problems, hints, group = [p for p in problems for _ in range(group)], hints.flatten(), 1
    prompts = [task.encode(p.prompt) for p in problems]
    starts = [sum(task.units(p)[:n], []) for p, n in zip(problems, hints, strict=True)]  # of the answers: hints, as ids
    prefixes = [x + h for x, h in zip(prompts, starts, strict=True)]
    # The last unit holds the end token, so after a full hint nothing is left to write.
    limits = [0 if h[-1:] == [task.end] else longest - len(h) for h in starts]
    # (N, S) tokens and their log-probabilities, and (N,) how many of the S are a row's own
    new, logp, count = sample(model, prefixes, group, limits, task.end, task.pad, temperature, generator)

    prefix, end = (x.repeat_interleave(group, 0) for x in pad_rows(prefixes, task.pad, device))
    start = torch.tensor([len(x) for x in prompts], device=device).repeat_interleave(group)  # where the answer begins
    tokens = F.pad(prefix, (0, new.shape[1]), value=task.pad)  # (N, T)
    where = end[:, None] + torch.arange(new.shape[1], device=device)  # the suffix's columns
    column = torch.arange(tokens.shape[1], device=device)

    reward, best = [], [task.best(p) for p in problems]
    for i, (tail, n) in enumerate(zip(new.tolist(), count.tolist(), strict=True)):
        answer = task.read(starts[i // group] + tail[:n])  # None if it was cut off
        reward.append(0.0 if answer is None else task.reward(problems[i // group], answer))
    reward = torch.tensor(reward, dtype=torch.float, device=device)
    return Rows(
        tokens=tokens.scatter(1, where, new),
        hint=(column >= start[:, None]) & (column < end[:, None]),
        suffix=(column >= end[:, None]) & (column < (end + count)[:, None]),
        logp=torch.zeros(tokens.shape, device=device).scatter(1, where, logp),
        reward=reward,
        solved=reward >= torch.tensor(best, device=device).repeat_interleave(group),
    )


def grpo_advantages(rewards: Tensor) -> Tensor:
    """(P, G) -> (P, G): how much better than its group a row did, (r - mean) / (std + 1e-6), std over G - 1.

    >>> grpo_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]]))       # one success weighs as much as three failures
    tensor([[ 1.5000, -0.5000, -0.5000, -0.5000]])

    Less the mean, because "better than usual" is far less noisy than "good", and free: E[grad log pi] = 0, so that a
    constant changes nothing on average. Where all did equally well there is nothing to compare: exactly 0, however the
    mean was rounded.
    """
    centred = rewards - rewards.mean(1, keepdim=True)
    std = (centred.square().sum(1, keepdim=True) / max(rewards.shape[1] - 1, 1)).sqrt()
    return torch.where((rewards == rewards[:, :1]).all(1, keepdim=True), 0.0, centred / (std + 1e-6))


# ---------------------------------------------------------------------------------------------------------------------
# The one loss, and one optimizer step on it


def log_probs(model: GPT, rows: Rows, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities of all words (N, T-1, V), and of the rows' own (N, T-1). Column t is about token t + 1."""
    hint, suffix = rows.hint[:, 1:], rows.suffix[:, 1:]
    # The suffix in the distribution that it was sampled from, or the ratio would not start at 1; the hint as in SFT.
    temperature = torch.where(suffix, temperature, 1.0)[:, :, None]
    distribution = F.log_softmax(model(rows.tokens[:, :-1]) / temperature, dim=-1)
    words = torch.where(hint | suffix, rows.tokens[:, 1:], 0)[:, :, None]  # prompts may have words that are not in V
    return distribution, distribution.gather(-1, words)[:, :, 0]


def evenly(p: Tensor, distribution: Tensor, hint: Tensor) -> float:
    """1"""  # docstrings like this one are cells of the table that `python train.py --list` prints
    return 1.0


def loss_terms(model: GPT, base: GPT, rows: Rows, cfg, focus: Callable = evenly) -> dict[str, Tensor]:
    """Sums over the rows' tokens: Z times the loss at the top of this file, and what is logged beside it. A row's c may
    count more for some of its tokens: focus(pi(token), log-probabilities of all words, which tokens are hint).

    Why this raises the reward: sampling has no gradient, but grad E[r] = E[r * grad log pi(answer)], and rollouts
    estimate the right side. At ratio 1, so on the first update after sampling, the gradient of ratio * A is that term,
    A * grad log pi: SFT on the model's own tokens, weighted by A, and away from them where A < 0. Do not watch the
    value: of the suffixes it is minus the sum of A_i * length_i, near 0 where answers are alike in length, good or bad.
    """
    hint, suffix = rows.hint[:, 1:], rows.suffix[:, 1:]
    distribution, logp = log_probs(model, rows, cfg.temperature)
    ratio = torch.where(suffix, logp - rows.logp[:, 1:], 0.0).exp()
    free = ratio * rows.advantage[:, None]
    clipped = ratio.clamp(1 - cfg.clip, 1 + (cfg.clip_high or cfg.clip)) * rows.advantage[:, None]
    # The smaller of the two: no gradient above 1 + clip where A > 0, nor below 1 - clip where A < 0: far enough. On the
    # other side, where the token has moved the wrong way, it still pulls back.
    objective = suffix * torch.minimum(free, clipped)  # GRPO, eq. 3
    c = hint * rows.hint_weight[:, None] * focus(logp.detach().exp(), distribution.detach(), hint)
    objective = objective + c * logp  # UFT, eq. 3.3: its beta is our hint_coef
    terms = {"clip_ratio": suffix * (clipped < free)}
    if cfg.kl_coef:
        with torch.no_grad():
            base_logp = log_probs(base, rows, cfg.temperature)[1]
        gap = torch.where(suffix, base_logp - logp, 0.0)
        # GRPO, eq. 4, "k3": -gap estimates KL(pi || base); exp(gap) - 1 makes each term >= 0, and is 0 on average,
        # since exp(gap) is base / pi, and the sum of pi * base / pi over all words is 1.
        terms["kl"] = gap.exp() - gap - 1
        objective = objective - cfg.kl_coef * terms["kl"]
    if cfg.entropy_coef:
        objective = objective - cfg.entropy_coef * suffix * (distribution.exp() * distribution).sum(-1)
    return {"loss": -objective.sum(), **{name: x.sum().detach() for name, x in terms.items()}}


def all_sum(x: Tensor) -> Tensor:
    """Over all processes that torchrun started, each of which has rows of its own; x itself where there is only one."""
    if dist.is_initialized():
        dist.all_reduce(x)
    return x


def update(rows: Rows, optimizers: list, focus: Callable, s: "Step") -> dict[str, float]:
    """One optimizer step. Rows all of whose weights are zero are left out: they cost time and change nothing."""
    model, cfg = s.model, s.cfg
    explores = rows.suffix.any(1) & ((rows.advantage != 0) | bool(cfg.kl_coef or cfg.entropy_coef))
    imitates = rows.hint.any(1) & (rows.hint_weight != 0)
    useful = (explores | imitates).nonzero()[:, 0]
    totals = {"trained_rows": len(useful), "loss": 0.0, "clip_ratio": 0.0, "grad_norm": 0.0}
    if all_sum(torch.tensor(len(useful), device=useful.device)) == 0:
        return totals  # nothing to learn from; momentum must not move the parameters either
    sampled = max(int(rows.suffix[useful].sum()), 1)
    model.zero_grad()
    for i in range(0, len(useful), cfg.micro_batch):
        terms = loss_terms(model, s.base, rows.take(useful[i : i + cfg.micro_batch]), cfg, focus)
        (terms["loss"] / s.Z).backward()
        for name, total in terms.items():
            totals[name] = totals.get(name, 0.0) + total.item() / (s.Z if name == "loss" else sampled)
    for p in model.parameters():
        p.grad = all_sum(torch.zeros_like(p) if p.grad is None else p.grad)
    totals["grad_norm"] = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item()  # as it was before clipping
    for name in ("loss", "grad_norm"):
        if not np.isfinite(totals[name]):
            raise FloatingPointError(f"step {s.t + 1}: the {name} is {totals[name]}; start again with a smaller --lr")
    for optimizer in optimizers:
        optimizer.step()
    return totals


# ---------------------------------------------------------------------------------------------------------------------
# Losses on whole answers with a score in [0, 1]. All that they see of the policy is r, an answer's implicit reward.


def mse(r: Tensor, score: Tensor) -> Tensor:
    """(sigmoid(r) - score)^2"""
    return (r.sigmoid() - score).square()


def bce(r: Tensor, score: Tensor) -> Tensor:
    """cross-entropy of sigmoid(r) and [score = 1]"""
    return F.binary_cross_entropy_with_logits(r, (score == 1).float(), reduction="none")


def dpo(r: Tensor, score: Tensor) -> Tensor:
    """-log sigmoid(r - r'), pairs with score > score'"""
    better = score[:, :, None] > score[:, None]  # (P, G, G)
    return -(better * F.logsigmoid(r[:, :, None] - r[:, None])).sum(2)


@torch.no_grad()
def implicit_rewards(model: GPT, base: GPT, rows: Rows, beta: float) -> Tensor:
    """(N,) r = beta log(pi(y|x) / base(y|x)): the reward under which pi is the best policy, if leaving the base costs
    beta times the KL. (As in DPO, but for beta log Z(x): it cancels in a pair, and UNA sets it to 0.)"""
    gap = log_probs(model, rows, 1.0)[1] - log_probs(base, rows, 1.0)[1]
    return beta * (rows.hint[:, 1:] * gap).sum(1)


def score_weights(loss: Callable, r: Tensor, score: Tensor, beta: float) -> Tensor:
    """The coefficient c on each answer's tokens, (P, G) like r, whose gradient is the loss's: as r is beta log pi plus
    a constant, c = -beta dloss/dr. For mse and a demonstration (score 1) and s = sigmoid(r), that is 2 beta s (1-s)^2:
    SFT that fades: little of it is left once log pi is some 4 / beta above the base's."""
    r = r.clone().requires_grad_()
    (slope,) = torch.autograd.grad(loss(r, score).sum(), r)
    return -beta * slope


# ---------------------------------------------------------------------------------------------------------------------
# What a method decides in each step.


@dataclass
class Step:
    """All that a method may look at; filled in as the step goes on."""

    t: int  # steps so far
    cfg: Any  # train.Config
    rng: np.random.Generator
    memory: dict = field(default_factory=dict)  # what a method remembers from step to step; part of the checkpoint
    coin: np.random.Generator | None = None  # for gates: several processes must agree, so each has the same
    more: Callable[[int], list[Problem]] | None = None  # draws other problems
    problems: list[Problem] = field(default_factory=list)  # P of them
    hints: np.ndarray | None = None  # (P,) l; or (P, G), where a group does not share its hint
    live: np.ndarray | None = None  # (P,) bool: False where `again` put another group in its place
    rows: Rows | None = None  # (P * G) what became of them
    Z: int = 1  # the loss's
    model: GPT | None = None
    base: GPT | None = None  # or whatever implicit rewards are relative to

    @property
    def units(self) -> np.ndarray:
        """(P,) L, the units in each problem's demonstration"""
        return np.array([len(p.demo) for p in self.problems])

    @property
    def rewards(self) -> Tensor:
        return self.rows.reward.view(-1, self.cfg.group)  # (P, G)

    @property
    def taught(self) -> Tensor:
        """(P, 1) bool: with a demonstration"""
        return torch.tensor([[not p.answers] for p in self.problems], device=self.rewards.device)

    @property
    def solved(self) -> Tensor:
        return self.rows.solved.view(-1, self.cfg.group)  # (P, G)


# How long a hint is: Step -> (P,) units; or (P, G), where a group does not share it. T_hint is cfg.hint_steps.


def none(s: Step) -> np.ndarray:
    """0"""
    return np.zeros_like(s.units)


def whole(s: Step) -> np.ndarray:
    """L"""
    return s.units


def uniform(s: Step) -> np.ndarray:
    """uniform in {0..L}"""
    return s.rng.integers(0, s.units + 1)


def anneal(t: int, T_hint: int, low: float, high: float) -> float:
    """UFT's p(t): the chance of each unit to be given away, down a cosine from `high` to `low` in T_hint steps."""
    return low + (high - low) / 2 * (1 + np.cos(np.pi * (t + 1) / T_hint))


def cosine(s: Step) -> np.ndarray:
    """Binomial(L, p(t)); 0 from T_hint on"""
    p = anneal(s.t, s.cfg.hint_steps, s.cfg.hint_low, s.cfg.hint_high) if s.t < s.cfg.hint_steps else 0.0
    return s.rng.binomial(s.units, p)


def stages(s: Step) -> np.ndarray:
    """L-1, L-2, ... 1, equally long; 0 from T_hint on"""
    return s.units - 1 - (s.t * (s.units - 1)) // s.cfg.hint_steps if s.t < s.cfg.hint_steps else none(s)


# A and c, once the rows are there: Step -> a number for all rows, or (P, G).


def zero(s: Step) -> float:
    """0"""
    return 0.0


def one(s: Step) -> float:
    """1"""
    return 1.0


def hint_coef(s: Step) -> float:
    """hint_coef"""
    return s.cfg.hint_coef


def grpo(s: Step) -> Tensor:
    """(r - mean) / std"""
    return grpo_advantages(s.rewards)


def scored(loss: Callable, of_demos: Callable | None = None) -> Callable[[Step], Tensor]:
    """c from a loss on scores, for all answers or, if demonstrations are given a c of their own, for the others."""

    def c(s: Step) -> Tensor:
        r = implicit_rewards(s.model, s.base, s.rows, s.cfg.beta).view(s.rewards.shape)
        weights = score_weights(loss, r, s.rewards, s.cfg.beta)
        return torch.where(s.taught, of_demos(s), weights) if of_demos else weights

    c.__doc__ = f"-dloss / dlog pi, loss = {loss.__doc__}"
    c.__doc__ += f"; of demonstrations: {of_demos.__doc__}" if of_demos else ""
    return c


# Gates: Step -> is this step supervised? If so, it is a step of sft, whatever the method does otherwise.


def never(s: Step) -> bool:
    """never"""
    return False


def first(s: Step) -> bool:
    """t < warmup"""
    return s.t < s.cfg.warmup


def alternate(s: Step) -> bool:
    """t < warmup, then every second step"""
    return first(s) or s.t % 2 == 0


def coin(s: Step) -> bool:
    """t < warmup, then with probability mix"""
    return first(s) or s.coin.random() < s.cfg.mix


def gradient_norm(s: Step) -> bool:
    """t < warmup, then with probability g / (g + gamma g_warmup)"""
    if first(s):
        return True
    # g: the gradient's norm in the last supervised step; g_warmup: in the last of the warm-up. A large gradient means
    # that pi is far from the demonstrations; a small one need not mean that it is near (plateaus are flat, too), and g
    # is only as new as the last supervised step: RL may have drifted away since.
    s.memory["p_sft"] = s.memory["g"] / (s.memory["g"] + s.cfg.gamma * s.memory["g_warmup"])
    return s.coin.random() < s.memory["p_sft"]


def share_of_demos(method: "Method", s: Step) -> float:
    """How many of the step's problems come with a demonstration, where others come with scored answers (`skills`)."""
    imitates = method is METHODS["sft"] or (method.supervised is not never and first(s))
    return 1.0 if imitates else s.cfg.share * method.demos


# ---------------------------------------------------------------------------------------------------------------------
# The table, and the step that all of it shares


@dataclass(frozen=True)
class Method:
    paper: str
    hint: Callable[[Step], np.ndarray] = none  # l
    c: Callable[[Step], Any] = zero  # on hint tokens
    focus: Callable[[Tensor, Tensor, Tensor], Any] = evenly  # and how c is spread over them
    advantage: Callable[[Step], Any] = grpo  # A, on suffix tokens
    supervised: Callable[[Step], bool] = never  # the gate
    again: Callable[[Step], Any] = never  # having seen the rewards: [(problem, l) ...] to roll out as well
    given: bool = False  # nothing is sampled: rows are scored answers and, if demos, demonstrations, whose score is 1
    demos: bool = True  # if False, demonstrations are for a supervised stage only
    settings: dict = field(default_factory=dict)  # fields of Config that are part of the method


METHODS = {
    "sft": Method("-", hint=whole, c=one, advantage=zero),
    "rft": Method("GRPO 2402.03300"),
    "sft_rft": Method("-", supervised=first),
    "r3": Method("R3 2402.05808", hint=uniform),
    "stage": Method("R3 2402.05808", hint=stages),
    "cosine": Method("UFT 2505.16984, baseline", hint=cosine),
    "hint_only": Method("control", hint=cosine, c=hint_coef, advantage=zero),
    "uft": Method("UFT 2505.16984", hint=cosine, c=hint_coef),
    "uft_uniform": Method("UFT 2505.16984, theorem 4.3", hint=uniform, c=hint_coef),
    "sasr": Method("SASR 2505.13026", supervised=gradient_norm),
    "static": Method("SASR 2505.13026, baseline", supervised=alternate),
    "mix": Method("control", supervised=coin),
    "implicit": Method("implicit UFT 2410.21438", c=scored(mse), given=True),
    "implicit_bce": Method("implicit UFT 2410.21438", c=scored(bce), given=True),
    "una": Method("UNA 2408.15339", c=scored(mse), given=True, demos=False),
    "sft_una": Method("implicit UFT, baseline", c=scored(mse), given=True, demos=False, supervised=first),
    "sft_dpo": Method("implicit UFT, baseline", c=scored(dpo), given=True, demos=False, supervised=first),
    "sft_una_replay": Method("control", c=scored(mse, hint_coef), given=True, supervised=first),
    "ce_una": Method("control", c=scored(mse, hint_coef), given=True),
}  # the wider family: notebooks/family.py


def explore(method: Method, task: Task, s: Step, generator) -> None:
    """The step's rows: from the hints, and from others if the method, having seen the rewards, wants more."""
    G, s.live = s.cfg.group, np.ones(len(s.problems), bool)
    if method.given:
        # A row for each scored answer, or G copies of a demonstration. The whole answer is one unit, and the hint.
        answers = [replace(p, demo=[a]) for p in s.problems for a in p.answers or ["".join(p.demo)] * G]
        s.hints, s.rows = s.units, rollout(s.model, task, answers, np.ones(len(answers), int), 1)
        return
    s.hints = method.hint(s)
    s.rows = rollout(s.model, task, s.problems, s.hints, G, s.cfg.temperature, generator)
    while again := method.again(s):
        more, hints = map(list, zip(*again, strict=True))
        s.rows = s.rows.join(rollout(s.model, task, more, np.array(hints), G, s.cfg.temperature, generator))
        s.problems, s.hints = s.problems + more, np.concatenate([s.hints, hints])
        s.live = np.concatenate([s.live, np.ones(len(more), bool)])


def train_step(
    method: Method, model: GPT, base: GPT, optimizers: list, task: Task, problems: list[Problem], s: Step, generator
) -> dict:
    """Decide the hints, explore from them, weigh what came out, update. Returns the step's metrics."""
    s.cfg = replace(s.cfg, **method.settings)
    if supervised := method is METHODS["sft"] or method.supervised(s):
        method = METHODS["sft"]
    s.model, s.base, s.problems = model, base, problems
    s.Z = int(all_sum(torch.tensor(len(problems), device=model.embed.weight.device))) * s.cfg.group * task.answer_tokens
    explore(method, task, s, generator)
    zeros = torch.zeros_like(s.rewards)  # (P, G)
    s.rows.advantage = (zeros + method.advantage(s)).flatten()
    live = torch.tensor(s.live, device=zeros.device).repeat_interleave(s.cfg.group)[:, None]
    # A group that was replaced is not trained on; s.rows keeps it, for it was sampled, and that is counted.
    rows = replace(s.rows, hint=s.rows.hint & live, suffix=s.rows.suffix & live)
    # Where a group shares its hint, the G rows have the same gradient from it: c * G in the first, 0 in the others.
    once = s.cfg.group * (torch.arange(s.cfg.group, device=zeros.device) == 0)
    once = torch.where(s.taught & (s.hints.ndim == 1), once, 1)  # (P, G)
    updates = []
    for _ in range(s.cfg.updates):
        rows.hint_weight = ((zeros + method.c(s)) * once).flatten()
        updates.append(update(rows, optimizers, method.focus, s))
    if supervised:
        norm = updates[0]["grad_norm"]
        s.memory |= {"g": norm, "g_warmup": norm} if first(s) else {"g": norm}

    explored, sampled = s.rows.suffix.any(1), int(s.rows.suffix.sum())
    metrics = {
        **updates[-1],
        "reward": s.rewards.mean().item(),  # of fully hinted rows too; explored_solved, below, is not
        "frac_reward_zero_std": (s.rewards == s.rewards[:, :1]).all(1).float().mean().item(),
        "hint_share": float(np.mean(s.hints.T / np.maximum(s.units, 1))),
        "supervised": int(supervised),
        "rollouts": int(explored.sum()),
        "sampled_tokens": sampled,
        "demo_tokens": int(rows.hint[rows.hint_weight != 0].sum()),
    }
    if sampled:
        metrics["entropy"] = -s.rows.logp[s.rows.suffix].mean().item()
        metrics["completion_length"] = sampled / metrics["rollouts"]
        metrics["explored_solved"] = s.rows.solved[explored].float().mean().item()
    return metrics | {name: x for name, x in s.memory.items() if name == "p_sft"}
