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
from data import TASKS
from nanouft import METHODS
from train import Config, main, run

TINY = dict(numbers=3, layers=1, width=16, base_steps=8, problems=8, group=4, demos=64, validation=32, test=32)
TINY |= dict(device="cpu", steps=10, eval_every=5, hint_steps=8, warmup=3)
ROOT = Path(__file__).parent.parent


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


@pytest.mark.parametrize("method", ["uft", "sasr"])
def test_five_steps_and_five_more_are_ten(tiny, tmp_path, method):
    """A resumed run that repeats a batch, restarts a schedule, or forgets the switch or the optimizer's moments."""
    whole = run(replace(tiny, method=method, out=str(tmp_path / "whole")))
    half = replace(tiny, method=method, out=str(tmp_path / "half"), steps=5, test=0)
    run(half)
    resumed = run(replace(half, steps=10))
    assert [m["step"] for m in resumed] == list(range(11))
    same = [m.keys() & h.keys() - {"seconds"} for m, h in zip(whole, resumed, strict=True)]
    assert [{k: m[k] for k in keys} for m, keys in zip(whole, same, strict=True)] == [
        {k: m[k] for k in keys} for m, keys in zip(resumed, same, strict=True)
    ]
    assert torch.equal(weights(tmp_path / "whole"), weights(tmp_path / "half"))


def test_what_a_method_may_keep(tiny, tmp_path, monkeypatch):
    """NumPy's numbers in a memory: a checkpoint that cannot be read, and is called damaged."""
    kept = [np.float64(0.5), {"a prompt": (np.int64(2), np.arange(3))}]

    def remember(s) -> float:
        s.memory["kept"] = kept
        return 0.0

    monkeypatch.setitem(METHODS, "own", replace(METHODS["rft"], p_sft=remember))
    cfg = replace(tiny, method="own", steps=5, out=str(tmp_path / "own"))
    run(cfg)
    assert train.load(tmp_path / "own" / "checkpoint.pt")["state"]["memory"] == {
        "kept": [0.5, {"a prompt": (2, [0, 1, 2])}]
    }
    assert run(replace(cfg, steps=10))[-1]["step"] == 10
    kept.append(object())
    with pytest.raises(
        ValueError, match="a method keeps a value of type object in its memory: expected numbers, text, lists and dicts"
    ):
        run(replace(cfg, steps=5, out=str(tmp_path / "other")))


def test_one_seed_drives_everything(tiny):
    """A seed that is read but changes nothing; or randomness that no seed drives."""
    first, again, other = run(tiny), run(tiny), run(replace(tiny, seed=1))
    assert without_times(first) == without_times(again)
    assert [m.get("entropy") for m in first] != [m.get("entropy") for m in other]
    task = train.make_task(tiny)
    pools = [[p.prompt for p in task.split("pool", 64, seed)] for seed in (0, 1)]
    bases = [train.base_model(replace(tiny, seed=seed), task, {})["model"]["embed.weight"] for seed in (0, 1)]
    draws = [train.randomness(replace(tiny, seed=seed), 0, 3) for seed in (0, 0, 1)]
    orders = [list(rng.permutation(64)) for rng, _ in draws]
    samples = [torch.rand(4, generator=generator).tolist() for _, generator in draws]
    assert pools[0] != pools[1] and not torch.equal(*bases)
    assert orders[0] == orders[1] != orders[2] and samples[0] == samples[1] != samples[2]


def test_metrics_hold_what_others_rely_on(tiny, tmp_path):
    """Keys that come and go; counters that do not add up."""
    metrics = run(replace(tiny, out=str(tmp_path)))
    always = {"step", "rollouts", "sampled_tokens", "demo_tokens", "reward", "accuracy", "seconds"}
    assert all(always <= m.keys() for m in metrics)
    assert [m["step"] for m in metrics if m.get("evaluated")] == [0, 5, 10]
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == metrics
    for name in ("rollouts", "sampled_tokens", "demo_tokens", "seconds"):
        assert all(a[name] <= b[name] for a, b in zip(metrics, metrics[1:], strict=False))
    assert (
        0 < metrics[-1]["rollouts"] < 10 * 8 * 4 and {"test", "test_chosen", "unseen", "pass@8"} <= metrics[-1].keys()
    )
    documented = set(re.findall(r"^\| `([^`]+)`", (ROOT / "README.md").read_text(), re.M))
    names = {name.removesuffix("_base").removesuffix("_chosen") for m in metrics for name in m}
    assert {name.removesuffix("_test") for name in names} <= documented


