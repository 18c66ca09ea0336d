"""A small GPT and how it writes. Nothing in here knows of tasks, rewards or training.

The block is exactly Llama's (RMSNorm before each half, rotate-half rotary positions, SwiGLU, no biases) and the output
is tied to the input embedding, so a checkpoint can leave for other engines unchanged. Letters in shape comments:

    B rows   T tokens   C width   H heads   D = C / H   V vocabulary
"""

import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FORMAT = 2  # of checkpoints; raise it when their content changes


class Cache:
    """Keys and values of everything written so far, allocated once for `size` columns.

    Rows are padded on the LEFT: prefixes of different lengths then end in the same column, and a decoding step writes
    one column for the whole batch. `left` (B,) is each row's padding: a column's true position is column - left.
    """

    def __init__(self, model: "GPT", left: Tensor, size: int):
        shape = (len(model.blocks), 2, len(left), model.n_head, size, model.rotary.shape[-1])
        self.kv = torch.zeros(shape, device=left.device)  # (layers, key and value, B, H, size, D)
        self.left, self.used = left, 0

    def extend(self, T: int) -> tuple[Tensor, Tensor]:
        """Take T more columns. Their positions (B, T), and what each of them may look at (B, 1, T, used)."""
        column = torch.arange(self.used + T, device=self.left.device)
        new, self.used = column[self.used :, None], self.used + T
        # Padding looks at itself: a softmax over nothing is NaN, and 0 * NaN would reach the tokens behind it.
        sees = (column >= self.left[:, None, None, None]) & (column <= new) | (column == new)
        return (new[:, 0] - self.left[:, None]).clamp(min=0), sees

    def select(self, rows: Tensor) -> None:
        """Keep, drop or repeat rows."""
        self.kv, self.left = self.kv[:, :, rows], self.left[rows]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn queries or keys (B, H, T, D) by their positions; column d pairs with d + D/2."""
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-b, a], dim=-1) * sin


class Block(nn.Module):
    def __init__(self, C: int, n_head: int):
        super().__init__()
        d_ff = -(-C * 8 // 3 // 16) * 16  # 8/3 of the width, up to a multiple of 16
        self.n_head = n_head
        self.norm1, self.norm2 = nn.RMSNorm(C, eps=1e-5), nn.RMSNorm(C, eps=1e-5)
        self.qkv, self.out = nn.Linear(C, 3 * C, bias=False), nn.Linear(C, C, bias=False)
        self.gate_up, self.down = nn.Linear(C, 2 * d_ff, bias=False), nn.Linear(d_ff, C, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, sees: Tensor | None, kv: Tensor | None) -> Tensor:
        B, T, C = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(B, T, 3, self.n_head, -1).permute(2, 0, 3, 1, 4)  # each (B, H, T, D)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if kv is not None:  # (2, B, H, used, D), the last T columns of it new
            kv[0, :, :, -T:], kv[1, :, :, -T:] = k, v
            k, v = kv
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=sees, is_causal=sees is None)  # (B, H, T, D)
        x = x + self.out(y.transpose(1, 2).reshape(B, T, C))
        gate, up = self.gate_up(self.norm2(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


class GPT(nn.Module):
    """Token ids (B, T) -> logits (B, T, V) of the first V words: those that may be written."""

    def __init__(self, vocab: int, n_layer: int, width: int, max_len: int, D: int = 16, writable: int | None = None):
        super().__init__()
        if width % D:
            raise ValueError(f"--width {width}: expected a multiple of {D}, the size of an attention head")
        self.n_head, self.writable = (n_head := width // D), writable
        self.embed = nn.Embedding(vocab, width)
        self.blocks = nn.ModuleList(Block(width, n_head) for _ in range(n_layer))
        self.norm = nn.RMSNorm(width, eps=1e-5)
        angle = torch.outer(torch.arange(max_len), 10_000 ** (-torch.arange(0, D, 2) / D)).repeat(1, 2)
        self.register_buffer("rotary", torch.stack([angle.cos(), angle.sin()]), persistent=False)  # (2, max_len, D)

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
        positions, sees = cache.extend(T) if cache else (torch.arange(T, device=tokens.device)[None], None)
        cos, sin = self.rotary[:, positions].unsqueeze(2)  # (B or 1, 1, T, D)
        x = self.embed(tokens)  # (B, T, C)
        for i, block in enumerate(self.blocks):
            x = block(x, cos, sin, sees, cache.kv[i, ..., : cache.used, :] if cache else None)
        return F.linear(self.norm(x), self.embed.weight[: self.writable])


def pad_rows(rows: list[list[int]], pad: int, device: torch.device, left: bool = False) -> tuple[Tensor, Tensor]:
    """Lists of ids -> ids (B, longest), padded on one side, and their lengths (B,)."""
    fill = [[pad] * (max(map(len, rows)) - len(r)) for r in rows]
    padded = [f + r if left else r + f for r, f in zip(rows, fill, strict=True)]
    return torch.tensor(padded, device=device), torch.tensor([len(r) for r in rows], device=device)


@torch.no_grad()
def sample(
    model: GPT, prefixes: list, n: int, limits: list, stop: int, pad: int, temperature=1.0, generator=None
) -> tuple[Tensor, Tensor, Tensor]:
    """Continue each prefix `n` times, independently, until `stop` or until prefix i has limits[i] new tokens.

    Prefixes may differ in length; a limit of 0 writes nothing. Temperature 0 takes the most likely token. Returns for
    the N = P * n rows, those of one prefix side by side: new tokens (N, longest limit) with `pad` after the end, the
    log-probability of each under the distribution it was drawn from (temperature included; 0 for greedy, which is
    certain), and the number of new tokens (N,), the stop token counted.
    """
    device, limit = model.embed.weight.device, torch.tensor(limits).repeat_interleave(n)
    new = torch.full((len(limit), max(limits)), pad)
    logp, count = torch.zeros(new.shape), torch.zeros(len(limit), dtype=torch.long)
    limit, new, logp, count = (x.to(device) for x in (limit, new, logp, count))
    alive = limit.nonzero()[:, 0]  # the rows still being written
    wanted = [p for p, most in zip(prefixes, limits, strict=True) if most]
    if not wanted:
        return new, logp, count
    tokens, length = pad_rows(wanted, pad, device, left=True)
    cache = Cache(model, tokens.shape[1] - length, tokens.shape[1] + max(limits))
    copies = torch.arange(len(wanted), device=device).repeat_interleave(n)
    logits = model(tokens, cache)[copies, -1]  # (alive, V): a prefix is read once, then copied for its continuations
    cache.select(copies)
    for t in range(max(limits)):
        if temperature == 0:
            token = logits.argmax(-1)  # (alive,)
        else:
            distribution = F.log_softmax(logits / temperature, dim=-1)
            token = torch.multinomial(distribution.exp(), 1, generator=generator)[:, 0]
            logp[alive, t] = distribution.gather(1, token[:, None])[:, 0]
        new[alive, t], count[alive] = token, t + 1
        going = ((token != stop) & (limit[alive] > t + 1)).nonzero()[:, 0]
        if len(going) == 0:
            break
        if len(going) < len(alive):  # finished rows leave the batch: behind hints of different lengths, most end early
            alive, token = alive[going], token[going]
            cache.select(going)
        logits = model(token[:, None], cache)[:, -1]
    return new, logp, count


def save(path: Path, content: dict) -> None:
    """All or nothing: whoever dies while writing leaves the old file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}")
    torch.save({"format": FORMAT} | content, temporary)
    temporary.replace(path)


def load(path: Path) -> dict:
    """A checkpoint of ours, or a sentence about why not."""
    if not path.exists():
        raise ValueError(f"there is no checkpoint {path}: train first")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what a broken file raises depends on where it is broken
        raise ValueError(f"the checkpoint {path} is damaged ({type(error).__name__}): delete it") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path} is no checkpoint of this version of nanouft: delete it, or use the version it is of")
    return content
