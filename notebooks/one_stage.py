"""Runs on `skills`, in one stage and in two: which, and with what settings.

python notebooks/one_stage.py        the grid that all arms were tuned with (results/one_stage_grid.json)
"""

import itertools
import sys
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))
from nanouft import METHODS, GivenAnswers, Rows, Step, from_scores, mse, whole  # noqa: E402
from notebooks import lab  # noqa: E402
from train import DEFAULTS, Config  # noqa: E402

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
GRID_SEED = 100  # a base, a pool and samples that no figure shows


def bce(r_hat: Tensor, score: Tensor) -> Tensor:
    """cross-entropy of sigmoid(r_hat) and [score = 1]"""
    return F.binary_cross_entropy_with_logits(r_hat, (score == 1).float(), reduction="none")


def ce_and_mse(s: Step, rows: Rows) -> Tensor:
    """hint_coef of demonstrations, as in SFT; of scored answers -dloss / dlog pi, loss = (sigmoid(r_hat) - score)^2"""
    taught = torch.tensor([not problem.answers for problem in rows.problems], device=rows.reward.device)
    return torch.where(taught.view(-1, s.cfg.group), s.cfg.hint_coef, from_scores(mse)(s, rows))


METHODS |= {  # controls of this comparison alone
    "implicit_bce": GivenAnswers("implicit UFT 2410.21438", whole, from_scores(bce), 0),
    "ce_una": GivenAnswers("control", whole, ce_and_mse, 0),
    "sft_una_replay": GivenAnswers("control", whole, ce_and_mse, 0, warm=True),
}


def measure(cfg: Config) -> dict:
    """As any run is measured; but whoever looks for this function, in another process, finds the controls as well."""
    return lab.measure(cfg)


measured = partial(lab.measured, work=measure)


def skills(method: str, seed: int, steps: int = 1000, **more) -> Config:
    """Every arm is shown as many demonstrations as scored problems (four answers each): mixed in each step, or in
    halves, one after the other; with replay, half of the demonstrations first, and half among the scored answers."""
    common = dict(task="skills", method=method, seed=seed, steps=steps, warmup=steps // 2, test=0, eval_every=50)
    common["cache"] = str(Path(__file__).parent.parent / "out/base")  # wherever a notebook is run from
    replay = dict(warmup=steps // 4, share=1 / 3) if method == "sft_una_replay" else {}
    return Config(**DEFAULTS["skills"] | common | replay | more)


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
    main()
