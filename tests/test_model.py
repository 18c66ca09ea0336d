"""model.py against oracles. Each docstring names the mistake that the test guards against."""

import copy

import numpy as np
import pytest
import torch

from model import GPT, LOOK_EVERY, sample

STOP, PAD, VOCAB = 10, 11, 12


@pytest.fixture(scope="module")
def model() -> GPT:
    model = GPT(VOCAB, n_layer=2, width=16, max_len=40, D=8)
    model.init_weights(torch.Generator().manual_seed(0))
    for p in model.parameters():
        p.data *= 12 if p.dim() == 2 else 1  # far enough from uniform for a wrong column to show
    return model


PREFIXES = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 1], [2, 2]]


def uncached_greedy(model: GPT, prefix: list[int], limit: int) -> list[int]:
    """The oracle: no cache, no padding, one row."""
    tokens = list(prefix)
    while len(tokens) < len(prefix) + limit and (tokens[-1] != STOP or len(tokens) == len(prefix)):
        tokens.append(model(torch.tensor([tokens]))[0, -1].argmax().item())
    return tokens[len(prefix) :]


def test_cached_ragged_greedy_equals_uncached_alone(model):
    """A cache written to the wrong column, padding that is looked at, positions that count padding."""
    limits = [9, 12, 7, 3]
    new, _ = sample(
        model, PREFIXES * 2, limits * 2, STOP, PAD, temperature=0.0
    )  # equal prefixes need not be side by side
    for row, prefix, limit in zip(new, PREFIXES * 2, limits * 2, strict=True):
        assert row == uncached_greedy(model, prefix, limit)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logp_is_of_the_distribution_that_was_sampled(model, temperature):
    """Log-probabilities at temperature 1 of what was sampled at 0.7: the ratio is then not 1 on the first update."""
    prefixes = PREFIXES * 3
    new, logp = sample(model, prefixes, [8] * 12, STOP, PAD, temperature, torch.Generator().manual_seed(1))
    assert len(logp) == sum(map(len, new))
    for prefix, tokens, own in zip(prefixes, new, logp.split([len(x) for x in new]), strict=True):
        logits = model(torch.tensor([prefix + tokens]))[0, len(prefix) - 1 : -1]
        expected = torch.log_softmax(logits / temperature, -1)[range(len(tokens)), tokens]
        assert torch.allclose(own, expected, atol=1e-5)


def test_stop_ends_a_row_and_is_counted(model):
    """A stop token that is dropped gets no gradient: the model never learns to stop."""
    new, _ = sample(model, PREFIXES * 50, [20] * 200, STOP, PAD, generator=torch.Generator().manual_seed(2))
    for row in new:
        assert STOP not in row[:-1] and (row[-1] == STOP or len(row) == 20)
    assert min(map(len, new)) < 20


def test_samples_of_a_group_differ_from_the_first_token_on(model):
    """One draw copied n times: a group without variety has no advantage."""
    first = sample(model, [[1]] * 200, [1] * 200, STOP, PAD, generator=torch.Generator().manual_seed(3))[0]
    assert len(set(map(tuple, first))) > 3


def test_equal_prefixes_are_read_once(model, monkeypatch):
    """Eight times the work on every prompt, or its first row's answer for all of the group."""
    read, forward = [], GPT.forward
    monkeypatch.setattr(GPT, "forward", lambda self, x, cache=None: read.append(x.shape) or forward(self, x, cache))
    sample(model, PREFIXES * 8, [1] * 32, STOP, PAD)
    assert read == [(4, 6)]


def test_sampling_follows_the_softmax(model):
    """Chi-square of 4,000 first tokens against the exact distribution; 31.3 is its 99.9 % point at 11 degrees."""
    first = sample(model, [[3, 4]] * 4000, [1] * 4000, STOP, PAD, generator=torch.Generator().manual_seed(4))[0]
    first = torch.tensor(first)[:, 0]
    expected = 4000 * torch.softmax(model(torch.tensor([[3, 4]]))[0, -1], -1)
    chi2 = ((torch.bincount(first, minlength=VOCAB) - expected) ** 2 / expected.clamp(min=1e-3)).sum()
    assert chi2 < 31.3


def test_limits_of_zero_write_nothing(model):
    """A row that is complete already must not be sampled, nor shift its neighbours."""
    new, _ = sample(model, PREFIXES, [0, 5, 0, 5], STOP, PAD, 0.0)
    assert new == [[], uncached_greedy(model, PREFIXES[1], 5), [], uncached_greedy(model, PREFIXES[3], 5)]
    assert sample(model, PREFIXES, [0] * 4, STOP, PAD)[0] == [[]] * 4


