"""Many runs, each in a few numbers, kept in a file: what the notebooks measure with."""

import json
import os
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

from data import TASKS
from notebooks.report import SKILLS
from train import Config, base_model, base_path, make_task, run, run_all, score, splits

QUICK = bool(os.environ.get("QUICK"))  # a notebook in a minute: fewer seeds, smaller horizons, nothing read or kept


def measure(cfg: Config) -> dict:
    """A run in short. score: a tree's expected reward, or else validation accuracy; points: one for each evaluation;
    of `skills`, both with what a model does there."""
    metrics = run(cfg)
    points = [m for m in metrics if "evaluated" in m]
    scores = [score(m) for m in points]
    steps = zip(metrics, metrics[1:], strict=False)
    found = np.cumsum([m.get("explored_solved", 0.0) * (m["rollouts"] - last["rollouts"]) for last, m in steps])
    return {
        "reached": scores[-1] >= cfg.until,
        "score": scores[-1],
        **{name: metrics[-1][name] for name in ("step", "rollouts", "sampled_tokens", "seconds")},
        "first_found": next((m["rollouts"] for m, n in zip(metrics[1:], found, strict=True) if n), None),
        "found": round(found[-1]),  # rollouts that ended at least as well as the demonstration
        **told(metrics[-1]),
        "points": [
            {
                "step": m["step"],
                "rollouts": m["rollouts"],
                "score": round(x, 4),
                "found": round(([0, *found])[m["step"]]),
            }
            | told(m)
            for m, x in zip(points, scores, strict=True)
        ],
    }


def told(record: dict) -> dict:
    wanted = SKILLS if "scored" in record else []
    return {name: round(x, 4) for name, x in record.items() if name.removesuffix("_test") in wanted}


def base(cfg: Config) -> None:
    """Trains the run's base model, where it is not cached."""
    task = make_task(cfg)
    base_model(cfg, task, splits(cfg, task))


def measured(name: str, runs: list[Config], points: bool = False, quick: bool = QUICK, work=measure) -> list[dict]:
    """work() of each run, made now where results/NAME.json does not hold it. Delete the file to run all again."""
    path = Path(__file__).parent / "results" / f"{name}.json"
    kept = json.loads(path.read_text()) if path.exists() and not quick else {}
    default = asdict(Config())
    keys = [json.dumps({k: v for k, v in asdict(c).items() if v != default[k] and k != "cache"}) for c in runs]
    missing = {key: cfg for key, cfg in zip(keys, runs, strict=True) if key not in kept}
    start = time.perf_counter()
    bases = {base_path(cfg): cfg for cfg in missing.values() if TASKS[cfg.task].random_play}
    run_all([cfg for path, cfg in bases.items() if not path.exists()], base)  # once each: many runs share them
    for some in (list(missing)[i : i + 12] for i in range(0, len(missing), 12)):  # so that little is lost when stopped
        found = dict(zip(some, run_all([missing[key] for key in some], work), strict=True))
        for key, x in found.items():
            if isinstance(x, dict):
                kept[key] = x if points else {k: v for k, v in x.items() if k != "points"}
        if not quick:
            path.parent.mkdir(exist_ok=True)
            path.write_text("{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in kept.items()) + "\n}\n")
        for x in found.values():
            if isinstance(x, BaseException):
                raise x
    if missing:
        print(f"{name}: {len(missing)} runs in {time.perf_counter() - start:.0f} seconds")
    return [kept[key] for key in keys]
