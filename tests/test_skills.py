"""Scored answers: the implicit reward, its losses, one stage and two. Docstrings name the mistake guarded against."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_nanouft import Keep, a_step

import train
from data import Tree, make_task
from model import GPT
from nanouft import METHODS, mse, score_weights, train_step
from notebooks.lab import behaviour
from notebooks.one_stage import Skills, bce, dpo
from train import Config, run

CFG = Config(group=3, beta=0.3, warmup=2, hint_coef=0.7, share=0.5, micro_batch=5)
TINY = dict(task="skills", device="cpu", layers=1, width=32, base_steps=8, demos=64, validation=32, test=32, problems=8)


@pytest.fixture(scope="module")
def task():
    return Skills()


@pytest.fixture(scope="module")
def problems(task) -> list:
    """Two with a demonstration, three with answers: sorted (1.0), reversed (0.5), and one that is neither (0.1)."""
    some = task.split("pool", 40, 0)
    scored = [p for p in some if not p.demo][:3]
    for p in scored:
        x = p.prompt[1:-1]
        p.answers = ["".join(sorted(x)), x[::-1], "123456"]
    return [p for p in some if p.demo][:2] + scored


def untrained(task, seed: int) -> GPT:
    model = GPT(task.vocab, 1, 32, task.prompt_tokens + task.answer_tokens, writable=task.writable)
    model.init_weights(torch.Generator().manual_seed(seed))
    for p in model.parameters():
        p.data.mul_(3)  # away from uniform, so that policy and reference differ
    return model


def answer_logp(model: GPT, task, prompt: str, answer: str) -> torch.Tensor:
    ids = [*task.encode(prompt + answer), task.end]
    logp = torch.log_softmax(model(torch.tensor([ids[:-1]])), -1)[0]
    return sum(logp[i - 1, ids[i]] for i in range(task.prompt_tokens, len(ids)))


def test_rewards_of_both_skills(task):
    """A preference scored by the instruction's rule, or the other way round."""
    A, B = task.parse("A314159"), task.parse("B314159")
    assert "".join(A.demo) == "284746" and not B.demo
    answers = ["284746", "113459", "951413", "314159", "31415", "3141590", "", "31415a", "²14159"]
    assert [task.reward(A, x) for x in answers] == [1.0, 0.1, 0.1, 0.1, 0, 0, 0, 0, 0]
    assert [task.reward(B, x) for x in answers] == [0.1, 1.0, 0.5, 0.1, 0, 0, 0, 0, 0]
    for text in ("314159", "C314159", "A31415", "A3141592", "A31415 "):
        with pytest.raises(ValueError, match="expected a problem like '[AB]"):
            task.parse(text)


def test_the_base_plays_without_regard_to_the_tag(task):
    """A base that already knows one of the skills, or cannot do what it will be asked to prefer."""
    rng = np.random.default_rng(0)
    plays = [task.random_play(rng) for _ in range(2000)]
    for tag in "AB":
        some = [(p, p.demo[0]) for p in plays if p.prompt[0] == tag]
        by_sort, by_reverse = (np.mean([p.prompt[1:-1] == "".join(f(d)) for p, d in some]) for f in (list, reversed))
        assert 0.2 < by_sort < 0.3 and 0.2 < by_reverse < 0.3  # copied; reversed
    assert 0.2 < np.mean([task.reward(task.parse("B" + p.prompt[1:-1]), p.demo[0]) == 1 for p in plays]) < 0.3


