"""Train one method on one task.

python train.py --method uft                     one run, which ends in its scores and in what to do next
python train.py --method sft rft --seed 1        several, one after the other
python train.py --help                           all settings, methods and tasks
torchrun --nproc_per_node 4 train.py ...         several GPUs or machines share out the problems of each step
run(Config(method="uft"))                        the same from Python: returns the metrics; writes only out/base

Every random number follows from the seed, its purpose, the step and the process. So the same command goes on where it
was stopped, bit for bit on one machine, and a run that is killed loses only the steps since its last checkpoint.
"""

import argparse
import copy
import json
import os
import re
import time
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from data import TASKS, Problem, Task, make_task, options, read_options
from model import GPT
from nanouft import METHODS, Method, Step, gather, log_probs, rollout, train_step


@dataclass(frozen=True, init=False)
class Config:
    """All settings. The comment beside one is its --help. A task may have defaults of its own (Task.settings)."""

    task: str = "countdown"  # the task; its own options follow its name, as in tree:horizon=8,fork=2
    method: str = "uft"  # the method; on the command line also several
    seed: int = 0  # drives all but validation and test problems: the pool, weights, samples, hints, coins
    steps: int = 500  # training steps; each draws its problems anew
    device: str = "auto"  # cpu or cuda; auto takes a GPU from a million parameters on
    out: str = ""  # folder to write to (command line: out/TASK-seedN; from Python: none)
    cache: str = "out/base"  # folder of trained base models
    # problems and model
    demos: int = 1024  # problems to train on (the pool), each with a demonstration
    validation: int = 512  # validation problems: for curves, for grids and for the choice of a checkpoint
    test: int = 512  # problems of each test, read once, at the end; 0: no test
    layers: int = 2  # blocks
    width: int = 64  # of the model; a multiple of 16, the size of a head
    base_steps: int = 800  # steps of base training, of 64 random plays each; more make a stronger base
    # the step
    problems: int = 32  # problems a step
    group: int = 8  # rollouts a problem
    lr: float = 5e-4  # AdamW's learning rate
    decay: float = 0.0  # AdamW's weight decay
    second_lr: float = 0.0  # AdamW's learning rate after the warm-up of sft_rft and others in two stages; 0: lr
    reference: str = "base"  # of KL and implicit reward after that warm-up: base, or sft (the model that it made)
    updates: int = 1  # optimizer steps on the same rows; from the second on, clipping bites
    clip: float = 0.2  # ratios are clipped to 1 - clip .. 1 + clip
    kl_coef: float = 0.0  # weight of the KL to the base
    entropy_coef: float = 0.0  # weight of the entropy bonus
    micro_batch: int = 128  # rows in one forward pass; time and memory depend on it, the gradient does not
    # hints and switches
    hint_coef: float = 0.3  # c, the weight of the hint's log-likelihood; the UFT paper's beta
    hint_steps: int = 240  # T_hint: no hints from this step on
    hint_low: float = 0.05  # p(t) in the last step that has hints
    hint_high: float = 0.95  # p(t) at the start
    warmup: int = 100  # supervised steps that sft_rft, sasr and the like begin with
    gamma: float = 1.0  # SASR: factor on the warm-up's gradient norm
    # given answers
    beta: float = 0.03  # scale of the implicit reward, beta log(pi / base)
    share: float = 0.5  # of problems with a demonstration in a step (task skills); p_sft (method mix)
    # when to look, and when to stop
    eval_every: int = 50  # steps between validations; each is followed by a checkpoint
    until: float = 2.0  # stop once the validation accuracy (trees: the expected reward) is this high; 2: never

    def __init__(self, **settings):
        task = TASKS.get(settings.get("task", self.task).partition(":")[0], Task)
        defaults = read_options(task.settings, {f.name: f.default for f in fields(self)})
        if unknown := settings.keys() - defaults:
            raise TypeError(f"Config has no setting {unknown.pop()!r}")
        vars(self).update(defaults | settings)