def test_sft_samples_nothing_and_rft_reads_no_demonstration(tiny):
    sft, rft = run(replace(tiny, method="sft", test=0))[-1], run(replace(tiny, method="rft", test=0))[-1]
    assert sft["rollouts"] == sft["sampled_tokens"] == rft["demo_tokens"] == 0
    assert sft["demo_tokens"] == 10 * 8 * 12 and rft["rollouts"] == 10 * 8 * 4


def test_it_learns(cache):
    """Everything above may hold of a step that does not learn: two numbers, one equation, problems never trained on."""
    cfg = Config(
        numbers=2, high=50, low=1, width=32, base_steps=100, demos=400, validation=150, test=0, problems=32, group=4,
        steps=120, hint_steps=110, hint_coef=1.0, lr=3e-3, eval_every=120, cache=cache,
    )  # fmt: skip
    for method in ("uft", "sft"):
        metrics = run(replace(cfg, method=method))
        assert metrics[-1]["accuracy"] > metrics[0]["accuracy"] + 0.2


# ---------------------------------------------------------------------------------------------------------------------
# The command line


def test_main_job_and_ask_and_resume(cache, tmp_path, capsys):
    out = str(tmp_path / "job")
    main([*flags(cache, out=out), "--method", "sft", "uft"])
    printed = capsys.readouterr().out
    assert "device cpu" in printed and re.search(r"^uft +\d+\.\d%", printed, re.M) and "reward" in printed
    assert (tmp_path / "job" / "curves.png").stat().st_size > 10_000
    main(["--out", out, "--ask", "3 8 9 -> 33"])
    assert re.search(r"3 8 9 -> 33 .*reward [01]\.\d", capsys.readouterr().out)
    main(["--resume", out, "--steps", "12"])
    assert [json.loads(x)["step"] for x in (tmp_path / "job/uft/metrics.jsonl").read_text().splitlines()] == list(
        range(13)
    )


@pytest.mark.parametrize("name", train.PRESETS)
def test_presets_make_sense(name):
    train.check(replace(Config(), **train.PRESETS[name]))