@pytest.mark.parametrize("name", ["implicit", "implicit_bce", "ce_una", "sft_dpo"])
def test_gradient_is_the_scored_loss_s(task, problems, name):
    """Against the paper's losses, written down directly: a wrong sign, mask, beta or reference; one answer's weight on
    another; demonstrations that count for one row of their group instead of all."""
    model, base = untrained(task, 0), untrained(task, 1)
    some = problems[2:] if name == "sft_dpo" else problems
    keep, s = Keep(model), a_step(model, task, some, 9, coin=0.5, base=base)  # after the warm-up
    s.cfg = replace(CFG, problems=len(some))
    metrics = train_step(METHODS[name], s, [keep])

    loss = 0.0
    for p in some:
        answers = p.answers or ["".join(p.demo)] * 3
        scores = [task.reward(p, a) for a in answers]
        r = [CFG.beta * (answer_logp(m, task, p.prompt, a)) for a in answers for m in (model, base)]
        r = [now - before.detach() for now, before in zip(r[::2], r[1::2], strict=True)]
        if name == "ce_una" and p.demo:
            loss = loss - 0.7 * 3 * answer_logp(model, task, p.prompt, answers[0])
        elif name == "sft_dpo":
            loss = loss - sum(F.logsigmoid(r[i] - r[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
        elif name == "implicit_bce":
            loss = loss - sum(
                torch.log(x.sigmoid() if s == 1 else 1 - x.sigmoid()) for x, s in zip(r, scores, strict=True)
            )
        else:
            loss = loss + sum((x.sigmoid() - s) ** 2 for x, s in zip(r, scores, strict=True))
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss / (len(some) * 3 * 7), model.parameters())])
    ours = keep.gradient * max(1, metrics["grad_norm"])  # as it was before clipping
    assert gradient.norm() > 1e-4 and torch.allclose(ours, gradient, rtol=1e-3, atol=1e-5 * gradient.norm().item())
    assert not s.rows.suffix.any() and (s.rows.hint & (s.rows.tokens == task.end)).any(1).all()  # nothing is sampled


def test_weights_by_hand():
    """The formula of a demonstration's weight; the sign for a bad answer; a pair of equals; what DPO does not see."""
    r, beta = torch.tensor([[-2.0, 0.0, 3.0]]), 0.25
    s = r.sigmoid()
    assert torch.allclose(score_weights(mse, r, torch.ones(1, 3), beta), 2 * beta * s * (1 - s) ** 2)
    scores = torch.tensor([[0.1, 0.5, 1.0]])
    assert torch.allclose(score_weights(mse, r, scores, beta), 2 * beta * (scores - s) * s * (1 - s))
    assert torch.allclose(score_weights(bce, r, scores, beta), beta * (torch.tensor([[0.0, 0, 1]]) - s))
    assert not score_weights(dpo, r, torch.full((1, 3), 0.1), beta).any()
    pair = score_weights(dpo, r[:, :2], scores[:, :2], beta)  # the second is better, and ahead by 2
    lift = beta * torch.sigmoid(torch.tensor(-2.0))
    assert torch.allclose(pair, torch.stack([-lift, lift])[None])
    assert torch.allclose(score_weights(dpo, r + 5, scores, beta), score_weights(dpo, r, scores, beta))


def shares(name: str, task, problems: list, share: float = 0.5) -> list[float]:
    """What a method asks for in two steps of the warm-up, and in one behind it that is not supervised, one that is."""
    asked, model = [], untrained(task, 0)
    for t, coin in ((0, 0.9), (1, 0.9), (2, 0.99), (2, 0.0)):
        s = a_step(model, task, problems, t, coin=coin, memory={"g": 1.0, "g_warmup": 1.0})
        s.cfg = replace(CFG, share=share, problems=5)
        s.draw = lambda share: (
            asked.append(share) or [p for p in problems if share not in (0, 1) or bool(p.demo) == share]
        )
        train_step(METHODS[name], s, [Keep(model)])
    return asked


def test_what_is_drawn_when(task, problems):
    """Two stages that both see everything; one stage that does not; supervised steps without demonstrations, which
    have half of the gradient, and so half of SASR's probability."""
    for name, asked in {
        "sft": [1, 1, 1, 1], "una": [0.5, 0] * 4, "implicit": [0.5] * 4, "ce_una": [0.5] * 4, "rft": [0.5] * 4,
        "sft_una": [1, 1, 0.5, 0, 0.5, 0], "sft_dpo": [1, 1, 0.5, 0, 0.5, 0], "sft_una_replay": [1, 1, 0.5, 0.5],
        "sft_rft": [1, 1, 0.5, 0.5], "sasr": [1, 1, 0.5, 1], "mix": [1, 1, 0.5, 1], "static": [1, 1, 1, 1],
    }.items():  # fmt: skip
        assert shares(name, task, problems) == asked, name
    taught, scored = [object() for _ in range(9)], [object() for _ in range(9)]
    rng, task = np.random.default_rng(0), Skills()
    task.kinds = taught, scored
    for share, n in ((0.0, 0), (0.25, 2), (1.0, 8)):
        some = task.choose([], 8, share, rng)
        assert sum(p in taught for p in some) == n and len(set(map(id, some))) == 8
    assert all(p in taught for p in Tree().choose(taught, 8, 0.0, rng))  # other tasks have no scored answers


