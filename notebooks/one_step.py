"""What one_step.ipynb draws and counts, so that its cells show the method alone."""

import numpy as np
import torch

from data import Problem, Task, apply
from model import GPT


def moves(task: Task, numbers: list[int]) -> dict[str, list[int]]:
    """{equation: the numbers that are left after it}: all that is legal."""
    found = {}
    for i, a in enumerate(numbers):
        for j, b in enumerate(numbers):
            rest = [n for k, n in enumerate(numbers) if k not in (i, j)]
            for op in task.signs:
                if i != j and (x := apply(a, op, b)) is not None and 0 <= x <= task.limit:
                    found[f"{a}{op}{b}={x}"] = [*rest, x]
    return found


def answers(task: Task, target: int, numbers: list[int]) -> tuple[int, list[str]]:
    """How many there are, and those that end at the target."""
    if len(numbers) == 1:
        return 1, [""] * (numbers[0] == target)
    below = {equation: answers(task, target, left) for equation, left in moves(task, numbers).items()}
    good = [f"{equation}\n{rest}".strip() for equation, (_, some) in below.items() for rest in some]
    return sum(n for n, _ in below.values()), good


def branches(axis, task: Task, problem: Problem) -> None:
    """All legal moves in each of the demonstration's positions: blue the demonstration's own, green those after which
    the target can still be reached, grey the others."""
    numbers, y = problem.numbers, 0.0
    for depth, equation in enumerate(e.strip() for e in problem.demo):
        n, good = answers(task, problem.target, numbers)
        print(f"after {depth} equations, {numbers}: {n} answers, {len(good)} right: {len(good) / n:.1%}")
        some = moves(task, numbers)
        heights = y + np.linspace(-1, 1, len(some)) / (depth + 1)
        for (move, left), height in zip(some.items(), heights, strict=True):
            can = answers(task, problem.target, left)[1]
            color, width = ("C0", 2.5) if move == equation else ("C2" if can else "0.8", 0.8)
            axis.plot([depth, depth + 1], [y, height], color=color, lw=width, zorder=width)
        before, y = y, heights[list(some).index(equation)]
        style = dict(color="C0", ha="center", va="center", zorder=3, bbox=dict(fc="white", ec="none", pad=1))
        axis.text(depth + 0.5, (before + y) / 2, equation, fontsize=11, **style)
        numbers = some[equation]
    axis.set(title=problem.prompt.strip(), xticks=range(len(problem.demo) + 1), xlabel="equations", yticks=[])


@torch.no_grad()
def success(model: GPT, task: Task, problem: Problem, solutions: list[str]) -> float:
    """The probability of a right answer, exactly: the sum of pi(answer) over all of them."""
    prompt, found = task.encode(problem.prompt), 0.0
    for solution in solutions:
        ids = prompt + task.encode(solution) + [task.end]
        logp = torch.log_softmax(model(torch.tensor([ids[:-1]])), -1)[0]
        found += sum(logp[t - 1, ids[t]] for t in range(len(prompt), len(ids))).exp().item()
    return found


def token_bars(axis, words: list[str], sizes: list[float], color: str) -> None:
    """A bar for each token."""
    axis.bar(range(len(words)), sizes, color=color)
    axis.set_xticks(range(len(words)), [w.replace("\n", "\u23ce").replace("<end>", "\u25a0") for w in words])
    axis.axhline(0, color="k", lw=0.6)
