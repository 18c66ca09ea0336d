"""What comes out, for people: tables, curves, answers. train.py and the notebooks print and draw with it."""

from pathlib import Path

import numpy as np

from data import Problem, Task
from nanouft import METHODS, Rows


def methods_table() -> str:
    """The README's table of methods, out of the code itself."""
    lines = [["method", "paper", "hint length l", "c on the hint", "A on the suffix", "supervised step (l = L, c = 1)"]]
    lines += [["---"] * len(lines[0])]
    for name, m in METHODS.items():
        weights = ["hint_coef" if m.imitate else "0", "(r - mean) / std" if m.reinforce else "0"]
        lines += [[f"`{name}`", m.paper, m.hint.__doc__, *weights, m.supervised.__doc__]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def table(results: dict[str, list[dict]]) -> str:
    """Scores of the last model, of the one that validated best ("chosen") and of the base, and what training took."""
    columns = "expected_reward test test_chosen chosen_step unseen pass@8 rollouts sampled_tokens demo_tokens seconds"
    columns = [c for c in columns.split() if any(c in metrics[-1] for metrics in results.values())]
    rows = {name: metrics[-1] for name, metrics in results.items()}
    base = {name.removesuffix("_base"): x for row in rows.values() for name, x in row.items() if name.endswith("_base")}
    text = f"{'method':12s}" + "".join(f"{c:>{len(c) + 3}s}" for c in columns)
    for name, row in ({"base": base} | rows).items():
        text += f"\n{name:12s}"
        for c in columns:
            percent = c in [*base, "test_chosen", "expected_reward"]
            shown = "" if c not in row else f"{row[c]:.1%}" if percent else f"{row[c]:,.0f}"
            text += f"{shown:>{len(c) + 3}s}"
    return text


def draw(results: dict[str, list[list[dict]]], path: Path, title: str) -> None:
    """{method: one run for each seed}: accuracy without hints, mean and band from the lowest to the highest seed; and
    how often exploration ends in a solution (UFT's figure 6)."""
    from matplotlib.figure import Figure  # slow to load, so only where something is drawn

    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, runs in results.items():
        steps = [m["step"] for m in runs[0] if "evaluated" in m]
        what = "expected_reward" if "expected_reward" in runs[0][0] else "accuracy"
        score = np.array([[100 * m[what] for m in run if "evaluated" in m] for run in runs])
        (curve,) = left.plot(steps, score.mean(0), label=name)
        left.fill_between(steps, score.min(0), score.max(0), color=curve.get_color(), alpha=0.15, lw=0)
        solved = np.array([(m["step"], m["explored_solved"]) for run in runs for m in run if "explored_solved" in m])
        blocks = np.unique(solved[:, 0] // 25) if len(solved) else []
        right.plot([25 * b + 12 for b in blocks], [100 * solved[solved[:, 0] // 25 == b, 1].mean() for b in blocks])
    left.legend(frameon=False)
    titles = {"accuracy": "validation accuracy: greedy, no hints", "expected_reward": "expected reward, no hints"}
    left.set(title=titles[what], xlabel="step", ylabel="%")
    right.set(title="explored rollouts that end in a solution (means of 25 steps)", xlabel="step", ylabel="%")
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=110)


def show(task: Task, problems: list[Problem], hints: np.ndarray, rows: Rows, everything: bool) -> str:
    """Answers in full, the hint in brackets; or of each kind (hinted or not, solved or not) the first two."""
    kinds = list(zip(hints.tolist(), rows.solved.tolist(), strict=True))
    shown = [i for i in range(len(kinds)) if everything or kinds[:i].count(kinds[i]) < 2]
    lines = []
    for i in sorted(shown, key=lambda i: (hints[i], -rows.reward[i])):
        hint, suffix = (task.decode(rows.tokens[i, part[i]].tolist()).split() for part in (rows.hint, rows.suffix))
        said = "  ".join([f"[{unit}]" for unit in hint] + suffix).replace("<end>", "")
        lines.append(f"  {problems[i].prompt.strip():18s}  {said:36s}  reward {rows.reward[i]:.1f}")
    return "\n".join(dict.fromkeys(lines))
