"""Train, evaluate, tabulate, draw.

python train.py                                  the main job: six methods from one base model, a table and a figure
python train.py --method uft rft --seed 1        some of them
python train.py --ask "3 8 9 5 -> 43"            a trained model answers
torchrun --nproc_per_node 4 train.py ...         on several GPUs or machines: each has a share of a step's problems
run(Config(method="uft"))                        the same from Python
"""

import argparse
import fcntl
import inspect
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import IO

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

from data import TASKS, Problem, Task
from model import GPT
from nanouft import METHODS, Rows, Step, log_probs, rollout, train_step
from notebooks import family  # noqa: F401  more methods


def flag(default, text: str, least=0, most=10**9, names=()):
    return field(default=default, metadata={"help": text, "least": least, "most": most, "names": names})


@dataclass(frozen=True)
class Config:
    task: str = flag("countdown", "the task", names=TASKS)
    method: str = flag("uft", "the method", names=METHODS)
    seed: int = flag(0, "drives everything: problems, weights, samples, hints, coins")
    steps: int = flag(700, "steps; each draws a batch of problems", 1)
    device: str = flag("auto", "where to run", names=("auto", "cpu", "cuda", "mps"))
    out: str = flag("", "folder to write to (command line: out/TASK-seedN; from Python: nothing is written)")
    cache: str = flag("out/base", "folder of trained base models")
    # countdown
    numbers: int = flag(4, "countdown: how many numbers a problem has", 2, 6)
    high: int = flag(10, "countdown: they lie in 1..high", 2)
    limit: int = flag(50, "countdown: no intermediate result of a demonstration is larger", 2)
    low: int = flag(10, "countdown: the smallest target", 1)
    unseen: int = flag(7, "countdown: problems with this number stay out of training, for the 'unseen' test")
    # tree and chain
    horizon: int = flag(8, "tree, chain: H, the steps of an answer", 1, 64)
    B: int = flag(4, "tree: choices at each step; chain: the modulus", 2, 10)
    fork: int = flag(0, "tree: so many steps before its end the demonstration leaves the best path, for half of it")
    free: int = flag(0, "chain: 1 adds a free digit to each step; with --B 2 that is the chain of parities", 0, 1)
    # splits
    demos: int = flag(1024, "problems with a demonstration to train on (the pool)", 1)
    validation: int = flag(512, "validation problems: for curves, grids and the choice of a checkpoint", 1)
    test: int = flag(2048, "test problems, read once, at the end; 0: no test")
    # model and base training
    layers: int = flag(2, "blocks", 1)
    width: int = flag(64, "width, a multiple of 16 (the size of a head)", 16)
    base_steps: int = flag(600, "countdown, skills: steps of base training, each on 256 random plays")
    # the step
    problems: int = flag(64, "problems a step", 1)
    group: int = flag(8, "rollouts a problem", 1)
    lr: float = flag(1e-3, "AdamW's learning rate")
    updates: int = flag(1, "optimizer steps on each batch; from the second on, clipping bites", 1)
    clip: float = flag(0.2, "the ratio is clipped to 1 - clip .. 1 + clip")
    clip_high: float = flag(0.0, "or to 1 - clip .. 1 + clip_high; 0: as above")
    kl_coef: float = flag(0.0, "weight of the KL to the base")
    entropy_coef: float = flag(0.0, "weight of the entropy bonus")
    micro_batch: int = flag(128, "rows in one forward pass: time and memory, not the gradient, depend on it", 1)
    # hints and switches
    hint_coef: float = flag(0.3, "the coefficient on the hint's log-likelihood, the paper's beta")
    hint_steps: int = flag(420, "T_hint: no hints from this step on")
    hint_low: float = flag(0.05, "p(t) at the end of the hints", 0, 1)
    hint_high: float = flag(0.95, "p(t) at the start", 0, 1)
    warmup: int = flag(350, "supervised steps that sft_rft, sft_una, sasr and the like start with", 1)
    gamma: float = flag(1.0, "SASR: factor on the warm-up's gradient norm")
    mix: float = flag(0.5, "mix: probability of a supervised step", 0, 1)
    # scored answers
    beta: float = flag(0.03, "of the implicit reward, beta log(pi / reference)", 0.001)
    share: float = flag(0.5, "skills: the share of demonstrations in a batch, after the warm-up", 0, 1)
    second_lr: float = flag(0.0, "the learning rate after the warm-up of sft_rft, sft_una, ...; 0: as before")
    reference: str = flag("base", "after that warm-up: the base, or what it made", names=("base", "sft"))
    eval_every: int = flag(50, "steps between validations; each writes a checkpoint", 1)
    until: float = flag(2.0, "stop once the expected reward (trees) or the validation accuracy is this high; 2: never")


