"""The step against oracles by hand. Each docstring names the mistake that the test guards against."""

import copy
import itertools
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
    grpo_advantages,
    log_probs,
    loss_sum,
    rollout,
    shared_once,
    train_step,
    update,
)
from notebooks import family  # noqa: F401  more methods
from notebooks.report import methods_table
from train import Config, exploration, learn

CFG = Config(problems=6, group=4, warmup=2, hint_steps=10, hint_coef=0.3)


@pytest.fixture(scope="module")
def task():
    return TASKS["countdown"](numbers=3)


@pytest.fixture(scope="module")
def problems(task) -> list[Problem]:
    return task.split("pool", 6, 0)


def a_step(
    model: GPT, task, problems, t: int = 0, seed: int = 0, coin: float = 0.0, memory=None, base=None, **settings
) -> Step:
    """A step that draws these problems, whatever the share of demonstrations."""
    cfg = replace(CFG, **settings)
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    memory = {} if memory is None else memory
    return Step(t, cfg, task, model, base or model, lambda share: problems, rng, coin, generator, memory)


@pytest.fixture(scope="module")
def model(task, problems) -> GPT:
    """It half knows these six demonstrations: some of its answers are right, some well-formed, some neither."""
    model = GPT(task.vocab, 1, 32, task.prompt_tokens + task.answer_tokens)
    model.init_weights(torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    whole = rollout(model, task, problems, [len(p.demo) for p in problems])
    for _ in range(50):  # by hand, for this must not hang on what is tested
        optimizer.zero_grad()
        (-log_probs(model, whole)[0] * whole.hint).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model


class Keep:
    """An optimizer that keeps the gradient and moves nothing."""

    def __init__(self, model: GPT):
        self.model, self.gradient = model, torch.zeros(0)

    def step(self):
        self.gradient = torch.cat([p.grad.flatten() for p in self.model.parameters()])


def gradient(method: Method, model: GPT, task, problems, **more) -> torch.Tensor:
    """As it was before clipping."""
    keep = Keep(model)
    done = train_step(method, a_step(model, task, problems, **{"base": copy.deepcopy(model)} | more), [keep])
    return keep.gradient * max(1, done["grad_norm"])


def some_rows(model: GPT, task, problems, hints) -> Rows:
    """Four rows for each problem, without weights."""
    each = [problem for problem in problems for _ in range(4)]
    return rollout(model, task, each, np.repeat(hints, 4), 1.0, torch.Generator().manual_seed(0))


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
        problems=[Problem("")] * 2,
        tokens=torch.tensor([[0, 1, 2, 0], [0, 1, 2, 0]]),
        hint=torch.tensor([[no, yes, no, no], [no, no, no, no]]),
        suffix=torch.tensor([[no, no, yes, yes], [no, yes, yes, no]]),
        logp=torch.tensor([[0, 0, -1.0, -2.0], [0, -0.5, -1.5, 0]], dtype=torch.float64),
        reward=torch.tensor([1.0, 0.0]),
        solved=torch.tensor([yes, no]),
        weight=torch.tensor([[0, 0.6, 0.7, 0.7], [0, -0.7, -0.7, 0]], dtype=torch.float64),
    )


def test_loss_and_gradient_by_hand():
    """Any slip in the objective: sign, mask, ratio, clipping side, k3, entropy, the hint's share, a ratio on hints."""
    model, base = Unigram([0.3, -0.2, 0.1]), Unigram([0.0, 0.5, -0.5])
    s = a_step(model, None, [], base=base, kl_coef=0.05, entropy_coef=0.02, clip=0.2)
    ours = loss_sum(METHODS["uft"], s, rows_by_hand())
    ours.backward()

    def by_hand(logits: np.ndarray) -> tuple[float, int]:
        def log_softmax(x):
            return x - np.log(np.exp(x).sum())

        logp, base_logp = log_softmax(logits), log_softmax(base.logits.detach().numpy())
        objective, clips = 0.6 * logp[1], 0
        for token, old, A in ((2, -1.0, 0.7), (0, -2.0, 0.7), (1, -0.5, -0.7), (2, -1.5, -0.7)):
            ratio = np.exp(logp[token] - old)
            clipped = min(max(ratio, 0.8), 1.2)
            clips += clipped * A < ratio * A
            k3 = np.exp(base_logp[token] - logp[token]) - (base_logp[token] - logp[token]) - 1
            objective += min(ratio * A, clipped * A) - 0.05 * k3 - 0.02 * (np.exp(logp) * logp).sum()
        return -objective, clips

    at = model.logits.detach().numpy()
    loss, clips = by_hand(at)
    assert ours.item() == pytest.approx(loss, rel=1e-6) and clips
    numeric = [(by_hand(at + d)[0] - by_hand(at - d)[0]) / 2e-6 for d in 1e-6 * np.eye(3)]
    assert torch.allclose(model.logits.grad, torch.tensor(numeric), atol=1e-7)


