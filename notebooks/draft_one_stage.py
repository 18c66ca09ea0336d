md("""
# One stage or two

A model is to learn an instruction (skill A, from demonstrations) and a preference (skill B, from scored answers). The usual
way is one after the other: SFT, then alignment. Implicit-reward UFT (Wang et al. 2024, arXiv 2410.21438) puts both into one
stage and one loss: with r = beta log(pi(y|x) / base(y|x)), summed over the answer's tokens,

$$(\\sigma(r) - \\mathrm{score})^2, \\qquad \\text{and a demonstration is an answer with score 1.}$$

What is forgotten in two stages, does one stage prevent it, and is that the loss's doing, or only the mixing's?

The task `skills`: six digits with a tag. `A314159` wants them reversed, plus 3 each, modulo 10 (`284746`): taught by demonstrations.
`B314159` wants them sorted (score 1.0); reversed is half as good (0.5), anything else 0.1: taught by four scored answers of
the base for each problem. The base copies, reverses, sorts or writes any digits, a quarter of the time each, whatever the tag.
So A starts at 0, B at a quarter. Both are measured in samples at temperature 1.

Every arm sees as many demonstrations as scored problems, 1,000 steps of 32: half and half in each step, or 500 steps of one and then 500 of
the other. `results/` keeps the runs, so this notebook takes a minute; delete `one_stage.json` to make them again (TIME on two CPU cores),
and `one_stage_grid.json` for the grid (TIME). `QUICK=1` runs everything anew, in small.
""")
code('''
import os
import sys

os.environ["TQDM_DISABLE"] = "1"  # a bar for each of some hundred runs is too many
sys.path.insert(0, "..")
import matplotlib.pyplot as plt
import numpy as np
import torch

from nanouft import log_probs, mse, rollout, score_weights
from notebooks.lab import QUICK, measured
from notebooks.one_stage import ARMS, GRID, skills, tuned
from train import base_model, make_model, make_task, splits

plt.rcParams.update({"figure.dpi": 80, "axes.grid": True, "grid.alpha": 0.3, "font.size": 9})
seeds = range(1) if QUICK else range(3)
size = dict(steps=8, base_steps=10, demos=256, validation=64, test=64) if QUICK else dict(test=2048)
best = {method: tuned(method) for method in ARMS}
for name, values in GRID.items():
    print(f"grid: {name:12s}", *values)
for method, settings in best.items():
    print(f"{method:16s}", settings)
''')
md("""
Each arm's settings are the best of that one grid by A + B on validation, on a seed that is not used below
(`python notebooks/one_stage.py` prints every cell). `reference` is what r compares with in the second stage: the base, or what SFT made.
The arms:

* `sft`, `una`: one kind of data alone;
* `sft_una`, `sft_dpo`: SFT first, then the scored answers with UNA's loss (the same as above), or their pairs with DPO's;
* `sft_una_replay`: half of the demonstrations are kept back and mixed into the second stage, as cross-entropy;
* `ce_una`: the control: one stage, but plain cross-entropy on A, and the scored loss on B only;
* `implicit`, `implicit_bce`: one stage, one loss (the latter with binary feedback: right or not).

## 1. What is forgotten, and when
""")
code('''
runs = [skills(m, seed, **size | best[m]) for m in ARMS for seed in seeds]
found = iter(measured("one_stage", runs, points=True))
results = {m: [next(found) for _ in seeds] for m in ARMS}

figure, axes = plt.subplots(2, 4, figsize=(12, 5), layout="constrained", sharex=True, sharey=True)
for axis, (m, some) in zip(axes.flat, results.items(), strict=True):
    for i, (skill, name) in enumerate({"demonstrated": "A, the instruction", "scored": "B, the preference"}.items()):
        for j, x in enumerate(some):
            curve = [(p["step"], p[skill]) for p in x["points"]]
            axis.plot(*np.array(curve).T, color=f"C{3 * i}", lw=1, label=name if j == 0 else None)
    axis.set(title=m, ylim=(-0.02, 1.02))
for axis in axes[1]:
    axis.set(xlabel="step")
axes[0, 0].legend(frameon=False)
plt.show()
''')
code('''
columns = {"demonstrated": "A", "scored": "B", "base_kl": "KL to base", "answer_tokens": "tokens", "ended": "ended"}
print(f"test, {len(seeds)} seeds   " + "".join(f"{name:>16s}" for name in columns.values()))
for m, some in results.items():
    values = {c: np.array([x[f"{c}_test"] for x in some]) for c in columns}
    print(f"{m:16s}" + "".join(f"{x.mean():10.3f} ±{x.std():.3f}" for x in values.values()))
''')
md("TEXT_FORGET")
md("""
## 2. The mixing ratio

One stage with another share of demonstrations in each step, against the two-stage arms.
""")
code('''
shares = [0.5] if QUICK else [0.1, 0.25, 0.5, 0.75, 0.9]
mixed = ["implicit", "ce_una"]
runs = [skills(m, seed, share=share, **size | best[m]) for m in mixed for share in shares for seed in seeds]
found = iter(measured("one_stage", runs, points=True))
figure, axis = plt.subplots(figsize=(5.5, 4.5), layout="constrained")
for m in mixed:
    A, B = np.array(
        [np.mean([(x["demonstrated_test"], x["scored_test"]) for x in [next(found) for _ in seeds]], 0) for _ in shares]
    ).T
    axis.plot(A, B, "o-", label=f"{m}, share {shares[0]} .. {shares[-1]}")
    print(m, *[f"share {s}: A {a:.2f} B {b:.2f}  " for s, a, b in zip(shares, A, B, strict=True)])
for m in ("sft_una", "sft_dpo", "sft_una_replay"):
    axis.plot(
        *np.mean([(x["demonstrated_test"], x["scored_test"]) for x in results[m]], 0), "s", ms=8, mfc="white", label=m
    )
axis.set(xlabel="A", ylabel="B", xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
axis.legend(frameon=False)
plt.show()
''')
md("TEXT_MIX")
md("""
## 3. Beta against surprisal

The loss sees a demonstration through s = sigmoid(r). Its gradient is a weight on log pi(y), 2 beta s (1-s)^2: supervised
fine-tuning that puts itself out when s comes near 1, that is when log pi has risen by some 4 / beta. Whether the skill is learnt by
then depends on how surprising its answers are to the base.
""")
code('''
cfg = skills("implicit", 0, **size)
task = make_task(cfg)
sets = splits(cfg, task)
base = make_model(cfg, task, base_model(cfg, task, sets)["model"])
some = [p for p in sets["validation"] if p.demo]
with torch.no_grad():
    rows = rollout(base, task, some, np.array([len(p.demo) for p in some]), 1)
    surprisal = -(rows.hint[:, 1:] * log_probs(base, rows, 1.0)[1]).sum(1).mean().item()
print(f"-log base(y|x) of a demonstration: {surprisal:.1f} nats")

betas = [0.03, 1.0] if QUICK else [0.01, 0.03, 0.1, 0.3, 1.0, 3.0]
runs = [skills("implicit", seed, share=1.0, **size | best["implicit"] | {"beta": b}) for b in betas for seed in seeds]
found = iter(measured("one_stage", runs, points=True))
alone = {b: [next(found) for _ in seeds] for b in betas}
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
gained = torch.linspace(0, 60, 200)  # nats that log pi has risen above the base's
for b in betas:
    weight = score_weights(mse, b * gained, torch.ones_like(gained), b)
    left.plot(gained, weight / weight.max(), label=f"beta {b:g}")
left.axvline(surprisal, color="k", ls=":", lw=1)
left.text(surprisal + 0.5, 0.85, "all that there\\nis to gain")
left.set(xlabel="log pi - log base, nats", ylabel="weight 2 beta s (1-s)^2, of its largest")
left.legend(frameon=False)
for i in range(len(seeds)):
    right.plot(betas, [alone[b][i]["demonstrated_test"] for b in betas], "o-", color="C0", lw=0.8)
right.axvline(1 / surprisal, color="k", ls=":", lw=1)
right.text(1.1 / surprisal, 0.05, "beta = 1 / surprisal")
right.set(xscale="log", xlabel="beta", ylabel="A on test, from demonstrations alone", ylim=(-0.03, 1.03))
plt.show()
for b in betas:
    print(f"beta {b:4g}: A", *[f"{x['demonstrated_test']:.3f}" for x in alone[b]])
''')
md("TEXT_BETA")
md("""
## 4. On demonstrations alone, against SFT

The paper finds its loss better than cross-entropy on SFT data alone. The same data, steps and seeds, each with its own best settings (beta from
the figure's best):
""")
code('''
top = max(betas, key=lambda b: np.mean([x["demonstrated"] for x in alone[b]]))  # by validation
for name, some in {"sft": results["sft"], f"implicit, beta {top:g}": alone[top]}.items():
    values = {c: np.array([x[f"{c}_test"] for x in some]) for c in columns}
    print(f"{name:20s}" + "   ".join(f"{columns[c]} {x.mean():.3f} ±{x.std():.3f}" for c, x in values.items()))
''')
md("TEXT_ALONE")
md("TEXT_VERDICT")
