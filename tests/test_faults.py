"""What may go wrong around a run: kill -9, broken files, full disks, two runs in one place. Nothing may be lost."""

import json
import random
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

import train
from train import Config, run

ROOT = Path(__file__).parent.parent
TREE = Config(task="tree:horizon=3", problems=4, group=8, layers=1, width=16, method="sasr", steps=301, eval_every=7)
TREE = replace(TREE, hint_steps=100, warmup=20, device="cpu", out="x")

HALF = """
import os, signal, torch
def half(content, path):
    path.write_bytes(b"PK" + bytes(1000))
    os.kill(os.getpid(), signal.SIGKILL)
torch.save = half
"""
RUN = """
import json, sys, torch, train
torch.set_num_threads(1)
try:
    train.run(train.Config(**json.loads(sys.argv[1])))
except ValueError as problem:
    sys.exit(str(problem))
"""


def start(cfg: Config, before: str = "") -> subprocess.Popen:
    command = [sys.executable, "-c", before + RUN, json.dumps(asdict(cfg))]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def outcome(folder: Path) -> tuple[list[dict], torch.Tensor]:
    """Metrics, in the file and in the checkpoint, and all numbers that training made."""
    saved = train.load(folder / "checkpoint.pt")
    metrics = [*saved["metrics"][:-1], saved["metrics"][-1] | saved["end"]]
    assert [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()] == metrics
    moments = [x for state in saved["optimizer"]["state"].values() for x in state.values()]
    numbers = torch.cat([x.flatten() for x in [*saved["model"].values(), *saved["best"].values(), *moments]])
    return [{name: x for name, x in m.items() if name != "seconds"} for m in metrics], numbers


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The run that nothing happens to."""
    folder = tmp_path_factory.mktemp("whole")
    assert start(replace(TREE, out=str(folder))).wait() == 0
    return folder


def same(a: Path, b: Path) -> bool:
    (metrics, numbers), (others, other_numbers) = outcome(a), outcome(b)
    return metrics == others and torch.equal(numbers, other_numbers)


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_kill_9_at_any_moment_and_during_a_write(whole, tmp_path, kills):
    """A step made twice or left out, a half-written checkpoint in place of a good one."""
    cfg, moment, checkpoint = replace(TREE, out=str(tmp_path)), random.Random(0), tmp_path / "checkpoint.pt"
    for kill in range(kills):
        before = checkpoint.stat().st_mtime if checkpoint.exists() else 0
        process = start(cfg, HALF if kill == 1 else "")  # that one kills itself
        while process.poll() is None and (kill == 1 or not checkpoint.exists() or checkpoint.stat().st_mtime == before):
            time.sleep(0.01)
        time.sleep(moment.random() / 10)
        process.kill()
        assert process.wait() == -signal.SIGKILL  # it was not through
        assert len(train.load(checkpoint)["metrics"]) <= TREE.steps
    assert start(cfg).wait() == 0
    assert same(tmp_path, whole)


@pytest.mark.slow
def test_two_processes_in_one_folder(whole, tmp_path):
    """They train the same run: either both end with the same bits, or the one that is behind is refused."""
    processes = [start(replace(TREE, out=str(tmp_path))) for _ in range(2)]
    said = [process.communicate()[1] for process in processes]
    assert sorted(process.returncode for process in processes) in ([0, 0], [0, 1])
    assert all("they are not overwritten" in text for text, p in zip(said, processes, strict=True) if p.returncode)
    assert same(tmp_path, whole)


def test_a_process_that_is_behind_is_refused(whole, tmp_path, monkeypatch):
    """An orphan of a killed command, which writes its older state over that of the command that goes on."""
    good = (whole / "checkpoint.pt").read_bytes()
    monkeypatch.setattr(train, "learn", lambda *args, real=train.learn: late(args) or real(*args))

    def late(args) -> None:  # after ten steps another process has finished
        if args[1].t == 10:
            (tmp_path / "checkpoint.pt").write_bytes(good)

    with pytest.raises(ValueError, match="holds 301 steps of this run: they are not overwritten with only 14"):
        run(replace(TREE, out=str(tmp_path)))
    assert (tmp_path / "checkpoint.pt").read_bytes() == good


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    run(replace(TREE, steps=7, out=str(folder)))
    return folder


def test_no_flipped_bit_goes_unnoticed(finished, tmp_path):
    """torch.load checks no checksums: a flipped bit is a weight of 1e30, and nobody knows why."""
    good, expected = (finished / "checkpoint.pt").read_bytes(), outcome(finished)[1]
    some, noticed = random.Random(0), 0
    (tmp_path / "metrics.jsonl").write_bytes((finished / "metrics.jsonl").read_bytes())
    for _ in range(150):
        bad, where = bytearray(good), some.randrange(len(good))
        bad[where] ^= 1 << some.randrange(8)
        (tmp_path / "checkpoint.pt").write_bytes(bad)
        try:
            assert torch.equal(outcome(tmp_path)[1], expected)  # somewhere between the parts of the file
        except ValueError as error:
            assert "is no checkpoint to go on from" in str(error)
            noticed += 1
    assert noticed > 75


def test_damaged_and_foreign_checkpoints(finished, tmp_path):
    """A checkpoint that is loaded although it is another's, or a traceback out of pickle."""
    good, checkpoint = (finished / "checkpoint.pt").read_bytes(), tmp_path / "checkpoint.pt"
    for size in (*range(0, len(good), len(good) // 50), None):
        checkpoint.write_bytes(good[:size] if size is not None else b"hello")
        with pytest.raises(
            ValueError, match=r"checkpoint.pt is no checkpoint to go on from .*: train first, or delete"
        ):
            run(replace(TREE, steps=7, out=str(tmp_path)))
    torch.save({"format": 0}, checkpoint)
    with pytest.raises(ValueError, match="by another version of nanouft"):
        run(replace(TREE, steps=7, out=str(tmp_path)))


def test_cut_metrics_are_written_anew(finished, tmp_path):
    """A metrics.jsonl that was cut in the middle of a line, and goes on behind it."""
    for path in finished.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    text = (tmp_path / "metrics.jsonl").read_text()
    (tmp_path / "metrics.jsonl").write_text(text[: len(text) // 2])
    run(replace(TREE, steps=14, out=str(tmp_path)))
    assert [m["step"] for m in outcome(tmp_path)[0]] == list(range(15))


@pytest.mark.parametrize("other", [dict(task="tree:horizon=4"), dict(width=32), dict(seed=1)])
def test_another_runs_checkpoint_is_left_alone(finished, tmp_path, other):
    content = (finished / "checkpoint.pt").read_bytes()
    (tmp_path / "checkpoint.pt").write_bytes(content)
    (name,) = other
    with pytest.raises(ValueError, match=f"holds another run, which differs in .*{name}.*: choose another --out"):
        run(replace(TREE, out=str(tmp_path), **other))
    assert (tmp_path / "checkpoint.pt").read_bytes() == content


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path, monkeypatch):
    """The good checkpoint is gone, or the reason is a traceback; or half a file is left behind."""
    run(replace(TREE, steps=7, out=str(tmp_path)))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(content, path):
        path.write_bytes(b"half")
        raise RuntimeError("[enforce fail] . file write failed")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"cannot write .*checkpoint.pt \(.*\); what was there before still is"):
        run(replace(TREE, steps=14, out=str(tmp_path)))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match="nanouft: .*Not a directory: .*job"):
        train.main(["--task", "tree", "--method", "rft", "--out", str(tmp_path / "file" / "job")])