def test_gradient_is_the_exact_policy_gradient():
    """A factor, a sign or a token left out, which no comparison of the step with itself can see.

    All pairs of a tree's 27 leaves are groups of two, each as heavy as it is likely. Their r - mean must have the
    gradient of E[r], summed over all leaves, times 1 - 1/G.
    """
    tree, G = TASKS["tree"](horizon=3, B=3, fork=1), 2
    model = GPT(tree.vocab, 1, 32, 4, writable=tree.writable)
    model.init_weights(torch.Generator().manual_seed(0))
    for p in model.parameters():
        p.data *= 3
    leaves = ["".join(x) for x in itertools.product("012", repeat=3)]
    tokens = torch.tensor([tree.encode("\n" + leaf) for leaf in leaves])
    logp = model(tokens[:, :-1]).log_softmax(-1).gather(-1, tokens[:, 1:, None])[:, :, 0]  # (27, 3)
    reward, pi = torch.tensor([tree.reward(tree.only, leaf) for leaf in leaves]), logp.sum(1).exp()
    exact = torch.autograd.grad((pi * reward).sum(), model.parameters(), retain_graph=True)
    exact = torch.cat([g.flatten() for g in exact])

    pairs = torch.cartesian_prod(torch.arange(27), torch.arange(27)).flatten()
    suffix = torch.tensor([[False, True, True, True]]).expand(len(pairs), 4)
    old = torch.nn.functional.pad(logp.detach(), (1, 0))[pairs]
    rows = Rows(
        [tree.only] * len(pairs), tokens[pairs], ~suffix & False, suffix, old, reward[pairs], suffix[:, 1], None
    )
    likely = pi.detach()[pairs].view(-1, G).prod(1, keepdim=True)
    centred = lambda s, rows: likely * (rows.reward.view(-1, G) - rows.reward.view(-1, G).mean(1, keepdim=True))  # noqa: E731
    s, method, keep = a_step(model, tree, [], group=G), replace(METHODS["rft"], advantage=centred), Keep(model)
    s.cfg, s.rows = replace(s.cfg, problems=1), replace(rows, weight=method.weigh(s, rows))
    update(method, s, [keep])
    ours = -keep.gradient * (1 * G * 3) / (G - 1)  # less Z, and G (1 - 1/G)
    assert exact.norm() > 1e-2 and torch.allclose(ours, exact, atol=1e-4 * exact.norm().item())


def test_stop_token_has_gradient_and_padding_has_none(task, model, problems):
    """<end> masked away with the padding, or padding trained as if it were <end>."""
    rows = some_rows(model, task, problems, [2, 2, 0, 0, 1, 1])
    ends = rows.tokens == task.end
    assert ends.any() and (ends <= (rows.hint | rows.suffix)).all()
    assert not ((rows.tokens == task.pad) & (rows.hint | rows.suffix)).any() and task.pad != task.end
    assert (rows.hint[0] & ends[0]).any()  # a full hint holds its <end> ...
    assert not rows.suffix[:8].any()  # ... and leaves nothing to sample
    logits = torch.nn.Parameter(torch.zeros(1, 1, task.vocab))

    class Flat(torch.nn.Module):
        def forward(self, tokens):
            return logits.expand(*tokens.shape, task.vocab)

    rows.weight = 1.0 * (rows.hint | rows.suffix)
    loss_sum(METHODS["uft"], a_step(Flat(), task, problems), rows).backward()
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
    rows, s, rft = some_rows(model, task, problems, [0] * 6), a_step(model, task, problems), METHODS["rft"]
    rows.weight = rft.weigh(s, rows)
    loss = loss_sum(rft, s, rows)
    # At ratio 1 the value is sum of A_i x length_i, 0 were all answers equally long; the gradient is not 0.
    assert loss.item() == pytest.approx(-rows.weight.sum().item(), abs=1e-4)
    assert gradient(METHODS["rft"], model, task, problems).norm() > 1e-3

    def after(updates: int, clip: float) -> torch.Tensor:
        moved = copy.deepcopy(model)
        optimizer = torch.optim.AdamW(moved.parameters(), lr=0.01)
        train_step(rft, a_step(moved, task, problems, updates=updates, clip=clip), [optimizer])
        return torch.cat([p.flatten() for p in moved.parameters()])

    assert torch.equal(after(1, 0.2), after(1, 1e6)) and not torch.equal(after(3, 0.2), after(3, 1e6))


