"""The wider family: what makes each of them that method. Docstrings name the mistake guarded against."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

# ruff: noqa: F401, F811
from test_nanouft import CFG, Keep, a_step, gradient, model, problems, some_rows, task  # fixtures among them

from data import TASKS, Problem
from model import GPT
from nanouft import METHODS, GivenAnswers, Method, Rows, Step, grpo_advantages, loss_sum, train_step
from notebooks import compare, family
from train import Config, exploration, run

NAMES = "stage static mix cosine dft dr_grpo dapo expert_iteration".split()
NAMES += "questa adaback frontier bread ghpo superrl luffy prefix_rft chord".split()


def rows_with(rewards: list[list[float]]) -> Rows:
    """Rows without tokens, for columns that only look at rewards."""
    reward = torch.tensor(rewards).flatten()
    return Rows(
        [], *[torch.zeros(len(reward), 1, dtype=torch.bool)] * 4, reward=reward, solved=reward == 1, weight=None
    )


def cell(name: str, column: str, t: int, problems=(), rows=None, **settings):
    s = a_step(None, None, [], t, **settings)
    s.problems = list(problems)
    return getattr(METHODS[name], column)(s, *([] if rows is None else [rows]))


def taken(method: Method, model, task, problems, **settings) -> tuple[Step, dict, torch.Tensor]:
    """A step: what the method saw, its metrics, and the gradient as it was before clipping."""
    keep, s = Keep(model), a_step(model, task, problems, coin=0.5, **settings)
    metrics = train_step(method, s, [keep])
    return s, metrics | exploration(s), keep.gradient * max(1, metrics["grad_norm"])


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
    assert [name for name in METHODS if name in NAMES] == NAMES


def test_dft_is_sft_times_p(task, model, problems):
    """A p that has a gradient of its own; or of the whole answer."""
    ours = taken(METHODS["dft"], model, task, problems)[2]
    assert ours.norm() > 1e-3 and torch.allclose(ours, by_hand(model, task, problems, lambda p: p), atol=1e-6)


def test_luffy_trains_the_demonstration_as_far_as_the_group_fails(task, model, problems):
    """An advantage with a std, which never goes away; shaping on the wrong side; a demonstration that counts twice."""
    fails, wins = (cell("luffy", "c", 0, (), rows_with([[1.0] + [x] * 7]), group=8)[0, 0].item() for x in (0.0, 1.0))
    assert fails == 0.875 and wins == 0
    s, _, ours = taken(METHODS["luffy"], model, task, problems)
    hinted = s.rows.hint.any(1).view(6, 4)
    assert hinted[:, 0].all() and not s.rows.suffix.view(6, 4, -1)[:, 0].any() and not hinted[:, 1:].any()
    rewards = s.rows.reward.view(6, 4)
    A = rewards - rewards.mean(1, keepdim=True)
    shares = iter(A[:, 0].tolist())
    imitation = by_hand(model, task, problems, lambda p: next(shares) / 4 * 0.1 * p / (p + 0.1) ** 2)
    silent = taken(replace(METHODS["luffy"], c=0), model, task, problems)[2]
    assert imitation.norm() > 1e-3 and torch.allclose(ours, imitation + silent, atol=1e-6)


def test_luffy_weighs_a_batch_as_by_hand(task, model, problems):
    """The demonstration left out of its group's mean, or another row's advantage on its tokens."""
    s = a_step(model, task, problems[:1])
    s.problems = problems[:1]
    rows = METHODS["luffy"].explore(s)
    rows.reward[:] = torch.tensor([1.0, 0.1, 0.1, 0.0])  # their mean is 0.3
    weight, prompt = METHODS["luffy"].weigh(s, rows), task.prompt_tokens
    for i, A in enumerate([0.7, -0.2, -0.2, -0.3]):
        length = int((rows.tokens[i] != task.pad).sum())
        expected = [0.0] * prompt + [A] * (length - prompt) + [0.0] * (len(weight[i]) - length)
        assert weight[i].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("best", "same_as"), [(0.0, "rft"), (2.0, "sft")])
def test_superrl_at_its_ends_is_rft_or_sft(task, model, problems, monkeypatch, best, same_as):
    """Failed rollouts that are trained as well; a demonstration that weighs less than in SFT."""
    monkeypatch.setattr(task, "best", lambda problem: best)  # every rollout solves it; none does
    ours = gradient(METHODS["superrl"], model, task, problems)
    assert torch.allclose(ours, gradient(METHODS[same_as], model, task, problems), atol=1e-7) and ours.norm() > 1e-3


def test_adaback_moves_its_interval(task, model, problems, monkeypatch):
    """An interval that moves the wrong way, for the wrong problem, or is forgotten."""
    memory, intervals = {}, dict.fromkeys([p.prompt for p in problems], (0.0, 1.0))
    for t, solved in enumerate((True, False, False, True)):
        monkeypatch.setattr(task, "best", lambda problem, solved=solved: 0.0 if solved else 2.0)
        s = a_step(model, task, problems, seed=t, coin=0.5, memory=memory)
        train_step(METHODS["adaback"], s, [Keep(model)])
        given = s.rows.hint.sum(1).view(6, 4)
        for problem, rho, tokens in zip(problems, memory["rho"], given, strict=True):
            low, high = intervals[problem.prompt]
            assert low <= rho <= high and set(tokens.tolist()) == {len(sum(task.units(problem)[: int(2 * rho)], []))}
            intervals[problem.prompt] = (0.0, rho) if solved else (rho, high)
            assert memory[problem.prompt] == intervals[problem.prompt]
    assert len({x for x in intervals.values()}) == 6


def test_frontier_stands_where_half_succeed(task, model, problems, monkeypatch):
    """A hint that grows where the group succeeds, leaves 0 .. L, or moves by another step than one unit."""
    memory, hints = {}, None
    for t, solved in enumerate([False] * 3 + [True] * 4 + [False]):
        monkeypatch.setattr(task, "best", lambda problem, solved=solved: 0.0 if solved else 2.0)
        s = a_step(model, task, problems, seed=t, coin=0.5, memory=memory)
        train_step(METHODS["frontier"], s, [Keep(model)])
        lengths = [[len(sum(task.units(p)[:n], [])) for n in range(len(p.demo) + 1)] for p in problems]
        given = s.rows.hint.sum(1).view(6, 4)[:, 0].tolist()
        found = [own.index(n) for own, n in zip(lengths, given, strict=True)]
        assert hints in (None, found)
        hints = [max(n - 1, 0) if solved else min(n + 1, len(p.demo)) for n, p in zip(found, problems, strict=True)]


@pytest.mark.parametrize(("name", "ladder"), [("bread", [0, 1, 2, 3, 4, 5, 6, 7]), ("ghpo", [0, 2, 4, 6])])
def test_longer_hints_where_all_failed(name, ladder, monkeypatch):
    """A hint that leaves nothing to explore; a retry of what was solved; a failed group that counts on."""
    tree = TASKS["tree"](horizon=8)
    solved, failed = (replace(tree.only) for _ in range(2))
    monkeypatch.setattr(tree, "best", lambda problem: 0.0 if problem is solved else 2.0)
    s = a_step(fresh(tree), tree, [failed, solved], coin=0.5, group=2, entropy_coef=1.0)
    s.problems = [failed, solved]
    rows = METHODS[name].explore(s)
    assert [int(rows.hint[0].sum()) for rows in s.explored] == ladder
    assert [len(rows.problems) for rows in s.explored] == [4] + [2] * (len(ladder) - 1)
    assert rows.problems == [failed] * 2 + [solved] * 2
    assert rows.hint.sum(1).tolist() == [ladder[-1]] * 2 + [0] * 2  # the retried group stands where it stood
    assert (rows.hint | rows.suffix).sum(1).tolist() == [8] * 4


def fresh(task):
    model = GPT(task.vocab, 1, 16, task.prompt_tokens + task.answer_tokens, writable=task.writable)
    model.init_weights(torch.Generator().manual_seed(0))
    return model


def test_groups_that_were_replaced_have_no_gradient(task, model, problems, monkeypatch):
    """An entropy bonus, or an advantage, on rollouts that were replaced; rollouts that nobody counted."""
    monkeypatch.setattr(task, "best", lambda problem: 2.0)
    s, metrics, _ = taken(METHODS["superrl"], model, task, problems, entropy_coef=1.0)
    assert metrics["trained_rows"] == 6 and metrics["rollouts"] == 24
    assert metrics["sampled_tokens"] == s.explored[0].suffix.sum() > 0 and not s.rows.suffix.any()


def test_dapo(task, model, problems):
    """Groups without an advantage that are kept, or replaced without end; a mean over rows; a clip of its own."""
    s, metrics, ours = taken(METHODS["dapo"], model, task, problems, seed=2)
    rewards = s.rows.reward.view(6, 4)
    alike, first = (rewards == rewards[:, :1]).all(1), s.explored[0].reward.view(6, 4)
    replaced = (first == first[:, :1]).all(1)
    assert replaced.any() and not replaced.all() and torch.equal(first[~replaced], rewards[~replaced])
    assert 24 < metrics["rollouts"] <= 96 and (metrics["rollouts"] == 96 or not alike.any())
    A = grpo_advantages(rewards).flatten()
    rows = replace(s.rows, weight=A[:, None] * s.rows.suffix)
    loss = loss_sum(METHODS["rft"], s, rows)
    expected = torch.autograd.grad(loss / s.rows.suffix[A != 0].sum(), model.parameters())
    expected = torch.cat([g.flatten() for g in expected])
    assert expected.norm() > 1e-3 and torch.allclose(ours, expected, atol=1e-6)

    calls = []
    s = a_step(model, task, problems, coin=0.5, entropy_coef=1.0)
    s.task = copy.copy(task)
    s.task.reward = lambda problem, answer: 0.0  # all fail, alike
    s.draw = lambda share: calls.append(share) or problems
    assert train_step(METHODS["dapo"], s, [Keep(model)])["trained_rows"] == 0
    assert len(calls) == 4 and exploration(s)["rollouts"] == 96  # the first draw, and three more

    # The clip: a ratio of 1.25, where A wants more.
    rows = some_rows(model, task, problems, [0] * 6)
    rows = replace(rows, logp=(rows.logp - np.log(1.25)) * rows.suffix, weight=1.0 * rows.suffix)
    for name, clip, clipped in (("rft", 0.2, True), ("dapo", 0.2, False), ("rft", 0.3, False)):
        s = a_step(model, task, problems, clip=clip)
        (slope,) = torch.autograd.grad(loss_sum(METHODS[name], s, rows), [model.norm.weight])
        assert (slope.norm() == 0) == clipped


def test_chord_weighs_what_is_half_known(task, model, problems):
    """A demonstration that takes part in the group's mean; mu on the wrong half; a peak elsewhere."""
    p = torch.linspace(0, 1, 101)
    assert p[family.unsure(p, None, None).argmax()] == 0.5
    assert [family.falling(a_step(None, None, [], t), 0.9) for t in (4, 9, 99)] == pytest.approx([0.475, 0.05, 0.05])
    assert family.falling(a_step(None, None, [], hint_steps=0), 0.9) == 0.05
    s, _, ours = taken(METHODS["chord"], model, task, problems)
    mu, rewards = family.falling(s, 0.9), s.rows.reward.view(6, 4)
    A = METHODS["chord"].advantage(s, s.rows)
    assert torch.allclose(A[:, 1:], (1 - mu) * grpo_advantages(rewards[:, 1:])) and not A[:, 0].any()
    imitation = by_hand(model, task, problems, lambda p: mu * p * (1 - p))
    silent = taken(replace(METHODS["chord"], c=0), model, task, problems)[2]
    assert imitation.norm() > 1e-3 and torch.allclose(ours, imitation + silent, atol=1e-6)


