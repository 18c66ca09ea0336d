"""The step against oracles by hand. Each docstring names the mistake that the test guards against."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from data import TASKS, Problem
from model import GPT
from nanouft import (
    METHODS,
    Method,
    Rows,
    Step,
    anneal,
    evenly,
    grpo_advantages,
    loss_terms,
    rollout,
    train_step,
    update,
    zero,
)
from notebooks.report import methods_table
from train import Config

CFG = Config(problems=6, group=4, warmup=2, hint_steps=10, hint_coef=0.3)


@pytest.fixture(scope="module")
def task():
    return TASKS["countdown"](numbers=3)


@pytest.fixture(scope="module")
def problems(task) -> list[Problem]:
    return task.split("pool", 6, 0)


@pytest.fixture(scope="module")
def model(task, problems) -> GPT:
    """It half knows these six demonstrations: some of its answers are right, some well-formed, some neither."""
    model = GPT(task.vocab, 1, 32, task.prompt_tokens + task.answer_tokens)
    model.init_weights(torch.Generator().manual_seed(0))
    optimizer, rng = torch.optim.AdamW(model.parameters(), lr=0.01), np.random.default_rng(0)
    for t in range(50):
        train_step(METHODS["sft"], model, model, [optimizer], task, problems, Step(t, CFG, rng), None)
    return model


class Keep:
    """An optimizer that keeps the gradient and moves nothing."""

    def __init__(self, model: GPT):
        self.model, self.gradient = model, torch.zeros(0)

    def step(self):
        self.gradient = torch.cat([p.grad.flatten() for p in self.model.parameters()])


def gradient(
    method: Method, model: GPT, task, problems, t: int = 0, memory=None, seed: int = 0, **settings
) -> torch.Tensor:
    keep = Keep(model)
    rng, coin = np.random.default_rng(seed), np.random.default_rng(seed)
    step = Step(t, replace(CFG, **settings), rng, memory or {}, coin)
    generator = torch.Generator().manual_seed(seed)
    train_step(method, model, copy.deepcopy(model), [keep], task, problems, step, generator)
    return keep.gradient


# ---------------------------------------------------------------------------------------------------------------------
# Advantages


def test_advantages_by_hand():
    """The wrong ddof, or normalising over the batch instead of the group."""
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 0.1, 0.1, 0.0]])
    expected = [(row - row.mean()) / (np.std(row, ddof=1) + 1e-6) for row in rewards.double().numpy()]
    assert torch.allclose(grpo_advantages(rewards), torch.tensor(np.array(expected)).float(), atol=1e-5)


def test_equal_rewards_give_exactly_zero():
    """Twelve times 0.01: the mean is rounded, and a tiny std makes a huge advantage of the difference."""
    assert (grpo_advantages(torch.full((1, 12), 0.01)) == 0).all()
    assert (grpo_advantages(torch.tensor([[0.3]])) == 0).all()  # a group of one


# ---------------------------------------------------------------------------------------------------------------------
# The loss


class Unigram(torch.nn.Module):
    """Three words, the same logits at every place: losses and gradients can be worked out by hand."""

    def __init__(self, logits: list[float]):
        super().__init__()
        self.logits = torch.nn.Parameter(torch.tensor(logits, dtype=torch.float64))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(*tokens.shape, 3)


def rows_by_hand() -> Rows:
    """Row 0: prompt 0, hint 1, suffix 2 0. Row 1: prompt 0, suffix 1 2, padding."""
    yes, no = True, False
    return Rows(
        tokens=torch.tensor([[0, 1, 2, 0], [0, 1, 2, 0]]),
        hint=torch.tensor([[no, yes, no, no], [no, no, no, no]]),
        suffix=torch.tensor([[no, no, yes, yes], [no, yes, yes, no]]),
        logp=torch.tensor([[0, 0, -1.0, -2.0], [0, -0.5, -1.5, 0]], dtype=torch.float64),
        reward=torch.tensor([1.0, 0.0]),
        solved=torch.tensor([yes, no]),
        advantage=torch.tensor([0.7, -0.7], dtype=torch.float64),
        hint_weight=torch.tensor([0.6, 0.0], dtype=torch.float64),
    )


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_loss_and_gradient_by_hand(temperature):
    """Any slip in the objective: sign, mask, ratio, clipping side, temperature, k3, entropy, the hint's share."""
    model, base = Unigram([0.3, -0.2, 0.1]), Unigram([0.0, 0.5, -0.5])
    cfg = replace(CFG, kl_coef=0.05, entropy_coef=0.02, temperature=temperature, clip=0.2)
    terms = loss_terms(model, base, rows_by_hand(), cfg)
    terms["loss"].backward()

    def by_hand(logits: np.ndarray) -> tuple[float, float, int]:
        def log_softmax(x):
            return x - np.log(np.exp(x).sum())

        hint_logp = log_softmax(logits)[1]
        hot, hot_base = log_softmax(logits / temperature), log_softmax(base.logits.detach().numpy() / temperature)
        objective, kl, clips = 0.6 * hint_logp, 0.0, 0
        for token, old, A in ((2, -1.0, 0.7), (0, -2.0, 0.7), (1, -0.5, -0.7), (2, -1.5, -0.7)):
            ratio = np.exp(hot[token] - old)
            clipped = min(max(ratio, 0.8), 1.2)
            clips += clipped * A < ratio * A
            k3 = np.exp(hot_base[token] - hot[token]) - (hot_base[token] - hot[token]) - 1
            kl += k3
            objective += min(ratio * A, clipped * A) - 0.05 * k3 - 0.02 * (np.exp(hot) * hot).sum()
        return -objective, kl, clips

    at = model.logits.detach().numpy()
    loss, kl, clips = by_hand(at)
    assert terms["loss"].item() == pytest.approx(loss, rel=1e-6)
    assert terms["kl"].item() == pytest.approx(kl, rel=1e-6) and terms["clip_ratio"].item() == clips > 0
    numeric = [(by_hand(at + d)[0] - by_hand(at - d)[0]) / 2e-6 for d in 1e-6 * np.eye(3)]
    assert torch.allclose(model.logits.grad, torch.tensor(numeric), atol=1e-7)


