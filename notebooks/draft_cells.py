md("""
# The horizon

An answer takes H decisions, each among B. A policy that knows nothing finds the one right answer once in B^H rollouts:
reinforcement fine-tuning (RFT) meets an exponential wall. UFT explores from hints, and the wall is gone. This notebook
measures both, on tasks whose success probability is known exactly, with the same GPT, the same rollouts, the same loss
and the same table of methods as everywhere in this repository.

* **Tree**: B actions at each of H steps; one leaf is worth 1.0, all others 0.1. One tree, one problem: to copy the
  demonstration is to solve it, so a plain tree says nothing about exploration *and* imitation together.
* **Forked tree**: two steps before the end the demonstration turns off to a leaf worth 0.5. Imitation ends there.
* **Chain**: many problems, so the network must generalise: running sums modulo B, of which only the whole is judged.

Everything is measured in rollouts, the sampled answers, until the policy's expected reward, *exact and without hints*, is
0.9. The runs are kept in `results/`, so this notebook takes seconds; delete the files there to make them again
(`horizon.json`: TIME; `grid.json`: 40 minutes, both on two CPU cores). `QUICK=1` runs everything anew, in small.
""")
code('''
import os
import sys

os.environ["TQDM_DISABLE"] = "1"  # a bar for each of some hundred runs is too many
sys.path.insert(0, "..")
import matplotlib.pyplot as plt
import numpy as np

from notebooks.horizon import ARMS, ROLLOUTS, chain, draw, race, slope, summary, tree, tuned
from notebooks.lab import QUICK, measured
from train import run_all

plt.rcParams.update({"figure.dpi": 80, "axes.grid": True, "grid.alpha": 0.3, "font.size": 9})
seeds = range(2) if QUICK else range(10)
hinted = [2, 4] if QUICK else [4, 6, 8, 12, 16]  # horizons
unhinted = [2, 4] if QUICK else [4, 5, 6, 7, 8]
cap, far = (1_920, 1_920) if QUICK else (51_200, 102_400)  # rollouts; the second for what must find B^H

best = {method: tuned(method) for method in ARMS}
for method, settings in best.items():
    print(f"{method:12s}", settings)
''')
md("""
Every arm was tuned from one grid (learning rate, entropy bonus, and hint_coef or the length of the supervised warm-up
where the method has one), on five trees that no figure shows: all cells at H = 6, the best three again at H = 12; most
seeds first, then fewest rollouts. `python notebooks/horizon.py` prints all of it.

## 1. The forked tree: neither half gets past its teacher's end
""")
code('''
arms = {method: (method, settings) for method, settings in best.items()}
arms |= {"rft, entropy 0.1": ("rft", best["rft"] | {"entropy_coef": 0.1})}
arms |= {"r3, no entropy": ("r3", best["r3"] | {"entropy_coef": 0.0})}
forked = {}
for name, arm in arms.items():
    forked |= race({name: arm}, *((unhinted, seeds, far) if arm[0] == "rft" else (hinted, seeds, cap)))


def tell(results: dict) -> None:
    """Seeds that got to 0.9, and the median of the rollouts they took."""
    for arm, some in results.items():
        cells = [f"H={H}: {summary(x)[0]:2d}/{len(x)} {summary(x)[1]:7,.0f}" for H, x in some.items()]
        print(f"{arm:18s}", "   ".join(cells))


tell(forked)
''')
code('''
def walls(axis, B: int, H: np.ndarray) -> None:
    axis.plot(H, float(B) ** H / 4, "k:", lw=1, label=f"{B}^H / 4 (theorem 4.2)")


figure, axes = plt.subplots(1, 2, figsize=(12, 4.6), layout="constrained")
draw(axes[0], forked)
walls(axes[0], 4, np.arange(3, 11))
axes[0].set(title="forked tree, B = 4: rollouts to expected reward 0.9", ylim=(300, 3e5))
draw(axes[1], {arm: x for arm, x in forked.items() if arm not in ("sft", "hint_only")}, "sampled_tokens")
axes[1].set(title="the same in sampled tokens: hinted rollouts are short")
axes[0].legend(fontsize=7, ncols=2, frameon=False)
plt.show()
''')
code('''
def slopes(results: dict, B: int) -> None:
    """How steep the curves are: RFT's exponential where B^H >= 1,000, the others' power law."""
    steep = [H for H in results["rft"] if B**H >= 1_000] or unhinted
    rise = slope(results["rft"], steep, power=False)
    print(f"rft: ln(median rollouts) rises by {rise:.2f} a step over H = {steep}, {rise / np.log(B):.2f} ln B")
    for arm in ("uft", "uft_uniform"):
        power = slope(results[arm], hinted, power=True)
        print(f"{arm}: median rollouts grow like H^{power:.2f} over H = {hinted}")


slopes(forked, 4)
for arm in ("sft", "hint_only"):
    scores = [x["score"] for some in forked[arm].values() for x in some]
    print(f"{arm}: expected reward at the end at most {max(scores):.3f} in {len(scores)} runs")
if not QUICK:
    blind = race({"rft, to the end": ("rft", best["rft"])}, [16], seeds, cap)["rft, to the end"][16]
    ratio = 4**16 / summary(forked["uft_uniform"][16])[1]
    seen = sum(x["first_found"] is not None for x in blind)
    print(f"H = 16, B^H = {ratio:,.0f} times uft_uniform's rollouts: RFT saw no leaf but 0.1 in {len(blind) - seen} seeds")
''')
md("TEXT_FORKED")
md("""
### Another B, other seeds

The same settings, not tuned again, with B = 2 and ten other trees.
""")
code('''
others = range(20, 22) if QUICK else range(20, 30)
two = race({"rft": ("rft", best["rft"])}, [3, 4] if QUICK else [8, 10, 12, 14], others, far, B=2)
for arm in ("uft", "uft_uniform"):
    two |= race({arm: (arm, best[arm])}, hinted, others, cap, B=2)
tell(two)
slopes(two, 2)
figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
draw(axis, two)
walls(axis, 2, np.arange(4, 18))
axis.set(title="forked tree, B = 2")
axis.legend(fontsize=8, frameon=False)
plt.show()
''')
md("""
## 2. The plain tree: what imitation alone does, and what hints do without it

Here the demonstration *is* the best path. `sft` and `hint_only` never use a reward.
""")
code('''
e = {"entropy_coef": 0.1}
low = [2, 4] if QUICK else [2, 4, 6, 8, 12]
arms = {"sft": ("sft", best["sft"]), "hint_only": ("hint_only", best["hint_only"]), "uft": ("uft", best["uft"])}
arms |= {"r3, entropy 0.1": ("r3", best["r3"] | e), "rft, entropy 0.1": ("rft", best["r3"] | e)}
plain = {}
for name, arm in arms.items():
    plain |= race({name: arm}, low, seeds, cap, fork=0)
tell(plain)
print(f"r3, entropy 0.1: H^{slope(plain['r3, entropy 0.1'], low, power=True):.2f}")
figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
draw(axis, {arm: x for arm, x in plain.items() if arm != "sft"})
walls(axis, 4, np.arange(2, 10))
axis.set(title="plain tree, B = 4 (sft needs no rollouts)")
axis.legend(fontsize=8, frameon=False)
plt.show()
''')
md("TEXT_PLAIN")
md("""
## 3. What exploration finds

How many of the sampled rollouts, so far, ended in a leaf at least as good as the demonstration's (forked tree, H = 8)?
""")
code('''
H = 4 if QUICK else 8
methods = ["rft", "uft", "uft_uniform"]
long = dict(steps=(cap if QUICK else 25_600) // ROLLOUTS, until=2.0)
runs = [tree(m, H, seed, **best[m] | long) for m in methods for seed in seeds]
results = measured("horizon_curves", runs, points=True)
figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
for i, m in enumerate(methods):
    for j, x in enumerate(results[i * len(seeds) : (i + 1) * len(seeds)]):
        rollouts, _, found = np.array(x["points"]).T
        axis.plot(rollouts, found, color=f"C{i}", lw=0.8, label=m if j == 0 else None)
axis.set(title=f"forked tree, H = {H}, {len(seeds)} seeds", xlabel="rollouts", ylabel="solved so far", yscale="symlog")
axis.legend(frameon=False)
plt.show()
''')
md("TEXT_FOUND")
md("""
## 4. What the hint's log-likelihood buys

Plain tree, H = 8: the probability of each step of the best path, given the steps before it, while training goes on (dark:
near 0, bright: near 1). All four methods get hints, or the whole demonstration; what differs is whether the hint's tokens
are trained on.
""")
code('''
methods = ["r3", "cosine", "uft_uniform", "uft"]
steps = 30 if QUICK else 400
runs = [tree(m, H, 0, **dict(lr=1e-3, hint_coef=0.1, fork=0, steps=steps, until=2.0)) for m in methods]
figure, axes = plt.subplots(1, 4, figsize=(12, 2.6), layout="constrained", sharey=True)
for axis, m, metrics in zip(axes, methods, run_all(runs), strict=True):
    path = np.array([x["best_path"] for x in metrics if "evaluated" in x]).T
    picture = axis.imshow(path, aspect="auto", vmin=0, vmax=1, extent=(0, steps, H + 0.5, 0.5))
    axis.set(title=m, xlabel="step of training")
    axis.grid(False)
axes[0].set(ylabel="step of the answer")
figure.colorbar(picture, ax=axes, label="pi(a*_h | s*_h)")
plt.show()
''')
md("TEXT_LOCK")
md("""
## 5. Who ends where

Forked tree, H = 8: the expected reward at the end, every method with its own best settings.
""")
code('''
final = {arm: [x["score"] for x in some[H]] for arm, some in forked.items()}
final = dict(sorted(final.items(), key=lambda x: np.mean(x[1])))
figure, axis = plt.subplots(figsize=(8, 3.6), layout="constrained")
for i, scores in enumerate(final.values()):
    axis.barh(i, np.mean(scores), color="C0", alpha=0.5)
    axis.plot(scores, [i] * len(scores), "k.", ms=4)
axis.axvline(0.5, color="C3", lw=1)
axis.text(0.505, -0.6, "the teacher", color="C3")
axis.set(yticks=range(len(final)), xlabel=f"expected reward (dots: {len(seeds)} seeds)", xlim=(0, 1.02))
axis.set_yticklabels(final)
plt.show()
''')
md("""
Where the paths part, a policy must learn to leave its teacher. The probability of the teacher's turn and of the right one,
while training goes on (H = 6; a low entropy bonus and a high learning rate, so that some runs fail):
""")
code('''
methods, some, steps = ["uft_uniform", "uft"], range(2) if QUICK else range(8), 30 if QUICK else 300
bold = dict(lr=3e-3, entropy_coef=0.02, hint_coef=0.5, steps=steps, until=2.0)
runs = [tree(m, 6, seed, **bold) for m in methods for seed in some]
curves = iter(run_all(runs))
figure, axes = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained", sharey=True)
for axis, m in zip(axes, methods, strict=True):
    for i, metrics in enumerate([next(curves) for _ in some]):
        points = [x for x in metrics if "evaluated" in x]
        x = [p["step"] for p in points]
        axis.plot(x, [p["demo_path"][-2] for p in points], "C3", lw=0.8, label="the teacher's turn" if i == 0 else None)
        axis.plot(x, [p["best_path"][-2] for p in points], "C2", lw=0.8, label="the right turn" if i == 0 else None)
    axis.set(title=m, xlabel="step of training")
axes[0].set(ylabel="probability at the fork")
axes[0].legend(frameon=False)
plt.show()
''')
md("TEXT_FORK")
md("""
## 6. Chains: the network must generalise

Running sums modulo 4 of H digits; validation problems are never trained on. Until 90 % of them are solved, greedily.
""")
code('''
lengths = [3] if QUICK else [3, 4, 5, 6, 8, 12]
few = range(1) if QUICK else range(3)
table = {}
for m in ("rft", "uft", "sft"):
    reach = [h for h in lengths if m != "rft" or h <= 6]
    runs = [chain(m, h, seed, steps=5 if QUICK else 600) for h in reach for seed in few]
    results = iter(measured("chain", runs))
    table[m] = {h: [next(results) for _ in few] for h in reach}
for m, row in table.items():
    cells = [f"H={h}: " + " ".join(f"{x['rollouts']:,}" if x["reached"] else "-" for x in xs) for h, xs in row.items()]
    print(f"{m:5s}", "   ".join(cells))
''')
md("TEXT_CHAIN")
md("""
### The chain of parities

Bits; an answer is y_1 z_1 … y_H z_H with y free and z_i = z_{i-1} + y_i + x_i modulo 2: every step must look up its x_i in
the prompt. Accuracy on validation after training:
""")
code('''
parity = dict(B=2, free=1, steps=5 if QUICK else 1_000, hint_steps=600)
runs = [
    chain(m, h, 0, **parity, lr=lr)
    for m in ("sft", "uft", "uft_uniform")
    for h in ([6] if QUICK else [6, 8, 12])
    for lr in ([1e-3] if QUICK else [1e-3, 3e-3])
]
for cfg, x in zip(runs, measured("parities", runs), strict=True):
    cost = f"({x['rollouts']:,} rollouts, {x['seconds']:.0f} s)"
    print(f"{cfg.method:12s} H = {cfg.horizon:2d}  lr {cfg.lr:g}  accuracy {x['score']:.2f}  {cost}")
''')
md("TEXT_PARITY")
md("""
## 7. The theorem's own algorithm

Algorithm 2 of the UFT paper keeps a table of probabilities instead of a network: from a hint of uniform length it walks
down the tree, and at each state of its walk it tries *every* action once. `eta` is the step of the mirror ascent, beta the
weight of the KL to the (uniform) reference and of the hint's log-likelihood. Counted are the leaves it has explored when
half of its walks are right; that is known exactly here, so the N walks that the paper spends on choosing an iterate are
not counted.
""")
code('''
def algorithm2(H: int, B: int, seed: int, hints: bool = True, eta=1.0, beta=0.01, most=10**6) -> int:
    rng = np.random.default_rng(seed)
    best = tuple(rng.integers(0, B, H).tolist())
    table = {}  # state (the actions so far) -> log pi, up to a constant

    def pi(state: tuple) -> np.ndarray:
        p = np.exp(table.get(state, np.zeros(B)))
        return p / p.sum()

    def walk(state: tuple) -> tuple:
        while len(state) < H:
            state += (int(rng.choice(B, p=pi(state))),)
        return state

    leaves = 0
    while leaves < most and np.prod([pi(best[:h])[best[h]] for h in range(H)]) < 0.5:
        hint = int(rng.integers(0, H + 1)) if hints else 0
        path, new = walk(best[:hint]), {}
        for h in range(hint, H):  # the advantage of every action, by one continuation each
            s = path[:h]
            Q = np.array([1.0 if walk(s + (a,)) == best else 0.1 for a in range(B)])
            new[s] = (1 - eta * beta) * table.get(s, np.zeros(B)) + eta * (Q - pi(s) @ Q)
            leaves += B
        for h in range(hint):  # the hint's log-likelihood
            s = best[:h]
            new[s] = table.get(s, np.zeros(B)) + eta * beta * ((np.arange(B) == best[h]) - pi(s))
        table |= new
    return leaves


figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
for axis, B in zip(axes, (2, 4), strict=True):
    H = np.array([2, 4] if QUICK else [2, 4, 6, 8, 12, 16])
    hinted_leaves = [np.median([algorithm2(h, B, seed) for seed in seeds]) for h in H]
    blind = [h for h in H if B**h <= 20_000]
    blind_leaves = [np.median([algorithm2(h, B, seed, hints=False) for seed in seeds]) for h in blind]
    axis.plot(H, hinted_leaves, "o-", label="Algorithm 2")
    axis.plot(blind, blind_leaves, "s-", label="the same, from the root only")
    walls(axis, B, np.arange(2, 18))
    shape = B * H**5.0 * np.log(B) ** 2
    axis.plot(H, shape / shape[0] * hinted_leaves[0], "k--", lw=1, label="B H^5 (log B)^2 (theorem 4.3), moved")
    axis.set(yscale="log", ylim=(3, 1e6), title=f"B = {B}", xlabel="horizon H", ylabel="leaves explored, median")
    power = np.polyfit(np.log(H), np.log(hinted_leaves), 1)[0]
    print(f"B = {B}: Algorithm 2 at H = {list(map(int, H))}: {list(map(int, hinted_leaves))}, like H^{power:.2f}")
    print(f"       from the root only at H = {list(map(int, blind))}: {list(map(int, blind_leaves))}")
axes[0].legend(fontsize=7, frameon=False)
plt.show()
''')
md("TEXT_ALG2")
