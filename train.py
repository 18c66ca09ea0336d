"""Train, evaluate, draw.   python train.py                        the main job: six methods from one base, a table, a figure
                         python train.py --method uft --seed 1   one method
                         python train.py --list                  what there is
`run(Config(...))` is the same thing from Python.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from data import TASKS, Problem, Task
from model import GPT
from nanouft import METHODS, Step, rollout, train_step

DEMO = ["sft", "rft", "sft_rft", "r3", "uft", "sasr"]
FORMAT = 1  # of checkpoints; raise it when their content changes


def flag(default, text: str):
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Config:
    # what to train
    task: str = flag("countdown", "the task: " + ", ".join(TASKS))
    method: str = flag("uft", "the method: " + ", ".join(METHODS))
    seed: int = flag(0, "drives everything: data, initialisation, samples, hints, coins")
    steps: int = flag(600, "optimizer steps (batches)")
    device: str = flag("auto", "auto, cpu, cuda or mps")
    out: str = flag("", "folder to write to (command line: out/TASK-seedN; from Python: nothing is written)")
    # countdown
    numbers: int = flag(4, "countdown: how many numbers, 2 to 6")
    high: int = flag(10, "countdown: the numbers lie in 1..high")
    limit: int = flag(50, "countdown: the largest intermediate result of a demonstration")
    low: int = flag(10, "countdown: the smallest target")
    unseen: int = flag(7, "countdown: problems with this number are kept for the 'unseen' test")
    # splits
    demos: int = flag(1024, "problems with demonstrations in the training pool")
    validation: int = flag(512, "validation problems, for curves, grids and the choice of a checkpoint")
    test: int = flag(2048, "test problems, read once, at the end; 0 skips the test")
    # the model and its base training
    layers: int = flag(2, "blocks")
    heads: int = flag(4, "attention heads")
    width: int = flag(64, "width of the model")
    base_steps: int = flag(600, "steps of base training on random play")
    base_batch: int = flag(256, "random plays in each of them")
    base_lr: float = flag(0.02, "Muon's rate for the matrices; AdamW's for the rest is 0.15 of it")
    cache: str = flag("out/base", "folder of trained bases")
    # the step
    problems: int = flag(64, "problems a step")
    group: int = flag(8, "rollouts a problem")
    lr: float = flag(1e-3, "AdamW's learning rate")
    updates: int = flag(1, "updates on each batch of rollouts; above 1 the ratio's clipping bites")
    clip: float = flag(0.2, "the ratio is clipped to 1 - clip .. 1 + clip")
    clip_grad: float = flag(1.0, "largest gradient norm")
    temperature: float = flag(1.0, "sampling temperature")
    kl_coef: float = flag(0.0, "weight of the KL to the base")
    entropy_coef: float = flag(0.0, "weight of the entropy bonus")
    micro_batch: int = flag(512, "rows a forward pass; memory only, the gradient does not change")
    # hints
    hint_coef: float = flag(0.01, "coefficient on the hint's log-likelihood (the paper's beta)")
    hint_steps: int = flag(360, "T_hint: hints end here")
    hint_low: float = flag(0.05, "p(t) at the end of the hints")
    hint_high: float = flag(0.95, "p(t) at the start")
    # switches
    warmup: int = flag(100, "supervised steps before sft_rft, sasr, static and mix go on")
    gamma: float = flag(1.0, "SASR: weight of the warm-up's gradient norm")
    mix: float = flag(0.5, "mix: probability of a supervised step")
    # the machine
    threads: int = flag(
        1, "CPU threads of a run; for a model this small two runs side by side beat one run on two cores"
    )
    # looking
    eval_every: int = flag(25, "steps between validations; a checkpoint is written with each")


# ---------------------------------------------------------------------------------------------------------------------
# Setting up


def check(cfg: Config) -> None:
    """Contradictions, told before any work is done."""
    for name, table in (("task", TASKS), ("method", METHODS)):
        if getattr(cfg, name) not in table:
            raise ValueError(f"there is no {name} {getattr(cfg, name)!r}: choose one of {', '.join(table)}")
    may_be_zero = {
        "seed",
        "test",
        "kl_coef",
        "entropy_coef",
        "hint_coef",
        "hint_steps",
        "hint_low",
        "gamma",
        "mix",
        "warmup",
        "base_steps",
    }
    for f in fields(cfg):
        value = getattr(cfg, f.name)
        if f.type in (int, float) and not (value > 0 or value == 0 and f.name in may_be_zero):
            raise ValueError(
                f"--{f.name} {value} makes no sense: it must be {'0 or more' if f.name in may_be_zero else 'above 0'}"
            )
    if not cfg.hint_low <= cfg.hint_high <= 1:
        raise ValueError(f"--hint_low {cfg.hint_low} --hint_high {cfg.hint_high}: expected hint_low <= hint_high <= 1")
    if cfg.mix > 1:
        raise ValueError(f"--mix {cfg.mix}: a probability is at most 1")
    if cfg.method == "sasr" and cfg.warmup == 0:
        raise ValueError("--warmup 0: sasr measures its gradient norm in the warm-up, give it at least 1 step")
    if cfg.width % (2 * cfg.heads):
        raise ValueError(f"--width {cfg.width} must be a multiple of 2 x --heads {cfg.heads}")
    if cfg.problems > cfg.demos:
        raise ValueError(f"--problems {cfg.problems} a step, but the pool has only --demos {cfg.demos}")


def pick_device(name: str) -> tuple[torch.device, str]:
    """The device, and a sentence that says why."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(n for n in there if there[n])
        return torch.device(
            name
        ), f"device {name} (the best one found), float32 (so small a model gains nothing from less)"
    if name not in there:
        raise ValueError(f"there is no device {name!r}: choose auto, cpu, cuda or mps")
    if not there[name]:
        raise ValueError(f"--device {name}: this machine, or this build of PyTorch, has none; try --device cpu")
    return torch.device(name), f"device {name} (asked for), float32"


