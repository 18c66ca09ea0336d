"""Several seeds of the main job in one table and one figure: mean +- standard deviation, paired t-intervals, bands.

for s in 0 1 2 3 4; do python train.py --seed $s; done
python notebooks/summary.py out/countdown-seed*
"""

import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from notebooks.report import draw  # noqa: E402

T975 = [0, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262]  # Student's t, by degrees of freedom
COLUMNS = ["test", "test_chosen", "unseen", "pass@8", "rollouts", "sampled_tokens", "demo_tokens", "seconds"]


def read(folders: list[Path]) -> dict[str, list[list[dict]]]:
    """{method: [the metrics of each seed]}, only methods that every folder holds, the best test accuracy last."""
    names = set.intersection(*({p.parent.name for p in f.glob("*/metrics.jsonl")} for f in folders))
    runs = {m: [[json.loads(x) for x in (f / m / "metrics.jsonl").open()] for f in folders] for m in names}
    return dict(sorted(runs.items(), key=lambda run: np.mean([m[-1]["test"] for m in run[1]])))


def paired(better: np.ndarray, worse: np.ndarray) -> str:
    gap = 100 * (better - worse)
    half = T975[len(gap) - 1] * gap.std(ddof=1) / len(gap) ** 0.5
    return f"{gap.mean():+.1f} points, 95 % t-interval {gap.mean() - half:+.1f} .. {gap.mean() + half:+.1f}"


def main(folders: list[Path]) -> None:
    if not 2 <= len(folders) <= len(T975) or not {"sft", "rft", "uft"} <= read(folders).keys():
        sys.exit(f"expected 2 to {len(T975)} folders of the main job, such as out/countdown-seed0 out/countdown-seed1")
    runs = read(folders)
    path = Path(__file__).parent / "figures" / "countdown.png"
    path.parent.mkdir(exist_ok=True)
    draw(runs, path, f"countdown, {len(folders)} seeds: mean, and band from the lowest to the highest")
    last = {name: [m[-1] for m in seeds] for name, seeds in runs.items()}
    base = [{c: m.get(f"{c}_base", np.nan) for c in COLUMNS} for m in next(iter(last.values()))]
    print("| method | " + " | ".join(COLUMNS) + " |\n|" + "---|" * (len(COLUMNS) + 1))
    for name, seeds in {"base": base, **last}.items():
        cells = []
        for c in COLUMNS:
            values = np.array([m[c] for m in seeds], float)
            share = f"{100 * values.mean():.1f} ± {100 * values.std(ddof=1):.1f}"
            cells.append("" if np.isnan(values).any() else share if c in COLUMNS[:4] else f"{values.mean():,.0f}")
        print(f"| `{name}` | " + " | ".join(cells) + " |")
    score = {name: np.array([m["test"] for m in seeds]) for name, seeds in last.items()}
    score["sft"] = np.array([m["test_chosen"] for m in last["sft"]])  # SFT overfits: its best-validation checkpoint
    print()
    for other in [name for name in score if name != "uft"]:
        print(f"uft - {other + ' (chosen)' * (other == 'sft'):15s}{paired(score['uft'], score[other])}")
    best = np.maximum(score["sft"], score["rft"])  # seed by seed
    print(f"uft - the better of sft and rft: {paired(score['uft'], best)}")


if __name__ == "__main__":
    main([Path(p) for p in sys.argv[1:]])
