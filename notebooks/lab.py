"""Many runs, each in a few numbers, kept in a file: what the notebooks measure with."""

import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch

from data import make_task, options
from nanouft import Step, log_probs, rollout
from notebooks import chain, family  # noqa: F401  more tasks and methods
from train import Config, base_model, pick_device, run, score

QUICK = bool(os.environ.get("QUICK"))  # a notebook in a minute: fewer seeds, smaller horizons, nothing read or kept
ELSEWHERE = ["out", "cache", "device"]  # settings that change no result


def end_with_parent() -> None:
    """Who kills the command (kill -9) wants no more training."""
    multiprocessing.parent_process().join()
    os._exit(1)


def prepare() -> None:
    """A process makes one run after another, with one thread: for models this small that is the fastest."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it at once, without a word
    threading.Thread(target=end_with_parent, daemon=True).start()


def side_by_side(runs: list[Config], work: Callable = run, after: Callable = lambda *_: None) -> list:
    """What work(cfg) returned for each run, or the exception that it raised. On a GPU one after another. As soon as
    the i-th ends well, after(i, what it returned)."""
    if not runs:
        return []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    jobs = min(len(runs), cores) if pick_device(runs[0]).type == "cpu" else 1
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, spawn, prepare) as pool:
        try:
            # From the last to the first: the main job's last two take longest, and so they begin.
            futures = {pool.submit(work, cfg): i for i, cfg in reversed([*enumerate(runs)])}
            for future in as_completed(futures):
                if not future.exception():
                    after(futures[future], future.result())
            return [f.exception() or f.result() for f in reversed(futures)]
        except KeyboardInterrupt:
            for process in multiprocessing.active_children():
                process.kill()
            raise


def behaviour(name: str, s: Step) -> dict:
    """What train.run() may watch: how far one sample of each problem has moved from the base, and both skills where
    only some problems have a demonstration; on a tree, pi(a*_h | s*_h) along the best path and the demonstration. Of
    the test eight samples are taken: pass@8 says for how many problems one of them is right."""
    policy, task, problems, generator = s.model, s.task, s.problems, s.generator
    with torch.no_grad():
        solved = {}
        if name == "test":
            n = 8
            some = rollout(policy, task, problems * n, [0] * len(problems) * n, 1.0, generator).solved.view(n, -1)
            solved = {"pass@1": some, f"pass@{n}": some.any(0)}
        rows = rollout(policy, task, problems, [0] * len(problems), 1.0, generator)
        gap = (rows.suffix * (rows.logp - log_probs(s.base, rows)[0])).sum(1)
        found = solved | {"base_kl": gap, "answer_tokens": rows.suffix.sum(1)}
        found["ended"] = ((rows.tokens == task.end) & rows.suffix).any(1)
        taught = torch.tensor([bool(p.demo) for p in problems], device=gap.device)
        found |= {} if taught.all() else {"demonstrated": rows.solved[taught], "scored": rows.solved[~taught]}
        found = {name: x.float().mean().item() for name, x in found.items()}
        if task.leaves:
            leaves = [replace(problems[0], demo=[leaf]) for leaf in task.leaves]  # the best one is the last
            rows = rollout(policy, task, leaves, [1] * len(leaves))
            p = log_probs(policy, rows)[0][rows.hint].view(len(leaves), -1).exp().tolist()
            found |= {"demo_path": p[0], "best_path": p[-1]}
    return found


def watched(cfg: Config) -> list[dict]:
    return run(cfg, behaviour)


def measure(cfg: Config) -> dict:
    """A run in short. score: a tree's expected reward, or else validation accuracy; points: one for each evaluation;
    of `skills`, both with what a model does there."""
    metrics = watched(cfg)
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


SKILLS = ["demonstrated", "scored", "base_kl", "answer_tokens", "ended"]


def told(record: dict) -> dict:
    wanted = SKILLS if {"scored", "scored_test"} & record.keys() else []
    return {name: round(x, 4) for name, x in record.items() if name.removesuffix("_test") in wanted}


def settings(cfg: Config) -> dict:
    """All settings that a result depends on, with all options of the task."""
    kind = cfg.task.partition(":")[0]
    chosen = ",".join(f"{name}={x}" for name, x in options(cfg.task).items() if name != "seed")
    return {n: x for n, x in asdict(cfg).items() if n not in ELSEWHERE} | {"task": f"{kind}:{chosen}"}


def base(cfg: Config) -> None:
    """Trains the run's base model, where it is not cached."""
    base_model(cfg, make_task(cfg.task, cfg.seed))


made = set()  # base models that are there


@cache
def read(path: Path, written: int) -> dict:
    """What a file holds; once, as long as nobody writes to it."""
    return json.loads(path.read_text())


def keep(path: Path, kept: dict) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in kept.items()) + "\n}\n")


def measured(name: str, runs: list[Config], points: bool = False, quick: bool = QUICK, work=measure) -> list[dict]:
    """work() of each run, made now where results/NAME.json does not hold it. Delete the file to run all again.

    A result is kept under its settings: those that differ from the defaults written in the same file. These are not
    train.py's, so a default that changes there relabels nothing."""
    path = Path(__file__).parent / "results" / f"{name}.json"
    exists = path.exists() and not quick
    kept = dict(read(path, path.stat().st_mtime_ns)) if exists else {"defaults": settings(Config())}
    defaults = kept["defaults"].items()
    keys = [json.dumps(dict(sorted(settings(cfg).items() - defaults))) for cfg in runs]
    missing = {key: cfg for key, cfg in zip(keys, runs, strict=True) if key not in kept}
    if missing:
        print(f"{name}: {len(missing)} runs to make", flush=True)
    bases = {(c.task, c.seed, c.layers, c.width, c.base_steps): c for c in missing.values()}
    new = [cfg for key, cfg in bases.items() if key not in made and make_task(cfg.task).random_play]
    side_by_side(new, base)  # once each: many runs share them
    made.update(bases)

    def after(i: int, found: dict) -> None:
        kept[list(missing)[i]] = found if points else {k: v for k, v in found.items() if k != "points"}
        if not quick:
            keep(path, kept)  # at once, so that little is lost when stopped

    for x in side_by_side([*missing.values()], work, after):
        if isinstance(x, BaseException):
            raise x
    return [kept[key] for key in keys]


def make(experiments: dict[str, Callable], names: list[str]) -> None:
    """Those experiments that are named, or all; and the grid's runs, where their settings come from it."""
    if unknown := set(names) - set(experiments):
        sys.exit(f"{unknown.pop()}: expected some of {', '.join(experiments)}")
    for name in names or experiments:
        experiments[name]()