def test_prefix_rft_touches_the_fifth_with_the_highest_entropy():
    """The lowest, or of the whole batch, or prompts and padding among them where the hint is rather certain."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 24, 5, generator=generator) * torch.rand(3, 24, 1, generator=generator) * 12
    column, start, end = torch.arange(25), torch.tensor([[3], [5], [2]]), torch.tensor([[13], [20], [3]])
    hint = (column >= start) & (column < end)  # 10, 15 and 1 tokens
    rows = Rows(
        [], torch.ones(3, 25, dtype=torch.long), hint, ~hint & False, torch.zeros(3, 25), *[torch.zeros(3)] * 2, None
    )
    rows.weight, model = 1.0 * hint, Free(logits)
    loss_sum(METHODS["prefix_rft"], a_step(model, None, []), rows).backward()
    touched = model.logits.grad.abs().sum(-1) > 0
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    for i, n in enumerate((2, 3, 1)):
        some = hint[i, 1:].nonzero()[:, 0]
        assert touched[i].nonzero()[:, 0].tolist() == sorted(some[entropy[i, some].argsort()[-n:]].tolist())


def test_prefix_rft_starts_one_row_from_a_prefix():
    """Hints in every row; a schedule that starts again, or divides by zero, behind T_hint."""
    some = [Problem("", ["unit"] * 100)] * 500
    for t, low in ((0, 92), (9, 5), (99, 5)):
        hints = cell("prefix_rft", "length", t, some)
        assert hints.shape == (500, 4) and not hints[:, 1:].any() and low <= hints[:, 0].min() <= low + 1
        assert hints[:, 0].max() == 94
    assert cell("prefix_rft", "length", 0, some, hint_steps=0)[:, 0].min() <= 6


@pytest.mark.parametrize("name", ["dr_grpo", "expert_iteration"])
def test_a_token_weighs_the_same_in_long_answers(task, name):
    """The mean over each sequence: long wrong answers are punished less than short ones."""
    A = cell(name, "advantage", 0, (), rows_with([[1.0, 0.0], [0.0, 1.0]]), group=2)
    assert A.tolist() == ([[0.5, -0.5], [-0.5, 0.5]] if name == "dr_grpo" else [[1, 0], [0, 1]])
    length = torch.tensor([[2], [7], [7], [2]])
    suffix = torch.arange(8).expand(4, 8) < length + 1
    suffix[:, 0] = False
    none = torch.zeros_like(suffix)
    logp = torch.full((4, 8), np.log(1 / 5))
    rows = Rows([], torch.ones(4, 8, dtype=torch.long), none, suffix, logp, *[torch.zeros(4)] * 2, None)
    rows.weight, model = A.view(-1, 1) * suffix, Free(torch.zeros(4, 8, 5))
    loss_sum(METHODS[name], a_step(model, None, []), rows).backward()
    assert torch.allclose(model.logits.grad[:, :7, 1], -0.8 * A.view(-1, 1) * suffix[:, 1:])


def test_hints_that_go_by_a_plan():
    stages = [cell("stage", "length", t, [Problem("", ["u"] * 5)]).item() for t in range(11)]
    assert stages == [4, 4, 4, 3, 3, 2, 2, 2, 1, 1, 0]
    assert [cell("questa", "length", t, [Problem("", ["u"] * 8)]).item() for t in (0, 9, 10)] == [4, 4, 2]


SMALL = dict(demos=32, validation=8, test=8, problems=8, steps=4, eval_every=2, warmup=1, hint_steps=3)


@pytest.mark.parametrize("name", METHODS)
def test_what_a_method_explores_can_be_shown(task, model, problems, name):
    """A method that draws more problems, or that remembers them; a look that changes what it remembers."""
    memory = {"g": 1.0, "g_warmup": 1.0}
    s = replace(a_step(model, task, problems, memory=memory), draw=None, problems=problems)
    s.cfg = replace(s.cfg, method=name, steps=10, eval_every=5)
    found = compare.watch("validation", s)
    assert ("explored" in found) == (not isinstance(METHODS[name], GivenAnswers)) and len(memory) == 2


@pytest.mark.parametrize("where", ["tree:horizon=4,fork=2", "countdown:numbers=3"])
@pytest.mark.parametrize("name", NAMES)
def test_runs_on_every_task_and_resumes(name, where, tmp_path_factory):
    """A method that remembers more than its checkpoint; or that only fits one task."""
    folder = tmp_path_factory.getbasetemp() / "family"
    sizes = dict(base_steps=8, layers=1, width=16, group=4, cache=str(folder / "base"), device="cpu")
    cfg = Config(task=where, method=name, **SMALL | sizes)
    whole, half = run(cfg), replace(cfg, steps=2, out=str(tmp_path_factory.mktemp("half")))
    run(half)
    for ours, theirs in zip(run(replace(half, steps=4))[3:], whole[3:], strict=True):
        assert {k: x for k, x in ours.items() if k != "seconds"} == {k: x for k, x in theirs.items() if k != "seconds"}
