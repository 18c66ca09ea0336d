"""The wider family: what makes each of them that method. Docstrings name the mistake guarded against."""

from dataclasses import replace

import numpy as np
import pytest
import torch

# ruff: noqa: F401, F811
from test_nanouft import CFG, Keep, gradient, model, problems, task  # fixtures among them

from data import Problem
from nanouft import METHODS, Method, Rows, Step, grpo_advantages, loss_terms, rollout, train_step
from notebooks import family
from train import DEFAULTS, Config, run

NAMES = "dft dr_grpo dapo expert_iteration questa adaback bread ghpo superrl luffy prefix_rft chord".split()


def step_with(rewards: list[list[float]], **more) -> Step:
    rewards = torch.tensor(rewards)
    cfg = replace(CFG, group=rewards.shape[1])
    reward = rewards.flatten()
    rows = Rows(*[torch.zeros(len(reward), 1, dtype=torch.bool)] * 4, reward=reward, solved=reward == 1)
    return Step(0, cfg, np.random.default_rng(0), rows=rows, live=np.ones(len(rewards), bool), **more)


def taken(method: Method, model, task, problems, **settings) -> tuple[Step, dict, torch.Tensor]:
    """A step: what the method saw, its metrics, and the gradient as it was before clipping."""
    keep, more = Keep(model), lambda n: (problems * 9)[:n]
    s = Step(0, replace(CFG, **settings), np.random.default_rng(0), more=more)
    metrics = train_step(method, model, model, [keep], task, problems, s, torch.Generator().manual_seed(0))
    return s, metrics, keep.gradient * max(1, metrics["grad_norm"])


class Free(torch.nn.Module):
    """Logits of its own at every place: where the gradient is not zero, a token was trained."""

    def __init__(self, logits: torch.Tensor):
        super().__init__()
        self.logits = torch.nn.Parameter(logits)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.logits[:, : tokens.shape[1]]


def answer_logp(model, task, problem: Problem) -> torch.Tensor:
    """log pi of each token of the demonstration, written down directly."""
    prompt, answer = task.encode(problem.prompt), sum(task.units(problem), [])
    logp = torch.log_softmax(model(torch.tensor([prompt + answer]))[0, len(prompt) - 1 : -1], -1)
    return logp[range(len(answer)), answer]


def by_hand(model, task, problems, weight) -> torch.Tensor:
    """The gradient of SFT with weight(p) on each token's log p."""
    loss = 0.0
    for problem in problems:
        logp = answer_logp(model, task, problem)
        loss = loss - (weight(logp.detach().exp()) * logp).sum() / (len(problems) * task.answer_tokens)
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, model.parameters())])


def test_all_of_them_are_there():
    assert list(METHODS)[-12:] == NAMES


def test_dft_is_sft_times_p(task, model, problems):
    """A p that has a gradient of its own; or of the whole answer."""
    ours = taken(METHODS["dft"], model, task, problems)[2]
    assert ours.norm() > 1e-3 and torch.allclose(ours, by_hand(model, task, problems, lambda p: p), atol=1e-6)


def test_luffy_trains_the_demonstration_as_far_as_the_group_fails(task, model, problems):
    """An advantage with a std, which never goes away; shaping on the wrong side; a demonstration that counts twice."""
    fails, wins = (family.centred(step_with([[1.0] + [x] * 7]))[0, 0].item() for x in (0.0, 1.0))
    assert fails == 0.875 and wins == 0
    s, _, ours = taken(METHODS["luffy"], model, task, problems)
    assert s.hints[:, 0].tolist() == [2] * 6 and not s.hints[:, 1:].any()
    A = s.rewards - s.rewards.mean(1, keepdim=True)
    shares = iter(A[:, 0].tolist())
    imitation = by_hand(model, task, problems, lambda p: next(shares) / 4 * 0.1 * p / (p + 0.1) ** 2)
    silent = taken(replace(METHODS["luffy"], c=family.zero), model, task, problems)[2]
    assert imitation.norm() > 1e-3 and torch.allclose(ours, imitation + silent, atol=1e-6)


@pytest.mark.parametrize(("best", "same_as"), [(0.0, "rft"), (2.0, "sft")])
def test_superrl_at_its_ends_is_rft_or_sft(task, model, problems, monkeypatch, best, same_as):
    """Failed rollouts that are trained as well; a demonstration that weighs less than in SFT."""
    monkeypatch.setattr(task, "best", lambda problem: best)  # every rollout solves it; none does
    ours = gradient(METHODS["superrl"], model, task, problems)
    assert torch.allclose(ours, gradient(METHODS[same_as], model, task, problems), atol=1e-7) and ours.norm() > 1e-3


