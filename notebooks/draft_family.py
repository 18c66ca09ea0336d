md("""
# The family

What lies between SFT and RL is a choice of how much of the demonstration is given (l), of how its tokens are weighed (c), of what the
sampled rest is worth (A), and of when to try again. Here are the published choices side by side: the methods of `nanouft.py` and twelve relatives
(`notebooks/family.py`), each a row over the same step. The table comes out of the code:
""")
code('''
import os
import sys

os.environ["TQDM_DISABLE"] = "1"  # a bar for each of some hundred runs is too many
sys.path.insert(0, "..")
import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import Markdown

from nanouft import METHODS, Method, anneal, evenly, hint_coef, mse, score_weights, uniform
from notebooks import family
from notebooks.horizon import ROLLOUTS, rounds, tree
from notebooks.lab import QUICK, measure, measured
from notebooks.report import methods_table

plt.rcParams.update({"figure.dpi": 80, "axes.grid": True, "grid.alpha": 0.3, "font.size": 9})
Markdown(methods_table())
''')
md("""
## 1. Who breaks the wall, and who passes its teacher?

Two trees with 4^8 = 65,536 leaves, of which one is worth 1.0 (others 0.1). On the *plain* one the demonstration leads there: who copies it wins. On the
*forked* one it turns off two steps before the end to a leaf worth 0.5: who only copies stays there, who only explores finds nothing. Every
method has the same budget, 102,400 rollouts (`sft` and `dft`, which sample none: the same 400 steps), and is judged by its exact expected
reward without hints at the end of it.

Every arm was tuned the same way: learning rate 1e-3 or 3e-3, entropy bonus 0, 0.02, 0.1 or 0.3 (and hint_coef or warm-up, where the method has
them), on five forked trees of H = 6 that no figure shows; most trees solved first, then fewest rollouts, then the highest expected reward.
""")
code('''
H, budget = (4, 2_560) if QUICK else (8, 102_400)
seeds = range(1) if QUICK else range(5)
arms = [name for name, method in METHODS.items() if not method.given]
best = {name: next(rounds(name))[0][0] for name in arms}
for name, settings in best.items():
    print(f"{name:17s}", settings)
''')
code('''
def runs(name: str, settings: dict, fork: int) -> list:
    more = dict(steps=budget // ROLLOUTS, hint_steps=30 * H, eval_every=10 if QUICK else 20, fork=fork)
    return [tree(name, H, seed, **settings | more) for seed in seeds]


def within(x: dict) -> float:
    """Expected reward when the budget was used up; some methods take more than 256 rollouts a step."""
    return [point["score"] for point in x["points"] if point["rollouts"] <= budget][-1]


trees = {"plain": 0, "forked": 2}
found = iter(measured("family", [c for f in trees.values() for n in arms for c in runs(n, best[n], f)], points=True))
scores = {kind: {name: [within(next(found)) for _ in seeds] for name in arms} for kind in trees}


def bars(scores: dict) -> None:
    names = sorted(scores["forked"], key=lambda name: [np.mean(scores[kind][name]) for kind in ("forked", "plain")])
    figure, axes = plt.subplots(1, 2, figsize=(11, 6), layout="constrained", sharey=True)
    for axis, (kind, some) in zip(axes, scores.items(), strict=True):
        colors = ["C3" if name not in METHODS or METHODS[name].paper == "you" else "C0" for name in names]
        axis.barh(names, [np.mean(some[name]) for name in names], color=colors, alpha=0.5)
        for i, name in enumerate(names):
            axis.plot(some[name], [i] * len(some[name]), "k.", ms=4)
        axis.set(title=f"{kind} tree, H = {H}", xlabel="expected reward, each dot a seed", xlim=(0, 1.02))
    axes[1].axvline(0.5, color="k", ls=":", lw=1)
    plt.show()


bars(scores)
for name in arms:
    line = "   ".join(f"{kind} {np.mean(x[name]):.2f} ±{np.std(x[name]):.2f}" for kind, x in scores.items())
    print(f"{name:17s}", line, f"  past its teacher: {sum(x > 0.55 for x in scores['forked'][name])}/{len(seeds)}")
''')
md("TEXT_BARS")
md("""
## 2. What a demonstration's token weighs

SFT weighs every token alike, whatever the policy thinks of it. The others do not: drawn is the factor on log p, of its largest value, against p. For
implicit-reward UFT an answer of one token that the base gives 5 %, at two betas.
""")
code('''
p = torch.linspace(0.001, 0.999, 400)
weights = {"sft": torch.full_like(p, evenly(p, None, None))}
weights |= {n: METHODS[n].focus(p, None, None) for n in ("dft", "chord", "luffy")}
for beta in (0.3, 3.0):
    r = (beta * torch.log(p / 0.05))[None]
    weights[f"implicit, beta {beta}"] = score_weights(mse, r, torch.ones_like(r), beta)[0]
figure, axis = plt.subplots(figsize=(6.5, 3.8), layout="constrained")
for name, x in weights.items():
    axis.plot(p, x / x.max(), label=name)
axis.set(xlabel="p, the policy's probability of the token", ylabel="weight, of its largest")
axis.legend(frameon=False)
plt.show()
''')
md("""
`dft` trusts what the policy already believes and hardly hears the rest; `luffy` hears the unlikely most, but not the impossible; `chord` listens
where the policy is undecided. Implicit-reward UFT is the only one whose weight depends on where the *base* stood: it pushes
hardest right away and lets go once the token is likely enough, the earlier the larger beta.

## 3. LUFFY anneals itself

LUFFY has no schedule. The demonstration is a row of the group, its weight the row's advantage: what it earns less what the group earns. As the policy
learns, the advantage goes to 0 by itself; and where the policy passes its teacher, it turns negative.
""")
code('''
from dataclasses import replace

from train import run

figure, axes = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
for axis, (kind, fork) in zip(axes, trees.items(), strict=True):
    for seed in seeds[:3]:
        cfg = replace(tree("luffy", 4, seed, **best["luffy"]), fork=fork, steps=40 if QUICK else 300, until=2.0)
        metrics = run(cfg)[1:]
        earns = 0.5 if fork else 1.0
        axis.plot([earns - m["reward"] for m in metrics], color="C0", lw=0.8, label="A of the demonstration's row" * (not seed))
        some = [m for m in metrics if "expected_reward" in m]
        axis.plot([m["step"] for m in some], [m["expected_reward"] for m in some], "C1", lw=0.8, label="expected reward" * (not seed))
    axis.axhline(0, color="k", lw=0.6)
    axis.set(title=f"{kind} tree, H = 4: luffy", xlabel="step")
axes[0].plot([anneal(t, 300, 0.05, 0.95) for t in range(300)], "k:", lw=1, label="for comparison: UFT's p(t), T_hint = 300")
axes[0].legend(frameon=False)
plt.show()
''')
md("TEXT_LUFFY")
md("""
## 4. Your own method in five lines

Uniform hints solve the forked tree, but half of the rollouts start beyond the decisions that matter. What if half of the problems got no hint at all? A method
is a function or two and a row; everything else, from the command line to the figure above, already works with it.
""")
code('''
def sometimes(s):
    """uniform in {0..L} for every second problem, else 0"""
    return uniform(s) * (s.rng.random(len(s.problems)) < 0.5)


METHODS["mine"] = Method("you", hint=sometimes, c=hint_coef)

mine = {kind: [within(measure(c)) for c in runs("mine", best["uft_uniform"], fork)] for kind, fork in trees.items()}
bars({kind: scores[kind] | {"mine": mine[kind]} for kind in trees})
print({kind: [round(x, 2) for x in some] for kind, some in mine.items()})
''')
md("TEXT_MINE")
