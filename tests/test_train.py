"""train.py: resuming, seeds, bad input, and that something is learnt. Docstrings name the mistake guarded against."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import train
from data import TASKS, Task, make_task
from nanouft import METHODS
from notebooks import compare
from notebooks.chain import Chain
from notebooks.lab import behaviour
from train import Config, main, run

ROOT = Path(__file__).parent.parent
TINY = dict(task="countdown:numbers=3,ops=all", layers=1, width=16, base_steps=8, problems=8, group=4, demos=64)
TINY |= dict(validation=32, test=32, device="cpu", steps=10, eval_every=5, hint_steps=8, warmup=3)


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("base"))


@pytest.fixture
def tiny(cache) -> Config:
    return Config(**TINY, cache=cache)


def flags(cache: str, **more) -> list[str]:
    return [word for name, value in {**TINY, "cache": cache, **more}.items() for word in (f"--{name}", str(value))]


def without_times(metrics: list[dict]) -> list[dict]:
    return [{name: x for name, x in m.items() if name != "seconds"} for m in metrics]


def weights(folder: Path) -> torch.Tensor:
    saved = train.load(folder / "checkpoint.pt")
    moments = [x for state in saved["optimizer"]["state"].values() for x in state.values()]
    return torch.cat([x.flatten() for x in [*saved["model"].values(), *saved["best"].values(), *moments]])


# ---------------------------------------------------------------------------------------------------------------------
# The same run, whenever it is made


@pytest.mark.parametrize(("method", "stop"), [("uft", 5), ("sasr", 5), ("uft", 7)])
def test_some_steps_and_the_rest_are_the_whole(tiny, tmp_path, method, stop):
    """A resumed run that repeats a batch, restarts a schedule, or forgets the switch or the optimizer's moments; a
    stop between validations that leaves a trace; test scores in the middle."""
    whole = run(replace(tiny, method=method, out=str(tmp_path / "whole")))
    half = replace(tiny, method=method, out=str(tmp_path / "half"), steps=stop)
    assert "test" in run(half)[-1]
    resumed = run(replace(half, steps=10))
    assert without_times(resumed) == without_times(whole) and [m["step"] for m in resumed] == list(range(11))
    assert ["test" in m for m in resumed] == [False] * 10 + [True]
    assert torch.equal(weights(tmp_path / "whole"), weights(tmp_path / "half"))


def test_a_finished_run_is_not_made_again(tiny, tmp_path, monkeypatch):
    """A test that is read once more; a run that its own end does not stop."""
    cfg = replace(tiny, out=str(tmp_path))
    first = run(cfg)
    monkeypatch.setattr(train, "evaluate", lambda *_: 1 / 0)
    assert run(cfg) == first


def test_until_is_reached_before_the_first_step(tiny, tmp_path):
    """A run that trains nothing, and so leaves no checkpoint; or trains on for ever."""
    metrics = run(replace(tiny, until=0.0, out=str(tmp_path)))
    assert [m["step"] for m in metrics] == [0] and {"test", "test_chosen"} <= metrics[0].keys()
    assert train.load(tmp_path / "checkpoint.pt")["metrics"][0]["step"] == 0


def test_chosen_is_the_checkpoint_that_validated_best(tiny, tmp_path, monkeypatch):
    """The base, or the last one, under this name."""
    cfg = replace(tiny, method="sft", steps=20, out=str(tmp_path / "whole"))
    run(replace(cfg, steps=5, out=str(tmp_path / "short")))
    for step, of in {5: "short", 20: "whole-20"}.items():
        monkeypatch.setattr(train, "score", lambda m, step=step: float(m["step"] == step))
        run(replace(cfg, out=f"{cfg.out}-{step}"))
        best, there = (train.load(Path(out, "checkpoint.pt")) for out in (f"{cfg.out}-{step}", tmp_path / of))
        assert all(torch.equal(x, there["model"][name]) for name, x in best["best"].items())


def test_what_a_method_may_keep(tiny, tmp_path, monkeypatch):
    """NumPy's numbers in a memory: a checkpoint that cannot be read, and is called damaged. Numbers as keys, which a
    file would turn into text: a resumed run that no longer finds what it kept."""
    kept, seen = [np.float64(0.5), {"a prompt": (np.int64(2), np.arange(3))}], []

    def remember(s) -> float:
        seen.append(s.memory.get("kept"))
        s.memory["kept"] = kept
        return 0.0

    monkeypatch.setitem(METHODS, "own", replace(METHODS["rft"], p_sft=remember))
    cfg = replace(tiny, method="own", steps=5, out=str(tmp_path))
    run(cfg)
    assert run(replace(cfg, steps=10))[-1]["step"] == 10
    assert seen == [None] + 9 * [[0.5, {"a prompt": [2, [0, 1, 2]]}]]


def test_one_seed_drives_everything(tiny):
    """A seed that is read but changes nothing; or randomness that no seed drives."""
    first, again, other = run(tiny), run(tiny), run(replace(tiny, seed=1))
    assert without_times(first) == without_times(again)
    assert [m.get("entropy") for m in first] != [m.get("entropy") for m in other]
    task = make_task(tiny.task)
    sets = [train.splits(replace(tiny, seed=seed), task) for seed in (0, 1)]
    pools, tests = ([[p.prompt for p in some[name]] for some in sets] for name in ("pool", "test"))
    bases = [train.base_model(replace(tiny, seed=seed), task).embed.weight for seed in (0, 1)]
    draws = [train.randomness(replace(tiny, seed=seed), 0, 3) for seed in (0, 0, 1)]
    orders = [list(rng.permutation(64)) for rng, _ in draws]
    samples = [torch.rand(4, generator=generator).tolist() for _, generator in draws]
    assert pools[0] != pools[1] and tests[0] == tests[1] and not torch.equal(*bases)
    assert orders[0] == orders[1] != orders[2] and samples[0] == samples[1] != samples[2]


def test_it_trains_on_the_pool_alone(tiny, monkeypatch):
    """Test problems among those that a step draws from."""
    seen, choose = set(), Task.choose
    monkeypatch.setattr(Task, "choose", lambda self, *x: seen.update(p.prompt for p in x[0]) or choose(self, *x))
    run(tiny)
    assert seen == {p.prompt for p in train.splits(tiny, make_task(tiny.task))["pool"]}


def test_a_task_is_made_of_the_runs_seed():
    """Ten seeds of one tree."""
    trees = [make_task("tree:horizon=8", seed).only.demo for seed in (0, 0, 1)]
    assert trees[0] == trees[1] != trees[2]


def test_presets_hold_in_python_too():
    """A default that only the command line knows; one that goes before what was asked for."""
    assert (Config(task="tree:fork=2").width, Config(task="tree", width=64).width, Config().width) == (32, 64, 64)
    assert replace(Config(task="tree", lr=0.5), seed=1) == Config(task="tree", lr=0.5, seed=1)
    with pytest.raises(TypeError, match="no setting 'learning_rate'"):
        Config(learning_rate=1.0)


def test_metrics_hold_what_others_rely_on(tiny, tmp_path):
    """Keys that come and go; counters that do not add up; a metric that no page explains."""
    metrics = run(replace(tiny, out=str(tmp_path)), behaviour)
    always = {"step", "rollouts", "sampled_tokens", "demo_tokens", "reward", "accuracy", "seconds"}
    assert all(always <= m.keys() for m in metrics)
    assert [m["step"] for m in metrics if m.get("evaluated")] == [0, 5, 10]
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == metrics
    for name in ("rollouts", "sampled_tokens", "demo_tokens", "seconds"):
        assert all(a[name] <= b[name] for a, b in zip(metrics, metrics[1:], strict=False))
    assert (
        0 < metrics[-1]["rollouts"] < 10 * 8 * 4
        and {"test", "test_chosen", "unseen", "pass@8_test"} <= metrics[-1].keys()
    )
    documented = set(re.findall(r"^\| `([^`]+)`", (ROOT / "notebooks/README.md").read_text(), re.M))
    names = {re.sub("(_test|_unseen)?(_chosen)?$", "", name) for m in metrics for name in m}
    assert names <= documented


def test_tokens_of_demonstrations(tiny):
    """Hints that are read but not trained on; a hint that counts for each row of its group."""
    last = {name: run(replace(tiny, method=name, test=0))[-1] for name in ("sft", "rft", "r3", "uft")}
    sft, rft, r3, uft = last.values()
    assert sft["demo_tokens"] == 10 * 8 * 12 and sft["rollouts"] == sft["sampled_tokens"] == 0
    assert rft["demo_tokens"] == r3["demo_tokens"] == 0 and rft["rollouts"] == 10 * 8 * 4
    assert 0 < uft["demo_tokens"] < 10 * 8 * 12


@pytest.mark.slow
def test_it_learns(cache):
    """Everything above may hold of a step that does not learn: four numbers, three equations, none trained on."""
    cfg = Config(
        task="countdown:numbers=4", base_steps=300, demos=400, validation=150, test=0,
        problems=32, group=4, steps=80, hint_steps=110, hint_coef=1.0, lr=1e-3, eval_every=80, cache=cache,
    )  # fmt: skip
    for method in ("uft", "sft"):
        metrics = run(replace(cfg, method=method))
        assert metrics[-1]["accuracy"] > metrics[0]["accuracy"] + 0.15


# ---------------------------------------------------------------------------------------------------------------------
# The command line


def said(words: list[str], capfd=None) -> str:
    """How a command ends: its one sentence."""
    with pytest.raises(SystemExit) as stop:
        main(words)
    return stop.value.code if isinstance(stop.value.code, str) else capfd.readouterr().err


def test_one_run_and_the_next(cache, tmp_path, capsys):
    main([*flags(cache, out=tmp_path), "--method", "sft", "uft"])
    printed = capsys.readouterr().out
    assert re.search(r"uft: test 0\.\d+ ", printed)
    for script in re.findall(r"python (notebooks/\w+\.py)", printed):
        assert (ROOT / script).exists()
    main([*flags(cache, out=tmp_path, steps=15), "--method", "uft"])
    assert [json.loads(x)["step"] for x in (tmp_path / "uft/metrics.jsonl").read_text().splitlines()] == list(range(16))


def test_help_tells_all_settings_methods_and_options(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert (
        "hint_coef X c, the weight of the hint's log-likelihood" in text
        and "tree {'horizon': 8, 'B': 4, 'fork': 0" in text
    )
    assert all(name in text for name in METHODS)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--method", "dpo"], "--method: invalid choice: 'dpo'"),
        (["--task", "chess"], "--task chess: expected one of countdown, tree"),
        (["--task", "tree:forks=2"], "there is no option 'forks': expected some of horizon, B, fork"),
        (["--task", "tree:fork=many"], "fork=many: expected int"),
        (["--task", "tree:fork=9"], "tree: expected 1 <= horizon <= 64, 2 <= B <= 10, 0 <= fork <= horizon"),
        (["--task", "countdown:numbers=2"], "wants numbers 3..9"),
        (["--task", "countdown:high=60"], "high 10..limit"),
        (["--task", "countdown:high=many"], "high=many: expected int"),
        (["--task", "chain:horizon=4"], "different pool problems exist, not 1024"),
        (["--device", "tpu"], "--device tpu: expected auto, or what this machine has: "),
        (["--steps", "many"], "--steps: invalid int value: 'many'"),
        (["--demos", "999999999"], "--demos 999999999: expected a number from 1 to 1,000,000"),
        (["--method", "sasr", "--warmup", "0"], "--warmup 0: expected a number from 1 to"),
        (["--eval_every", "0"], "--eval_every 0: expected a number from 1"),
        (["--lr", "nan"], "--lr nan: expected a number"),
        (["--share", "1.5"], "--share 1.5: expected a number from 0 to 1"),
        (["--width", "50"], "--width 50: expected a multiple of 16"),
        (["--learning-rate", "1"], "unrecognized arguments: --learning-rate"),
        (["--lr"], "--lr: expected one argument"),
    ],
)
def test_bad_flags_end_in_one_sentence(words, sentence, tmp_path, monkeypatch, capfd):
    """A traceback; or an hour of work, and then a traceback."""
    monkeypatch.chdir(tmp_path)
    assert sentence in said(words, capfd)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_a_run_is_left_alone(cache, tmp_path):
    folder = tmp_path / "uft"
    run(Config(**TINY, cache=cache, out=str(folder)))
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    assert "holds another run, which differs in lr: choose another --out" in said(flags(cache, out=tmp_path, lr=0.5))
    assert "holds 10 steps of this run" in said(flags(cache, out=tmp_path, steps=5))
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    main(flags(cache, out=tmp_path))  # the same command again
    assert (folder / "metrics.jsonl").read_bytes() == before["metrics.jsonl"]


def hears_ctrl_c() -> None:
    """Also where the tests are started in the background, and what they start would ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_ends_at_once_and_the_same_command_goes_on(cache, tmp_path):
    """Work lost that a checkpoint holds; a traceback; files where no run was asked to write."""
    (tmp_path / "elsewhere").mkdir()
    script, words = [sys.executable, str(ROOT / "train.py")], flags(cache, out=tmp_path, steps=100_000, eval_every=2)
    how = dict(stderr=subprocess.PIPE, text=True, preexec_fn=hears_ctrl_c)
    process = subprocess.Popen([*script, *words], cwd=tmp_path / "elsewhere", **how)
    deadline = time.time() + 120
    while not (tmp_path / "uft/metrics.jsonl").exists() or (tmp_path / "uft/metrics.jsonl").stat().st_size < 2000:
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 1 and "Traceback" not in error
    assert error.strip().endswith("nanouft: stopped; the same command goes on from the last checkpoint")
    assert list((tmp_path / "elsewhere").iterdir()) == []
    steps = len(train.load(tmp_path / "uft/checkpoint.pt")["metrics"]) - 1
    main(flags(cache, out=tmp_path, steps=steps + 2, eval_every=2))
    assert len(train.load(tmp_path / "uft/checkpoint.pt")["metrics"]) - 1 == steps + 2


