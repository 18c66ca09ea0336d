"""What may go wrong around a run: kill -9, broken files, full disks, two runs in one place. Nothing may be lost."""

import json
import os
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
from train import Config, alone, main, run

ROOT = Path(__file__).parent.parent
TREE = Config(task="tree", horizon=3, problems=4, group=8, layers=1, width=16, validation=1, test=1, demos=4)
TREE = replace(TREE, method="sasr", steps=300, eval_every=7, hint_steps=100, warmup=20, device="cpu", out="x")

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
train.run(train.Config(**json.loads(sys.argv[1])))
"""


def start(cfg: Config, before: str = "") -> subprocess.Popen:
    environment = os.environ | {"TQDM_DISABLE": "1"}
    return subprocess.Popen([sys.executable, "-c", before + RUN, json.dumps(asdict(cfg))], cwd=ROOT, env=environment)


def outcome(folder: Path) -> tuple[list[dict], torch.Tensor]:
    """Metrics, in the file and in the checkpoint, and all numbers that training made."""
    saved = train.load(folder / "checkpoint.pt")
    assert [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()] == saved["metrics"]
    moments = [x for state in saved["optimizer"]["state"].values() for x in state.values()]
    numbers = torch.cat([x.flatten() for x in [*saved["model"].values(), *saved["best"].values(), *moments]])
    return [{name: x for name, x in m.items() if name != "seconds"} for m in saved["metrics"]], numbers


def test_kill_9_at_any_moment_and_during_a_write(tmp_path):
    """A step made twice or left out, a half-written checkpoint in place of a good one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    run(replace(TREE, out=str(tmp_path / "never killed")))
    torch.set_num_threads(threads)
    cfg, moment = replace(TREE, out=str(tmp_path / "killed")), random.Random(0)
    checkpoint = tmp_path / "killed" / "checkpoint.pt"
    for kill in range(4):
        before = checkpoint.stat().st_mtime if checkpoint.exists() else 0
        process = start(cfg, HALF if kill == 2 else "")  # that one kills itself
        while process.poll() is None and (kill == 2 or not checkpoint.exists() or checkpoint.stat().st_mtime == before):
            time.sleep(0.01)
        time.sleep(moment.random() / 10)
        process.kill()
        assert process.wait() == -signal.SIGKILL  # it was not through
        assert train.load(checkpoint)["state"]["step"] < TREE.steps
    assert start(cfg).wait() == 0
    (metrics, numbers), (expected, numbers_expected) = outcome(tmp_path / "killed"), outcome(tmp_path / "never killed")
    assert metrics == expected and torch.equal(numbers, numbers_expected)


def test_who_kills_the_command_kills_its_runs(tmp_path):
    """Orphans that train on, and write into a folder in which the resumed run writes as well."""
    words = [f"--{name}={x}" for name, x in asdict(replace(TREE, steps=10**6, out=str(tmp_path))).items() if x != ""]
    process = subprocess.Popen([sys.executable, "train.py", *words], cwd=ROOT, stderr=subprocess.DEVNULL)
    folder = tmp_path / TREE.method
    deadline = time.time() + 120
    while not (folder / "checkpoint.pt").exists():
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.1)
    before = (folder / "config.json").read_bytes()
    with pytest.raises(ValueError, match="another process is training in .*: wait for it, or choose another --out"):
        main([word.replace(f"={10**6}", f"={10**7}") for word in words])
    assert (folder / "config.json").read_bytes() == before
    process.kill()
    deadline = time.time() + 20
    while True:
        try:
            alone(folder).close()
            break
        except ValueError:
            assert time.time() < deadline
            time.sleep(0.1)


def test_two_runs_in_one_folder(tmp_path):
    """Two processes that write into each other's files."""
    with alone(tmp_path), pytest.raises(ValueError, match="another process is training in"):
        run(replace(TREE, out=str(tmp_path)))
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]
    run(replace(TREE, steps=1, out=str(tmp_path)))  # the lock was given back


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    run(replace(TREE, steps=8, out=str(folder)))
    return folder


def test_no_flipped_bit_goes_unnoticed(finished, tmp_path):
    """torch.load checks no checksums: a flipped bit is a weight of 1e30, and nobody knows why."""
    good, expected = (finished / "checkpoint.pt").read_bytes(), outcome(finished)[1]
    some, noticed = random.Random(0), 0
    for name in ("metrics.jsonl", "config.json"):
        (tmp_path / name).write_bytes((finished / name).read_bytes())
    for _ in range(150):
        bad, where = bytearray(good), some.randrange(len(good))
        bad[where] ^= 1 << some.randrange(8)
        (tmp_path / "checkpoint.pt").write_bytes(bad)
        try:
            assert torch.equal(outcome(tmp_path)[1], expected)  # somewhere between the parts of the file
        except ValueError as error:
            assert "is damaged" in str(error) or "no checkpoint of this version" in str(error)
            noticed += 1
    assert noticed > 75
    for size in range(0, len(good), len(good) // 50):
        (tmp_path / "checkpoint.pt").write_bytes(good[:size])
        with pytest.raises(ValueError, match="is damaged"):
            run(replace(TREE, steps=8, out=str(tmp_path)))
    assert (tmp_path / "checkpoint.pt").read_bytes() == good[:size]  # it is for its owner to delete


def test_cut_metrics_are_written_anew(finished, tmp_path):
    """A metrics.jsonl that was cut in the middle of a line, and goes on behind it."""
    for path in finished.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    text = (tmp_path / "metrics.jsonl").read_text()
    (tmp_path / "metrics.jsonl").write_text(text[: len(text) // 2])
    run(replace(TREE, steps=9, out=str(tmp_path)))
    assert [m["step"] for m in outcome(tmp_path)[0]] == list(range(10))


@pytest.mark.parametrize("text", ["", '{"task": "tr', '{"lear": 1}', "[1]", "\xff"])
def test_broken_config_is_a_clear_error(finished, tmp_path, text):
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match="config.json is damaged, or of another version"):
        main(["--resume", str(tmp_path)])


@pytest.mark.parametrize("other", [dict(task="chain"), dict(width=32), dict(layers=2), dict(seed=1), dict(horizon=4)])
def test_another_runs_checkpoint_is_left_alone(finished, tmp_path, other):
    content = (finished / "checkpoint.pt").read_bytes()
    (tmp_path / "checkpoint.pt").write_bytes(content)
    (name,) = other
    with pytest.raises(ValueError, match=f"holds another run, which differs in .*{name}.*: choose another --out"):
        run(replace(TREE, out=str(tmp_path), **other))
    assert (tmp_path / "checkpoint.pt").read_bytes() == content


def test_a_base_that_does_not_fit_is_a_clear_error(tmp_path):
    """A cached base of another model: a traceback out of load_state_dict, or worse, none."""
    cfg = Config(numbers=3, layers=1, width=16, base_steps=1, demos=64, validation=8, test=0, cache=str(tmp_path))
    cfg = replace(cfg, steps=1, problems=2, device="cpu")
    run(cfg)
    (path,) = tmp_path.iterdir()
    other = replace(cfg, width=32)
    run(other)
    (theirs,) = set(tmp_path.iterdir()) - {path}
    path.write_bytes(theirs.read_bytes())
    with pytest.raises(ValueError, match="is the base of another model: delete it, or choose another --cache"):
        run(cfg)


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
    command = [sys.executable, "train.py", "--task", "tree", "--method", "rft", "--out", str(tmp_path / "file" / "job")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("nanouft: ") and done.stderr.count("\n") == 1
