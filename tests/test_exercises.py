"""The exercises: their answers are right, and wrong ones are not."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from nanouft import Method
from notebooks import exercises

RATIO = "test_sft_is_the_mean_negative_log_likelihood"


def test_by_hand():
    right = [[1.5, -0.5, -0.5, -0.5], [0.87, 0.87, -0.87, -0.87], [0, 0, 0, 0]]
    assert exercises.by_hand(right) == "right"
    for wrong in (
        [[1.5, -0.5, -0.5, -0.5]] * 3,
        [[0] * 4] * 3,
        right[:2],
        [[0.675, -0.225, -0.225, -0.225], *right[1:]],
    ):
        assert exercises.by_hand(wrong) != "right"


def test_predicted():
    found = {"uft": 1.0, "cosine": 1.0, "rft": 0.1, "sft": 0.5}, {"uft": 170, "cosine": 250, "rft": 300, "sft": 300}
    assert exercises.predicted(found[0], "uft", found) == "right"
    assert exercises.predicted(found[0], "cosine", found) != "right"
    assert exercises.predicted(dict.fromkeys(found[0], 1.0), "uft", found) != "right"


@pytest.mark.slow
def test_predicted_is_what_happens():
    assert exercises.predicted({"uft": 1.0, "cosine": 1.0, "rft": 0.1, "sft": 0.5}, "uft") == "right"


def test_shorter():
    assert exercises.shorter(lambda s: np.maximum(s.L - 1 - s.t // 100, 0)) == "right"
    for wrong in (
        2,
        lambda s: s.L - 1,
        lambda s: s.L - 1 - s.t // 100,
        lambda s: np.maximum(s.L - 1 - s.t / 100, 0),
        lambda s: np.maximum(s.L - 1 - (s.t + 1) // 100, 0),
    ):
        assert exercises.shorter(wrong) != "right"


def test_centred():
    def right(s, rows):
        r = rows.reward.view(-1, s.cfg.group)
        return r - r.mean(1, keepdim=True)

    assert exercises.centred(right) == "right"
    for wrong in (
        lambda s, rows: torch.zeros(3, 4),
        lambda s, rows: right(s, rows) / (rows.reward.view(-1, s.cfg.group).std(1, keepdim=True) + 1e-6),
        lambda s, rows: (rows.reward - rows.reward.mean()).view(-1, s.cfg.group),
        lambda s, rows: rows.reward - rows.reward.mean(),
    ):
        assert exercises.centred(wrong) != "right"


def test_switch():
    assert exercises.switch(lambda s: s.memory["g"] / (s.memory["g"] + s.cfg.gamma * s.memory["g_warmup"])) == "right"
    for wrong in (
        lambda s: 0.5,
        lambda s: s.memory["g"] / (s.memory["g"] + s.memory["g_warmup"]),
        lambda s: s.memory["g_warmup"] / (s.memory["g"] + s.cfg.gamma * s.memory["g_warmup"]),
    ):
        assert exercises.switch(wrong) != "right"


def test_noticed():
    ours = Method.objective

    def ratio(self, s, rows, logp, words):
        ratio = (logp - rows.logp).exp()  # of a hint: pi / 1
        return torch.minimum(ratio * rows.weight, ratio.clamp(1 - s.cfg.clip, 1 + s.cfg.clip) * rows.weight)

    def everything(self, s, rows, logp, words):
        return rows.weight * logp

    def nothing(self, s, rows, logp, words):  # rows.ratio() is 1 on a hint
        ratio = rows.ratio(logp)
        return torch.minimum(ratio * rows.weight, ratio.clamp(1 - s.cfg.clip, 1 + s.cfg.clip) * rows.weight)

    assert exercises.noticed(ratio, RATIO) == "right"
    assert exercises.noticed(ratio, "test_advantages_by_hand") != "right"  # it passes
    assert exercises.noticed(ratio, "test_first_update_has_ratio_one_and_later_ones_clip") != "right"  # without hints
    assert exercises.noticed(ratio, "no_such_test") != "right"
    assert exercises.noticed(ratio, "hand") != "right"  # only a part of a name
    assert exercises.noticed(ratio, "") != "right"
    assert exercises.noticed(ours, RATIO) != "right"
    assert exercises.noticed(everything, RATIO) != "right"
    assert exercises.noticed(nothing, RATIO) != "right"
    assert Method.objective is ours


def test_weight_of_a_score():
    def right(r_hat, score, beta):
        return beta * (score - 1 / (1 + np.exp(-r_hat)))

    assert exercises.weight_of_a_score(right) == "right"
    for wrong in (
        lambda r, score, beta: 0.1,
        lambda r, score, beta: -right(r, score, beta),
        lambda r, score, beta: right(r, score, beta) / beta,
        lambda r, score, beta: right(r, 1.0, beta),
    ):
        assert exercises.weight_of_a_score(wrong) != "right"


@pytest.mark.slow
def test_past_the_wall():
    assert exercises.past_the_wall(dict(entropy_coef=0.02, lr=0.003, steps=250)) == "right"
    assert exercises.past_the_wall(dict(steps=200)) != "right"


@pytest.mark.parametrize(
    "settings", [dict(method="uft"), dict(task="tree:horizon=2"), dict(steps=10_000), dict(until=0.1)]
)
def test_the_wall_is_not_to_be_moved(settings):
    assert exercises.past_the_wall(settings) != "right"


def test_the_notebook_gives_no_answer_away():
    """An answer that was left in; a check that calls it right before anybody has written one."""
    notebook = json.loads((Path(exercises.ROOT) / "notebooks/exercises.ipynb").read_text())
    outputs = [o.get("data", {}) for cell in notebook["cells"] for o in cell.get("outputs", [])]
    told = ["".join(x["text/plain"]) for x in outputs if "text/plain" in x and "image/png" not in x]
    assert len(told) == 8 and "'right'" not in told
