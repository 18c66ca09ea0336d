"""A small GPT and how it writes. Nothing in here knows about tasks, rewards or training.

The block is exactly Llama's (RMSNorm before each half, rotate-half rotary positions, SwiGLU, no biases, tied
embeddings), so a checkpoint can leave for other engines unchanged. Letters used in shape comments:

    B rows   T tokens   C width   H heads   D = C / H   V vocabulary
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Cache:
    """Keys and values of everything written so far, allocated once for `size` columns.

    Rows are padded on the LEFT, so that prefixes of different lengths end in the same column and every decoding step
    writes one column for the whole batch. `left` counts a row's padding: its real position is column - left.
    """

    def __init__(self, model: "GPT", left: Tensor, size: int):
        shape = (len(model.blocks), 2, len(left), model.n_head, size, model.rotary.shape[-1])
        self.kv = torch.zeros(shape, device=left.device)  # (layer, key/value, B, H, size, D)
        self.left, self.used = left, 0

    def select(self, rows: Tensor) -> None:
        """Keep, repeat or drop rows."""
        self.kv, self.left = self.kv[:, :, rows], self.left[rows]

    def view(self, T: int) -> tuple[Tensor, Tensor]:
        """Positions (B, T) of the next T columns, and which columns each of them may look at (B, 1, T, used + T)."""
        new = torch.arange(self.used, self.used + T, device=self.left.device)
        old = torch.arange(self.used + T, device=self.left.device)
        real = old >= self.left[:, None, None, None]
        # A padding column sees itself: a softmax over nothing is NaN, and NaN * 0 would spread to the real columns.
        sees = real & (old <= new[:, None]) | (old == new[:, None])
        return (new - self.left[:, None]).clamp(min=0), sees


def rotary_table(D: int, max_len: int) -> Tensor:
    """cos and sin of position * frequency, (2, max_len, D), each frequency twice (Llama's rotate-half layout)."""
    frequency = 10_000 ** (-torch.arange(0, D, 2) / D)
    angle = torch.outer(torch.arange(max_len), frequency).repeat(1, 2)
    return torch.stack([angle.cos(), angle.sin()])


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn queries or keys (B, H, T, D) by their position."""
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-b, a], dim=-1) * sin


class Block(nn.Module):
    def __init__(self, C: int, n_head: int, d_ff: int):
        super().__init__()
        self.n_head = n_head
        self.norm1, self.norm2 = nn.RMSNorm(C, eps=1e-5), nn.RMSNorm(C, eps=1e-5)
        self.qkv = nn.Linear(C, 3 * C, bias=False)  # Llama's q, k and v stacked: one matrix product, not three
        self.out = nn.Linear(C, C, bias=False)
        self.gate_up = nn.Linear(C, 2 * d_ff, bias=False)  # likewise gate and up
        self.down = nn.Linear(d_ff, C, bias=False)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, kv: Tensor | None, start: int, sees: Tensor | None
    ) -> Tensor:
        B, T, C = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(B, T, 3, self.n_head, -1).permute(2, 0, 3, 1, 4)  # each (B, H, T, D)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if kv is not None:
            kv[0, :, :, start : start + T], kv[1, :, :, start : start + T] = k, v
            k, v = kv[:, :, :, : start + T]
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=sees, is_causal=sees is None)  # (B, H, T, D)
        x = x + self.out(y.transpose(1, 2).reshape(B, T, C))
        gate, up = self.gate_up(self.norm2(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


class GPT(nn.Module):
    """Token ids (B, T) -> logits (B, T, V)."""

    def __init__(self, vocab_size: int, n_layer: int = 2, n_head: int = 4, width: int = 64, max_len: int = 64):
        super().__init__()
        self.n_head, self.max_len = n_head, max_len
        d_ff = -(-width * 8 // 3 // 16) * 16  # Llama's 8/3 of the width, rounded up to a multiple of 16
        self.embed = nn.Embedding(vocab_size, width)
        self.blocks = nn.ModuleList(Block(width, n_head, d_ff) for _ in range(n_layer))
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.register_buffer("rotary", rotary_table(width // n_head, max_len), persistent=False)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> "GPT":
        """GPT-2's initialisation, from an explicit generator: the same seed gives the same model."""
        for name, p in self.named_parameters():
            if p.dim() == 2:
                into_residual = name.endswith(("out.weight", "down.weight"))
                p.normal_(0, 0.02 / (2 * len(self.blocks)) ** 0.5 if into_residual else 0.02, generator=generator)
        return self

    def forward(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        T = tokens.shape[1]
        if cache is None:  # training: rows start in column 0 and padding stands at the end, where causality hides it
            cos, sin = self.rotary[:, :T]
            start, sees = 0, None
        else:
            positions, sees = cache.view(T)
            cos, sin = self.rotary[:, positions].unsqueeze(2)  # (B, 1, T, D)
            start = cache.used
            cache.used += T
        x = self.embed(tokens)  # (B, T, C)
        for i, block in enumerate(self.blocks):
            x = block(x, cos, sin, None if cache is None else cache.kv[i], start, sees)
        return F.linear(self.norm(x), self.embed.weight)  # (B, T, V), output tied to the input embedding


def pad_rows(rows: list[list[int]], pad: int, device: torch.device, left: bool = False) -> tuple[Tensor, Tensor]:
    """Lists of ids -> ids (B, longest) padded on one side, and their lengths (B,)."""
    longest = max(map(len, rows))
    padded = [[pad] * (longest - len(r)) + r if left else r + [pad] * (longest - len(r)) for r in rows]
    return torch.tensor(padded, device=device), torch.tensor([len(r) for r in rows], device=device)


@torch.no_grad()
def sample(
    model: GPT,
    prefixes: list[list[int]],
    n: int,
    max_new: list[int],
    stop: int,
    pad: int,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Continue each prefix `n` times, independently, until `stop` or until prefix i has max_new[i] >= 1 new tokens.

    Prefixes may differ in length. Temperature 0 takes the most likely token. Returns for the P * n rows, those of one
    prefix side by side: new tokens (P * n, longest) with `pad` after the end, the log-probability of each under the
    distribution it was drawn from (temperature included; 0 for greedy, which is certain), and the number of new tokens,
    the stop token counted.
    """
    device = model.embed.weight.device
    tokens, length = pad_rows(prefixes, pad, device, left=True)
    cache = Cache(model, tokens.shape[1] - length, tokens.shape[1] + max(max_new))
    logits = model(tokens, cache)[:, -1]  # (P, V): the prefix is computed once, then copied for its n continuations
    rows = torch.arange(len(prefixes), device=device).repeat_interleave(n)
    cache.select(rows)
    logits, limit = logits[rows], torch.tensor(max_new, device=device)[rows]

    alive = torch.arange(len(rows), device=device)  # the rows still being written, as places in the result
    new = torch.full((len(rows), max(max_new)), pad, device=device)
    logp, count = torch.zeros(new.shape, device=device), torch.zeros_like(limit)
    for t in range(max(max_new)):
        if temperature == 0:
            token = logits.argmax(-1)  # (alive,)
        else:
            distribution = F.log_softmax(logits / temperature, dim=-1)
            token = torch.multinomial(distribution.exp(), 1, generator=generator)[:, 0]
            logp[alive, t] = distribution.gather(1, token[:, None])[:, 0]
        new[alive, t] = token
        count[alive] = t + 1
        going = (token != stop) & (limit[alive] > t + 1)
        if not going.all():  # finished rows leave the batch: behind hints of different lengths, most end early
            keep = going.nonzero()[:, 0]
            if len(keep) == 0:
                break
            alive, token = alive[keep], token[keep]
            cache.select(keep)
        logits = model(token[:, None], cache)[:, -1]
    return new, logp, count
