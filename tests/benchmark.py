"""How fast it is, beside what a user would pick instead. A benchmark, not a test: pytest does not collect it.

python tests/benchmark.py                into two tables and out/benchmark.json: four minutes on two CPU cores
python tests/benchmark.py --quick        a glance: three repetitions

The peers are transformers' generate and training step and TRL's GRPOTrainer, on the same weights (a Llama that
notebooks/export.py wrote), with the same prompts, rollouts, lengths, rewards and optimizer, in the same process,
taking turns. Each side uses the number of threads at which it is faster; medians.
"""

import argparse
import importlib.util
import json
import os
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from data import Problem, Task  # noqa: E402
from model import GPT, pad_rows, sample  # noqa: E402
from nanouft import METHODS, Step, train_step  # noqa: E402
from notebooks.export import write_llama  # noqa: E402
from train import Config, exploration  # noqa: E402

WORDS, PROMPT, ANSWER, GROUP = 176, 8, 12, 8  # with two blocks of 64: 112 thousand parameters
SIZES = (64, 512, 2048)  # rollouts
DEVICE = "cpu"  # tests/gpu_check.py sets another


class Lottery(Task):
    """Prompts and demonstrations of random words; one answer in twenty happens to be right, whatever the policy."""

    def __init__(self, prompt: int = PROMPT, answer: int = ANSWER):
        super().__init__([chr(0x4E00 + i) for i in range(WORDS - 2)])
        self.prompt_tokens, self.answer_tokens = prompt, answer

    def problem(self, rng: np.random.Generator, split: str = "pool") -> Problem:
        words = [self.decode([i]) for i in rng.integers(0, self.end, self.prompt_tokens + self.answer_tokens - 1)]
        return Problem("".join(words[: self.prompt_tokens]), words[self.prompt_tokens :])

    def reward(self, problem: Problem, answer: str) -> float:
        return 1.0 if sum(map(ord, answer)) % 20 == 0 else 0.1

    def read(self, ids: list[int]) -> str:
        return self.decode([i for i in ids if i < self.end])  # an answer that was cut off counts, too

    def best(self, problem: Problem) -> float:
        return 1.0


def fresh(task: Task, layers: int = 2, width: int = 64) -> GPT:
    model = GPT(task.vocab, layers, width, task.prompt_tokens + task.answer_tokens)
    model.init_weights(torch.Generator().manual_seed(0))
    return model.to(DEVICE)


def adam(model: torch.nn.Module) -> torch.optim.Optimizer:
    """At a learning rate that changes nothing one could see: each repetition has the same work to do."""
    return torch.optim.AdamW(model.parameters(), lr=1e-9, betas=(0.9, 0.95), weight_decay=0, fused=True)


def our_step(method: str, task: Task, model: GPT, cfg: Config) -> Callable[[], dict]:
    """One full step, as train.run does it: hints, rollouts, rewards, advantages, update."""
    optimizer, rng, generator = adam(model), np.random.default_rng(0), torch.Generator(DEVICE).manual_seed(0)
    pool = [task.problem(rng) for _ in range(1024)]

    def draw(share: float) -> list[Problem]:
        return [pool[i] for i in rng.choice(len(pool), cfg.problems, replace=cfg.problems > len(pool))]

    def step() -> dict:
        s = Step(0, cfg, task, model, model, draw, rng, generator=generator)
        return train_step(METHODS[method], s, [optimizer]) | exploration(s)

    return step


def clock(work: Callable) -> float:
    start = time.perf_counter()
    work()
    if DEVICE != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def turns(ours: Callable, theirs: Callable, repeat: int, thread_counts: tuple) -> dict:
    """Taking turns, at each number of threads; the first of each is not counted."""
    seconds = {}
    for threads in thread_counts:
        torch.set_num_threads(threads)
        times = np.array([[clock(ours), clock(theirs)] for _ in range(repeat + 1)])[1:]
        seconds[threads] = np.median(times, 0)
    return compare(seconds)


def compare(seconds: dict[int, tuple[float, float]]) -> dict:
    ours, theirs = (min(seconds, key=lambda n: seconds[n][side]) for side in (0, 1))
    return {
        "ours_ms": 1e3 * seconds[ours][0],
        "theirs_ms": 1e3 * seconds[theirs][1],
        "ratio": seconds[theirs][1] / seconds[ours][0],
        "threads": [ours, theirs],
    }


# ---------------------------------------------------------------------------------------------------------------------
# Beside peers


