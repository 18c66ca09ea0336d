"""What comes out, for people: tables and curves.

python notebooks/report.py                             the table of all methods, and where the papers' equations are
python notebooks/report.py out/countdown-seed0         scores and curves of the runs in a folder
"""

import json
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from data import Task  # noqa: E402
from nanouft import METHODS, Method, Rows  # noqa: E402


def said(cell) -> str:
    """A cell of the table in words: a number, the name of a setting, or what a function says of itself."""
    return (cell.__doc__ or cell.__name__) if callable(cell) else str(cell)


def methods_table(names=METHODS) -> str:
    """The README's table of methods, out of the code itself."""
    lines = [["method", "paper", "hint length l", "c on the hint", "A on the suffix", "p_sft", "what else it does"]]
    lines += [["---"] * len(lines[0])]
    for name, m in ((name, METHODS[name]) for name in names):
        sentence = type(m).__doc__.partition(".\n")[0].removesuffix(".") if type(m) is not Method else "-"
        own = [said(getattr(m, f.name)) for f in fields(m)[len(fields(Method)) :]]
        how = ": ".join([sentence, *own])
        p_sft = "1 while t < warmup, then " * m.warm + said(m.p_sft)
        lines += [[f"`{name}`", m.paper, *map(said, (m.length, m.c, m.advantage)), p_sft, how]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


CORE = "sft rft sft_rft r3 hint_only uft uft_uniform sasr implicit".split()
EQUATIONS = [  # where to find what the papers write down
    ("GRPO", "advantage, from the group's mean and standard deviation", "centred / (std + 1e-6)"),
    ("GRPO (3)", "clipped objective", "surrogate = torch.minimum("),
    ("GRPO (4)", "k3 estimate of the KL", "s.cfg.kl_coef * (gap.exp() - gap - 1)"),
    ("UFT, section 3", "p(t), down a cosine", "return low + (high - low) / 2 * (1 + np.cos(np.pi * (t + 1) / T_hint))"),
    ("UFT, section 3", "l ~ Binomial(L, p(t)); 0 from T_hint on", "return s.rng.binomial(s.L, "),
    ("UFT (3.3)", "+ beta log pi of the hint", "return surrogate.where(rows.suffix, rows.weight * logp)"),
    ("UFT, algorithm 2", "l uniform in {0..L}", "return s.rng.integers(0, s.L + 1)"),
    ("SASR", "G_last", 's.memory["g"] = norm'),
    ("SASR", "G_warmup, until the warm-up's end", 's.memory["g"] = s.memory["g_warmup"] = '),
    ("SASR", "p_t = G_last / (G_last + gamma G_warmup)", 'return s.memory["g"] / ('),
    ("SASR", "SFT if alpha < p_t", "if supervised := s.coin < p_sft"),
    ("implicit UFT", "r = beta log(pi / reference)", "r_hat = s.cfg.beta * (gap * rows.hint).sum(1)"),
    ("implicit UFT", "(sigmoid(r) - score)^2", "return (r_hat.sigmoid() - score).square()"),
    ("implicit UFT", "a demonstration is an answer with score 1", "rows.reward[[not problem.answers"),
    ("implicit UFT", "its gradient, as a weight on log pi", "return -beta * torch.func.grad("),
]


def equations_table() -> str:
    """The map from papers to code, for notebooks/README.md."""
    code = (Path(__file__).parent.parent / "nanouft.py").read_text().splitlines()
    lines = ["| paper | what it says | `nanouft.py` |", "|" + " --- |" * 3]
    for paper, what, text in EQUATIONS:
        (line,) = (i for i, words in enumerate(code, 1) if text in words)
        shown = code[line - 1].partition("  #")[0].strip().replace("|", "\\|")
        lines += [f"| {paper} | {what} | [line {line}](../nanouft.py#L{line}): `{shown}` |"]
    return "\n".join(lines)


COLUMNS = "expected_reward test test_chosen unseen pass@8_test demonstrated_test scored_test".split()
COSTS = "rollouts sampled_tokens demo_tokens seconds".split()


def table(results: dict[str, list[dict]]) -> str:
    """Scores of the last model and of the one that validated best ("chosen"), and what training took."""
    rows = {name: metrics[-1] for name, metrics in results.items()}
    columns = [c for c in [*COLUMNS, *COSTS] if any(c in row for row in rows.values())]
    if "expected_reward" in columns:  # on a tree; to solve its one problem means little beside it
        columns = ["expected_reward", *(c for c in columns if c in COSTS)]
    text = f"{'method':12s}" + "".join(f"{c:>{len(c) + 3}s}" for c in columns)
    for name, row in rows.items():
        text += f"\n{name:12s}"
        for c in columns:
            form = ",.0f" if c in COSTS else ".1%"
            text += f"{format(row[c], form) if c in row else '':>{len(c) + 3}s}"
    return text


TITLES = {
    "accuracy": "validation accuracy: greedy, no hints",
    "expected_reward": "expected reward, no hints",
    "demonstrated": "the skill that has demonstrations: validation, sampled",
    "scored": "the skill that has scored answers: validation, sampled",
}

COLORS = {"hint_only": "C6"}  # of a method, in all figures
COLORS |= {name: f"C{i}" for i, name in enumerate("sft rft sft_rft uft r3 sasr static mix uft_uniform cosine".split())}
COLORS |= {"superrl": "navy", "luffy": "hotpink", "frontier": "teal"}


def colors(names) -> dict[str, str]:
    """A method's own color; others have what is left."""
    left = (f"C{i}" for i in range(10) if f"C{i}" not in map(COLORS.get, names))
    return {name: COLORS.get(name) or next(left, "k") for name in names}


def curves(axis, results: dict[str, list[list[dict]]], what: str) -> None:
    for name, runs in results.items():
        steps = [m["step"] for m in runs[0] if "evaluated" in m]
        score = np.array([[100 * m[what] for m in run if "evaluated" in m] for run in runs])
        color = colors(results)[name]
        axis.plot(steps, score.mean(0), label=name, color=color)
        axis.fill_between(steps, score.min(0), score.max(0), color=color, alpha=0.15, lw=0)
    axis.set(title=TITLES[what], xlabel="step", ylabel="%")


def draw(results: dict[str, list[list[dict]]], path: Path, title: str) -> None:
    """{method: one run for each seed}: validation without hints, mean and band from the lowest to the highest seed;
    and how often exploration ends in a solution (UFT's figure 6), or the second skill."""
    from matplotlib.figure import Figure  # slow to load, so only where something is drawn

    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    measured = next(iter(results.values()))[0][0]
    curves(left, results, next(what for what in ("demonstrated", "expected_reward", "accuracy") if what in measured))
    if "scored" in measured:
        curves(right, results, "scored")
    else:
        for name, runs in results.items():
            solved = np.array(
                [(m["step"] - 1, m["explored_solved"]) for run in runs for m in run if "explored_solved" in m]
            )
            blocks = np.unique(solved[:, 0] // 25) if len(solved) else []
            shares = [100 * solved[solved[:, 0] // 25 == b, 1].mean() for b in blocks]
            right.plot([25 * b + 12 for b in blocks], shares, color=colors(results)[name])
        right.set(title="explored rollouts that end in a solution (means of 25 steps)", xlabel="step", ylabel="%")
    left.legend(frameon=False)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=110)


def weight_color(weight: float) -> tuple:
    """Blue: made likelier; red: less likely; white: left alone."""
    from matplotlib import colormaps

    return colormaps["RdBu"](0.5 + 0.3 * np.tanh(float(weight)))


def board(axis, task: Task, rows: Rows, color: Callable, beside: Callable, title: str = "") -> None:
    """A row for each answer, a cell for each token, of color(i, t); and beside(i), what it earned."""
    from matplotlib.patches import Rectangle

    shown, start = {"\n": "\u23ce", "<end>": "\u25a0"}, task.prompt_tokens
    words = [[shown.get(x, x) for x in (task.decode([i]) for i in row)] for row in rows.tokens.tolist()]
    for i, row in enumerate(words):
        for t in range(start, len(row)):
            if rows.hint[i, t] or rows.suffix[i, t]:
                axis.add_patch(Rectangle((t - start, -i - 0.5), 0.94, 0.9, color=color(i, t)))
                axis.text(t - start + 0.47, -i - 0.05, row[t], ha="center", va="center", family="DejaVu Sans Mono")
        axis.text(len(row) - start + 0.4, -i - 0.05, beside(i), va="center", color="0.3")
    axis.set(xlim=(0, task.answer_tokens + 4), ylim=(-len(words) + 0.3, 0.6), title=title)
    axis.axis("off")


def weighed(axis, task: Task, rows: Rows, title: str, scale: float = 1.0) -> None:
    """The board, coloured by what each token weighs; beside a row its reward and A, the weight of what it sampled."""

    def beside(i: int) -> str:
        A = rows.weight[i][rows.suffix[i]]
        return f"reward {rows.reward[i]:.1f}" + (f", A {A[0]:+.2f}" if len(A) else "")

    board(axis, task, rows, lambda i, t: weight_color(rows.weight[i, t] / scale), beside)
    axis.set_title(title, loc="left", fontsize=10)


def report(folder: Path, names: list[str] | None = None) -> str:
    """Of the runs in a folder: the table, and their curves as a picture."""
    names = names or sorted(path.parent.name for path in folder.glob("*/metrics.jsonl"))
    texts = {name: (folder / name / "metrics.jsonl").read_text() for name in names}
    results = {name: [json.loads(line) for line in text.splitlines()] for name, text in texts.items()}
    if not results:
        raise ValueError(f"{folder} holds no runs (no metrics.jsonl one folder down)")
    trained = {name: [metrics] for name, metrics in results.items() if metrics[1:]}
    if trained:
        draw(trained, folder / "curves.png", folder.name)
    return table(results) + f"\n\ncurves: {folder}/curves.png" * bool(trained)


def script(work: Callable) -> None:
    """What a person can mend ends in a sentence; a bug, in its traceback."""
    try:
        work()
    except (ValueError, OSError) as problem:
        sys.exit(f"nanouft: {problem}")


def main() -> None:
    if sys.argv[1:]:
        return print(report(Path(sys.argv[1])))
    from notebooks import family, one_stage  # noqa: F401  more methods

    print(f"{methods_table()}\n\n{equations_table()}")


if __name__ == "__main__":
    script(main)