def test_two_stages_resume_and_their_reference(tmp_path, monkeypatch):
    """A reference that is lost when a run goes on; a second stage that starts twice; scored answers that change."""
    seen = []

    def spy(method, s, optimizers):
        same = all(torch.equal(a, b) for a, b in zip(s.model.parameters(), s.base.parameters(), strict=True))
        record = train_step(method, s, optimizers)
        sampled = bool(s.rows.suffix.any())
        seen.append((s.t, same, optimizers[0].param_groups[0].get("lr"), sampled, [p.answers for p in s.problems]))
        return record

    monkeypatch.setattr(train, "train_step", spy)
    cfg = Config(**TINY | dict(method="sft_una", steps=8, warmup=4, second_lr=1e-4, reference="sft", test=0))
    cfg = replace(cfg, cache=str(tmp_path / "base"), eval_every=1)
    weights = []
    for name, stops in {"whole": [8], "at": [4, 8], "after": [6, 8]}.items():
        seen.clear()
        for steps in stops:
            run(replace(cfg, out=str(tmp_path / name), steps=steps))
        saved = train.load(tmp_path / name / "checkpoint.pt")
        weights.append(torch.cat([x.flatten() for x in [*saved["model"].values(), *saved["reference"].values()]]))
        steps = [x for x in seen if x[2] in (cfg.lr, 1e-4)][-8:]  # base training has other rates
        assert [x[1] for x in steps] == [True] + [False] * 3 + [True] + [False] * 3  # equal to the reference
        assert [x[2] for x in steps] == [cfg.lr] * 4 + [1e-4] * 4 and not any(x[3] for x in steps)
        assert not any(a for x in steps[:4] for a in x[4]) and all(len(a) == 4 for x in steps[4:] for a in x[4])
    assert torch.equal(weights[0], weights[1]) and torch.equal(weights[0], weights[2])


def test_a_demonstration_has_score_one_whatever_it_earns():
    """The reward of a demonstration that is worth half, in the place of its score: sigmoid(r_hat) is drawn to 0.5."""
    tree = make_task("tree:horizon=4,fork=2")
    model = untrained(tree, 0)
    s = a_step(model, tree, [tree.only], coin=0.5, base=untrained(tree, 1))
    assert tree.reward(tree.only, "".join(tree.only.demo)) == 0.5
    train_step(METHODS["implicit"], s, [Keep(model)])
    assert s.rows.reward.tolist() == [1.0] * 4 and (s.rows.weight[s.rows.hint] > 0).all()


def test_weights_of_a_batch_by_hand(task, problems):
    """The weight of another answer, or of the whole group; weights on prompts. At the base sigma is 1/2, so c = 2 beta
    (score - 1/2) / 4."""
    model = untrained(task, 0)
    s = a_step(model, task, problems)
    s.cfg, s.problems = replace(CFG, beta=0.4), problems[1:3]
    rows = METHODS["implicit"].explore(s)
    weight = METHODS["implicit"].weigh(s, rows)
    for i, c in enumerate([0.1, 0.1, 0.1, 0.1, 0.0, -0.08]):  # the demonstration three times; 1.0, 0.5, 0.1
        assert weight[i].tolist() == pytest.approx([0.0] * 8 + [c] * 7, abs=1e-6)


def test_methods_for_scored_answers_say_where_they_are():
    """A run of nothing, where no task has what the method learns from."""
    with pytest.raises(ValueError, match="una learns from scored answers, which --task tree lacks; try skills"):
        run(Config(method="una", task="tree"))


@pytest.mark.slow
def test_one_stage_learns_both_skills(tmp_path):
    """The instruction and the preference, from one loss; and the evaluation can tell them apart."""
    sizes = dict(layers=2, width=64, base_steps=600, demos=4096, validation=256, test=0, problems=32, group=4)
    cfg = Config(**TINY | sizes | dict(method="implicit", beta=0.1, steps=250, cache=str(tmp_path)))
    metrics = run(cfg, behaviour)
    start, end = metrics[0], metrics[-1]
    assert start["demonstrated"] < 0.05 and 0.1 < start["scored"] < 0.3
    assert end["demonstrated"] > 0.7 and end["scored"] > 1.8 * start["scored"] and end["ended"] > 0.9