def test_stop_token_has_gradient_and_padding_has_none(task, model, problems):
    """<end> masked away with the padding, or padding trained as if it were <end>."""
    rows = rollout(model, task, problems, np.array([2, 2, 0, 0, 1, 1]), 4, 1.0, torch.Generator().manual_seed(0))
    ends = rows.tokens == task.end
    assert ends.any() and (ends <= (rows.hint | rows.suffix)).all()
    assert not ((rows.tokens == task.pad) & (rows.hint | rows.suffix)).any() and task.pad != task.end
    assert (rows.hint[0] & ends[0]).any()  # a full hint holds its <end> ...
    assert not rows.suffix[:8].any()  # ... and leaves nothing to sample
    logits = torch.nn.Parameter(torch.zeros(1, 1, task.vocab))

    class Flat(torch.nn.Module):
        def forward(self, tokens):
            return logits.expand(*tokens.shape, task.vocab)

    rows.advantage = rows.hint_weight = torch.ones(24)
    loss_terms(Flat(), None, rows, CFG)["loss"].backward()
    pushed_up = logits.grad[0, 0] < 0
    assert pushed_up[task.end] and not pushed_up[task.pad]


def test_gradient_does_not_depend_on_the_micro_batch_split(task, model, problems):
    """A mean over each micro-batch, instead of one normaliser a step."""
    settings = {"kl_coef": 0.1, "entropy_coef": 0.1}
    whole = gradient(METHODS["uft"], model, task, problems, **settings)
    split = gradient(METHODS["uft"], model, task, problems, micro_batch=5, **settings)
    assert whole.norm() > 1e-4 and torch.allclose(whole, split, atol=1e-7)