def test_adaback_moves_its_interval(task, model, problems, monkeypatch):
    """An interval that moves the wrong way, for the wrong problem, or is forgotten."""
    s = Step(0, CFG, np.random.default_rng(0))
    intervals = dict.fromkeys([p.prompt for p in problems], (0.0, 1.0))
    for solved in (True, False, False, True):
        monkeypatch.setattr(task, "best", lambda problem, solved=solved: 0.0 if solved else 2.0)
        train_step(METHODS["adaback"], model, model, [Keep(model)], task, problems, s, None)
        for problem, rho, hint in zip(problems, s.memory["rho"], s.hints, strict=True):
            low, high = intervals[problem.prompt]
            assert low <= rho <= high and hint == int(2 * rho)
            intervals[problem.prompt] = (0.0, rho) if solved else (rho, high)
            assert s.memory[problem.prompt] == intervals[problem.prompt]
    assert len({x for x in intervals.values()}) == 6


@pytest.mark.parametrize(("name", "ladder"), [("bread", [0, 1, 2, 3, 4, 5, 6, 7]), ("ghpo", [0, 2, 4, 6])])
def test_longer_hints_where_all_failed(name, ladder):
    """A hint that leaves nothing to explore; a retry of what was solved; a failed group that counts on."""
    twice = [Problem("", ["unit"] * 8)] * 2
    s = step_with([[0.1, 0.1], [1.0, 0.1]], problems=twice, hints=np.zeros(2, int))
    seen = [0]
    while retry := METHODS[name].again(s):
        ((problem, hint),) = retry
        seen.append(hint)
        s.rows = step_with([*s.rewards.tolist(), [0.0, 0.1]]).rows
        s.problems, s.hints, s.live = s.problems + [problem], np.append(s.hints, hint), np.append(s.live, True)
    assert seen == ladder and s.live.tolist() == [False, True] + [False] * (len(ladder) - 2) + [True]


def test_groups_that_count_no_more_have_no_gradient(task, model, problems, monkeypatch):
    """An entropy bonus, or an advantage, on rollouts that were replaced; rollouts that nobody counted."""
    monkeypatch.setattr(task, "best", lambda problem: 2.0)
    s, metrics, _ = taken(METHODS["superrl"], model, task, problems, entropy_coef=1.0)
    assert (
        metrics["trained_rows"] == 6
        and metrics["rollouts"] == 24 == metrics["sampled_tokens"] / (metrics["completion_length"])
    )
    assert len(s.problems) == 12 and s.live.tolist() == [False] * 6 + [True] * 6


def test_dapo(task, model, problems):
    """Groups without an advantage that are kept, or replaced without end; a mean over rows; a lower clip."""
    s, metrics, ours = taken(METHODS["dapo"], model, task, problems, temperature=1.5)
    alike = (s.rewards == s.rewards[:, :1]).all(1).numpy()
    assert 6 < len(s.problems) <= 24 and (len(s.problems) == 24 or s.live.sum() == 6)
    assert (alike[:6] == ~s.live[:6]).all() and metrics["rollouts"] == 4 * len(s.problems)
    assert len(taken(METHODS["dapo"], model, task, problems, temperature=100.0)[0].problems) == 24  # all fail, alike
    A = grpo_advantages(s.rewards).flatten()
    rows = replace(s.rows, advantage=A, hint_weight=torch.zeros_like(A))
    loss = loss_terms(model, model, rows, replace(CFG, temperature=1.5))["loss"]
    mean = loss / s.rows.suffix[A != 0].sum()
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(mean, model.parameters())])
    assert expected.norm() > 1e-3 and torch.allclose(ours, expected, atol=1e-6)

    # The clip: a ratio of 1.25, where A wants more.
    rows = rollout(model, task, problems, np.zeros(6, int), 1)
    rows = replace(rows, logp=rows.logp - np.log(1.25), advantage=torch.ones(6), hint_weight=torch.zeros(6))
    clipped = [loss_terms(model, model, rows, cfg)["clip_ratio"].item() for cfg in (CFG, replace(s.cfg, temperature=1))]
    assert clipped == [rows.suffix.sum(), 0]


def test_chord_weighs_what_is_half_known(task, model, problems):
    """A demonstration that takes part in the group's mean; mu on the wrong half; a peak elsewhere."""
    p = torch.linspace(0, 1, 101)
    assert p[family.unsure(p, None, None).argmax()] == 0.5
    assert [family.mu(Step(t, CFG, None)) / CFG.group for t in (4, 9, 99)] == pytest.approx([0.475, 0.05, 0.05])
    s, _, ours = taken(METHODS["chord"], model, task, problems)
    mu = family.mu(s) / CFG.group
    assert torch.allclose(s.rows.advantage.view(6, 4)[:, 1:], (1 - mu) * grpo_advantages(s.rewards[:, 1:]))
    imitation = by_hand(model, task, problems, lambda p: mu * p * (1 - p))
    silent = taken(replace(METHODS["chord"], c=family.zero), model, task, problems)[2]
    assert imitation.norm() > 1e-3 and torch.allclose(ours, imitation + silent, atol=1e-6)