def make_task(cfg: Config) -> Task:
    """A task takes the options that its constructor names."""
    task = TASKS[cfg.task]
    options = task.__init__.__code__.co_varnames[1 : task.__init__.__code__.co_argcount]
    return task(**{name: getattr(cfg, name) for name in options})


def make_model(cfg: Config, task: Task, device: torch.device) -> GPT:
    model = GPT(task.words.size, cfg.layers, cfg.heads, cfg.width, task.prompt_tokens + task.answer_tokens)
    return model.to(device)


def randomness(
    cfg: Config, step: int, device: torch.device, purpose: int = 0
) -> tuple[np.random.Generator, torch.Generator]:
    """The generators of one step, made from (seed, purpose, step) alone: a resumed run needs no saved generator state."""
    key = [cfg.seed, purpose, step]
    state = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)
    return np.random.default_rng(key), torch.Generator(device).manual_seed(state)


def batch(pool: list[Problem], cfg: Config, t: int) -> list[Problem]:
    """Step t's problems: each pass over the pool is shuffled anew, again from the seed alone."""
    where = range(t * cfg.problems, (t + 1) * cfg.problems)
    order = {e: np.random.default_rng([cfg.seed, 1, e]).permutation(len(pool)) for e in {i // len(pool) for i in where}}
    return [pool[order[i // len(pool)][i % len(pool)]] for i in where]


# ---------------------------------------------------------------------------------------------------------------------
# The base model: supervised fine-tuning on random legal play, with the same step as everything else.


def base_model(cfg: Config, task: Task, device: torch.device) -> tuple[GPT, dict]:
    """Knows the rules of the task, but not how to aim. Trained once and cached under a name made of its settings."""
    names = ["seed", "test", "layers", "heads", "width", "base_steps", "base_batch", "base_lr"]
    settings = {"format": FORMAT, "task": cfg.task, **{n: getattr(cfg, n) for n in names}, **vars(task)}
    settings = {k: v for k, v in settings.items() if isinstance(v, int | float | str)}
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    path = Path(cfg.cache) / f"{cfg.task}-{key}.pt"
    model = make_model(cfg, task, device)
    if path.exists():
        cached = load(path)
        model.load_state_dict(cached["model"])
        return model, cached["scores"]
    model.init_weights(randomness(cfg, 0, device, purpose=2)[1])
    matrices = [p for n, p in model.named_parameters() if p.dim() == 2 and n != "embed.weight"]
    others = [p for n, p in model.named_parameters() if p.dim() != 2 or n == "embed.weight"]
    optimizers = [  # Muon needs about a quarter of AdamW's steps here
        torch.optim.Muon(matrices, lr=cfg.base_lr, weight_decay=0),
        torch.optim.AdamW(others, lr=0.15 * cfg.base_lr, betas=(0.9, 0.95), weight_decay=0, fused=True),
    ]
    full_rates = [o.param_groups[0]["lr"] for o in optimizers]
    solo = replace(cfg, group=1, updates=1, warmup=0)
    torch.set_num_threads(os.cpu_count() or 1)
    for t in (bar := tqdm(range(cfg.base_steps), desc="base model", leave=False)):
        for optimizer, rate in zip(optimizers, full_rates):
            optimizer.param_groups[0]["lr"] = rate * min(1, 2 * (1 - t / cfg.base_steps))  # falls in the second half
        rng, generator = randomness(cfg, t, device, purpose=3)
        plays = [task.random_play(rng) for _ in range(cfg.base_batch)]
        step = Step(t, np.array([len(p.demo) for p in plays]), solo, rng)
        metrics = train_step(METHODS["sft"], model, model, optimizers, task, plays, step, generator)
        bar.set_postfix(loss=f"{metrics['loss']:.3f}")
    scores = test_scores(model, task, cfg, device)
    save(path, {"format": FORMAT, "model": model.state_dict(), "scores": scores})
    return model, scores


def save(path: Path, content: dict) -> None:
    """All or nothing: a crash while writing leaves the old file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    torch.save(content, temporary)
    temporary.replace(path)


def load(path: Path) -> dict:
    """A checkpoint of ours, or one sentence about why not."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"{path}: there is no such checkpoint") from None
    except Exception:  # what a broken archive raises depends on where it is broken
        raise ValueError(f"{path}: not a checkpoint, or a damaged one: delete it and train again") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path}: not a checkpoint of this version of nanouft")
    return content


# ---------------------------------------------------------------------------------------------------------------------
# Looking


def solve(
    model: GPT, task: Task, problems: list[Problem], n: int = 1, temperature: float = 0.0, generator=None
) -> torch.Tensor:
    """Without hints: which of n answers to each problem are right, (P, n) bool. Greedy unless a temperature is given."""
    parts = [problems[i : i + 1024 // n] for i in range(0, len(problems), 1024 // n)]
    rows = [rollout(model, task, part, np.zeros(len(part), int), n, temperature, generator).solved for part in parts]
    return torch.cat(rows).view(-1, n)


def test_scores(model: GPT, task: Task, cfg: Config, device: torch.device) -> dict:
    """Read once, at the end: greedy accuracy, accuracy on numbers never trained on, and success in one of 8 samples."""
    if not cfg.test:
        return {}
    test, unseen = task.split("test", cfg.test, 0), task.split("unseen", cfg.test, 0)
    eight = solve(model, task, test, 8, 1.0, randomness(cfg, 0, device, purpose=4)[1])
    return {
        "test": solve(model, task, test).float().mean().item(),
        "unseen": solve(model, task, unseen).float().mean().item(),
        "pass@8": eight.any(1).float().mean().item(),
    }


# ---------------------------------------------------------------------------------------------------------------------
# The run


class Patience:
    """Ctrl-C waits for the step to end, so that what is saved is whole. A second one does not wait."""

    def __enter__(self):
        self.asked = False
        main_thread = threading.current_thread() is threading.main_thread()
        self.before = signal.signal(signal.SIGINT, self.ask) if main_thread else None
        return self

    def ask(self, *_):
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(self, *_):
        if self.before is not None:
            signal.signal(signal.SIGINT, self.before)


def final_scores(model: GPT, task: Task, cfg: Config, device: torch.device, best: dict, base_scores: dict) -> dict:
    """Test scores of the base (`_before`), of the last model and of the checkpoint that validation chose (`_best`)."""
    chosen = make_model(cfg, task, device)
    chosen.load_state_dict(best["model"])
    after, at_best = test_scores(model, task, cfg, device), test_scores(chosen, task, cfg, device)
    before = {f"{name}_before": score for name, score in base_scores.items()}
    return {**before, **after, **{f"{name}_best": score for name, score in at_best.items()}, "best_step": best["step"]}


def claim(cfg: Config) -> None:
    """Take an empty folder for this run."""
    out = Path(cfg.out)
    if (out / "config.json").exists():
        raise ValueError(
            f"{out} already holds a run: continue it with --resume {out}, or choose another folder with --out"
        )
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(asdict(cfg), indent=1))


def read_metrics(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


MAY_CHANGE = ["steps", "out", "cache", "device", "threads"]  # when a run is resumed
CUMULATIVE = ["rollouts", "sampled_tokens", "demo_tokens", "seconds"]


def run(cfg: Config, resume: bool = False, line: int = 0) -> list[dict]:
    """Train one method; returns its metrics, one dict a step (the README defines each). `line` places the progress bar."""
    check(cfg)
    device, _ = pick_device(cfg.device)
    task = make_task(cfg)
    pool, validation = task.split("pool", cfg.demos, cfg.seed), task.split("validation", cfg.validation, 0)
    base, base_scores = base_model(cfg, task, device)
    torch.set_num_threads(cfg.threads)
    model = make_model(cfg, task, device)
    model.load_state_dict(base.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=cfg.lr, betas=(0.9, 0.95), weight_decay=0, fused=True)
    state = {"step": 0, "switch": {}, "best": {"accuracy": -1.0}}
    metrics, out = [], Path(cfg.out) if cfg.out else None
    if out and not resume:
        claim(cfg)
    if out and resume and (out / "checkpoint.pt").exists():
        saved = load(out / "checkpoint.pt")
        differ = [n for n, v in asdict(cfg).items() if n not in MAY_CHANGE and saved["config"].get(n) != v]
        if differ:
            raise ValueError(f"{out}: its checkpoint is of a run with another {', '.join(differ)}")
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        state = saved["state"]
        metrics = read_metrics(out)[: state["step"] + 1]

    def evaluate(record: dict) -> None:
        answers = rollout(model, task, validation, np.zeros(len(validation), int), 1, 0.0)
        record.update(accuracy=answers.solved.float().mean().item(), evaluated=True)
        if record["accuracy"] > state["best"]["accuracy"]:
            weights = {name: w.clone() for name, w in model.state_dict().items()}
            state["best"] = {"accuracy": record["accuracy"], "step": record["step"], "model": weights}
        record.setdefault("reward", answers.reward.mean().item())

    def checkpoint() -> None:
        if out:
            (out / "metrics.jsonl").write_text("".join(json.dumps(m) + "\n" for m in metrics))
            content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "state": state}
            save(out / "checkpoint.pt", {"format": FORMAT, "config": asdict(cfg), **content})

    if not metrics:
        metrics.append({"step": 0, **dict.fromkeys(CUMULATIVE, 0)})
        evaluate(metrics[0])
    bar = tqdm(total=cfg.steps, initial=state["step"], desc=f"{cfg.method:11s}", position=line, leave=True)
    with Patience() as patience, bar:
        for t in range(state["step"], cfg.steps):
            start = time.perf_counter()
            rng, generator = randomness(cfg, t, device)
            problems = batch(pool, cfg, t)
            step = Step(t, np.array([len(p.demo) for p in problems]), cfg, rng, state["switch"])
            record = train_step(METHODS[cfg.method], model, base, [optimizer], task, problems, step, generator)
            record["seconds"] = time.perf_counter() - start
            record = {"step": t + 1, **record, "accuracy": metrics[-1]["accuracy"], "evaluated": False}
            for name in CUMULATIVE:
                record[name] += metrics[-1][name]
            state["step"] = t + 1
            done = t + 1 == cfg.steps
            if done or (t + 1) % cfg.eval_every == 0:
                evaluate(record)
            if done:
                record.update(final_scores(model, task, cfg, device, state["best"], base_scores))
            metrics.append(record)
            bar.update()
            bar.set_postfix(reward=f"{record['reward']:.2f}", accuracy=f"{record['accuracy']:.1%}", refresh=False)
            if record["evaluated"] or patience.asked:
                checkpoint()
            if patience.asked:
                raise KeyboardInterrupt
    return metrics


# ---------------------------------------------------------------------------------------------------------------------
# What comes out: a table, a figure, a few answers in full


def percent(x: float) -> str:
    return f"{100 * x:.1f}"


def table(runs: list[tuple[Config, list[dict]]]) -> str:
    """Accuracies in percent. "chosen" is the checkpoint with the best validation accuracy."""
    head = ["method", "last", "chosen", "(step)", "unseen", "pass@8", "rollouts", "sampled tok", "demo tok", "seconds"]
    if not runs[0][0].test:
        return "(--test 0: the test was skipped)"
    before = runs[0][1][-1]
    lines = [
        [
            "base",
            percent(before["test_before"]),
            "",
            "",
            percent(before["unseen_before"]),
            percent(before["pass@8_before"]),
        ]
    ]
    for cfg, metrics in runs:
        m = metrics[-1]
        scores = [
            percent(m["test"]),
            percent(m["test_best"]),
            str(m["best_step"]),
            percent(m["unseen"]),
            percent(m["pass@8"]),
        ]
        spent = [f"{m['rollouts']:,}", f"{m['sampled_tokens']:,}", f"{m['demo_tokens']:,}", f"{m['seconds']:.0f}"]
        lines.append([cfg.method, *scores, *spent])
    return "\n".join(
        "".join(f"{word:>12s}" if i else f"{word:11s}" for i, word in enumerate(line)) for line in [head, *lines]
    )


def draw(runs: list[tuple[Config, list[dict]]], path: Path) -> None:
    """Accuracy without hints, and how often exploration finds an answer (UFT's figure 6), against steps."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), constrained_layout=True)
    for i, (cfg, metrics) in enumerate(runs):
        seen = [m for m in metrics if m.get("evaluated")]
        left.plot([m["step"] for m in seen], [100 * m["accuracy"] for m in seen], label=cfg.method, color=f"C{i}")
        tried = [m for m in metrics if m.get("explored_solved") is not None]
        if tried:
            width = min(25, len(tried))
            smooth = np.convolve([100 * m["explored_solved"] for m in tried], np.ones(width) / width, "valid")
            right.plot([m["step"] for m in tried][width - 1 :], smooth, label=cfg.method, color=f"C{i}")
    cfg = runs[0][0]
    left.axhline(100 * runs[0][1][0]["accuracy"], color="0.6", ls=":", label="base")
    for axis, title in (
        (left, "validation accuracy, greedy, no hints"),
        (right, "training rollouts that end in a solution"),
    ):
        axis.set(title=title, xlabel="step", ylabel="%", ylim=(0, None))
        axis.spines[["top", "right"]].set_visible(False)
    if any(c.method not in ("sft", "rft", "sft_rft", "sasr", "static", "mix") for c, _ in runs):
        right.axvline(cfg.hint_steps, color="0.8", lw=1)
        right.text(cfg.hint_steps, right.get_ylim()[1], " hints end", color="0.5", va="top")
    left.legend(frameon=False, fontsize=9)
    figure.suptitle(f"{cfg.task}, seed {cfg.seed}", fontsize=10, color="0.4")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def trained_model(out: Path) -> tuple[Config, Task, GPT]:
    saved = load(out / "checkpoint.pt")
    cfg = Config(**saved["config"])
    task = make_task(cfg)
    model = make_model(cfg, task, torch.device("cpu"))
    model.load_state_dict(saved["model"])
    return cfg, task, model


def examples(out: Path, each: int = 2) -> str:
    """A few solved and unsolved validation problems; what was given as a hint stands in [brackets]."""
    cfg, task, model = trained_model(out)
    problems = task.split("validation", min(cfg.validation, 64), 0)
    lines = [f"{cfg.method} on validation problems, sampled; [hint], then what it explored"]
    for given in (0, 1):
        hints = np.full(len(problems), given)
        rows = rollout(model, task, problems, hints, 1, 1.0, randomness(cfg, given, torch.device("cpu"), purpose=5)[1])
        for solved in (True, False):
            for i in (rows.solved == solved).nonzero()[:each, 0].tolist():
                hint, suffix = (
                    task.decode(rows.tokens[i, rows.hint[i]].tolist()),
                    task.decode(rows.tokens[i, rows.suffix[i]].tolist()),
                )
                text = (f"[{hint.strip()}]\n" if given else "") + suffix.replace("<end>", "")
                lines.append(
                    f"  {problems[i].prompt.strip():18s}  {text.replace(chr(10), '  '):36s}  reward {rows.reward[i]:.1f}"
                )
    return "\n".join(lines)


def answer(text: str, out: Path) -> str:
    """--ask: the greedy answer and some samples to a problem of the user's own, each with its reward."""
    cfg, task, model = trained_model(out)
    problem = task.parse(text)
    greedy = rollout(model, task, [problem], np.zeros(1, int), 1, 0.0)
    some = rollout(
        model, task, [problem], np.zeros(1, int), 16, 1.0, randomness(cfg, 0, torch.device("cpu"), purpose=6)[1]
    )
    lines = {}
    for rows, how in ((greedy, "greedy "), (some, "sampled")):
        for i in range(len(rows.tokens)):
            said = task.decode(rows.tokens[i, rows.suffix[i]].tolist()).replace("<end>", "").replace("\n", "  ")
            lines.setdefault(said, f"  {how}  {said:36s}  reward {rows.reward[i]:.1f}")
    return "\n".join([f"{cfg.method} ({out}) on {problem.prompt.strip()}", *lines.values()])


def methods_table() -> str:
    """The README's table of methods, out of the code itself."""
    lines = [
        "| method | paper | hint length l | c on hint tokens | A on the suffix | supervised step: l = L, c = 1 |",
        "|---|---|---|---|---|---|",
    ]
    for name, m in METHODS.items():
        advantage = "(r - mean) / std" if m.rl else "0"
        cells = [f"`{name}`", m.paper, m.hint.__doc__, m.coef.__doc__, advantage, m.supervised.__doc__]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------------------------------
# The command line


class Parser(argparse.ArgumentParser):
    def error(self, message: str):
        self.exit(2, f"nanouft: {message}. All flags: python train.py --help\n")


def parse_flags(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        description="Unified fine-tuning on toy tasks.", allow_abbrev=False, argument_default=argparse.SUPPRESS
    )
    for f in fields(Config):
        many = {"nargs": "+"} if f.name == "method" else {}
        parser.add_argument(f"--{f.name}", type=f.type, help=f"{f.metadata['help']} [{f.default}]", metavar="X", **many)
    parser.add_argument(
        "--jobs", type=int, metavar="N", help="methods trained side by side [the number of cores; 1 on a GPU]"
    )
    parser.add_argument(
        "--resume", metavar="DIR", help="continue what DIR holds; of the flags, only --steps may change the run"
    )
    parser.add_argument(
        "--ask", metavar="TEXT", help='let a trained model answer, e.g. "3 8 9 5 -> 47" (--out, --method choose which)'
    )
    parser.add_argument("--list", action="store_true", help="the table of methods")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    flags = vars(parse_flags(argv))
    if flags.pop("list", False):
        return print(methods_table())
    ask, resume, jobs = (flags.pop(name, None) for name in ("ask", "resume", "jobs"))
    methods = flags.pop("method", None)
    cfg = Config(**flags)
    job = Path(resume or cfg.out or f"out/{cfg.task}-seed{cfg.seed}")
    if ask is not None:
        single = (job / "checkpoint.pt").exists()
        return print(answer(ask, job if single else job / (methods or ["uft"])[0]))
    if resume:
        cfgs = resumed(job, flags, methods)
    else:
        cfgs = [replace(cfg, method=m, out=str(job / m)) for m in methods or DEMO]
        for c in cfgs:
            check(c)
            make_task(c)
        device, why = pick_device(cfg.device)
        for c in cfgs:
            claim(c)
    device, why = pick_device(cfgs[0].device)
    print(f"{why}; {len(cfgs)} method{'s' * (len(cfgs) > 1)}, writing to {job}/")
    try:
        for c in {(c.seed, c.task): c for c in cfgs}.values():
            base_model(c, make_task(c), device)
        jobs = jobs or (1 if device.type != "cpu" else min(len(cfgs), os.cpu_count() or 1))
        runs = list(zip(cfgs, run_all(cfgs, jobs)))
    except KeyboardInterrupt:
        print(f"\nstopped; nothing finished is lost. Go on with: python train.py --resume {job}", file=sys.stderr)
        sys.exit(130)
    print(table(runs), examples(Path(runs[-1][0].out)), sep="\n\n")
    draw(runs, job / "curves.png")
    print(f"\nfigure: {job / 'curves.png'}   one line a step: {job}/*/metrics.jsonl")


def resumed(job: Path, flags: dict, methods: list[str] | None) -> list[Config]:
    """The configurations that a folder holds: its own, or those of its sub-folders."""
    found = [job] if (job / "config.json").exists() else sorted(p.parent for p in job.glob("*/config.json"))
    fixed = sorted(set(flags) - set(MAY_CHANGE) | ({"method"} if methods else set()))
    if not found:
        raise ValueError(f"--resume {job}: no run there (expected a config.json in it or one level below)")
    if fixed:
        raise ValueError(f"--{fixed[0]} cannot change in a resumed run: leave it out, or start a new run with --out")
    flags.pop("out", None)
    return [replace(Config(**json.loads((p / "config.json").read_text())), **flags, out=str(p)) for p in found]


def run_all(cfgs: list[Config], jobs: int) -> list[list[dict]]:
    """Side by side: one process a run."""
    if jobs == 1:
        return [run(cfg, resume=True) for cfg in cfgs]
    context = multiprocessing.get_context("spawn")
    tqdm.set_lock(context.RLock())
    with ProcessPoolExecutor(jobs, context, initializer=quiet_worker, initargs=(tqdm.get_lock(),)) as pool:
        futures = [pool.submit(run, cfg, True, line) for line, cfg in enumerate(cfgs)]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def quiet_worker(lock) -> None:
    tqdm.set_lock(lock)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # between runs; inside one, Patience listens


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, FloatingPointError) as problem:
        sys.exit(f"nanouft: {problem}")
