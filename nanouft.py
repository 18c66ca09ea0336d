r"""Unified fine-tuning: a weight on every token.

A problem has a prompt x and a demonstration, cut into units u_1 ... u_L (countdown: one equation each). A row is

    x  +  u_1 .. u_l      +  a suffix sampled from the policy
    \__/  \________/         \______________________________/
    read  hint: weight c     suffix: weight A, the row's advantage

and a step of training raises the log-probability of each token, or lowers it, as its weight says:

    gradient of the loss  =  - 1/Z  sum over all tokens of all rows   weight * grad log pi(token)

A method is a choice of weights: c where a token was given, A where it was sampled, 0 on prompts and padding. A hint of
l = L units with c = 1 is supervised fine-tuning (SFT). No hint, l = 0, is reinforcement fine-tuning (RFT). UFT lies
between: hints that grow shorter from step to step, with a c below 1. SASR tosses a coin in each step, for SFT or for
RFT. Implicit-reward UFT learns from whole answers that are given, each with a score, from which c follows.

train_step is the engine. METHODS, at the end of this file, is the table of all methods. Read these two first, then the
file from here.

The words. The *policy* pi is the model in training; the *base* is a frozen copy from before it (or from the end of a
warm-up: --reference sft). A *rollout* samples an answer. Its *reward* says how good it is (mostly 1.0 right, 0.1
well-formed but wrong, 0 neither). A *group* is G rows of the same problem, and a row's *advantage* is how much better
than its own group it did. In shape comments:

    P problems   G rows of each   N = P * G rows   T tokens   V words   L units in a demonstration; a hint has l

The whole loss, for several updates on the same rows, and with two extras, which a coefficient of 0 switches off:

    loss  =  - 1/Z ( sum over hint tokens    c * log pi(token)
                   + sum over suffix tokens  [ min(ratio * A, clip(ratio) * A) - kl_coef * KL + entropy_coef * S ] )

The *ratio* is a suffix token's probability now, over its probability when it was sampled. Hint tokens were never
sampled, so they have no ratio. KL estimates how far pi has moved from the base, and S is the entropy of pi at a token,
as pi is now. Everything is a sum over tokens, divided once by one constant, Z = P * G * the longest answer allowed
(where there are several processes, P is of all of them together). So what a token weighs does not depend on its
answer's length, on rows that are left out, or on micro-batches. G rows with the same hint push it by G * c in all.

What the papers say, and what is decided here:
 1. UFT (2505.16984): objective (3.3). Hints have Binomial(L, p(t)) units; p(t) falls down a cosine, and from step
    T_hint on there are none. The paper's one beta is two coefficients here, hint_coef (which is c) and kl_coef.
 2. GRPO (2402.03300): the advantage is (r - mean) / std of the row's own group, the ratio is clipped, and KL is
    estimated as k3 (see loss_sum). The one Z replaces GRPO's mean over each answer's tokens. Its beta is our kl_coef.
 3. SASR (2505.13026): a warm-up of SFT; after it, a step is one of SFT with probability g / (g + gamma * g_warmup).
    g is the gradient's norm, before it is clipped to 1, in the latest SFT step (in its first update, if it has
    several). g_warmup is the mean of these norms over the last 25 steps of the warm-up, and is frozen from then on; g
    starts from it. (The mean is a decision of ours: the paper's g_warmup is the norm of one step.)
 4. Implicit-reward UFT (2410.21438): the implicit reward is r_hat = beta * log(pi / base), with a beta of its own. A
    demonstration is an answer with score 1, whatever reward it would earn.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data import Problem, Task
from model import GPT, pad_rows, sample

# ---------------------------------------------------------------------------------------------------------------------
# Rows


@dataclass
class Rows:
    r"""N rows of T tokens. The G rows of a group stand side by side.

    tokens   9 5 1 -> 3 \n 9 - 5 = 4 \n 4 - 1 = 3 <end> <pad> <pad>    (blanks, tokens too, are left out)
    hint                   x x x x x x                                 given
    suffix                              x x x x x x                    sampled; so is <end>: to stop is a choice
    weight   0 0 0 0  0 0  c c c c c c  A A A A A A     0     0        how hard each token is pushed
    """

    problems: list[Problem]  # N of them: a problem stands here once for each row
    tokens: Tensor  # (N, T)
    hint: Tensor  # (N, T) bool
    suffix: Tensor  # (N, T) bool
    logp: Tensor  # (N, T) log-probability of each suffix token when it was sampled; elsewhere 0
    reward: Tensor  # (N,)
    solved: Tensor  # (N,) bool: a reward as good as the demonstration's (on forked trees its leaf will do)
    weight: Tensor  # (N, T) what the method says; 0 before

    def take(self, index: Tensor) -> "Rows":
        """Some of the rows."""
        problems, *tensors = vars(self).values()
        return Rows([problems[i] for i in index.tolist()], *(x[index] for x in tensors))

    def ratio(self, logp: Tensor) -> Tensor:
        """(N, T) a suffix token's probability now, over that when it was sampled; 1 for tokens that were not."""
        return (logp - self.logp).where(self.suffix, 0.0).exp()


