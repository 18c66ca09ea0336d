"""Proves or refutes on one GPU what the tests can only show on a CPU. A check, not a test: pytest does not collect it.

python tests/gpu_check.py                   at most eight minutes on one card; all figures in out/gpu_check.json
python tests/gpu_check.py --device cpu      the same in miniature, as the tests run it

It compares the card with the CPU (log-probabilities, gradient, what is sampled), times a step and sample() beside TRL
and transformers where they are installed, and makes 50 steps of `make gpu`, of which it tells time and memory.
"""

import argparse
import copy
import json
import sys
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from data import make_task  # noqa: E402
from model import GPT, sample  # noqa: E402
from nanouft import METHODS, Rows, Step, log_probs, loss_sum, rollout  # noqa: E402
from tests import benchmark  # noqa: E402
from train import Config, make_model, parse, pick_device, randomness, run  # noqa: E402

MINIATURE = "--layers 1 --width 32 --problems 8 --base_steps 2 --steps 4 --demos 64 --validation 16".split()


def gradient(model: GPT, task, rows: Rows, cfg: Config) -> torch.Tensor:
    model.zero_grad()
    loss_sum(METHODS["uft"], Step(0, cfg, task, model, model, None, None), rows).backward()
    return torch.cat([p.grad.flatten().cpu() for p in model.parameters()])


def agreement(cfg: Config) -> dict[str, float]:
    """Of a batch of UFT's, on the device against on the CPU: the largest difference of a log-probability, and of the
    whole gradient, as a share of its norm. And how far n samples are from the distribution: total variation times
    the root of n, which is up to 3 by chance."""
    task = make_task(cfg.task)
    here = make_model(replace(cfg, device="cpu"), task)
    here.init_weights(torch.Generator().manual_seed(0))
    for p in here.parameters():
        p.data.mul_(3 if p.dim() == 2 else 1)  # far enough from uniform for a fault to show
    there = copy.deepcopy(here).to(pick_device(cfg))  # which sets the precision of its matrix products, too
    here.bf16, there.bf16 = [], [cfg.device] * len(there.bf16)  # so that the miniature, too, has something to compare
    problems = [p for p in task.split("pool", cfg.problems, 0) for _ in range(cfg.group)]
    rows = rollout(here, task, problems, np.arange(len(problems)) % 3, generator=torch.Generator().manual_seed(0))
    rows.weight = METHODS["uft"].weigh(Step(0, cfg, task, here, here, None, None), rows)
    moved = Rows(problems, *(x.to(cfg.device) for x in list(vars(rows).values())[1:]))
    with torch.no_grad():
        gap = (log_probs(here, rows)[0] - log_probs(there, moved)[0].cpu()).abs().max().item()
    ours, theirs = gradient(here, task, rows, cfg), gradient(there, task, moved, cfg)
    n, prompt = 1_000 * cfg.problems, task.encode(problems[0].prompt)
    words, logp = sample(there, [prompt] * n, [1] * n, task.end, task.pad, 1.0, randomness(cfg, 0)[1])
    share = torch.bincount(torch.tensor(words)[:, 0], minlength=task.writable) / n
    with torch.no_grad():
        p = here(torch.tensor([prompt]))[0, -1].softmax(-1)
    return {
        "log_probability": gap,
        "gradient": ((ours - theirs).norm() / ours.norm()).item(),
        "samples": (share - p).abs().sum().item() / 2 * n**0.5,
        "sampled_log_probability": (logp.cpu() - p.log()[torch.tensor(words)[:, 0]]).abs().max().item(),
    }


def alone(layers: int, width: int, N: int, repeat: int) -> dict[str, float]:
    """A full step of rft, without a peer."""
    task = benchmark.Lottery()
    model = benchmark.fresh(task, layers, width)
    step = benchmark.our_step("rft", task, model, Config(problems=N // 8, group=8, micro_batch=1024))
    seconds = float(np.median([benchmark.clock(step) for _ in range(repeat + 1)][1:]))
    return {"step_ms": 1e3 * seconds, "tokens_per_second": N * benchmark.ANSWER / seconds}


def preset(words: list[str]) -> dict[str, float]:
    """Fifty steps of `make gpu`, with rft: it samples most, and so takes longest."""
    line = (ROOT / "Makefile").read_text().replace("\\\n", " ").partition("notebooks/compare.py --task ")[2]
    (cfg,) = parse(["--task", *line.splitlines()[0].split()], ["rft"])
    with tempfile.TemporaryDirectory() as folder:
        more = "--test 0 --base_steps 100 --steps 50 --eval_every 50".split()
        (few,) = parse(["--task", *line.splitlines()[0].split(), *more, *words, "--cache", folder], ["rft"])
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()  # of what was timed before
        start = time.perf_counter()
        metrics = run(replace(few, out=""))
        step, whole = metrics[-1]["seconds"] / few.steps, time.perf_counter() - start
    base = (whole - metrics[-1]["seconds"]) / few.base_steps  # with two validations: a little too much
    found = {"step_seconds": step, "whole_run_minutes": (step * cfg.steps + base * cfg.base_steps) / 60}
    if torch.cuda.is_available():
        found["peak_memory_gb"] = torch.cuda.max_memory_allocated() / 2**30
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda", help="cuda, or cpu: in miniature")
    device = benchmark.DEVICE = parser.parse_args().device
    warnings.filterwarnings("ignore")
    small = device == "cpu"
    bars = {64: 0.02, 384: 0.1}  # by width: TF32 or float32, and bf16 in the blocks
    found = {"torch": torch.__version__, "device": device if small else torch.cuda.get_device_name()}
    for width, bar in bars.items():
        found[f"agreement, width {width}"] = gaps = agreement(
            Config(width=width, device=device, problems=4 if small else 64)
        )
        print(f"width {width}, {device} against cpu: " + ", ".join(f"{name} {x:.1e}" for name, x in gaps.items()))
        assert max(gaps["log_probability"], gaps["gradient"], gaps["sampled_log_probability"]) < bar, "they differ"
        assert gaps["samples"] < 5, "what is sampled does not follow the distribution"
    sizes = {"2 x 64": (2, 64, 64)} if small else {"2 x 64": (2, 64, 2048), "6 x 384": (6, 384, 2048)}
    for name, size in sizes.items():
        found[f"rft, {name}"] = x = alone(*size, repeat=2 if small else 10)
        print(f"rft, {name}, {size[2]} rows: {x['step_ms']:.0f} ms a step, {x['tokens_per_second']:,.0f} tokens/s")
    if small or benchmark.missing():
        print(benchmark.missing() or "miniature: nothing is timed beside peers")
    else:
        found["peers"] = benchmark.beside_peers(10, (1,))
        print(benchmark.table(found["peers"]))
    found["make gpu"] = x = preset(["--device", device, *(MINIATURE if small else [])])
    print("make gpu: " + ", ".join(f"{name} {value:.2f}" for name, value in x.items()))
    path = Path("out/gpu_check.json")
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(found, indent=1))
    print(f"all of it holds; figures in {path}")


if __name__ == "__main__":
    main()