FLAGS = {"method": {"choices": METHODS, "nargs": "+"}, "reference": {"choices": ["base", "sft"]}}
SHARES, AT_LEAST_1 = "hint_low hint_high share", "problems group updates micro_batch validation eval_every demos warmup"
MAY_CHANGE = "steps out cache device"  # where a stopped run goes on
COUNTED = ["rollouts", "sampled_tokens", "demo_tokens", "seconds"]  # from the run's start
FORMAT = 8  # of checkpoints; raise it when their content changes
RANK, LOCAL_RANK, PROCESSES = (int(os.environ.get(*x)) for x in (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 1)))


def check(cfg: Config) -> None:
    """What makes no sense is told before any work is done."""
    for f in fields(cfg):
        least = PROCESSES if f.name == "problems" else int(f.name in AT_LEAST_1)
        value, most = getattr(cfg, f.name), 1 if f.name in SHARES else 1_000_000
        if f.type is not str and not least <= value <= most:
            raise ValueError(f"--{f.name} {value}: expected a number from {least} to {most:,}")


# ---------------------------------------------------------------------------------------------------------------------
# Files


def save(path: Path, content: dict) -> None:
    """All or nothing: whoever dies while writing leaves the old file."""
    temporary = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"format": FORMAT} | content, temporary)
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch raises RuntimeError when the disk is full
        temporary.unlink(missing_ok=True)
        raise OSError(f"cannot write {path} ({error}); what was there before still is") from None


def load(path: Path) -> dict:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if zipfile.ZipFile(path).testzip() or content["format"] != FORMAT:  # torch.load looks at no checksums
            raise ValueError("damaged, or by another version of nanouft")
        return content
    except Exception as error:  # what a broken file raises depends on where it is broken
        raise ValueError(f"{path} is no checkpoint to go on from ({error}): train first, or delete it") from None


def saved_run(cfg: Config, steps: int) -> dict:
    """What the run's folder holds, or what a new run begins with. A folder that holds another run, or more steps of
    this one, is refused: when a run begins, and before each save, since a second process may be training the same."""
    path, metrics = Path(cfg.out, "checkpoint.pt"), [{"step": 0} | dict.fromkeys(COUNTED, 0)]
    new = {"config": asdict(cfg), "metrics": metrics, "memory": {}, "end": {}}
    saved = load(path) if cfg.out and path.exists() else new
    if changed := [n for n, x in asdict(cfg).items() if n not in MAY_CHANGE and saved["config"].get(n) != x]:
        raise ValueError(f"{cfg.out} holds another run, which differs in {', '.join(changed)}: choose another --out")
    if (more := len(saved["metrics"]) - 1) > steps:
        raise ValueError(f"{cfg.out} holds {more} steps of this run: they are not overwritten with only {steps}")
    return saved


# ---------------------------------------------------------------------------------------------------------------------
# Setting up


def pick_device(cfg: Config) -> torch.device:
    """auto: a GPU, if there is one, from a million parameters on: a smaller one would have it wait for Python."""
    cuda, large = torch.cuda.is_available(), 12 * cfg.layers * cfg.width**2 >= 1_000_000
    name = cfg.device if cfg.device != "auto" else "cuda" if cuda and large else "cpu"
    if name not in ["cpu"] + ["cuda"] * cuda:
        raise ValueError(f"--device {name}: expected auto, or what this machine has: cpu{', cuda' * cuda}")
    torch.set_float32_matmul_precision("high" if name == "cuda" else "highest")
    return torch.device(f"cuda:{LOCAL_RANK}" if name == "cuda" else "cpu")


def make_model(cfg: Config, task: Task) -> GPT:
    longest = task.prompt_tokens + task.answer_tokens
    return GPT(task.vocab, cfg.layers, cfg.width, longest, writable=task.writable).to(pick_device(cfg))


