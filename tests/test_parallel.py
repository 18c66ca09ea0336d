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
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from test_nanouft import Keep

from data import TASKS
from model import GPT
from nanouft import METHODS, Rows, Step, evenly, rollout, train_step, update
from train import Config

ROOT = Path(__file__).parent.parent
CFG = Config(group=4, hint_steps=10, warmup=2, test=0, entropy_coef=0.02)


def fixed():
    task = TASKS["countdown"]()
    model = GPT(task.vocab, 1, 32, task.prompt_tokens + task.answer_tokens)
    model.init_weights(torch.Generator().manual_seed(0))
    problems = task.split("pool", 6, 0)
    rows = rollout(model, task, problems, np.arange(6) % 4, CFG.group, 1.0, torch.Generator().manual_seed(0))
    rows.advantage, rows.hint_weight = torch.linspace(-1, 1, 24), torch.linspace(0, 1, 24)
    return task, model, problems, rows


def supervised(problems_of, task, model, problems, rows) -> torch.Tensor:
    """A whole step of sft on some of the problems."""
    keep = Keep(model)
    some = [problems[i] for i in problems_of]
    train_step(METHODS["sft"], model, model, [keep], task, some, Step(0, CFG, np.random.default_rng(0)), None)
    return keep.gradient


def explored(problems_of, task, model, problems, rows, useful=slice(0, 24)) -> torch.Tensor:
    """An update on the rows of some of the problems, of which only the useful ones have weights."""
    keep, weight = Keep(model), torch.zeros(24)
    weight[useful] = 1.0
    some = torch.tensor([4 * i + k for i in problems_of for k in range(4)])
    rows = replace(rows, advantage=rows.advantage * weight, hint_weight=rows.hint_weight * weight)
    s = Step(0, replace(CFG, entropy_coef=0.0), None, Z=24 * 18, model=model, base=copy.deepcopy(model))
    update(Rows(*(x[some] for x in vars(rows).values())), [keep], evenly, s)
    return keep.gradient


def only_first(*args):
    return explored(*args, useful=slice(0, 4))  # of the first problem: the second process has nothing to train on


def nothing(*args):
    return explored(*args, useful=slice(0, 0))


def in_a_process(rank: int, folder: Path, work, shares) -> None:
    torch.set_num_threads(1)
    timeout = timedelta(seconds=60)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=len(shares), timeout=timeout)
    torch.save(work(shares[rank], *fixed()), folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("work", [supervised, explored, only_first, nothing])
def test_two_processes_have_the_gradient_of_one(work, tmp_path):
    """A mean of means (the shares differ in size), a normaliser for each, or a process without useful rows that leaves
    the other one waiting."""
    alone = work(range(6), *fixed())
    mp.spawn(in_a_process, (tmp_path, work, [[0, 1, 2, 3], [4, 5]]), nprocs=2)
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    if work is nothing:
        assert len(alone) == len(results[0]) == len(results[1]) == 0
    else:
        assert torch.equal(results[0], results[1]) and alone.abs().max() > 0.01
        assert torch.allclose(results[0], alone, atol=1e-6)


def test_torchrun_trains_and_one_process_writes(tmp_path):
    """Processes that toss different coins, that drift apart, or that each write a folder."""
    sizes = (
        "--task tree --horizon 4 --fork 1 --steps 12 --eval_every 6 --hint_steps 8 --warmup 3 --problems 5 --group 8"
    )
    command = f"train.py {sizes} --method sasr dapo --out {tmp_path}/run"
    where = "--nproc_per_node 2 --rdzv-backend c10d --rdzv-endpoint localhost:0"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", *where.split(), *command.split()]
    done = subprocess.run(torchrun, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("device cpu") == 1
    assert done.stdout.count("sasr answers") + done.stdout.count("dapo answers") == 1
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["curves.png", "dapo", "sasr"]
    for method in ("sasr", "dapo"):
        metrics = [json.loads(x) for x in (tmp_path / "run" / method / "metrics.jsonl").read_text().splitlines()]
        assert [m["step"] for m in metrics] == list(range(13))
        assert all(m["supervised"] in (0, 1) for m in metrics[1:])
        if method == "sasr":  # all five problems of a step explore, or none
            assert {b["rollouts"] - a["rollouts"] for a, b in zip(metrics, metrics[1:], strict=False)} == {0, 40}