def test_many_rows_are_written_like_one(model):
    """Blocks of prefixes put back in the wrong order, or rows mixed up when ended ones leave the batch."""
    rng = np.random.default_rng(0)
    prefixes = [rng.integers(0, STOP, n).tolist() for n in rng.integers(1, 20, 400)]  # in all, 4,000 tokens
    limits = rng.integers(0, 9, 400).tolist()
    greedy, _ = sample(model, prefixes, limits, STOP, PAD, 0.0)
    new, logp = sample(model, prefixes * 2, limits * 2, STOP, PAD, generator=torch.Generator().manual_seed(5))
    for prefix, limit, row in zip(prefixes, limits, greedy, strict=True):
        assert row == uncached_greedy(model, prefix, limit)
    own = logp.split([len(x) for x in new])
    for prefix, limit, tokens, ours in zip(prefixes * 2, limits * 2, new, own, strict=True):
        assert STOP not in tokens[:-1] and (tokens[-1:] == [STOP] or len(tokens) == limit)
        distribution = model(torch.tensor([prefix + tokens]))[0, len(prefix) - 1 : -1].log_softmax(-1)
        assert torch.allclose(ours, distribution[range(len(tokens)), tokens], atol=1e-4)


@pytest.mark.parametrize("random, token", [(0.0, 2), (1 - 2**-24, 1)])  # the smallest and the largest that torch draws
def test_what_cannot_be_is_never_drawn(model, monkeypatch, random, token):
    """A uniform number at the end of its range that falls on a word of probability 0, or on none."""
    logits = torch.full((1, 1, VOCAB), -torch.inf)
    logits[..., [1, 2]] = 0.0
    monkeypatch.setattr(GPT, "forward", lambda self, tokens, cache=None: logits.expand(len(tokens), 1, VOCAB))
    monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.full(shape, random))
    new, logp = sample(model, [[3]], [4], STOP, PAD)
    assert new == [[token] * 4] and torch.allclose(logp, torch.tensor(0.5).log())


def test_block_is_llamas(model):
    """A rotary layout, a norm or a gate other than Llama's: computed here by hand for one layer, head by head."""
    tokens = torch.tensor([[1, 5, 2, 9]])
    block, x = model.blocks[0], model.embed(tokens)[0]  # (T, C)

    def norm(x, weight):
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight

    def rope(x, head_dim=8):  # (T, D): pairs (d, d + D/2) turn by position * 10000^(-2d/D)
        angle = torch.arange(4)[:, None] * 10_000 ** (-torch.arange(0, head_dim, 2) / head_dim)
        a, b = x[:, : head_dim // 2], x[:, head_dim // 2 :]
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)

    q, k, v = (norm(x, block.norm1.weight) @ block.qkv.weight.T).chunk(3, -1)
    heads = []
    for h in (slice(0, 8), slice(8, 16)):
        scores = rope(q[:, h]) @ rope(k[:, h]).T / 8**0.5
        heads.append(scores.masked_fill(torch.ones(4, 4).triu(1).bool(), -torch.inf).softmax(-1) @ v[:, h])
    y = x + torch.cat(heads, -1) @ block.out.weight.T
    gate, up = (norm(y, block.norm2.weight) @ block.gate_up.weight.T).chunk(2, -1)
    y = y + (gate * torch.sigmoid(gate) * up) @ block.down.weight.T
    assert torch.allclose(block(x[None], model.rotary[:, :4], None, None)[0], y, atol=1e-4)


@pytest.mark.parametrize("every", [3, 8])
def test_to_look_less_often_whether_all_have_ended_changes_nothing(model, monkeypatch, every):
    """A word that is written behind <end>, or kept; draws that depend on which rows are left."""
    prefixes, limits = [[1, 2, 3], [4, 5], [6]] * 20, [9, 1, 12] * 20
    found = []
    for n in (1, every):
        monkeypatch.setitem(LOOK_EVERY, "cpu", n)
        found += [sample(model, prefixes, limits, STOP, PAD, 1.0, torch.Generator().manual_seed(0))]
    assert found[0][0] == found[1][0] and torch.allclose(found[0][1], found[1][1], atol=1e-6)
    assert len({len(row) for row in found[0][0]}) > 3


def test_blocks_in_bf16_are_near(model):
    """Logits that are rounded, too; a cache that is not."""
    half = copy.deepcopy(model)
    half.bf16 = ["cpu"]
    tokens = torch.arange(24).view(2, 12) % VOCAB
    exact, near = model(tokens), half(tokens)
    assert near.dtype == torch.float32 and 0 < (exact - near).abs().max() < 0.05 * exact.abs().max()
    rows, logp = sample(half, tokens.tolist(), [6, 6], VOCAB, PAD, 1.0, torch.Generator().manual_seed(0))
    words = half(torch.tensor([[*x, *y] for x, y in zip(tokens.tolist(), rows, strict=True)])).log_softmax(-1)
    again = words[:, 11:17].gather(-1, torch.tensor(rows)[..., None]).flatten()
    assert (again - logp).abs().max() < 0.1