def rollout(model: GPT, task: Task, problems: list[Problem], hints, temperature=1.0, generator=None) -> Rows:
    """One row for each of N problems and its hint, the first hints[i] units: the model finishes the answer."""
    units, best, judge = map(cache, (task.units, task.best, task.reward))  # once for equal rows
    starts = [(task.encode(p.prompt), sum(units(p)[:n], [])) for p, n in zip(problems, hints, strict=True)]
    # <end> belongs to the last unit: after a full hint there is nothing left to write.
    limits = [0 if hint[-1:] == [task.end] else task.answer_tokens - len(hint) for _, hint in starts]
    tails, logp = sample(model, [x + hint for x, hint in starts], limits, task.end, task.pad, temperature, generator)

    ids, kinds, rewards = [], [], []
    for p, (prompt, hint), tail in zip(problems, starts, tails, strict=True):
        ids.append(prompt + hint + tail)
        kinds.append([0] * len(prompt) + [1] * len(hint) + [2] * len(tail))
        answer = task.read(hint + tail)  # None if <end> is missing
        rewards.append(0.0 if answer is None else judge(p, answer))
    tokens, kind = pad_rows(ids, task.pad, logp.device)[0], pad_rows(kinds, 0, logp.device)[0]  # (N, T)
    logp = logp.new_zeros(tokens.shape).masked_scatter(kind == 2, logp)
    reward, goal = logp.new_tensor([rewards, [best(p) for p in problems]])  # (N,)
    return Rows(problems, tokens, kind == 1, kind == 2, logp, reward, reward >= goal, torch.zeros_like(logp))


def log_probs(model: GPT, rows: Rows) -> tuple[Tensor, Tensor]:
    """log pi of each token of the answers, (N, T), where column 0 is 0, for nothing comes before it; and of all V words
    in every other column, (N, T-1, V)."""
    words = F.log_softmax(model(rows.tokens[:, :-1]), dim=-1)
    own = rows.tokens.where(rows.hint | rows.suffix, 0)[:, 1:, None]  # in prompts there may be words without a logit
    return F.pad(words.gather(-1, own)[:, :, 0], (1, 0)), words


def entropy(words: Tensor) -> Tensor:
    """(N, T) of pi at each token, out of log pi of all words there; 0 in column 0."""
    return F.pad(-(words.exp() * words).sum(-1), (1, 0))


# ---------------------------------------------------------------------------------------------------------------------
# What a method decides