SMALL = dict(validation=1, test=1, demos=8, problems=8, group=32, layers=1, width=32, entropy_coef=0.1, hint_coef=0.1)
DEFAULTS = {  # a task's own, on the command line
    "tree": SMALL | dict(steps=400, hint_steps=240, warmup=30, eval_every=10),
    "chain": dict(validation=256, problems=32, steps=400, hint_steps=240, warmup=100, eval_every=20, hint_coef=0.1),
    "skills": dict(problems=32, group=4, demos=8192, layers=3, steps=1000, warmup=500, beta=0.1, hint_coef=0.1),
}
PRESETS = {
    "laptop": {},
    "gpu": dict(numbers=5, high=25, limit=100, layers=6, width=384, base_steps=4000, demos=16384, steps=1500)
    | dict(hint_steps=900, warmup=750, eval_every=100, group=16, lr=3e-4, micro_batch=1024),
}
DEMO = ["sft", "rft", "sft_rft", "r3", "sasr", "uft"]  # the main job
STAGES = ["sft", "una", "sft_una", "sft_dpo", "ce_una", "implicit"]  # of skills
MAY_CHANGE = ["steps", "cache", "device"]  # when a run goes on
PLAYS = 256  # a step of base training
CUMULATIVE = ["rollouts", "sampled_tokens", "demo_tokens", "seconds"]
COUNTS = ["rollouts", "sampled_tokens", "demo_tokens", "trained_rows", "loss"]  # of all processes together
FORMAT = 3  # of checkpoints; raise it when their content changes
FORMAT = 3  # of checkpoints; raise it when their content changes
RANK, PROCESSES = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))  # by torchrun
BAR = {"mininterval": 0.5 if sys.stderr.isatty() else 20} | ({"disable": True} if RANK else {})

# ---------------------------------------------------------------------------------------------------------------------
# Setting up


def save(path: Path, content: dict | str) -> None:
    """All or nothing: whoever dies while writing leaves the old file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}")
    try:
        if isinstance(content, str):
            temporary.write_text(content)
        else:
            torch.save({"format": FORMAT} | content, temporary)
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch's word for a full disk
        temporary.unlink(missing_ok=True)
        raise OSError(f"cannot write {path} ({error}); what was there before still is") from None


def load(path: Path) -> dict:
    """A checkpoint of ours, or a sentence about why not."""
    if not path.exists():
        raise ValueError(f"there is no checkpoint {path}: train first")
    try:
        if damaged := zipfile.ZipFile(path).testzip():  # checksums, which torch.load does not look at
            raise ValueError(damaged)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what a broken file raises depends on where it is broken
        raise ValueError(f"the checkpoint {path} is damaged ({type(error).__name__}): delete it") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path} is no checkpoint of this version of nanouft: delete it, or use the version it is of")
    return content


def plain(x):
    """A method's memory without NumPy: numbers, text, and lists and dicts of them, which is all that load() reads."""
    if isinstance(x, dict):
        return {plain(name): plain(value) for name, value in x.items()}
    x = x.tolist() if isinstance(x, (np.generic, np.ndarray, torch.Tensor)) else x
    if isinstance(x, (list, tuple)):
        return type(x)(map(plain, x))
    if not isinstance(x, (int, float, str, type(None))):
        raise ValueError(
            f"a method keeps a value of type {type(x).__name__} in its memory: expected numbers, text, lists and dicts"
        )
    return x


