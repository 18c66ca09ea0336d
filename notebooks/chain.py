"""Chains: arithmetic with a horizon. A task for the notebooks.

python notebooks/chain.py --task chain:horizon=6 --method rft uft        like compare.py, on chains
"""

import re
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from data import TASKS, Problem, Task  # noqa: E402


class Chain(Task):
    """For x_1 .. x_H write the running sums z_i = z_(i-1) + x_i modulo B.

    With `free` = 1 a step is y_i z_i, with y_i of one's own choice and z_i = z_(i-1) + y_i + x_i: B^H answers are right
    of B^2H. B = 2 is then the chain of parities (AdaBack 2506.18110).

    Reward 1.0: right; 0.1: wrong; 0: no chain at all, which no policy can write, as on a tree.
    """

    ends = False
    settings = "validation=256,steps=400,eval_every=20,hint_steps=240,warmup=100,lr=1e-3,hint_coef=0.1"

    def __init__(self, horizon: int = 8, B: int = 4, free: int = 0):
        if not (1 <= horizon <= 64 and 2 <= B <= 10 and 0 <= free <= 1):
            raise ValueError("chain: expected 1 <= horizon <= 64, 2 <= B <= 10, free 0 or 1")
        super().__init__([*"0123456789"[:B], "\n"])
        self.horizon, self.B, self.digits = horizon, B, 1 + free  # digits of a step
        self.prompt_tokens, self.answer_tokens, self.writable = horizon + 1, self.digits * horizon, B
        self.form, self.answer = (f"[0-{B - 1}]{{{n}}}" for n in (horizon, self.answer_tokens))

    def problem(self, rng: np.random.Generator, split: str = "pool") -> Problem:
        x, y = rng.integers(0, self.B, (2, self.horizon))
        y *= self.digits - 1
        z = (x + y).cumsum() % self.B
        steps = np.stack([y, z], 1)[:, -self.digits :]
        return Problem("".join(map(str, x)) + "\n", ["".join(map(str, step)) for step in steps])

    def reward(self, problem: Problem, answer: str) -> float:
        if not re.fullmatch(self.answer, answer):
            return 0.0
        x = np.array([*map(int, problem.prompt[:-1])])
        steps = np.array([*map(int, answer)]).reshape(self.horizon, self.digits)  # "yz" or "z"
        right = (x + steps[:, :-1].sum(1)).cumsum() % self.B == steps[:, -1]
        return 1.0 if right.all() else 0.1


TASKS["chain"] = Chain

if __name__ == "__main__":
    from notebooks.compare import main

    main(["--task", "chain", *sys.argv[1:]], ("rft", "uft"))