def grpo(task: Lottery, folder: str, N: int, repeat: int, thread_counts: tuple) -> dict:
    """A full GRPO step against TRL's: its trainer runs, and after each of its steps we make one of ours."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    rng = np.random.default_rng(0)
    prompts = Dataset.from_list([{"prompt": task.problem(rng).prompt} for _ in range(1024)])
    settings = GRPOConfig(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=N, num_generations=GROUP, bf16=False,
        max_completion_length=ANSWER, learning_rate=1e-9, optim="adamw_torch_fused", adam_beta2=0.95, max_grad_norm=1.0,
        gradient_checkpointing=False, beta=0.0, max_steps=repeat + 1, use_cpu=DEVICE == "cpu", report_to="none",
        save_strategy="no", logging_strategy="no", disable_tqdm=True, lr_scheduler_type="constant",
    )  # fmt: skip

    def reward(completion_ids, **_) -> list[float]:
        return [task.reward(None, task.read(ids)) for ids in completion_ids]

    cfg = Config(problems=N // GROUP, group=GROUP)
    seconds, trained = {}, []
    for threads in thread_counts:
        torch.set_num_threads(threads)
        model = AutoModelForCausalLM.from_pretrained(folder)
        step, times = our_step("rft", task, fresh(task), cfg), []

        class Turns(TrainerCallback):
            def on_step_end(self, *args, step=step, times=times, **more):
                theirs = time.perf_counter() - self.start
                start = time.perf_counter()
                trained.append(step()["trained_rows"] / N)
                times.append([time.perf_counter() - start, theirs])
                self.start = time.perf_counter()

            def on_train_begin(self, *args, **more):
                self.start = time.perf_counter()

        tokenizer = AutoTokenizer.from_pretrained(folder)
        GRPOTrainer(model, reward, settings, prompts, processing_class=tokenizer, callbacks=[Turns()]).train()
        seconds[threads] = np.median(times[1:], 0)
    return compare(seconds) | {"trained_share": float(np.mean(trained))}


def generate(task: Lottery, folder: str, N: int, ragged: bool, repeat: int, thread_counts: tuple) -> dict:
    """sample() against generate(): eight samples of each prompt, or one behind each of N hints of different lengths."""
    from transformers import AutoModelForCausalLM, GenerationConfig

    rng, model, peer = np.random.default_rng(0), fresh(task), AutoModelForCausalLM.from_pretrained(folder).to(DEVICE)
    n = 1 if ragged else GROUP
    problems = [task.problem(rng) for _ in range(N // n)]
    hints = rng.integers(0, ANSWER, len(problems)) * ragged
    prefixes = [task.encode(p.prompt + "".join(p.demo[:k])) for p, k in zip(problems, hints, strict=True)]
    tokens, length = pad_rows(prefixes, task.pad, torch.device(DEVICE), left=True)
    prefixes = [prefix for prefix in prefixes for _ in range(n)]
    limits, generator = [ANSWER - k for k in hints.tolist() for _ in range(n)], torch.Generator(DEVICE).manual_seed(0)
    mask = torch.arange(tokens.shape[1], device=DEVICE) >= tokens.shape[1] - length[:, None]
    # generate has one limit for all: where prefixes differ, it writes as much behind the longest.
    how = GenerationConfig(
        do_sample=True, top_k=0, max_new_tokens=ANSWER, num_return_sequences=n, use_cache=True,
        eos_token_id=task.end, pad_token_id=task.pad,
    )  # fmt: skip
    ours = lambda: sample(model, prefixes, limits, task.end, task.pad, 1.0, generator)  # noqa: E731
    theirs = lambda: peer.generate(tokens, attention_mask=mask.long(), generation_config=how)  # noqa: E731
    return turns(ours, theirs, repeat, thread_counts)


def supervised(task: Lottery, folder: str, N: int, repeat: int, thread_counts: tuple) -> dict:
    """A step of sft, from text to weights, against the same model in transformers on tokens that lie ready."""
    from transformers import AutoModelForCausalLM

    peer = AutoModelForCausalLM.from_pretrained(folder).to(DEVICE)
    optimizer, rng = adam(peer), np.random.default_rng(0)
    problems = [task.problem(rng) for _ in range(N)]
    tokens = torch.tensor([task.encode(p.prompt + "".join(p.demo)) + [task.end] for p in problems]).to(DEVICE)
    labels = tokens.clone()
    labels[:, :PROMPT] = -100

    def theirs() -> None:
        optimizer.zero_grad()
        peer(input_ids=tokens, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
        optimizer.step()

    ours = our_step("sft", task, fresh(task), Config(problems=N, group=1))
    return turns(ours, theirs, repeat, thread_counts)


# ---------------------------------------------------------------------------------------------------------------------
# On our own: how cost grows


def matmul_rate() -> float:
    """Floating-point operations a second, in a square matrix product."""
    a = torch.randn(1024, 1024)
    a @ a
    return 2 * 1024**3 / np.median([clock(lambda: a @ a) for _ in range(10)])


def cost(answer: int, problems: int, group: int, layers: int, width: int, repeat: int) -> dict:
    """A full step of rft: time, memory, and its share of what the cores can multiply. In a process of its own."""
    torch.set_num_threads(1)
    task = Lottery(answer=answer)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model = fresh(task, layers, width)
    step = our_step("rft", task, model, Config(problems=problems, group=group))
    step()
    seconds, records = [], []
    for _ in range(repeat):
        start = time.perf_counter()
        records.append(step())
        seconds.append(time.perf_counter() - start)
    # 2 operations a parameter for a sampled token, 6 for a trained one; prompts and attention come on top.
    N, tokens = sum(p.numel() for p in model.parameters()), records[-1]["sampled_tokens"]
    trained = tokens * np.mean([r["trained_rows"] for r in records]) / (problems * group)
    return {
        "ms": 1e3 * float(np.median(seconds)),
        "tokens_per_second": tokens / float(np.median(seconds)),
        "flops_share": (2 * tokens + 6 * trained) * N / float(np.median(seconds)) / matmul_rate(),
        "memory_mb": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
        "parameters": N,
    }


def growth(repeat: int) -> dict[str, dict]:
    """One thing at a time, from the middle: answers of 12, 64 problems x 8, two blocks of 64."""
    middle = dict(answer=ANSWER, problems=64, group=GROUP, layers=2, width=64)
    changes = [{}]
    changes += [{"answer": x} for x in (6, 24, 48)]
    changes += [{"problems": x} for x in (8, 256)]
    changes += [{"group": x} for x in (2, 32)]
    changes += [{"width": x, "layers": y} for x, y in ((32, 2), (128, 4), (256, 6))]
    found = {}
    for change in changes:
        name = ", ".join(f"{k} {x}" for k, x in change.items()) or "the middle"
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:  # anew for each, for its memory
            found[name] = pool.submit(cost, **middle | change, repeat=repeat).result()
    return found


def missing() -> str:
    peers = [name for name in ("transformers", "trl", "datasets") if importlib.util.find_spec(name) is None]
    return f"{', '.join(peers)} missing, so no comparison; add: pip install transformers trl" if peers else ""


def beside_peers(repeat: int, thread_counts: tuple) -> dict[str, dict]:
    task, found = Lottery(), {}
    with tempfile.TemporaryDirectory() as folder:
        write_llama(task, fresh(task).cpu(), Path(folder))
        for N in SIZES:
            few = max(repeat * 64 // N, min(repeat, 10))
            found[f"GRPO step / TRL, {N} rollouts"] = grpo(task, folder, N, few, thread_counts)
            found[f"sample / generate, {N} rows"] = generate(task, folder, N, False, few, thread_counts)
            found[f"sample / generate, {N} rows, ragged"] = generate(task, folder, N, True, few, thread_counts)
            found[f"SFT step / transformers, {N} rows"] = supervised(task, folder, N, few, thread_counts)
    return found


def table(rows: dict[str, dict]) -> str:
    """As Markdown."""
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    lines = [["", *columns], ["---"] * (1 + len(columns))]
    for name, row in rows.items():
        lines.append([name, *(write(row.get(c, "")) for c in columns)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write(x) -> str:
    if isinstance(x, float):
        return f"{x:,.0f}" if x >= 100 else f"{x:.1f}" if x >= 1 else f"{x:.2f}"
    return f"{x:,}" if isinstance(x, int) else " / ".join(map(str, x)) if isinstance(x, list) else x


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="three repetitions")
    repeat = 3 if parser.parse_args().quick else 40
    warnings.filterwarnings("ignore")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    thread_counts = tuple(sorted({1, min(2, os.cpu_count())}))
    found = {"matmul_gflops": {f"{n} threads": rate for n in thread_counts if (rate := matmul_at(n))}}
    found["growth"] = growth(max(3, repeat // 4))
    print(table(found["growth"]), flush=True)
    if absent := missing():
        print(f"\n{absent}")
    else:
        found["peers"] = beside_peers(repeat, thread_counts)
        print(f"\n{table(found['peers'])}")
    path = Path("out/benchmark.json")
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(found, indent=1))
    print(f"\nPyTorch {torch.__version__}, {os.cpu_count()} cores; all figures in {path}")


def matmul_at(threads: int) -> float:
    torch.set_num_threads(threads)
    return matmul_rate() / 1e9


if __name__ == "__main__":
    main()