def test_a_run_that_diverges_says_where(cache, tmp_path):
    words = flags(cache, out=tmp_path, lr=1e5, hint_low=1, hint_high=1)
    assert re.search(r"nanouft: step \d+: .*not finite; start again with a smaller --lr", said(words))


class Own(Chain):
    """A user's task, whose rewards are whole numbers, as in: return int(answer == right)."""

    def __init__(self, size: int = 5):
        super().__init__(size)

    def reward(self, problem, answer):
        return int(answer == "".join(problem.demo))


def test_a_task_of_ones_own_has_options(tiny, monkeypatch, tmp_path):
    monkeypatch.setitem(TASKS, "own", Own)
    for method in ("sft", "uft"):
        words = flags(tiny.cache, task="own:size=6", out=tmp_path, method=method)
        main(words)
        assert train.load(tmp_path / method / "checkpoint.pt")["config"]["task"] == "own:size=6"


def test_a_bug_in_a_task_is_told_with_its_place(tiny, monkeypatch, tmp_path):
    """A KeyError told as a user's error: one word and no line."""
    monkeypatch.setitem(TASKS, "own", type("Own", (Own,), {"reward": lambda *_: {}["1"]}))
    with pytest.raises(KeyError):
        main(flags(tiny.cache, task="own", out=tmp_path))