def check(cfg: Config) -> None:
    """What makes no sense is told before any work is done."""
    for f in fields(cfg):
        value, least, most, names = getattr(cfg, f.name), *(f.metadata[key] for key in ("least", "most", "names"))
        if names and value not in names:
            raise ValueError(f"--{f.name} {value}: expected one of {', '.join(names)}")
        if f.type is not str and not least <= value <= most:
            raise ValueError(f"--{f.name} {value}: expected a number from {least:,} to {most:,}")
    if cfg.problems < PROCESSES:
        raise ValueError(f"--problems {cfg.problems}: fewer than the {PROCESSES} processes that share them")
    if cfg.problems > cfg.demos:
        raise ValueError(f"--problems {cfg.problems}: the pool has only --demos {cfg.demos}")
    if not METHODS[cfg.method].demos and not TASKS[cfg.task].scored:
        raise ValueError(f"--method {cfg.method} needs scored answers, as --task skills has them, and {cfg.task} not")
    make_model(cfg, make_task(cfg))  # they look after their own settings


def pick_device(cfg: Config) -> torch.device:
    found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if not found.get(cfg.device, True):
        raise ValueError(f"--device {cfg.device}: not on this machine, or not in this build of PyTorch; try auto")
    return torch.device(max(found, key=found.get) if cfg.device == "auto" else cfg.device)


def options(cfg: Config) -> dict:
    """The settings that the task's constructor names."""
    return {name: getattr(cfg, name) for name in inspect.signature(TASKS[cfg.task]).parameters}


def make_task(cfg: Config) -> Task:
    return TASKS[cfg.task](**options(cfg))


def make_model(cfg: Config, task: Task, weights: dict | None = None) -> GPT:
    longest = task.prompt_tokens + task.answer_tokens
    model = GPT(task.vocab, cfg.layers, cfg.width, longest, writable=task.writable)
    model.load_state_dict(weights or model.state_dict())
    return model.to(pick_device(cfg))


def randomness(cfg: Config, *purpose: int) -> tuple[np.random.Generator, torch.Generator]:
    """Generators made of seed and purpose alone; the step is part of the purpose, so resuming needs no saved state."""
    rng = np.random.default_rng([cfg.seed, *purpose])
    return rng, torch.Generator(pick_device(cfg)).manual_seed(int(rng.integers(2**62)))


def splits(cfg: Config, task: Task) -> dict[str, list[Problem]]:
    """The test sets do not depend on the seed: every run reads the same."""
    sizes = {"pool": cfg.demos, "validation": cfg.validation, "test": cfg.test, "unseen": cfg.test}
    sets = {name: task.split(name, sizes[name], cfg.seed if name == "pool" else 0) for name in task.SHARES}
    longest = max(len(sum(task.units(p), [])) for p in sets["pool"])
    if longest > task.answer_tokens:
        says = f"answer_tokens {task.answer_tokens}, but a demonstration, <end> too, {longest}"
        raise ValueError(f"--task {cfg.task}: {says}")
    return sets


def base_path(cfg: Config) -> Path:
    settings = {n: getattr(cfg, n) for n in ("task", "seed", "test", "layers", "width", "base_steps")} | options(cfg)
    return Path(cfg.cache) / f"{'-'.join(map(str, settings.values()))}.pt"


def base_model(cfg: Config, task: Task, sets: dict[str, list[Problem]]) -> dict:
    """Where every method starts: supervised fine-tuning, by the same step as ever, on random legal play towards
    unrelated targets. It knows the rules, not how to aim. Its weights and test scores are cached by its settings.
    Trees and chains have no rules to learn: there it is an untrained model."""
    path, model = base_path(cfg), make_model(cfg, task)
    if path.exists():
        content = load(path)
        if {n: x.shape for n, x in content["model"].items()} != {n: x.shape for n, x in model.state_dict().items()}:
            raise ValueError(f"{path} is the base of another model: delete it, or choose another --cache")
        return content
    model.init_weights(randomness(cfg, 2)[1])
    matrices = [p for p in model.blocks.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() == 1] + [model.embed.weight]
    muon = torch.optim.Muon(matrices, weight_decay=0)  # a quarter of the steps that AdamW would need for the matrices
    adamw = torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0, fused=True)
    settings = replace(cfg, problems=PLAYS, group=1, updates=1)
    for t in (bar := tqdm(range(cfg.base_steps if task.random_play else 0), "base model", **BAR)):
        fall = min(1, 2 * (1 - t / cfg.base_steps))  # the learning rates', in the second half
        muon.param_groups[0]["lr"], adamw.param_groups[0]["lr"] = 0.02 * fall, 0.003 * fall
        rng, _ = randomness(cfg, 3, t)
        plays = lambda share, rng=rng: [task.random_play(rng) for _ in range(PLAYS)]  # noqa: E731
        record = train_step(METHODS["sft"], Step(t, settings, task, model, model, plays, rng), [muon, adamw])
        bar.set_postfix(loss=f"{record['loss']:.3f}", refresh=False)
    content = {"model": model.state_dict(), "scores": test_scores(model, model, task, cfg, sets, "_base")}
    if task.random_play:
        save(path, content)
    return content


