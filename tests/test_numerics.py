"""Numbers at their limits: everything stays finite, or a run stops with the step and the metric in its message."""

import copy
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_nanouft import a_step

from data import TASKS
from model import GPT
from nanouft import METHODS, grpo_advantages, mse, rollout, score_weights, train_step, update
from notebooks.one_stage import bce, dpo
from tests import gpu_check
from train import Config

CFG = Config(group=4, hint_steps=10, warmup=2, kl_coef=0.1, entropy_coef=0.1)


@pytest.fixture(scope="module")
def task():
    return TASKS["countdown"]()


def fresh(task, scale: float = 1.0) -> GPT:
    model = GPT(task.vocab, 1, 32, task.prompt_tokens + task.answer_tokens)
    model.init_weights(torch.Generator().manual_seed(0))
    model.norm.weight.data *= scale
    return model


@pytest.mark.parametrize(
    "row", [[1e30, 0, 0, 0], [-1e30, 1e30, 0, 0], [1e-30, 0, 0, 0], [1e30] * 4, [0.1] * 7, [-1.0, 1.0, 0.0, 0.0]]
)
def test_advantages_are_finite_and_exactly_zero_where_all_did_equally_well(row):
    A = grpo_advantages(torch.tensor([row]))
    assert A.isfinite().all()
    assert (A == 0).all() == (len(set(row)) == 1 or max(map(abs, row)) == 1e30)  # beyond 1e19 a square is infinite


@pytest.mark.parametrize("loss", [mse, bce, dpo])
def test_weights_of_scored_answers_are_finite(loss):
    r = torch.tensor([[1e4, -1e4, 0.0, 1e-30], [-1e4] * 4, [1e4] * 4])
    score = torch.tensor([[0.0, 1.0, 0.5, 0.1]] * 3)
    assert score_weights(loss, r, score, 0.1).isfinite().all()


def at_limits(model: GPT, task, kind: str, **settings):
    """A step whose rows have full hints, no hints, mixed ones, or end with their first token."""
    problems, P = task.split("pool", 6, 0), 6
    hints = {"full": np.full(P, 4), "none": np.zeros(P, int), "mixed": np.arange(P) % 5, "ended": np.zeros(P, int)}
    each = [problem for problem in problems for _ in range(4)]
    rows = rollout(model, task, each, hints[kind].repeat(4), 1.0, torch.Generator().manual_seed(0))
    if kind == "ended":
        first = rows.suffix & (rows.suffix.cumsum(1) == 1)
        rows = replace(rows, suffix=first, tokens=rows.tokens.where(~first, task.end))
    A, c = torch.linspace(-2, 2, 24)[:, None], torch.linspace(0, 1, 24)[:, None]
    s = a_step(model, task, problems, base=copy.deepcopy(model))
    s.cfg, s.rows = CFG, replace(rows, weight=A * rows.suffix + c * rows.hint)
    return s


@pytest.mark.parametrize("kind", ["full", "none", "mixed", "ended"])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_losses_at_the_limits(task, kind, scale):
    """Logits from all equal up to some 1e4, rows with nothing to train on one side: 0 * inf, a mean over nothing."""
    model = fresh(task, scale)
    assert scale < 1e4 or model(torch.zeros(1, 1, dtype=torch.long)).abs().max() > 1e3
    s = at_limits(model, task, kind)
    assert s.rows.logp.isfinite().all()
    found = update(METHODS["uft"], s, [torch.optim.SGD(model.parameters(), lr=0.0)])
    assert all(np.isfinite(x) for x in found.values())
    assert (found["trained_rows"] > 0) and all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("method", ["sft", "rft", "uft", "sasr", "luffy"])
def test_bf16(task, method):
    """Half precision where a sum needs more, or a type that does not fit another."""
    model = fresh(task).bfloat16()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for t in range(4):
        memory, some = {"g": 1.0, "g_warmup": 1.0}, task.split("pool", 6, 0)
        s = a_step(model, task, some, t, seed=t, coin=0.2 * t, memory=memory, base=fresh(task).bfloat16())
        s.cfg = replace(CFG, problems=6)
        found = train_step(METHODS[method], s, [optimizer])
        assert all(np.isfinite(x) for x in found.values())
    assert model(torch.zeros(1, 2, dtype=torch.long)).dtype == torch.float32


def test_gpu_check_in_miniature(tmp_path, monkeypatch, capsys):
    """A check of a card that stops half-way, after minutes of a card's time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--device", "cpu"])
    gpu_check.main()
    assert "all of it holds" in capsys.readouterr().out
    assert json.loads((tmp_path / "out/gpu_check.json").read_text())["make gpu"]["whole_run_minutes"] > 0