@pytest.mark.parametrize("name", ["sft", "rft"])
def test_what_is_not_a_number_ends_in_one_sentence(task, model, problems, name):
    """A NaN that is trained on, where every later number is one; an index out of bounds, far from its cause, which on a
    GPU is an assertion that takes other runs along."""
    broken = copy.deepcopy(model)
    broken.norm.weight.data[0] = float("nan")
    last = dict.fromkeys(["rollouts", "sampled_tokens", "demo_tokens", "seconds", "accuracy"], 0)
    with pytest.raises(ValueError, match=r"step 3: .*not finite; start again with a smaller --lr"):
        learn(METHODS[name], a_step(broken, task, problems, 2), Keep(broken), last)


def test_gradient_norm_is_told_as_it_was_and_clipped_to_one(task, model, problems):
    """A step a thousand times too long after one odd batch; or SASR fed with norms that are always 1."""
    keep = Keep(model)
    norms = [
        train_step(replace(METHODS["sft"], c=c, p_sft=0), a_step(model, task, problems), [keep])["grad_norm"]
        for c in (1000, 1)
    ]
    assert norms[0] > 10 and norms[0] == pytest.approx(1000 * norms[1], rel=1e-4)
    train_step(replace(METHODS["sft"], c=1000, p_sft=0), a_step(model, task, problems), [keep])
    assert keep.gradient.norm() == pytest.approx(1, rel=1e-4)


def test_a_shared_hint_moves_the_sum_of_its_weights(task, model, problems):
    """The first row's c taken for that of its whole group, or counted once more; another group's hint, or a longer one,
    taken for the same."""
    rows = some_rows(model, task, problems, [1, 2, 0, 1, 1, 2])
    longer = some_rows(model, task, problems[:1], [2])  # of the first group, one row has a longer hint
    for name in ("tokens", "hint", "suffix"):
        getattr(rows, name)[3] = torch.nn.functional.pad(getattr(longer, name)[3], (0, 99))[: rows.tokens.shape[1]]
    rows.weight = torch.randn(rows.tokens.shape, generator=torch.Generator().manual_seed(1)) * (rows.hint | rows.suffix)
    once = replace(rows, weight=shared_once(rows, 4))
    assert not (once.weight * rows.hint)[[1, 2, 5, 6, 7]].any() and (once.weight * rows.hint)[[0, 3, 4]].any()
    assert torch.equal(once.weight * rows.suffix, rows.weight * rows.suffix)
    grads = []
    for some in (rows, once):
        loss = loss_sum(METHODS["uft"], a_step(model, task, problems), some)
        grads.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, model.parameters())]))
    assert grads[0].norm() > 1e-3 and torch.allclose(*grads, atol=1e-5)


def test_an_answer_without_an_end_earns_nothing(task, model, problems, monkeypatch):
    """Rewarding what is right so far teaches never to stop."""
    right = sum(task.units(problems[0]), [])
    for answer, reward in ((right, 1.0), (right[:-1], 0.0)):
        monkeypatch.setattr("nanouft.sample", lambda *_, tail=answer: ([tail], torch.zeros(len(tail))))
        rows = rollout(model, task, problems[:1], [0])
        assert rows.reward.tolist() == [reward] and rows.solved.tolist() == [reward == 1.0]