def annotate(cfg: Config, task: Task, base: GPT, problems: list[Problem]) -> None:
    """Problems without a demonstration get answers of the base, to be scored: one for each row of a group."""
    generator = randomness(cfg, 6)[1]
    for some in (problems[i : i + 256] for i in range(0, len(problems), 256)):
        each = [problem for problem in some for _ in range(cfg.group)]
        rows = rollout(base, task, each, [0] * len(each), 1.0, generator)
        texts = [task.decode(ids[own].tolist()) for ids, own in zip(rows.tokens, rows.suffix, strict=True)]
        for i, problem in enumerate(some):
            problem.answers = [text.removesuffix("<end>") for text in texts[i * cfg.group :][: cfg.group]]


def draw(pools: tuple[list[Problem], list[Problem]], n: int, share: float, rng: np.random.Generator) -> list[Problem]:
    """n problems; this share of them from those with a demonstration, or all, where there are no others."""
    taught = round(share * n) if pools[1] else n
    sizes = zip(pools, (taught, n - taught), strict=True)
    return [pool[i] for pool, k in sizes for i in rng.choice(len(pool), k, replace=k > len(pool))]


# ---------------------------------------------------------------------------------------------------------------------
# The run


def solve(model: GPT, task: Task, problems: list[Problem], n: int = 1, generator=None) -> dict[str, float]:
    """Without hints: the share of problems that one of n answers solves, and the mean reward. One is greedy."""
    some = [problems[i : i + 1024 // n] for i in range(0, len(problems), 1024 // n)]
    some = [[problem for problem in part for _ in range(n)] for part in some]
    rows = [rollout(model, task, part, [0] * len(part), float(n > 1), generator) for part in some]
    solved, reward = (torch.cat(x) for x in ([r.solved for r in rows], [r.reward for r in rows]))
    return {"accuracy": solved.view(-1, n).any(1).float().mean().item(), "reward": reward.mean().item()}


@torch.no_grad()
def exact(model: GPT, task: Task, problem: Problem) -> dict:
    """A tree's E[r], exactly: all answers but its few leaves are worth the same. And the probability of each step
    of the best path and of the demonstration, pi(a*_h | s*_h)."""
    prompt, best_last = task.encode(problem.prompt), sorted(task.leaves, key=task.leaves.get)
    tokens = torch.tensor([prompt + task.encode(leaf) for leaf in best_last], device=model.rotary.device)
    distribution = torch.log_softmax(model(tokens[:, :-1]), dim=-1)
    logp = distribution.gather(-1, tokens[:, 1:, None])[:, len(prompt) - 1 :, 0]  # (leaves, H)
    gain = torch.tensor([task.leaves[leaf] - task.WRONG for leaf in best_last], device=model.rotary.device)
    expected = task.WRONG + (logp.sum(1).exp() * gain).sum().item()
    return {"expected_reward": expected, "best_path": logp[-1].exp().tolist(), "demo_path": logp[0].exp().tolist()}


@torch.no_grad()
def behaviour(model: GPT, base: GPT, task: Task, problems: list[Problem], generator) -> dict[str, float]:
    """What the policy does without hints, in one sample of each problem."""
    rows = rollout(model, task, problems, [0] * len(problems), 1.0, generator)
    gap = rows.suffix * (rows.logp - log_probs(base, rows)[0])
    taught = torch.tensor([bool(p.demo) for p in problems], device=rows.solved.device)
    found = {"demonstrated": rows.solved[taught], "scored": rows.solved[~taught]} if not taught.all() else {}
    found |= {"sampled": rows.solved, "base_kl": gap.sum(1), "answer_tokens": rows.suffix.sum(1)}
    found |= {"ended": ((rows.tokens == task.end) & rows.suffix).any(1)}
    return {name: x.float().mean().item() for name, x in found.items()}


def test_scores(model: GPT, base: GPT, task: Task, cfg: Config, sets: dict, of: str = "") -> dict[str, float]:
    """The same on problems that training never showed, also of another kind, and one success in 8 samples."""
    wanted = {"test": sets["test"], "unseen": sets.get("unseen"), "pass@8": sets["test"]}
    n, generator = {"pass@8": 8}, randomness(cfg, 4)[1]
    found = {k: solve(model, task, p, n.get(k, 1), generator)["accuracy"] for k, p in wanted.items() if p}
    freely = behaviour(model, base, task, sets["test"], generator) if sets["test"] else {}
    found |= {f"{name}_test": x for name, x in freely.items()}
    return {name + of: x for name, x in found.items()}


def score(record: dict) -> float:
    """What validation goes by."""
    return record.get("expected_reward", record["accuracy"])


def of_the_first(x):
    """What the first process has, for all."""
    box = [x]
    if PROCESSES > 1:
        dist.broadcast_object_list(box)
    return box[0]


def exploration(s: Step) -> dict[str, float]:
    """A step's metrics on everything that was rolled out in it."""

    def total(count: Callable[[Rows], torch.Tensor]) -> float:
        return sum(count(rows).sum().item() for rows in s.explored)

    given, sampled = total(lambda rows: rows.hint), total(lambda rows: rows.suffix)
    rollouts, rewards = total(lambda rows: rows.suffix.any(1)), s.rows.reward.view(-1, s.cfg.group)
    found = {
        "reward": torch.cat([rows.reward for rows in s.explored]).mean().item(),  # of fully hinted rows too
        "frac_reward_zero_std": (rewards == rewards[:, :1]).all(1).float().mean().item(),
        "hint_share": given / (given + sampled),
        "rollouts": rollouts,
        "sampled_tokens": sampled,
    }
    if sampled:
        found["entropy"] = -total(lambda rows: rows.logp) / sampled
        found["completion_length"] = sampled / rollouts
        found["explored_solved"] = total(lambda rows: rows.solved & rows.suffix.any(1)) / rollouts
    return found


def of_all(x) -> list:
    """What each process has, for all of them."""
    if PROCESSES == 1:
        return [x]
    found = [None] * PROCESSES
    dist.all_gather_object(found, x)
    return found


def together(records: list[dict]) -> dict:
    """A step's metrics, over all processes: sums of what is counted, and means."""
    if len(records) == 1:
        return records[0]
    found = {name: [r[name] for r in records if name in r] for r in records for name in r}
    return {name: float(sum(x) if name in COUNTS else np.mean(x)) for name, x in found.items()}


def saved_run(cfg: Config) -> dict:
    """The checkpoint in the run's folder, if there is one. Of another run it must not be: nothing is overwritten."""
    path = Path(cfg.out) / "checkpoint.pt"
    if not cfg.out or not path.exists():
        return {}
    saved = load(path)
    changed = [n for n, x in asdict(cfg).items() if n not in [*MAY_CHANGE, "out"] and saved["config"].get(n) != x]
    if changed:
        raise ValueError(f"{cfg.out} holds another run, which differs in {', '.join(changed)}: choose another --out")
    if saved["state"]["step"] > cfg.steps:
        raise ValueError(f"{cfg.out} holds a run that is beyond --steps {cfg.steps}: ask for more, or choose an --out")
    return saved


stopped = []  # Ctrl-C, heard by a process of the command line; a run then ends between two steps, and saves


def alone(folder: Path) -> IO:
    """A lock on the folder, which the system takes back when the process ends, however it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise ValueError(f"another process is training in {folder}: wait for it, or choose another --out") from None
    return lock


def run(cfg: Config) -> list[dict]:
    """Train one method, from where its folder left off. Returns its metrics, a dict for step 0 and for every step
    (README.md defines each of them)."""
    check(cfg)
    lock = alone(Path(cfg.out)) if cfg.out else None  # noqa: F841  until this function ends
    task, method, out, saved = make_task(cfg), METHODS[cfg.method], Path(cfg.out), of_the_first(saved_run(cfg))
    sets = splits(cfg, task)
    start = of_the_first(base_model(cfg, task, sets))
    model, base, reference, best = (make_model(cfg, task, start["model"]) for _ in range(4))  # best: on validation
    pools = [p for p in sets["pool"] if p.demo], [p for p in sets["pool"] if not p.demo]
    annotate(cfg, task, base, pools[1])
    optimizer = torch.optim.AdamW(model.parameters(), lr=cfg.lr, betas=(0.9, 0.95), weight_decay=0, fused=True)
    parts = {"model": model, "reference": reference, "best": best, "optimizer": optimizer}
    state, metrics = {"step": 0, "memory": {}, "chosen_step": 0, "chosen_score": -1.0}, []
    if saved:
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        state, metrics = saved["state"], saved["metrics"]

    def validate(record: dict) -> dict:
        found = solve(model, task, sets["validation"])
        record = found | record | {"accuracy": found["accuracy"], "evaluated": True}  # "reward" is the step's own
        record |= exact(model, task, sets["pool"][0]) if task.leaves else {}
        record |= behaviour(model, base, task, sets["validation"], randomness(cfg, 7, record["step"])[1])
        if score(record) > state["chosen_score"]:
            state.update(chosen_step=record["step"], chosen_score=score(record))
            best.load_state_dict(model.state_dict())
        return record

    def over(record: dict) -> bool:
        return record["step"] == cfg.steps or ("evaluated" in record and score(record) >= cfg.until)

    def checkpoint() -> None:
        states = {name: part.state_dict() for name, part in parts.items()}
        save(out / "checkpoint.pt", {"config": asdict(cfg), "state": plain(state), "metrics": metrics} | states)
        save(out / "metrics.jsonl", "".join(json.dumps(m) + "\n" for m in metrics))
        save(out / "config.json", json.dumps(asdict(cfg), indent=1))  # a resumed run may have more steps

    metrics = metrics or [validate({"step": 0} | dict.fromkeys(CUMULATIVE, 0))]
    bar = tqdm(range(state["step"], cfg.steps), cfg.method, cfg.steps, initial=state["step"], **BAR)
    for t in bar:
        if over(metrics[-1]):
            break
        if stopped:
            checkpoint()
            raise KeyboardInterrupt
        clock = time.perf_counter()
        rng, generator = randomness(cfg, 0, t, RANK)
        common = rng if RANK == 0 else randomness(cfg, 0, t, 0)[0]  # all draw the same problems; each takes its share
        share_out = lambda share, rng=common: draw(pools, cfg.problems, share, rng)[RANK::PROCESSES]  # noqa: E731
        coin, before = randomness(cfg, 8, t)[0].random(), dict(state["memory"])
        step = Step(t, cfg, task, model, reference, share_out, rng, coin, generator, state["memory"])
        if method.warm and not method.p_sft and t == cfg.warmup:  # the second stage
            optimizer.param_groups[0]["lr"] = cfg.second_lr or cfg.lr
            if cfg.reference == "sft":
                reference.load_state_dict(model.state_dict())
        try:
            record = train_step(method, step, [optimizer]) | exploration(step)
        except FloatingPointError as error:
            raise FloatingPointError(f"step {t + 1}: {error}; start again with a smaller --lr") from None
        for changes in of_all({name: x for name, x in state["memory"].items() if before.get(name) is not x}):
            state["memory"] |= changes  # of other processes, which drew other problems
        record = together(of_all(record))
        record |= {"step": t + 1, "seconds": time.perf_counter() - clock, "accuracy": metrics[-1]["accuracy"]}
        record |= {name: record[name] + metrics[-1][name] for name in CUMULATIVE}
        state["step"] = t + 1
        if due := t + 1 == cfg.steps or (t + 1) % cfg.eval_every == 0:
            record = validate(record)
        if over(record):
            after, chosen = (test_scores(m, base, task, cfg, sets, of) for m, of in ((model, ""), (best, "_chosen")))
            record |= after | chosen | start["scores"] | {"chosen_step": state["chosen_step"]}
        metrics.append(record)
        bar.set_postfix(reward=f"{record['reward']:.2f}", accuracy=f"{record['accuracy']:.1%}", refresh=False)
        if cfg.out and due:
            checkpoint()
    return metrics


# ---------------------------------------------------------------------------------------------------------------------
# The command line


def trained(folder: Path) -> tuple[Config, Task, GPT]:
    saved = load(folder / "checkpoint.pt")
    cfg = replace(Config(**saved["config"]), device="cpu")
    task = make_task(cfg)
    return cfg, task, make_model(cfg, task, saved["model"])


def answers(folder: Path, n: int, text: str | None = None) -> str:
    """A trained model answers the user's problem n times, or n validation problems, every other one behind a hint."""
    from notebooks.report import show

    cfg, task, model = trained(folder)
    problems = task.split("validation", n, 0) if text is None else [task.parse(text)] * n
    hints = np.arange(n) % 2 if text is None else np.zeros(n, int)
    rows = rollout(model, task, problems, hints, 1.0, randomness(cfg, 5)[1])
    return f"{cfg.method} answers, sampled; [given] and explored\n{show(task, problems, hints, rows, bool(text))}"


class Parser(argparse.ArgumentParser):
    def error(self, message: str):
        self.exit(2, f"nanouft: {message} (all flags: python train.py --help)\n")


def parse(argv: list[str] | None) -> dict:
    parser = Parser(description="Unified fine-tuning.", allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for f in fields(Config):
        names, many = ", ".join(f.metadata["names"]), {"nargs": "+"} if f.name == "method" else {}
        text = f.metadata["help"] + f": {names}" * bool(names) + f" [{f.default}]"
        parser.add_argument(f"--{f.name}", type=f.type, metavar="X", help=text, **many)
    parser.add_argument("--preset", choices=PRESETS, help="laptop: as above; gpu: larger, an hour on a consumer card")
    parser.add_argument("--resume", metavar="DIR", help="go on with the runs in DIR (only --steps may change)")
    parser.add_argument("--ask", metavar="TEXT", help="a trained model (of --out, --method) answers '3 8 9 5 -> 43'")
    parser.add_argument("--export", metavar="DIR", help="write a trained model (of --out, --method) for transformers")
    parser.add_argument("--list", action="store_true", help="print the table of methods")
    return vars(parser.parse_args(argv))


def new_runs(flags: dict, methods: list[str], job: Path) -> list[Config]:
    runs = [replace(Config(**flags), method=m, out=str(job / m)) for m in dict.fromkeys(methods)]
    for cfg in runs:
        check(cfg)
        saved_run(cfg)
    splits(runs[0], make_task(runs[0]))  # do so many problems exist?
    for cfg in [] if RANK else runs:
        alone(Path(cfg.out)).close()
        save(Path(cfg.out) / "config.json", json.dumps(asdict(cfg), indent=1))
    return runs


def old_runs(flags: dict, job: Path) -> list[Config]:
    """What a folder holds: one run, or one in each sub-folder."""
    if fixed := sorted(set(flags) - set(MAY_CHANGE)):
        raise ValueError(f"--{fixed[0]} cannot change in a resumed run: leave it out, or start another run")
    found = sorted(job.glob("config.json")) or sorted(job.glob("*/config.json"))
    if not found:
        raise ValueError(f"--resume {job}: no run there (no config.json in it, nor one folder down)")
    return [replace(read_config(path), **flags, out=str(path.parent)) for path in found]


def read_config(path: Path) -> Config:
    try:
        return Config(**json.loads(path.read_text()))
    except (ValueError, TypeError):  # no JSON, no UTF-8, or no settings of ours
        raise ValueError(f"{path} is damaged, or of another version of nanouft: move its folder away") from None


def end_with_parent() -> None:
    """Who kills the command (kill -9) wants no more training: an orphan would write where the resumed run does."""
    multiprocessing.parent_process().join()
    os._exit(1)


def prepare(lock, lines) -> None:
    """A process does one run after another, on one thread: two small runs side by side beat one on two cores."""
    tqdm.set_lock(lock)
    BAR["position"] = lines.get()
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, lambda *_: stopped.append(True))
    threading.Thread(target=end_with_parent, daemon=True).start()


def run_all(runs: list[Config], work: Callable = run) -> list:
    """Side by side, each in a process of its own: what work(cfg) returned, or else what it raised. Ctrl-C is theirs to
    hear: this process passes it on, and waits."""
    if PROCESSES > 1:  # torchrun's: one run after another, all processes on each, and the first of them writes
        dist.init_process_group()
        return [work(replace(cfg, out="" if RANK else cfg.out)) for cfg in runs]
    if not runs:
        return []
    jobs = min(len(runs), os.cpu_count() or 1) if pick_device(runs[0]).type == "cpu" else 1
    spawn, children = multiprocessing.get_context("spawn"), multiprocessing.active_children
    tqdm.set_lock(spawn.RLock())
    lines = spawn.Queue()
    for i in range(jobs):
        lines.put(i)
    before = signal.signal(signal.SIGINT, lambda *_: [os.kill(p.pid, signal.SIGINT) for p in children()])
    with ProcessPoolExecutor(jobs, spawn, prepare, [tqdm.get_lock(), lines]) as pool:
        futures = [pool.submit(work, cfg) for cfg in reversed(runs)]  # the main job's last methods take longest
        outcomes = [f.exception() or f.result() for f in reversed(futures)]
    signal.signal(signal.SIGINT, before)
    return outcomes


def main(argv: list[str] | None = None) -> None:
    from notebooks.export import write_llama
    from notebooks.report import draw, methods_table, table  # they draw and print, and matplotlib is slow to load

    flags = parse(argv)
    ask, export, resume, listing = (flags.pop(name, None) for name in ("ask", "export", "resume", "list"))
    flags = DEFAULTS.get(flags.get("task"), {}) | PRESETS[flags.pop("preset", "laptop")] | flags
    cfg = replace(Config(), **{name: x for name, x in flags.items() if name != "method"})
    job = Path(resume or cfg.out or f"out/{cfg.task}-seed{cfg.seed}")
    if listing:
        return print(methods_table())
    one = job if (job / "checkpoint.pt").exists() else job / flags.get("method", ["uft"])[0]
    if ask is not None:
        return print(answers(one, 16, ask))
    if export is not None:
        return print(write_llama(*trained(one)[1:], Path(export)))
    default = STAGES if cfg.task in TASKS and TASKS[cfg.task].scored else DEMO
    runs = old_runs(flags, job) if resume is not None else new_runs(flags, flags.pop("method", default), job)
    if RANK:
        sys.stdout = open(os.devnull, "w")  # the first process speaks
    first, why = runs[0], "the best one here" if cfg.device == "auto" else "as asked"
    print(f"device {pick_device(first)} ({why}), float32 (so small a model gains nothing from less), into {job}/")
    for name in ("hint_steps", "warmup"):
        if getattr(first, name) >= first.steps:
            print(f"note: for methods that use it, --{name} {getattr(first, name)} fills all --steps {first.steps}")
    sys.stdout.flush()
    if pick_device(first).type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    try:
        base_model(first, make_task(first), splits(first, make_task(first)))
        outcomes = run_all(runs)
        if RANK:
            return
    except KeyboardInterrupt as stop:
        outcomes = [stop]
    if any(isinstance(x, KeyboardInterrupt) for x in outcomes):
        print(f"\nnanouft: stopped, and saved; go on with: python train.py --resume {job}", file=sys.stderr)
        sys.exit(130)
    results = {cfg.method: x for cfg, x in zip(runs, outcomes, strict=True) if isinstance(x, list)}
    if results:
        last = [cfg for cfg in runs if cfg.method in results][-1]
        print(f"\n\n{table(results)}\n\n{answers(Path(last.out), min(64, last.validation))}")
        draw({name: [m] for name, m in results.items()}, job / "curves.png", f"{first.task}, seed {first.seed}")
        print(f"\nfigure: {job}/curves.png")
    failed = {cfg.method: x for cfg, x in zip(runs, outcomes, strict=True) if cfg.method not in results}
    for x in failed.values():
        if not isinstance(x, (ValueError, OSError, FloatingPointError)):
            raise x  # a bug: with its traceback
    if failed:
        raise ValueError("; ".join(f"{name}: {x}" for name, x in failed.items()))


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as problem:
        sys.exit(f"nanouft: {problem}")