@dataclass
class Step:
    """A step of training: all that a method may look at. The last four fields are filled in while it goes on."""

    t: int  # steps before this one
    cfg: object  # train.Config
    task: Task
    model: GPT  # the policy
    base: GPT
    draw: Callable[[float], list[Problem]]  # draw(share): P problems; in task skills, that share has a demonstration
    rng: np.random.Generator
    coin: float = 0.0  # uniform in [0, 1)
    generator: torch.Generator | None = None
    memory: dict = field(default_factory=dict)  # what a method keeps from step to step: numbers, a part of checkpoints
    problems: list[Problem] = field(default_factory=list)  # P of them
    explored: list[Rows] = field(default_factory=list)  # all that was rolled out, whatever became of it
    rows: Rows | None = None  # what the step learns from

    @property
    def L(self) -> np.ndarray:
        """(P, 1) how many units each demonstration has: a column, since the rows of a group share their problem."""
        return np.array([[len(problem.demo)] for problem in self.problems])

    def rollout(self, problems: list[Problem], hints: np.ndarray) -> Rows:
        self.explored.append(rollout(self.model, self.task, problems, hints, generator=self.generator))
        return self.explored[-1]


def cell(column, s: Step, *rows):
    """A cell of the table is a number, the name of a setting, or a function of the step (and of its rows)."""
    return getattr(s.cfg, column) if isinstance(column, str) else column(s, *rows) if callable(column) else column


@dataclass(frozen=True)
class Method:
    """A row of the table, and the three stages of a step: explore, weigh, objective."""

    paper: str
    length: Callable | int  # l, of the step: (P, 1) units; or (P, G), where the rows of a group differ
    c: Callable | float | str  # of the step and its rows: (P, G), the weight of hint tokens
    advantage: Callable | float | str  # A, of the step and its rows: (P, G), the weight of suffix tokens
    warm: bool = False  # begins with cfg.warmup steps of sft
    p_sft: Callable | float | str = 0  # of the step: the probability, after the warm-up, that it is one of sft

    def explore(self, s: Step) -> Rows:
        """The rows: a group of rollouts for each problem, each from its hint."""
        hints = np.broadcast_to(cell(self.length, s), (len(s.problems), s.cfg.group))
        return s.rollout([problem for problem in s.problems for _ in range(s.cfg.group)], hints.flatten())

    def weigh(self, s: Step, rows: Rows) -> Tensor:
        """(N, T) What each token weighs: c on the hint, A on the suffix, 0 elsewhere."""
        zeros = torch.zeros_like(rows.reward).view(-1, s.cfg.group)  # (P, G)
        c, A = (zeros + cell(column, s, rows) for column in (self.c, self.advantage))
        return c.view(-1, 1) * rows.hint + A.view(-1, 1) * rows.suffix

    def objective(self, s: Step, rows: Rows, logp: Tensor, words: Tensor) -> Tensor:
        """(N, T) What each token adds to the objective. On the first update after sampling its gradient is simply that
        of weight * logp: grad ratio = ratio * grad log pi, and ratios are 1. (For entropy: words, from log_probs.)

        Clipping, GRPO (3), acts from the second update on, where a token has moved far enough (at clip = 0.2):
            A = +1, ratio 1.3:  min(+1.3, +1.2) = +1.2, flat       ratio 0.7:  min(+0.7, +0.8) = +0.7, still pulls up
            A = -1, ratio 0.7:  min(-0.7, -0.8) = -0.8, flat       ratio 1.3:  min(-1.3, -1.2) = -1.3, still pulls down
        """
        ratio = rows.ratio(logp)
        surrogate = torch.minimum(ratio * rows.weight, ratio.clamp(1 - s.cfg.clip, 1 + s.cfg.clip) * rows.weight)
        return surrogate.where(rows.suffix, rows.weight * logp)  # UFT (3.3): the hint's log-likelihood


# ---------------------------------------------------------------------------------------------------------------------
# The step


def all_sum(x: Tensor) -> Tensor:
    """The sum of x over all processes that torchrun started, each of which has rows of its own; with one process, x."""
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(x)
    return x


def gather(x) -> list:
    """The x of every process, in order of rank; with one process, [x]."""
    found = [x]
    if torch.distributed.is_initialized():
        found *= torch.distributed.get_world_size()
        torch.distributed.all_gather_object(found, x)
    return found


