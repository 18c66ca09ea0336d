"""One stage or two: the task `skills`, the methods that are only for scored answers, and their runs.

python notebooks/one_stage.py --method sft implicit      like compare.py, on `skills`
python notebooks/one_stage.py                            the grid that all arms were tuned with
"""

import itertools
import re
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))
from data import TASKS, Problem, Task  # noqa: E402
from model import GPT  # noqa: E402
from nanouft import METHODS, GivenAnswers, Rows, Step, from_scores, mse, rollout, whole  # noqa: E402
from notebooks import compare, lab  # noqa: E402
from train import Config, randomness  # noqa: E402

# ---------------------------------------------------------------------------------------------------------------------
# The task


class Skills(Task):
    """Two skills for one model, told apart by a tag, on six digits.

    A, an instruction: reverse them and add 3 to each (modulo 10). It is taught by demonstrations. Reward 1.0: right.
    B, a preference: sorted is best (1.0), reversed half as good (0.5). It is taught by scored answers of the base,
    which copies, reverses, sorts, or writes any digits, whatever the tag. 0.1: any other six digits; 0: anything else.
    """

    form = r"[AB]\d{6}"
    settings = "demos=8192,layers=3,group=4,steps=1000,warmup=500,lr=1e-3,hint_coef=0.1,beta=0.1,base_steps=600"

    def __init__(self):
        super().__init__([*"0123456789", "A", "B", "\n"])
        self.prompt_tokens, self.answer_tokens = 8, 7
        self.writable = self.end + 1  # anything but <pad>: what the base writes must be an answer

    def problem(self, rng: np.random.Generator, split: str = "pool") -> Problem:
        return self.pose("AB"[rng.integers(2)] + digits(rng))

    def random_play(self, rng: np.random.Generator) -> Problem:
        problem, other = self.problem(rng), digits(rng)
        x = problem.prompt[1:-1]
        return replace(problem, demo=[[x, x[::-1], "".join(sorted(x)), other][rng.integers(4)]])

    def goals(self, text: str) -> dict[str, float]:
        """The answers that are worth something."""
        x = text[1:7]
        plus_3 = str.maketrans("0123456789", "3456789012")
        return {x[::-1].translate(plus_3): 1.0} if text[0] == "A" else {x[::-1]: 0.5, "".join(sorted(x)): 1.0}

    def pose(self, text: str) -> Problem:
        return Problem(text + "\n", [*self.goals(text)] if text[0] == "A" else [])

    def prepare(self, pool: list[Problem], base: GPT, cfg: Config) -> None:
        """Answers of the base to each B, one for each row of a group."""
        self.kinds, generator = ([p for p in pool if p.demo], [p for p in pool if not p.demo]), randomness(cfg, 6)[1]
        for some in (self.kinds[1][i : i + 256] for i in range(0, len(self.kinds[1]), 256)):
            each = [problem for problem in some for _ in range(cfg.group)]
            rows = rollout(base, self, each, [0] * len(each), generator=generator)
            for problem, ids, own in zip(each, rows.tokens, rows.suffix, strict=True):
                problem.answers.append(self.decode(ids[own].tolist()).removesuffix("<end>"))

    def choose(self, pool: list[Problem], n: int, share: float, rng: np.random.Generator) -> list[Problem]:
        """This share of them As."""
        sizes = zip(self.kinds, (round(share * n), n - round(share * n)), strict=True)
        return [some[i] for some, k in sizes for i in rng.choice(len(some), k, replace=k > len(some))]

    def reward(self, problem: Problem, answer: str) -> float:
        well_formed = re.fullmatch(r"\d{6}", answer, re.ASCII)
        return self.goals(problem.prompt).get(answer, 0.1 if well_formed else 0.0)


def digits(rng: np.random.Generator) -> str:
    return "".join(map(str, rng.integers(0, 10, 6)))


TASKS["skills"] = Skills

# ---------------------------------------------------------------------------------------------------------------------
# The methods


def dpo(r_hat: Tensor, score: Tensor) -> Tensor:
    """-log sigmoid(r_hat - r_hat'), pairs with score > score'"""
    return -((score[:, :, None] > score[:, None]) * F.logsigmoid(r_hat[:, :, None] - r_hat[:, None])).sum(2)  # of PxGxG


def bce(r_hat: Tensor, score: Tensor) -> Tensor:
    """cross-entropy of sigmoid(r_hat) and [score = 1]"""
    return F.binary_cross_entropy_with_logits(r_hat, (score == 1).float(), reduction="none")