def test_prefix_rft_touches_the_fifth_with_the_highest_entropy():
    """The lowest, or of the whole batch, or prompts and padding among them where the hint is rather certain."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 24, 5, generator=generator) * torch.rand(3, 24, 1, generator=generator) * 12
    column, start, end = torch.arange(25), torch.tensor([[3], [5], [2]]), torch.tensor([[13], [20], [3]])
    hint = (column >= start) & (column < end)  # 10, 15 and 1 tokens
    rows = Rows(torch.ones(3, 25, dtype=torch.long), hint, ~hint & False, torch.zeros(3, 25), *[torch.zeros(3)] * 2)
    rows.advantage, rows.hint_weight = torch.zeros(3), torch.ones(3)
    model = Free(logits)
    loss_terms(model, None, rows, CFG, family.open_ended)["loss"].backward()
    touched = model.logits.grad.abs().sum(-1) > 0
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    for i, n in enumerate((2, 3, 1)):
        some = hint[i, 1:].nonzero()[:, 0]
        assert touched[i].nonzero()[:, 0].tolist() == sorted(some[entropy[i, some].argsort()[-n:]].tolist())


def test_prefix_rft_starts_one_row_from_a_prefix():
    s = Step(0, replace(CFG, group=4), np.random.default_rng(0), problems=[Problem("", ["unit"] * 100)] * 500)
    for t, low in ((0, 92), (9, 5), (99, 5)):
        s.t = t
        hints = METHODS["prefix_rft"].hint(s)
        assert hints.shape == (500, 4) and not hints[:, 1:].any() and low <= hints[:, 0].min() <= low + 1
        assert hints[:, 0].max() == 94


@pytest.mark.parametrize("name", ["dr_grpo", "expert_iteration"])
def test_a_token_weighs_the_same_in_long_answers(task, name):
    """The mean over each sequence: long wrong answers are punished less than short ones."""
    s = step_with([[1.0, 0.0], [0.0, 1.0]])
    A = METHODS[name].advantage(s)
    assert A.tolist() == ([[0.5, -0.5], [-0.5, 0.5]] if name == "dr_grpo" else [[1, 0], [0, 1]])
    length = torch.tensor([[2], [7], [7], [2]])
    suffix = torch.arange(8).expand(4, 8) < length + 1
    suffix[:, 0] = False
    none = torch.zeros_like(suffix)
    logp = torch.full((4, 8), np.log(1 / 5))
    rows = Rows(torch.ones(4, 8, dtype=torch.long), none, suffix, logp, *[torch.zeros(4)] * 2)
    rows.advantage, rows.hint_weight = A.flatten(), torch.zeros(4)
    model = Free(torch.zeros(4, 8, 5))
    loss_terms(model, None, rows, CFG)["loss"].backward()
    assert torch.allclose(model.logits.grad[:, :7, 1], -0.8 * A.view(-1, 1) * suffix[:, 1:])


def test_questa_halves_its_hints():
    lengths = [METHODS["questa"].hint(Step(t, CFG, None, problems=[Problem("", ["u"] * 8)]))[0] for t in (0, 9, 10)]
    assert lengths == [4, 4, 2]


SMALL = dict(horizon=4, demos=32, validation=8, test=8, problems=8, steps=4, eval_every=2, warmup=1, hint_steps=3)


@pytest.mark.parametrize("where", [dict(task="tree"), dict(task="tree", fork=2), dict(task="chain"), dict(numbers=3)])
@pytest.mark.parametrize("name", NAMES)
def test_runs_on_every_task_and_resumes(name, where, tmp_path_factory):
    """A method that remembers more than its checkpoint; or that only fits one task."""
    folder = tmp_path_factory.getbasetemp() / "family"
    sizes = dict(base_steps=8, layers=1, width=16, group=4, cache=str(folder / "base"), device="cpu")
    cfg = Config(**DEFAULTS.get(where.get("task"), {}) | SMALL | sizes | where, method=name)
    whole, half = run(cfg), replace(cfg, steps=2, out=str(tmp_path_factory.mktemp("half")))
    run(half)
    for ours, theirs in zip(run(replace(half, steps=4))[3:], whole[3:], strict=True):
        assert {k: x for k, x in ours.items() if k != "seconds"} == {k: x for k, x in theirs.items() if k != "seconds"}