def randomness(cfg: Config, *purpose: int) -> tuple[np.random.Generator, torch.Generator]:
    """Generators made of seed and purpose alone; the step is part of the purpose, so resuming needs no saved state."""
    rng = np.random.default_rng([cfg.seed, *purpose])
    return rng, torch.Generator(pick_device(cfg)).manual_seed(int(rng.integers(2**62)))


def splits(cfg: Config, task: Task) -> dict[str, list[Problem]]:
    """Validation and test sets do not depend on the seed: all runs are measured on the same problems. (A tree is the
    run's own.)"""
    found = {"pool": task.split("pool", cfg.demos, cfg.seed), "validation": task.split("validation", cfg.validation, 0)}
    return found | {name: task.split(name, cfg.test, 0) for name in task.SPLITS[2:]}


def folder(cfg: Config) -> str:
    return re.sub("[:,=]", "-", cfg.task) + f"-seed{cfg.seed}"


def base_model(cfg: Config, task: Task) -> GPT:
    """Where every method starts: supervised fine-tuning, with the same train_step, on random legal play that ignores
    the target. So it knows the rules, not how to aim. It is cached by its settings. Where a task has no random_play, as
    on trees, it is an untrained model."""
    model = make_model(cfg, task)
    path = Path(cfg.cache, f"{folder(cfg)}-{task.vocab}-{cfg.layers}x{cfg.width}-{cfg.base_steps}.pt")
    if path.exists():
        model.load_state_dict(load(path)["model"])
        return model
    model.init_weights(randomness(cfg, 2)[1])
    # For the blocks' matrices Muon needs a quarter of the steps that AdamW would.
    muon = torch.optim.Muon([p for p in model.blocks.parameters() if p.dim() == 2], weight_decay=0)
    others = [p for p in model.parameters() if p.dim() == 1] + [model.embed.weight]
    adamw = torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0, fused=True)
    settings = replace(cfg, problems=64, group=1, updates=1)
    for t in tqdm(range(cfg.base_steps if task.random_play else 0), "base model", disable=None):
        rng, fall = randomness(cfg, 3, t)[0], min(1, 2 * (1 - t / cfg.base_steps))  # the second half: rates fall to 0
        muon.param_groups[0]["lr"], adamw.param_groups[0]["lr"] = 0.01 * fall, 0.006 * fall
        plays = [task.random_play(rng) for _ in range(settings.problems)]
        train_step(METHODS["sft"], Step(t, settings, task, model, model, lambda _, x=plays: x, None), [muon, adamw])
    if task.random_play:
        save(path, {"model": model.state_dict()})
    return model


# ---------------------------------------------------------------------------------------------------------------------
# What a policy can do, without hints


@torch.no_grad()
def evaluate(policy: GPT, task: Task, problems: list[Problem]) -> dict[str, float]:
    """Greedy answers, one to each problem; on a tree E[reward], exactly."""
    greedy = rollout(policy, task, problems, [0] * len(problems), 0.0)
    found = {"accuracy": greedy.solved, "reward": greedy.reward}
    if task.leaves:  # all other answers are worth the same
        leaves = [replace(problems[0], demo=[leaf]) for leaf in task.leaves]
        rows = rollout(policy, task, leaves, [1] * len(leaves))
        p = (log_probs(policy, rows)[0] * rows.hint).sum(1).exp()
        found["expected_reward"] = task.WRONG + (p * (rows.reward - task.WRONG)).sum()
    return {name: x.float().mean().item() for name, x in found.items()}


def score(record: dict) -> float:
    """What validation goes by; below everything where a step had none."""
    return record.get("expected_reward", record["accuracy"]) if "evaluated" in record else -1.0


# ---------------------------------------------------------------------------------------------------------------------
# The run