def test_weights_of_a_batch_by_hand(task, model, problems):
    """c and A on the wrong tokens, an advantage over the batch instead of the group, a hint of one unit too many."""
    s = a_step(model, task, problems[:2], hint_coef=0.3)
    s.problems, method = problems[:2], replace(METHODS["uft"], length=lambda s: np.array([[1], [0]]))
    rows = method.explore(s)
    rows.reward[:] = torch.tensor([1.0, 0.1, 0.1, 0.0, 0.1, 0.1, 0.1, 0.1])
    weight = method.weigh(s, rows)
    assert torch.allclose(rows.reward[:4].std(), torch.tensor(0.46904), atol=1e-5)  # about their mean, 0.3
    for i, A in enumerate([1.4924, -0.4264, -0.4264, -0.6396, 0, 0, 0, 0]):  # 0.7 / 0.46904, -0.2 / ..., -0.3 / ...
        prompt, hint = task.encode(problems[i // 4].prompt), task.encode(problems[0].demo[0]) if i < 4 else []
        length = int((rows.tokens[i] != task.pad).sum())
        assert rows.tokens[i, : len(prompt + hint)].tolist() == prompt + hint
        expected = [0.0] * len(prompt) + [0.3] * len(hint) + [A] * (length - len(prompt + hint))
        expected += [0.0] * (len(weight[i]) - length)
        assert weight[i].tolist() == pytest.approx(expected, abs=1e-4)


# ---------------------------------------------------------------------------------------------------------------------
# Limits: methods that must collapse onto each other, gradient for gradient


def pinned(name: str, p: float) -> Method:
    return replace(METHODS[name], length=lambda s: s.rng.binomial(s.L, p))


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


@pytest.mark.parametrize("name", ["r3", "cosine"])
def test_hints_alone_teach_nothing(task, model, problems, name):
    """UFT's baselines are given hints but not trained on them; hint_only is trained on nothing else."""
    silent = gradient(replace(METHODS[name], advantage=0), model, task, problems)
    assert silent.numel() == 0  # no row was of use, no step was made
    fixed = replace(METHODS["hint_only"], length=1)
    one, other = (gradient(fixed, model, task, problems, seed=seed) for seed in (0, 1))
    assert one.norm() > 1e-3 and torch.allclose(one, other, atol=1e-7)  # whatever it samples


@pytest.mark.parametrize(("G", "same_as"), [(1e30, "sft"), (0.0, "rft")])
def test_sasr_at_its_ends_is_sft_or_grpo(task, model, problems, G, same_as):
    """p_t = 1 and p_t = 0."""
    memory = {"g": G, "g_warmup": 1.0}
    ours = gradient(METHODS["sasr"], model, task, problems, t=CFG.warmup, memory=memory, coin=0.5)
    assert torch.allclose(ours, gradient(METHODS[same_as], model, task, problems), atol=1e-7)


# ---------------------------------------------------------------------------------------------------------------------
# Hints and gates


def lengths(name: str, t: int, P: int = 4000, L: int = 5, **settings) -> np.ndarray:
    s = a_step(None, None, [], t, seed=t, **settings)
    s.problems = [Problem("", ["unit"] * L)] * P
    length = METHODS[name].length
    return np.broadcast_to(length(s) if callable(length) else length, (P, 1))[:, 0]


def test_anneal_is_the_papers_cosine():
    assert anneal(299, 300, 0.05, 0.95) == pytest.approx(0.05)
    assert anneal(149, 300, 0.05, 0.95) == pytest.approx(0.5)
    assert anneal(0, 300, 0.05, 0.95) == pytest.approx(0.05 + 0.45 * (1 + np.cos(np.pi / 300)))
    assert anneal(300, 300, 0.05, 0.95) == anneal(301, 300, 0.05, 0.95) == anneal(0, 0, 0.05, 0.95) == 0


def test_realised_hint_lengths_follow_the_schedule():
    """Hints that do not end, start short, or all have the same length."""
    for t in range(CFG.hint_steps):
        p = anneal(t, CFG.hint_steps, CFG.hint_low, CFG.hint_high)
        drawn = lengths("uft", t)
        assert drawn.mean() == pytest.approx(5 * p, abs=0.08) and drawn.var() == pytest.approx(
            5 * p * (1 - p), abs=0.12
        )
    for name in ("uft", "cosine", "hint_only"):
        assert not lengths(name, CFG.hint_steps).any() and not lengths(name, CFG.hint_steps + 1).any()
    assert np.bincount(lengths("r3", 99), minlength=6) == pytest.approx(np.full(6, 4000 / 6), rel=0.15)


def test_sasr_probability_and_what_its_memory_holds(task, model, problems):
    """G taken after clipping, updated by RL steps, or a warm-up that is one batch's, or not frozen."""
    memory, norms = {}, []
    for t in range(30):
        s = a_step(model, task, problems[t % 6 :], t, coin=0.99, memory=memory, warmup=30)
        metrics = train_step(METHODS["sasr"], s, [Keep(model)])
        assert metrics["supervised"] == metrics["p_sft"] == 1
        norms.append(metrics["grad_norm"])
    assert len(set(norms)) > 4 and memory["g"] == memory["g_warmup"] == pytest.approx(np.mean(norms[-25:]))
    kinds, coins = set(), np.random.default_rng(1)
    for t in range(30, 70):
        before = dict(memory)
        s = a_step(model, task, problems[t % 6 :], t, seed=t, coin=coins.random(), memory=memory, warmup=30, gamma=0.7)
        metrics = train_step(METHODS["sasr"], s, [Keep(model)])
        assert metrics["p_sft"] == pytest.approx(before["g"] / (before["g"] + 0.7 * before["g_warmup"]))
        assert metrics["supervised"] == (s.coin < metrics["p_sft"]) and memory["g_warmup"] == before["g_warmup"]
        assert memory["g"] == (metrics["grad_norm"] if metrics["supervised"] else before["g"])
        kinds.add(metrics["supervised"])
    assert kinds == {0, 1}


def test_with_several_updates_g_is_the_first_norm(task, model, problems):
    """The norm after a few steps on the very batch, which is smaller than any fresh batch's."""
    moving, memory = copy.deepcopy(model), {}
    first = gradient(METHODS["sft"], model, task, problems, memory=memory)
    optimizer = torch.optim.AdamW(moving.parameters(), lr=0.01)
    last = train_step(METHODS["sft"], a_step(moving, task, problems, memory=memory, updates=4), [optimizer])
    assert memory["g"] == pytest.approx(first.norm().item(), rel=1e-4) and memory["g"] != last["grad_norm"]


def supervised_share(name: str, task, steps: int = 2000, **settings) -> float:
    """Over the steps after the warm-up; no step is made."""
    nothing = GPT(task.vocab, 1, 16, 30)
    coins, share = np.random.default_rng(0), []
    for t in range(2, steps):
        memory = {"g": 1.0, "g_warmup": 1.0}
        s = a_step(nothing, task, [], t, coin=coins.random(), memory=memory, **settings)
        asked = []
        s.draw = lambda share, asked=asked: asked.append(share) or []
        with pytest.raises((TypeError, ValueError, RuntimeError)):  # no problems, no rows
            train_step(METHODS[name], s, [])
        share.append(asked == [1.0])
    return np.mean(share)


@pytest.mark.parametrize(
    ("name", "settings", "share"),
    [
        ("sft", {}, 1), ("rft", {}, 0), ("sft_rft", {}, 0), ("mix", {"share": 0.2}, 0.2),
        ("sasr", {"gamma": 1.0}, 0.5), ("sasr", {"gamma": 3.0}, 0.25),
    ],
)  # fmt: skip
def test_steps_are_supervised_as_often_as_they_say(task, name, settings, share):
    """A coin that is biased the wrong way; a supervised step that draws problems without demonstrations."""
    assert supervised_share(name, task, **{"share": 0.5} | settings) == pytest.approx(share, abs=0.04)


@pytest.mark.parametrize("name", ["sft_rft", "mix", "sasr"])
def test_warm_up_is_supervised(task, model, problems, name):
    for t in (0, 1):
        assert train_step(METHODS[name], a_step(model, task, problems, t, coin=0.99), [])["supervised"]


def test_hint_never_leaks_into_rft(task, problems):
    """While no reward tells the rows apart, RFT's parameters may depend on nothing, least of all on the demonstration.

    With another demonstration, and so with UFT's hints, they do: the test can see a leak.
    """
    untrained = GPT(task.vocab, 1, 32, 30)
    untrained.init_weights(torch.Generator().manual_seed(1))
    other = [replace(p, demo=["1+1=2\n", "2+1=3"]) for p in problems]

    def after(method: str, some: list[Problem]) -> torch.Tensor:
        model = copy.deepcopy(untrained)
        optimizer = torch.optim.AdamW(model.parameters())
        for t in range(3):
            train_step(METHODS[method], a_step(model, task, some, t, seed=t, base=untrained), [optimizer])
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    assert torch.equal(after("rft", problems), after("rft", other))
    assert not torch.equal(after("uft", problems), after("uft", other))


def test_table_lists_every_method():
    cells = [line.split("|")[1].strip() for line in methods_table().splitlines()[2:]]
    assert cells == [f"`{name}`" for name in METHODS]


def test_what_was_explored_is_counted(task, model, problems):
    """Rows with full hints counted as rollouts, prompts as sampled tokens."""
    s = a_step(model, task, problems)
    train_step(replace(METHODS["uft"], length=lambda s: np.array([[2], [0], [0], [1], [0], [2]])), s, [Keep(model)])
    found = exploration(s)
    assert found["rollouts"] == 16 and found["sampled_tokens"] == int(s.rows.suffix.sum())
    tried = s.rows.suffix.any(1)
    assert found["explored_solved"] == (s.rows.solved & tried).sum() / 16 and s.rows.solved[~tried].all()
    assert found["entropy"] == pytest.approx(-s.rows.logp.sum().item() / found["sampled_tokens"])