def test_rows_without_weight_change_nothing(task, model, problems):
    """Leaving rows out must not change the gradient: with a KL of next to no weight, none is left out."""
    lean = gradient(METHODS["uft"], model, task, problems)
    full = gradient(METHODS["uft"], model, task, problems, kl_coef=1e-12)
    assert lean.norm() > 1e-4 and torch.allclose(lean, full, atol=1e-7)


def test_first_update_has_ratio_one_and_later_ones_clip(task, problems, model):
    """Old log-probabilities replaced by new ones, so that nothing ever clips; or a ratio that does not start at 1."""
    rows = rollout(model, task, problems, np.zeros(6, int), 4, 1.0, torch.Generator().manual_seed(0))
    rows.advantage, rows.hint_weight = grpo_advantages(rows.reward.view(6, 4)).flatten(), torch.zeros(24)
    terms = loss_terms(model, model, rows, CFG)
    # At ratio 1 the value is sum of A_i x length_i, 0 were all answers equally long; the gradient is not 0.
    assert terms["loss"].item() == pytest.approx(-(rows.advantage * rows.suffix.sum(1)).sum().item(), abs=1e-4)
    assert terms["clip_ratio"] == 0 and gradient(METHODS["rft"], model, task, problems).norm() > 1e-3
    moved = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(moved.parameters(), lr=0.01)
    step = Step(0, replace(CFG, updates=3), np.random.default_rng(0))
    later = train_step(
        METHODS["rft"], moved, model, [optimizer], task, problems, step, torch.Generator().manual_seed(0)
    )
    assert later["clip_ratio"] > 0


def test_loss_that_is_not_finite_stops_before_the_parameters_move(task, model, problems):
    """A NaN written into the weights, and then into the checkpoint."""
    broken = copy.deepcopy(model)
    rows = rollout(broken, task, problems, np.full(6, 2), 4)
    rows.advantage, rows.hint_weight = torch.zeros(24), torch.full((24,), float("nan"))
    before = {n: p.clone() for n, p in broken.named_parameters()}
    optimizer = torch.optim.AdamW(broken.parameters())
    with pytest.raises(FloatingPointError, match="step 8: the loss is nan; start again with a smaller --lr"):
        update(rows, [optimizer], evenly, Step(7, CFG, None, model=broken))
    assert all((before[n] == p).all() for n, p in broken.named_parameters())


def test_gradient_norm_is_told_as_it_was_and_clipped_to_one(task, model, problems):
    """A step a thousand times too long after one odd batch; or SASR fed with norms that are always 1."""
    rows, keep = rollout(model, task, problems, np.full(6, 2), 4), Keep(model)
    rows.advantage, rows.hint_weight = torch.zeros(24), torch.ones(24)
    norms = [update(rows, [keep], evenly, Step(0, CFG, None, Z=Z, model=model))["grad_norm"] for Z in (1, 1000)]
    assert norms[0] > 10 and norms[0] == pytest.approx(1000 * norms[1], rel=1e-4)
    update(rows, [keep], evenly, Step(0, CFG, None, model=model))
    assert keep.gradient.norm() == pytest.approx(1, rel=1e-4)


def test_an_answer_without_an_end_earns_nothing(task, model, problems, monkeypatch):
    """Rewarding what is right so far teaches never to stop."""
    right = sum(task.units(problems[0]), [])
    for answer, reward in ((right, 1.0), (right[:-1], 0.0)):
        said = torch.tensor([answer]), torch.zeros(1, len(answer)), torch.tensor([len(answer)])
        monkeypatch.setattr("nanouft.sample", lambda *_, said=said: said)
        rows = rollout(model, task, problems[:1], np.zeros(1, int), 1)
        assert rows.reward.tolist() == [reward] and rows.solved.tolist() == [reward == 1.0]


# ---------------------------------------------------------------------------------------------------------------------
# Limits: methods that must collapse onto each other, gradient for gradient