def exploration(s: Step) -> dict[str, float]:
    """A step's metrics on everything that was rolled out in it."""
    each = [(x.suffix.sum(1), x.reward, x.solved, x.logp.sum(1)) for x in s.explored]
    n, reward, solved, logp = (torch.cat(column).double() for column in zip(*each, strict=True))
    tried, groups = (n > 0).double(), s.rows.reward.view(-1, s.cfg.group)  # nothing is left to try after a full hint
    sums = torch.stack([x.sum() for x in (tried, n, reward, solved * tried, logp)])
    rollouts, sampled, rewards, right, logp = sums.tolist()  # read once: a GPU waits for it
    found = {"rollouts": rollouts, "sampled_tokens": sampled, "reward": rewards / len(reward)}
    found["frac_reward_zero_std"] = (groups == groups[:, :1]).all(1).float().mean().item()
    return found | ({"explored_solved": right / rollouts, "entropy": -logp / sampled} if rollouts else {})


def learn(method: Method, s: Step, optimizer: torch.optim.Optimizer, last: dict) -> dict:
    """One step: its metrics. Counts and the loss are sums over all processes; averages are of this one's own rows."""
    clock, before = time.perf_counter(), dict(s.memory)
    record = train_step(method, s, [optimizer]) | exploration(s)
    if wrong := [name for name, x in record.items() if not np.isfinite(x)]:
        raise ValueError(f"step {s.t + 1}: {', '.join(wrong)} not finite; start again with a smaller --lr")
    for changes in gather({name: x for name, x in s.memory.items() if before.get(name) is not x}):
        s.memory |= changes  # of other processes, which drew other problems
    everyone = gather(record)
    record |= {name: sum(r[name] for r in everyone) for name in [*COUNTED[:-1], "trained_rows", "loss"]}
    record |= {"step": s.t + 1, "seconds": time.perf_counter() - clock, "accuracy": last["accuracy"]}
    return record | {name: record[name] + last[name] for name in COUNTED}


def run(cfg: Config, watch: Callable = lambda *_: {}) -> list[dict]:
    """Train one method, from where its folder left off. Returns its metrics, a dict for step 0 and for every step.
    watch(name of the split, step with its problems) may add metrics to a validation or test."""
    check(cfg)
    task, method, saved = make_task(cfg.task, cfg.seed), METHODS[cfg.method], saved_run(cfg, cfg.steps)
    model, sets = make_model(cfg, task), splits(cfg, task)
    weights = base_model(cfg, task).state_dict() if RANK == 0 else None  # one base, however many processes there are
    if PROCESSES > 1 and not torch.distributed.is_initialized():
        torch.distributed.init_process_group()  # here the others wait for the base
    weights, saved = gather((weights, saved))[0]
    model.load_state_dict(weights)
    base, reference, best = (copy.deepcopy(model) for _ in range(3))  # best: on validation
    task.prepare(sets["pool"], base, cfg)
    optimizer = torch.optim.AdamW(model.parameters(), lr=cfg.lr, betas=(0.9, 0.95), weight_decay=cfg.decay, fused=True)
    parts = {"model": model, "reference": reference, "best": best, "optimizer": optimizer}
    metrics, memory, end = saved["metrics"], saved["memory"], saved["end"]
    for name in parts.keys() & saved.keys():
        parts[name].load_state_dict(saved[name])

    def look(name: str, *purpose: int) -> dict:
        rng, generator = randomness(cfg, *purpose)
        s = Step(len(metrics) - 1, cfg, task, model, base, None, rng, 0.0, generator, problems=sets[name])
        return evaluate(model, task, sets[name]) | watch(name, s)

    for t in range(len(metrics) - 1, cfg.steps + 1):
        last = metrics[-1]
        if t % cfg.eval_every == 0 and "evaluated" not in last:
            found = gather(look("validation", 7, t))[0]
            last |= found | {"reward": last.get("reward", found["reward"]), "evaluated": True}  # the step's own, if any
            if last is max(metrics, key=score):
                best.load_state_dict(model.state_dict())
        over = t == cfg.steps or score(last) >= cfg.until
        for name in task.SPLITS[2:] if over and cfg.test and not end else ():
            found = look(name, 4)
            end |= {name: found.pop("accuracy")} | {f"{n}_{name}": x for n, x in found.items()}
            end[f"{name}_chosen"] = evaluate(best, task, sets[name])["accuracy"]
        whole = [*metrics[:-1], last | end]
        if RANK == 0 and cfg.out and (over or "evaluated" in last):
            saved_run(cfg, t)
            content = {"config": asdict(cfg), "metrics": metrics, "memory": memory, "end": end}
            save(Path(cfg.out, "checkpoint.pt"), content | {name: part.state_dict() for name, part in parts.items()})
            Path(cfg.out, "metrics.jsonl").write_text("".join(json.dumps(m) + "\n" for m in whole))
            told = f"reward {last['reward']:.2f}  accuracy {last['accuracy']:6.1%}  {last['seconds']:5.0f} s"
            print(f"{Path(cfg.out).name:12s} step {t:5d}  {told}", flush=True)
        if over:
            return whole
        if method.warm and not method.p_sft and t == cfg.warmup:
            optimizer.param_groups[0]["lr"] = cfg.second_lr or cfg.lr
            reference.load_state_dict({"base": base, "sft": model}[cfg.reference].state_dict())
        rng, generator = randomness(cfg, 0, t, RANK)
        first = rng if RANK == 0 else randomness(cfg, 0, t, 0)[0]  # all draw the same problems; each takes its share
        draw = lambda share, rng=first: task.choose(sets["pool"], cfg.problems, share, rng)[RANK::PROCESSES]  # noqa: E731
        s = Step(t, cfg, task, model, reference, draw, rng, randomness(cfg, 8, t)[0].random(), generator, memory)
        metrics, end = [*metrics, learn(method, s, optimizer, last)], {}
        memory = json.loads(json.dumps(memory, default=lambda x: x.tolist()))  # always as a checkpoint would have it