def loss_sum(method: Method, s: Step, rows: Rows) -> Tensor:
    """Z times the loss, a sum over the rows' tokens.

    Do not read progress off the loss. At ratio 1 a suffix token adds -A to it, whatever its probability, and the A of a
    group sum to 0: with answers of one length the sum is 0, however good they are. The gradient is not.
    """
    logp, words = log_probs(s.model, rows)
    loss = -method.objective(s, rows, logp, words)  # (N, T)
    if s.cfg.kl_coef:
        with torch.no_grad():
            gap = log_probs(s.base, rows)[0]
        gap = (gap - logp).where(rows.suffix, 0.0)
        # GRPO (4), "k3". The mean of -gap = log pi - log base over samples of pi is the KL. Adding exp(gap) - 1 makes
        # each term >= 0, and adds 0 on average: exp(gap) is base / pi, and pi * base / pi sums to 1 over all words.
        loss = loss + s.cfg.kl_coef * (gap.exp() - gap - 1)
    if s.cfg.entropy_coef:
        loss = loss - s.cfg.entropy_coef * entropy(words) * rows.suffix
    return loss.sum()


def shared_once(rows: Rows, G: int) -> Tensor:
    """(N, T) weights that have the same gradient, on fewer rows. Rows of a group which share the first row's hint have
    the same log-probabilities on it. So the first row takes over their hint weights, and they keep none."""
    given, weight = (x.unflatten(0, (-1, G)) for x in (rows.tokens.where(rows.hint, -1), rows.weight))  # (P, G, T)
    shared = (given == given[:, :1]).all(2, keepdim=True) & (given >= 0)
    total, weight = weight.where(shared, 0.0).sum(1), weight.masked_fill(shared, 0.0)
    weight[:, 0] += total
    return weight.flatten(0, 1)


def update(method: Method, s: Step, optimizers: list) -> dict[str, float]:
    """One optimizer step. Rows that add nothing to the gradient are left out."""
    cfg, Z = s.cfg, s.cfg.problems * s.cfg.group * s.task.answer_tokens
    rows = replace(s.rows, weight=shared_once(s.rows, cfg.group))
    weighs = (rows.weight != 0) | (rows.suffix & bool(cfg.kl_coef or cfg.entropy_coef))
    useful = weighs.any(1).nonzero()[:, 0]
    totals = {"demo_tokens": (weighs & rows.hint).sum(), "loss": torch.zeros_like(rows.weight[0, 0])}
    s.model.zero_grad()
    for some in useful.split(cfg.micro_batch) if len(useful) else ():
        loss = loss_sum(method, s, rows.take(some)) / Z
        loss.backward()
        totals["loss"] += loss.detach()
    parameters = list(s.model.parameters())
    # In one piece, so that processes which share a step wait for each other once.
    gradient = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
    for p, part in zip(parameters, all_sum(gradient).split([p.numel() for p in parameters]), strict=True):
        p.grad = part.view_as(p)
    totals["grad_norm"] = torch.nn.utils.clip_grad_norm_(parameters, 1.0)  # as it was before clipping
    if all_sum(weighs.sum()) > 0:  # or momentum alone would move the parameters
        for optimizer in optimizers:
            optimizer.step()
    totals = dict(zip(totals, torch.stack([*totals.values()]).tolist(), strict=True))  # a GPU is waited for once
    return totals | {"trained_rows": len(useful)}


def train_step(method: Method, s: Step, optimizers: list) -> dict[str, float]:
    """Draw problems, explore from hints, weigh what came out, update. Returns the step's metrics."""
    warming = method.warm and s.t < s.cfg.warmup
    p_sft = 1.0 if warming else cell(method.p_sft, s)
    if supervised := s.coin < p_sft:
        method = METHODS["sft"]
    s.problems = s.draw(1.0 if supervised else s.cfg.share)
    s.rows = method.explore(s)
    updates = []
    for _ in range(s.cfg.updates):
        s.rows.weight = method.weigh(s, s.rows)  # anew each time: a score's c depends on the policy
        updates.append(update(method, s, optimizers))
    # SASR's two numbers, set here and nowhere else: both in the warm-up; after it g alone, in supervised steps
    norm = updates[0]["grad_norm"]
    if warming:
        norms = s.memory["warmup_norms"] = [*s.memory.get("warmup_norms", []), norm][-25:]
        s.memory["g"] = s.memory["g_warmup"] = sum(norms) / len(norms)
    elif supervised:
        s.memory["g"] = norm
    return updates[-1] | {"supervised": int(supervised), "p_sft": p_sft}


