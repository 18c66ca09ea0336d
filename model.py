"""A small GPT and how it writes. Nothing in here knows of tasks, rewards or training.

The block is exactly Llama's (RMSNorm before each half, rotate-half rotary positions, SwiGLU, no biases) and the output
is tied to the input embedding, so other engines can run it (notebooks/export.py). Letters in shape comments:

    B rows   T tokens   C width   H heads   D = C / H   V vocabulary
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Cache:
    """Keys and values of everything written so far, with room for `size` columns.

    Rows are padded on the LEFT: prefixes of different lengths then end in the same column, and a decoding step writes
    one column for the whole batch. `left` (B,) is each row's padding: a column's true position is column - left.
    """

    def __init__(self, model: "GPT", left: Tensor, size: int):
        shape = (len(model.blocks), 2, len(left), model.n_head, size, model.rotary.shape[-1])
        dtype = torch.bfloat16 if left.device.type in model.bf16 else None
        self.kv = model.embed.weight.new_empty(shape, dtype=dtype)  # (layers, key and value, B, H, size, D)
        place = torch.arange(size, device=left.device) - left[:, None]  # (B, size)
        self.real = (place >= 0)[:, None, None]  # (B, 1, 1, size): no padding
        self.rotary = model.rotary[:, place.clamp(0, model.rotary.shape[1] - 1)].unsqueeze(2)  # (2, B, 1, size, D)
        self.used = 0

    def extend(self, T: int) -> tuple[Tensor, Tensor]:
        """Take T more columns: their rotary angles (2, B, 1, T, D), and what they may look at (B, 1, T or 1, used)."""
        new, self.used = slice(self.used, self.used + T), self.used + T
        sees = self.real[..., : self.used]
        if T > 1:
            column = torch.arange(self.used, device=sees.device)
            # Padding looks at itself: a softmax over nothing is NaN, and 0 * NaN would reach the tokens behind it.
            sees = sees & (column <= column[new, None]) | (column == column[new, None])
        return self.rotary[..., new, :], sees

    def select(self, rows: Tensor) -> None:
        """Keep, drop or repeat rows."""
        self.kv, self.rotary = self.kv.index_select(2, rows), self.rotary.index_select(1, rows)
        self.real = self.real[rows]


def rotate(x: Tensor, rotary: Tensor) -> Tensor:
    """Turn queries and keys (2, B, H, T, D) by their positions; column d pairs with d + D/2."""
    return x * rotary[0] + x.roll(x.shape[-1] // 2, -1) * rotary[1]


class Block(nn.Module):
    def __init__(self, C: int, n_head: int):
        super().__init__()
        d_ff = -(-C * 8 // 3 // 16) * 16  # 8/3 of the width, up to a multiple of 16
        self.n_head = n_head
        self.norm1, self.norm2 = nn.RMSNorm(C, eps=1e-5), nn.RMSNorm(C, eps=1e-5)
        self.qkv, self.out = nn.Linear(C, 3 * C, bias=False), nn.Linear(C, C, bias=False)
        self.gate_up, self.down = nn.Linear(C, 2 * d_ff, bias=False), nn.Linear(d_ff, C, bias=False)

    def forward(self, x: Tensor, rotary: Tensor, sees: Tensor | None, kv: Tensor | None) -> Tensor:
        B, T, C = x.shape
        qk, (v,) = self.qkv(self.norm1(x)).view(B, T, 3, self.n_head, -1).permute(2, 0, 3, 1, 4).split([2, 1])
        q, k = rotate(qk, rotary)  # (B, H, T, D), as v is
        if kv is not None:  # (2, B, H, used, D), the last T columns of it new
            kv[0, :, :, -T:], kv[1, :, :, -T:] = k, v
            k, v = kv
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=sees, is_causal=sees is None)  # (B, H, T, D)
        x = x + self.out(y.transpose(1, 2).reshape(B, T, C))
        gate, up = self.gate_up(self.norm2(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


class GPT(nn.Module):
    """Token ids (B, T) -> logits (B, T, V) of the first V words: those that may be written. With a cache: (B, 1, V), of
    the last column."""

    def __init__(self, vocab: int, n_layer: int, width: int, max_len: int, D: int = 16, writable: int | None = None):
        super().__init__()
        if width % D:
            raise ValueError(f"--width {width}: expected a multiple of {D}, the size of an attention head")
        self.n_head, self.writable = (n_head := width // D), writable
        self.bf16 = ["cuda"] if width >= 256 else []  # devices on which the blocks compute in bf16
        self.embed = nn.Embedding(vocab, width)
        self.blocks = nn.ModuleList(Block(width, n_head) for _ in range(n_layer))
        self.norm = nn.RMSNorm(width, eps=1e-5)
        angle = torch.outer(torch.arange(max_len), 10_000 ** (-torch.arange(0, D, 2) / D)).repeat(1, 2)
        sign = (torch.arange(D) >= D // 2) * 2 - 1  # (a, b) turns to (a cos - b sin, b cos + a sin)
        rotary = torch.stack([angle.cos(), angle.sin() * sign])  # (2, max_len, D)
        self.register_buffer("rotary", rotary, persistent=False)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """GPT-2's: normal, 0.02, less for what is added to the residual stream."""
        for name, p in self.named_parameters():
            if p.dim() == 2:
                depth = 2 * len(self.blocks) if name.endswith(("out.weight", "down.weight")) else 1
                p.normal_(0, 0.02 / depth**0.5, generator=generator)

    def forward(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        """Without a cache, padding stands at the end of a row, where causality hides it."""
        T = tokens.shape[1]
        rotary, sees = cache.extend(T) if cache else (self.rotary[:, :T], None)
        x = self.embed(tokens)  # (B, T, C)
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=tokens.device.type in self.bf16):
            for i, block in enumerate(self.blocks):
                x = block(x, rotary, sees, cache.kv[i, ..., : cache.used, :] if cache else None)
        x = x[:, -1:] if cache else x
        return F.linear(self.norm(x), self.embed.weight[: self.writable]).float()  # what follows sums small numbers