# ---------------------------------------------------------------------------------------------------------------------
# The command line


def parse(argv: list[str] | None, methods: list[str]) -> list[Config]:
    """Flags -> a run for each method."""
    about = dict(re.findall(r"^    (\w+): .*  # (.*)$", Path(__file__).read_text(), re.M))
    ends = "The tasks and their options: " + "; ".join(f"{kind} {options(kind)}" for kind in TASKS)
    parser = argparse.ArgumentParser(usage="%(prog)s --SETTING X ...", argument_default=argparse.SUPPRESS, epilog=ends)
    for f in fields(Config):
        how = {"type": f.type, "help": f"{about[f.name]} [{f.default}]"} | FLAGS.get(f.name, {"metavar": "X"})
        parser.add_argument(f"--{f.name}", **how)
    settings = {"method": methods} | vars(parser.parse_args(argv))
    methods, cfg = dict.fromkeys(settings.pop("method")), Config(**settings)
    return [replace(cfg, method=name, out=f"{cfg.out or f'out/{folder(cfg)}'}/{name}") for name in methods]


def one_by_one(runs: list[Config]) -> None:
    for cfg in runs:
        end = run(cfg)[-1]
        if RANK == 0:
            found = [f"{name} {x:.3f}" for name, x in end.items() if name in ("test", "expected_reward")]
            print(f"{cfg.method}:", *found, f"  to ask it: python notebooks/ask.py --run {cfg.out}")


def main(argv: list[str] | None = None, work: Callable = one_by_one, methods: tuple = ("uft",)) -> None:
    """What a person can mend ends in a sentence; a bug, in its traceback."""
    try:
        work(parse(argv, methods))
    except KeyboardInterrupt:
        raise SystemExit("\nnanouft: stopped; the same command goes on from the last checkpoint") from None
    except (ValueError, OSError) as problem:
        raise SystemExit(f"nanouft: {problem}") from None


if __name__ == "__main__":
    main()
