"""Several processes, as torchrun starts them: together they are one."""

import copy
import json
import os
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from test_nanouft import Keep, a_step, some_rows

from data import TASKS, make_task
from model import GPT
from nanouft import METHODS, train_step, update
from train import Config, load, randomness, splits

ROOT = Path(__file__).parent.parent
CFG = Config(problems=6, group=4, hint_steps=10, warmup=2, test=0)


def fixed():
    task = TASKS["countdown"]()
    model = GPT(task.vocab, 1, 32, task.prompt_tokens + task.answer_tokens)
    model.init_weights(torch.Generator().manual_seed(0))
    problems = task.split("pool", 6, 0)
    rows = some_rows(model, task, problems, np.arange(6) % 5)
    A, c = torch.linspace(-1, 1, 24)[:, None], torch.linspace(0, 1, 24)[:, None]
    return task, model, problems, replace(rows, weight=A * rows.suffix + c * rows.hint)


def a_part(problems_of, task, model, problems):
    """A step on some of the problems, and an optimizer that keeps its gradient."""
    s = a_step(model, task, [problems[i] for i in problems_of], base=copy.deepcopy(model))
    s.cfg = CFG
    return s, Keep(model)


def supervised(problems_of, task, model, problems, rows) -> torch.Tensor:
    """A whole step of sft on some of the problems."""
    s, keep = a_part(problems_of, task, model, problems)
    train_step(METHODS["sft"], s, [keep])
    return keep.gradient


def explored(problems_of, task, model, problems, rows, useful=slice(0, 24)) -> torch.Tensor:
    """An update on the rows of some of the problems, of which only the useful ones have weights."""
    s, keep = a_part(problems_of, task, model, problems)
    keeps = torch.zeros(24, 1)
    keeps[useful] = 1.0
    some = torch.tensor([4 * i + k for i in problems_of for k in range(4)])
    s.rows = replace(rows, weight=rows.weight * keeps).take(some)
    update(METHODS["uft"], s, [keep])
    return keep.gradient


def only_first(*args):
    return explored(*args, useful=slice(0, 4))  # of the first problem: the second process has nothing to train on


def nothing(*args):
    return explored(*args, useful=slice(0, 0))


WORKS = [supervised, explored, only_first, nothing]


def in_a_process(rank: int, folder: Path, shares) -> None:
    torch.set_num_threads(1)
    timeout = timedelta(seconds=60)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=len(shares), timeout=timeout)
    torch.save([work(shares[rank], *fixed()) for work in WORKS], folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes_have_the_gradient_of_one(tmp_path):
    """A mean of means (the shares differ in size), a normaliser for each, or a process without useful rows that leaves
    the other one waiting."""
    mp.spawn(in_a_process, (tmp_path, [[0, 1, 2, 3], [4, 5]]), nprocs=2)
    for work, first, second in zip(WORKS, *(torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)), strict=True):
        alone = work(range(6), *fixed())
        if work is nothing:
            assert len(alone) == len(first) == len(second) == 0
        else:
            assert torch.equal(first, second) and alone.abs().max() > 0.001
            assert torch.allclose(first, alone, atol=1e-6)


def test_torchrun_trains_and_one_process_writes(tmp_path):
    """Processes that toss different coins, that draw the same problems, that drift apart, or that each write a folder;
    a memory of which only the first process's part is kept."""
    sizes = "--task countdown:numbers=3 --base_steps 4 --layers 1 --width 16"
    sizes += " --steps 12 --eval_every 6 --hint_steps 8 --warmup 3 --problems 5 --group 8"
    sizes += " --demos 99 --validation 4 --test 0"
    command = f"notebooks/family.py {sizes} --method sasr dapo adaback --out {tmp_path}/run --cache {tmp_path}"
    where = "--nproc_per_node 2 --rdzv-backend c10d --rdzv-endpoint localhost:0"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", *where.split(), *command.split()]
    done = subprocess.run(torchrun, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("adaback: ") == 1
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["adaback", "dapo", "sasr"]
    for method in ("sasr", "dapo", "adaback"):
        metrics = [json.loads(x) for x in (tmp_path / "run" / method / "metrics.jsonl").read_text().splitlines()]
        assert [m["step"] for m in metrics] == list(range(13))
        assert all(m["supervised"] in (0, 1) for m in metrics[1:])
        if method == "sasr":  # all five problems of a step explore, or none
            assert {b["rollouts"] - a["rollouts"] for a, b in zip(metrics, metrics[1:], strict=False)} == {0, 40}
    saved = load(tmp_path / "run" / "adaback" / "checkpoint.pt")
    cfg = Config(**saved["config"])
    task = make_task(cfg.task)
    pool = splits(cfg, task)["pool"]
    drawn = {p.prompt for t in range(12) for p in task.choose(pool, 5, 1.0, randomness(cfg, 0, t, 0)[0])}
    assert saved["memory"].keys() - {"rho"} == drawn