# ---------------------------------------------------------------------------------------------------------------------
# Several methods side by side


def test_compare(cache, tmp_path, capfd):
    """Runs that differ from train.py's; one that diverges and takes the others along; a picture of nothing."""
    with pytest.raises(SystemExit) as stop:
        compare.main([*flags(cache, out=tmp_path, lr=1e5, hint_low=1, hint_high=1), "--method", "rft", "uft"])
    assert re.fullmatch(r"nanouft: uft: step \d+: .*smaller --lr", stop.value.code)
    printed = capfd.readouterr().out
    assert re.search(r"^rft +\d+\.\d%", printed, re.M) and "rft explores" in printed and "[" in printed
    assert (tmp_path / "curves.png").stat().st_size > 10_000


@pytest.mark.parametrize("everyone", [pytest.param(True, marks=pytest.mark.slow), False])
def test_ctrl_c_ends_all_of_them(cache, tmp_path, everyone):
    """A traceback from every process; runs that train on when only the parent hears."""
    command = [sys.executable, "notebooks/compare.py", *flags(cache, out=tmp_path, steps=100_000, eval_every=2)]
    command += ["--method", "uft", "rft"]
    how = dict(stderr=subprocess.PIPE, text=True, preexec_fn=hears_ctrl_c, start_new_session=True)
    process = subprocess.Popen(command, cwd=ROOT, **how)
    deadline = time.time() + 120
    while not (tmp_path / "uft/checkpoint.pt").exists():
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT) if everyone else os.kill(process.pid, signal.SIGINT)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 1 and "Traceback" not in error and "the same command goes on" in error
    with pytest.raises(ProcessLookupError):
        while True:  # until the last of the group is gone
            os.killpg(process.pid, 0)
            assert time.time() < deadline
            time.sleep(0.1)