def pinned(name: str, p: float) -> Method:
    return replace(METHODS[name], hint=lambda s: s.rng.binomial(s.units, p))


@pytest.mark.parametrize("name", ["uft", "cosine"])
def test_without_hints_uft_is_rft(task, model, problems, name):
    """Remark 3.1 of UFT, p = 0."""
    rft = gradient(METHODS["rft"], model, task, problems)
    assert rft.norm() > 1e-4 and torch.equal(gradient(pinned(name, 0.0), model, task, problems), rft)
    assert torch.equal(gradient(METHODS[name], model, task, problems, t=CFG.hint_steps), rft)  # after T_hint


@pytest.mark.parametrize("name", ["uft", "hint_only"])
def test_with_full_hints_uft_is_sft_up_to_the_coefficient(task, model, problems, name):
    """Remark 3.1 of UFT, p = 1."""
    sft = gradient(METHODS["sft"], model, task, problems)
    assert sft.norm() > 1e-4 and torch.allclose(
        gradient(pinned(name, 1.0), model, task, problems), 0.3 * sft, atol=1e-7
    )


def test_sft_is_the_mean_negative_log_likelihood(task, model, problems):
    """SFT through the shared step, against SFT written down directly."""
    model.zero_grad()
    for p in problems:
        prompt, answer = task.encode(p.prompt), sum(task.units(p), [])
        logp = torch.log_softmax(model(torch.tensor([prompt + answer]))[0, len(prompt) - 1 : -1], -1)
        (-logp[range(len(answer)), answer].sum() / (6 * task.answer_tokens)).backward()
    by_hand = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert torch.allclose(gradient(METHODS["sft"], model, task, problems), by_hand, atol=1e-6)


@pytest.mark.parametrize("name", ["r3", "stage", "cosine"])
def test_hints_alone_teach_nothing(task, model, problems, name):
    """UFT's baselines are given hints but not trained on them; hint_only is trained on nothing else."""
    silent = gradient(replace(METHODS[name], advantage=zero), model, task, problems)
    assert silent.numel() == 0  # no row was of use, no step was made
    cold, hot = (gradient(METHODS["hint_only"], model, task, problems, temperature=x) for x in (0.1, 1.0))
    assert cold.norm() > 1e-3 and torch.allclose(cold, hot, atol=1e-7)  # whatever it samples


@pytest.mark.parametrize(("G", "same_as"), [(1e30, "sft"), (0.0, "rft")])
def test_sasr_at_its_ends_is_sft_or_grpo(task, model, problems, G, same_as):
    """p_t = 1 and p_t = 0."""
    memory = {"g": G, "g_warmup": 1.0}
    ours = gradient(METHODS["sasr"], model, task, problems, t=CFG.warmup, memory=memory)
    assert torch.allclose(ours, gradient(METHODS[same_as], model, task, problems), atol=1e-7)


# ---------------------------------------------------------------------------------------------------------------------
# Hints and gates


def lengths(name: str, t: int, P: int = 4000, L: int = 5) -> np.ndarray:
    return METHODS[name].hint(Step(t, CFG, np.random.default_rng(t), problems=[Problem("", ["unit"] * L)] * P))


def test_anneal_is_the_papers_cosine():
    assert anneal(299, 300, 0.05, 0.95) == pytest.approx(0.05)
    assert anneal(149, 300, 0.05, 0.95) == pytest.approx(0.5)
    assert anneal(0, 300, 0.05, 0.95) == pytest.approx(0.05 + 0.45 * (1 + np.cos(np.pi / 300)))