# ---------------------------------------------------------------------------------------------------------------------
# Columns: how long a hint is. T_hint is cfg.hint_steps.


def whole(s: Step) -> np.ndarray:
    """L"""  # a column's docstring is its cell in the printed table
    return s.L


def uniform(s: Step) -> np.ndarray:
    """uniform in {0..L}"""
    return s.rng.integers(0, s.L + 1)


def anneal(t: int, T_hint: int, low: float, high: float) -> float:
    """UFT's p(t): l is how many of L coins show heads, each with this chance. It falls from nearly `high` down a
    cosine, is `low` in the last step that has hints, and 0 from T_hint on.

    >>> [round(float(anneal(t, 4, 0.05, 0.95)), 2) for t in range(6)]
    [0.82, 0.5, 0.18, 0.05, 0.0, 0.0]
    """
    return low + (high - low) / 2 * (1 + np.cos(np.pi * (t + 1) / T_hint)) if t < T_hint else 0.0


def binomial(s: Step) -> np.ndarray:
    """Binomial(L, p(t)); 0 from T_hint on"""
    return s.rng.binomial(s.L, anneal(s.t, s.cfg.hint_steps, s.cfg.hint_low, s.cfg.hint_high))


# Columns: c and A, once the rows are there.


def grpo(s: Step, rows: Rows) -> Tensor:
    """(r - mean) / std"""
    return grpo_advantages(rows.reward.view(-1, s.cfg.group))


def grpo_advantages(rewards: Tensor) -> Tensor:
    """(P, G) -> (P, G): how much better than its group a row did, (r - mean) / (std + 1e-6), std over G - 1.

    >>> grpo_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]]))       # one success weighs as much as three failures
    tensor([[ 1.5000, -0.5000, -0.5000, -0.5000]])

    Why this, as a weight on log pi, raises the reward. Sampling has no gradient, but for answers y
        grad E[r] = sum r(y) grad pi(y) = sum pi(y) r(y) grad log pi(y) = E[ r grad log pi ],
    since grad pi = pi grad log pi; and rollouts estimate the right side. A constant may be taken off r, which makes it
    less noisy: E[ grad log pi ] = grad sum pi(y) = grad 1 = 0. (A row is part of its own group's mean; on average that
    scales the gradient by 1 - 1/G.) And log pi(y) is a sum over tokens, so each token gets the weight of its row.

    By hand: answers of one word, right with probability p = sigmoid(z) = 1/4, then r = 1, else 0. dE[r]/dz = p (1 - p)
    = 3/16. A rollout estimates it as r * dlog pi/dz: 1 * (1 - p) = 3/4 one time in four, else 0. On average: 3/16.

    To divide by std is a choice: it gives more weight to problems that nearly always or nearly never succeed. Where
    all rows did equally well there is nothing to compare, and A is exactly 0, however the mean was rounded.
    """
    centred = rewards - rewards.mean(1, keepdim=True)
    std = (centred.square().sum(1, keepdim=True) / max(rewards.shape[1] - 1, 1)).sqrt()
    return torch.where((rewards == rewards[:, :1]).all(1, keepdim=True), 0.0, centred / (std + 1e-6))


# Columns: the probability that a step is one of sft.


def adaptive(s: Step) -> float:
    """g / (g + gamma g_warmup)"""
    # A large gradient means that pi is far from the demonstrations. A small one need not mean that it is near (plateaus
    # are flat, too), and g is only as new as the latest supervised step: RL may have drifted away since.
    return s.memory["g"] / (s.memory["g"] + s.cfg.gamma * s.memory["g_warmup"])