def ce_and_mse(s: Step, rows: Rows) -> Tensor:
    """hint_coef of demonstrations, as in SFT; of scored answers -dloss / dlog pi, loss = (sigmoid(r_hat) - score)^2"""
    taught = torch.tensor([not problem.answers for problem in rows.problems], device=rows.reward.device)
    return torch.where(taught.view(-1, s.cfg.group), s.cfg.hint_coef, from_scores(mse)(s, rows))


class ScoredAnswers(GivenAnswers):
    """Whole answers are given, nothing is sampled, and no demonstrations."""

    def explore(self, s: Step) -> Rows:
        s.problems = s.draw(0.0)
        if not all(problem.answers for problem in s.problems):
            raise ValueError(f"{s.cfg.method} learns from scored answers, which --task {s.cfg.task} lacks; try skills")
        return super().explore(s)


METHODS |= {
    "una": ScoredAnswers("UNA 2408.15339", whole, from_scores(mse), 0),
    "sft_una": ScoredAnswers("implicit UFT, baseline", whole, from_scores(mse), 0, warm=True),
    "sft_dpo": ScoredAnswers("implicit UFT, baseline", whole, from_scores(dpo), 0, warm=True),
    "implicit_bce": GivenAnswers("implicit UFT 2410.21438", whole, from_scores(bce), 0),
    "ce_una": GivenAnswers("control", whole, ce_and_mse, 0),
    "sft_una_replay": GivenAnswers("control", whole, ce_and_mse, 0, warm=True),
}


# ---------------------------------------------------------------------------------------------------------------------
# The runs

GRID = {
    "lr": (3e-4, 1e-3, 3e-3),
    "second_lr": (1e-4, 3e-4, 1e-3),
    "beta": (0.01, 0.03, 0.1, 0.3),
    "hint_coef": (0.1, 1.0),  # the cross-entropy's weight beside the scored loss
    "reference": ("base", "sft"),
}
ARMS = {  # what of the grid makes a difference to which method; two stages begin with the best lr of sft
    "sft": ["lr"],
    "una": ["lr", "beta"],
    "sft_una": ["second_lr", "beta", "reference"],
    "sft_dpo": ["second_lr", "beta", "reference"],
    "sft_una_replay": ["second_lr", "beta", "hint_coef"],
    "ce_una": ["lr", "beta", "hint_coef"],
    "implicit": ["lr", "beta"],
    "implicit_bce": ["lr", "beta"],
}
STAGES = ("sft", "una", "sft_una", "sft_dpo", "ce_una", "implicit")
GRID_SEED = 100  # a base, a pool and samples that no figure shows


def measure(cfg: Config) -> dict:
    """As any run is measured; but whoever looks for this function, in another process, finds the controls as well."""
    return lab.measure(cfg)


measured = partial(lab.measured, work=measure)


def skills(method: str, seed: int, steps: int = 1000, **more) -> Config:
    """Every arm is shown as many demonstrations as scored problems (four answers each): mixed in each step, or in
    halves, one after the other; with replay, half of the demonstrations first, and half among the scored answers."""
    common = dict(task="skills", method=method, seed=seed, steps=steps, warmup=steps // 2, test=0, eval_every=50)
    replay = dict(warmup=steps // 4, share=1 / 3) if method == "sft_una_replay" else {}
    return Config(**common | replay | more)


def cells(method: str) -> list[dict]:
    names = ARMS[method]
    fixed = {"lr": tuned("sft")["lr"]} if "second_lr" in names else {}
    return [fixed | dict(zip(names, x, strict=True)) for x in itertools.product(*(GRID[n] for n in names))]


def trials(method: str) -> list[tuple[dict, dict]]:
    """All cells of an arm with their results, the best first: by the sum of both skills, sampled, on validation; of
    equals, by how little they left the base. SFT, which is the others' first half, has half the steps here and is
    chosen by the first skill."""
    some = cells(method)
    steps = {"steps": 500} if method == "sft" else {}
    results = measured("one_stage_grid", [skills(method, GRID_SEED, **steps | cell) for cell in some], quick=False)
    scores = [x["demonstrated"] + x["scored"] * (method != "sft") for x in results]
    order = sorted(range(len(some)), key=lambda i: (-scores[i], results[i]["base_kl"]))
    return [(some[i], results[i]) for i in order]


def tuned(method: str) -> dict:
    return trials(method)[0][0]


def main() -> None:
    for method in ARMS:
        for i, (cell, x) in enumerate(trials(method)):
            line = f"{method:16s}" + f"{', '.join(f'{k} {v}' for k, v in cell.items()):56s}"
            print(line + f"A {x['demonstrated']:.2f}  B {x['scored']:.2f}" + "  <- chosen" * (i == 0))


if __name__ == "__main__":
    compare.main(["--task", "skills", *sys.argv[1:]], STAGES) if sys.argv[1:] else main()