def test_realised_hint_lengths_follow_the_schedule():
    """Hints that do not end, start short, or all have the same length."""
    for t in range(CFG.hint_steps):
        p = anneal(t, CFG.hint_steps, CFG.hint_low, CFG.hint_high)
        drawn = lengths("uft", t)
        assert drawn.mean() == pytest.approx(5 * p, abs=0.08) and drawn.var() == pytest.approx(
            5 * p * (1 - p), abs=0.12
        )
    for name in ("uft", "cosine", "hint_only", "stage"):
        assert not lengths(name, CFG.hint_steps).any() and not lengths(name, CFG.hint_steps + 1).any()
    assert [lengths("stage", t, 1)[0] for t in range(11)] == [4, 4, 4, 3, 3, 2, 2, 2, 1, 1, 0]
    assert np.bincount(lengths("r3", 99), minlength=6) == pytest.approx(np.full(6, 4000 / 6), rel=0.15)


def test_sasr_probability_and_what_its_memory_holds(task, model, problems):
    """G taken after clipping, updated by RL steps, or a warm-up that is not frozen."""
    step = Step(1, CFG, np.random.default_rng(0), coin=np.random.default_rng(1))
    metrics = train_step(METHODS["sasr"], model, model, [Keep(model)], task, problems, step, None)
    assert metrics["supervised"] == 1 and step.memory == {"g": metrics["grad_norm"], "g_warmup": metrics["grad_norm"]}
    assert metrics["grad_norm"] > 0.01
    kinds = set()
    for t in range(2, 40):
        before = dict(step.memory)
        step.t, step.cfg = t, replace(CFG, gamma=0.7)
        metrics = train_step(METHODS["sasr"], model, model, [Keep(model)], task, problems[t % 6 :], step, None)
        assert metrics["p_sft"] == pytest.approx(before["g"] / (before["g"] + 0.7 * before["g_warmup"]))
        assert step.memory["g_warmup"] == before["g_warmup"]
        assert step.memory["g"] == (metrics["grad_norm"] if metrics["supervised"] else before["g"])
        kinds.add(metrics["supervised"])
    assert kinds == {0, 1}


def supervised_share(name: str, steps: int = 2000, **settings) -> float:
    gate, rng = METHODS[name].supervised, np.random.default_rng(0)
    memory, cfg = {"g": 1.0, "g_warmup": 1.0}, replace(CFG, **settings)
    return np.mean([gate(Step(t, cfg, None, memory, coin=rng)) for t in range(2, steps)])


def test_gates_open_as_often_as_they_say():
    assert supervised_share("rft") == supervised_share("sft_rft") == 0
    assert supervised_share("static") == 0.5
    assert supervised_share("mix", mix=0.2) == pytest.approx(0.2, abs=0.03)
    assert supervised_share("sasr", gamma=1.0) == pytest.approx(0.5, abs=0.04)
    assert supervised_share("sasr", gamma=3.0) == pytest.approx(0.25, abs=0.04)
    assert all(METHODS[n].supervised(Step(1, CFG, None)) for n in ("sft_rft", "static", "mix", "sasr"))


def test_hint_never_leaks_into_rft(task, problems):
    """While no reward tells the rows apart, RFT's parameters may depend on nothing, least of all on the demonstration.

    With another demonstration, and so with UFT's hints, they do: the test can see a leak.
    """
    untrained = GPT(task.vocab, 1, 32, 30)
    untrained.init_weights(torch.Generator().manual_seed(1))
    other = [replace(p, demo=["1+1=2\n", "2+1=3"]) for p in problems]

    def after(method: str, some: list[Problem]) -> torch.Tensor:
        model, rng, generator = copy.deepcopy(untrained), np.random.default_rng(0), torch.Generator().manual_seed(0)
        optimizer = torch.optim.AdamW(model.parameters())
        for t in range(3):
            train_step(METHODS[method], model, untrained, [optimizer], task, some, Step(t, CFG, rng), generator)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    assert torch.equal(after("rft", problems), after("rft", other))
    assert not torch.equal(after("uft", problems), after("uft", other))


def test_table_lists_every_method():
    cells = [line.split("|")[1].strip() for line in methods_table().splitlines()[2:]]
    assert cells == [f"`{name}`" for name in METHODS]