def pad_rows(rows: list[list[int]], pad: int, device: torch.device, left: bool = False) -> tuple[Tensor, Tensor]:
    """Lists of ids -> ids (B, longest), padded on one side, and their lengths (B,)."""
    longest = max(map(len, rows))
    fill = [[pad] * (longest - len(r)) for r in rows]
    padded = np.array([[*f, *r] if left else [*r, *f] for r, f in zip(rows, fill, strict=True)])
    # from_numpy is four times as fast as torch.tensor of lists
    return torch.from_numpy(padded).to(device), torch.tensor([len(r) for r in rows], device=device)


LOOK_EVERY = {"cpu": 1}  # tokens between two checks of whether all rows have ended; 8 on other devices


@torch.inference_mode()
def sample(
    model: GPT, prefixes: list, limits: list, stop: int, pad: int, temperature=1.0, generator=None
) -> tuple[list[list[int]], Tensor]:
    """Continue each of N prefixes, independently, until `stop` or until row i has limits[i] new tokens.

    Prefixes may differ in length, and equal ones are read once. A limit of 0 writes nothing. Temperature 0 takes the
    most likely token. Returns each row's new tokens, the stop token among them, and the log-probability of every new
    token, all rows in one line, under the distribution it was drawn from: temperature included; 0 for greedy, which is
    certain.
    """
    device, shape = model.embed.weight.device, (len(prefixes), max(limits))
    limit = torch.tensor(limits, device=device)  # (N,)
    new, p = torch.full(shape, pad, device=device), torch.ones(shape, device=device)
    rows_of: dict[tuple, list[int]] = {}  # the rows that begin with a prefix
    for i, prefix in enumerate(prefixes):
        if limits[i]:
            rows_of.setdefault(tuple(prefix), []).append(i)
    by_length = sorted(rows_of, key=len)
    # Prefixes of like length need little padding. At most so many tokens are read, and rows written, at a time: a CPU
    # then finds them in its caches.
    most = 2_000 if device.type == "cpu" else 10_000
    size = max(1, min(most // max(map(len, prefixes)), most * len(rows_of) // len(prefixes)))
    for some in (by_length[i : i + size] for i in range(0, len(by_length), size)):
        rows = torch.tensor([i for prefix in some for i in rows_of[prefix]], device=device)
        copies = torch.tensor([j for j, prefix in enumerate(some) for _ in rows_of[prefix]], device=device)
        tokens, length = pad_rows(some, pad, device, left=True)
        text, chance = write(model, tokens, length, copies, limit[rows], stop, temperature, generator)
        new[rows, : text.shape[1]], p[rows, : text.shape[1]] = text, chance
    stops = new == stop
    own = (torch.arange(shape[1], device=device) < limit[:, None]) & (stops.cumsum(1) - stops.long() == 0)
    return [row[:n] for row, n in zip(new.tolist(), own.sum(1).tolist(), strict=True)], p.log()[own]


def write(
    model: GPT, tokens: Tensor, length: Tensor, copies: Tensor, limit: Tensor, stop: int, temperature: float, generator
) -> tuple[Tensor, Tensor]:
    """Row b continues prefix copies[b] of the P in tokens (P, T), padded on the left and length (P,) long. Returns new
    tokens and their probabilities (B, longest limit); those after a row's end or limit mean nothing."""
    T, B, device = tokens.shape[1], len(limit), tokens.device
    text = torch.zeros(B, int(limit.max()), dtype=torch.long, device=device)
    p = torch.ones(text.shape, device=device)
    u = 1 - torch.rand(text.shape, device=device, generator=generator)  # above 0: no word of probability 0 is drawn
    cache = Cache(model, T - length, T + text.shape[1])
    logits = model(tokens, cache)[copies, -1]  # (B, V): a prefix is read once, then copied for its continuations
    cache.select(copies)
    row = torch.arange(B, device=device)  # the rows still in the batch
    going = row >= 0  # and which of them have not ended
    for t in range(text.shape[1]):
        if temperature == 0:
            token = logits.argmax(-1)
        else:
            distribution = F.softmax(logits / temperature, dim=-1)
            below = distribution.cumsum(-1)  # the word is the one in whose share of the sum a uniform number falls
            token = torch.searchsorted(below, u[row, t, None] * below[:, -1:])
            token = token[:, 0].clamp(max=below.shape[1] - 1)  # where logits are NaN it falls in none
            p[row, t] = distribution.gather(1, token[:, None])[:, 0]
        text[row, t] = token
        going &= (token != stop) & (limit[row] > t + 1)
        # To read a number from a GPU is to wait until all its work is done.
        left = int(going.sum()) if t % LOOK_EVERY.get(device.type, 8) == 0 else len(row)
        if left == 0:
            break
        if left < 0.7 * len(row):  # ended rows go on in vain until it pays to copy the others together
            keep = going.nonzero()[:, 0]
            row, token, going = row[keep], token[keep], going[keep]
            cache.select(keep)
        logits = model(token[:, None], cache)[:, -1]
    return text, p