def test_list(capsys):
    main(["--list"])
    assert "| `uft` | UFT 2505.16984 | Binomial(L, p(t)); 0 from T_hint on | hint_coef |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--method", "dpo"], "--method dpo: expected one of sft, rft"),
        (["--task", "chess"], "--task chess: expected one of countdown"),
        (["--device", "tpu"], "--device tpu: expected one of auto, cpu"),
        (["--numbers", "9"], "--numbers 9: expected a number from 2 to 6"),
        (["--steps", "0"], "--steps 0: expected a number from 1"),
        (["--lr", "nan"], "--lr nan: expected a number"),
        (["--mix", "1.5"], "--mix 1.5: expected a number from 0 to 1"),
        (["--high", "60"], "1 <= --unseen <= --high <= --limit"),
        (["--high", "6"], "1 <= --unseen <= --high <= --limit"),
        (["--numbers", "2"], "different pool problems exist, not 1024"),
        (["--numbers", "2", "--high", "7", "--low", "50"], "random play hardly ever reaches --low 50"),
        (["--resume", "nowhere", "--out", "elsewhere"], "--out cannot change in a resumed run"),
        (["--width", "50"], "--width 50: expected a multiple of 16"),
        (["--problems", "2000"], "--problems 2000: the pool has only --demos 1024"),
        (["--resume", "nowhere"], "--resume nowhere: no run there"),
        (["--resume", "nowhere", "--lr", "1"], "--lr cannot change in a resumed run"),
        (
            ["--ask", "3 8 9 -> 33", "--out", "nowhere"],
            "there is no checkpoint nowhere/uft/checkpoint.pt: train first",
        ),
    ],
)
def test_bad_flags_end_in_one_sentence(words, sentence, tmp_path, monkeypatch):
    """A traceback; or an hour of work, and then a traceback."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=re.escape(sentence)):
        main(words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["--learning-rate", "1"], ["--steps", "many"], ["--lr"]])
def test_bad_syntax_ends_in_one_line(words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2 and re.fullmatch(r"nanouft: .*train\.py --help\)\n", capsys.readouterr().err)


def test_a_folder_that_holds_a_run_is_left_alone(cache, tmp_path):
    folder = tmp_path / "uft"
    run(Config(**TINY, cache=cache, out=str(folder)))
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(ValueError, match="holds another run, which differs in lr: choose another --out"):
        main(flags(cache, out=tmp_path, method="uft", lr=0.5))
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    main(flags(cache, out=tmp_path, method="uft"))  # the same command again: finished, so it shows its table
    assert (folder / "metrics.jsonl").read_bytes() == before["metrics.jsonl"]


def test_damaged_and_foreign_checkpoints(tiny, tmp_path):
    """A checkpoint that is loaded although it belongs to another run, or a traceback out of pickle."""
    for name in ("a", "b"):
        run(replace(tiny, out=str(tmp_path / name), lr=1e-3 if name == "a" else 1e-4))
    ours, theirs = tmp_path / "a" / "checkpoint.pt", tmp_path / "b" / "checkpoint.pt"
    good = ours.read_bytes()
    ours.write_bytes(theirs.read_bytes())
    with pytest.raises(ValueError, match="holds another run, which differs in lr"):
        main(["--resume", str(tmp_path / "a")])
    for damage in (good[: len(good) // 2], b"", b"hello"):
        ours.write_bytes(damage)
        with pytest.raises(ValueError, match="is damaged|no checkpoint of this version"):
            main(["--resume", str(tmp_path / "a")])
    torch.save({"format": 0}, ours)
    with pytest.raises(ValueError, match="is damaged|no checkpoint of this version"):
        main(["--ask", "1 2 3 -> 6", "--resume", str(tmp_path / "a")])


def wait_for(paths: list[Path], process: subprocess.Popen) -> None:
    deadline = time.time() + 120
    while not all(p.exists() for p in paths):
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("everyone", [True, False])
def test_ctrl_c_saves_and_tells_how_to_go_on(cache, tmp_path, everyone):
    """Work lost; a traceback from every process; half a step saved; runs that train on when only the parent hears."""
    job = tmp_path / "job"
    command = [
        sys.executable,
        "train.py",
        *flags(cache, out=job, steps=100_000, eval_every=2),
        "--method",
        "uft",
        "rft",
    ]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_for([job / "uft" / "checkpoint.pt"], process)
    os.killpg(process.pid, signal.SIGINT) if everyone else os.kill(process.pid, signal.SIGINT)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 130 and "Traceback" not in said
    assert f"python train.py --resume {job}" in said
    saved = train.load(job / "uft" / "checkpoint.pt")
    step = saved["state"]["step"]
    assert [m["step"] for m in saved["metrics"]] == list(range(step + 1))
    main(["--resume", str(job / "uft"), "--steps", str(step + 1)])
    assert train.load(job / "uft" / "checkpoint.pt")["state"]["step"] == step + 1
    with pytest.raises(ValueError, match=f"holds a run that is beyond --steps {step}"):
        main(["--resume", str(job / "uft"), "--steps", str(step)])


def test_a_run_that_diverges_does_not_take_the_others_along(cache, tmp_path, capfd):
    with pytest.raises(ValueError, match=r"uft: step \d+: the .*; start again with a smaller --lr"):
        main([*flags(cache, out=tmp_path / "job", lr=1e8, hint_low=1, hint_high=1), "--method", "rft", "uft"])
    assert re.search(r"^rft +\d+\.\d%", capfd.readouterr().out, re.M)


def test_errors_have_a_status_and_no_traceback(tmp_path):
    command = [sys.executable, str(ROOT / "train.py"), "--method", "dpo"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("nanouft: --method dpo") and done.stderr.count("\n") == 1


class Own(TASKS["chain"]):
    """A user's task, whose rewards are whole numbers, as in: return int(answer == right)."""

    def reward(self, problem, answer):
        return int(answer == "".join(problem.demo))


def test_a_task_of_ones_own(tiny, monkeypatch):
    """Rewards as integers; an answer that leaves no room for its <end>."""
    monkeypatch.setitem(TASKS, "own", Own)
    cfg = replace(tiny, task="own", demos=64)
    for method in ("sft", "uft"):
        assert run(replace(cfg, method=method))[-1]["reward"] >= 0
    monkeypatch.setattr(Own, "units", lambda self, problem: [[0] * (self.answer_tokens + 1)])
    with pytest.raises(ValueError, match="--task own: answer_tokens 8, but a demonstration, <end> too, 9"):
        run(cfg)


def test_a_bug_in_a_task_is_told_with_its_place(tiny, monkeypatch, tmp_path):
    """A KeyError told as a user's error: one word and no line."""
    monkeypatch.setattr(train, "run_all", lambda runs: [KeyError("1") for _ in runs])
    with pytest.raises(KeyError):
        main([*flags(tiny.cache, out=tmp_path), "--method", "uft"])