# ---------------------------------------------------------------------------------------------------------------------
# Given answers with a score in [0, 1]. A loss sees of the policy only an answer's implicit reward r_hat.


class GivenAnswers(Method):
    """Whole answers are given, nothing is sampled.

    Each row holds a whole answer, in the hint's place. Where a problem has scored answers, its G rows are these, and
    their scores are the task's rewards. Where it has none, all G rows are its demonstration, whose score is 1.
    """

    def explore(self, s: Step) -> Rows:
        # The whole answer is one unit, and the hint is that unit, whatever the table says of l.
        given = [replace(p, demo=[a]) for p in s.problems for a in p.answers or ["".join(p.demo)] * s.cfg.group]
        rows = s.rollout(given, [1] * len(given))
        rows.reward[[not problem.answers for problem in given]] = 1.0
        return rows


def mse(r_hat: Tensor, score: Tensor) -> Tensor:
    """(sigmoid(r_hat) - score)^2"""
    return (r_hat.sigmoid() - score).square()


def score_weights(loss: Callable, r_hat: Tensor, score: Tensor, beta: float) -> Tensor:
    """(P, G) The weight c for an answer's tokens with which c * grad log pi is minus the gradient of the loss: c is
    -dloss / dlog pi. Since r_hat is beta log pi and a constant, that is -beta dloss / dr_hat. For mse and score 1, with
    sigma = sigmoid(r_hat), it is 2 beta sigma (1 - sigma)^2: SFT that fades; a tenth of it is left once log pi is
    2 / beta above the base's.

    >>> score_weights(mse, torch.zeros(1, 3), torch.tensor([[1.0, 0.6, 0.1]]), beta=0.4)     # sigma = 1/2
    tensor([[ 0.1000,  0.0200, -0.0800]])
    """
    return -beta * torch.func.grad(lambda r: loss(r, score).sum())(r_hat)


def from_scores(loss: Callable) -> Callable:
    """The column c for a loss on the implicit reward r_hat = beta log(pi(y|x) / base(y|x)). Where that comes from: the
    policy with the highest E[r] - beta * KL(pi, base) is pi = base * exp(r / beta), up to a factor for each prompt.
    Solve this for r: it is r_hat, up to a constant for each prompt, which the paper sets to 0. The loss compares
    its sigmoid with a score."""

    @torch.no_grad()
    def c(s: Step, rows: Rows) -> Tensor:
        some = [rows.take(i) for i in torch.arange(len(rows.tokens)).split(s.cfg.micro_batch)]
        gap = torch.cat([log_probs(s.model, x)[0] - log_probs(s.base, x)[0] for x in some])  # (N, T)
        r_hat = s.cfg.beta * (gap * rows.hint).sum(1)
        return score_weights(loss, r_hat.view(-1, s.cfg.group), rows.reward.view(-1, s.cfg.group), s.cfg.beta)

    c.__doc__ = f"-dloss / dlog pi, loss = {loss.__doc__}"
    return c


# ---------------------------------------------------------------------------------------------------------------------
# The table. (The wider family: notebooks/family.py)

# fmt: off
METHODS = {
    #                      paper                            l         c                 A     warm  p_sft
    "sft":         Method("-",                              whole,    1,                0,    False, 1),
    "rft":         Method("GRPO 2402.03300",                0,        0,                grpo),
    "sft_rft":     Method("-",                              0,        0,                grpo, True),
    "r3":          Method("R3 2402.05808",                  uniform,  0,                grpo),
    "hint_only":   Method("control",                        binomial, "hint_coef",       0),
    "uft":         Method("UFT 2505.16984",                 binomial, "hint_coef",       grpo),
    "uft_uniform": Method("UFT 2505.16984, theorem 4.3",    uniform,  "hint_coef",       grpo),
    "sasr":        Method("SASR 2505.13026",                0,        0,                grpo, True,  adaptive),
    "implicit":    GivenAnswers("implicit UFT 2410.21438",  whole,    from_scores(mse), 0),
}
# fmt: on
