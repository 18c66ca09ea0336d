"""A checkpoint for other engines: the folder that transformers (and so TRL, vLLM, verl) loads as a Llama model.

python notebooks/export.py --run out/countdown-seed0/uft --to out/llama
"""

import argparse
import json
import re
import struct
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from data import Task  # noqa: E402
from model import GPT  # noqa: E402
from notebooks.ask import read_flags, trained  # noqa: E402
from notebooks.report import script  # noqa: E402


def llama_weights(model: GPT) -> dict[str, torch.Tensor]:
    """Ours under Llama's names; what we keep in one matrix, cut into its parts."""
    found = {"model.embed_tokens.weight": model.embed.weight, "model.norm.weight": model.norm.weight}
    for i, block in enumerate(model.blocks):
        q, k, v = block.qkv.weight.chunk(3)
        gate, up = block.gate_up.weight.chunk(2)
        parts = {
            "self_attn.q_proj": q,
            "self_attn.k_proj": k,
            "self_attn.v_proj": v,
            "self_attn.o_proj": block.out.weight,
        }
        parts |= {"mlp.gate_proj": gate, "mlp.up_proj": up, "mlp.down_proj": block.down.weight}
        parts |= {"input_layernorm": block.norm1.weight, "post_attention_layernorm": block.norm2.weight}
        found |= {f"model.layers.{i}.{name}.weight": x for name, x in parts.items()}
    return found


def save_tensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """The safetensors format: the length of a JSON header, the header, the numbers."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, x in tensors.items():
        start, end = end, end + 4 * x.numel()
        header[name] = {"dtype": "F32", "shape": list(x.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    numbers = b"".join(x.detach().float().contiguous().numpy().tobytes() for x in tensors.values())
    path.write_bytes(struct.pack("<Q", len(text)) + text + numbers)


def write_llama(task: Task, model: GPT, folder: Path) -> str:
    """Config, tokenizer and weights. Where answers use some words only, ours has no logits for others; a Llama has."""
    if any(folder.glob("*")):
        raise ValueError(f"--to {folder}: there is something in it already; choose another folder")
    width, head, positions = model.embed.weight.shape[1], model.rotary.shape[2], model.rotary.shape[1]
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "float32", "tie_word_embeddings": True,
        "vocab_size": task.vocab, "hidden_size": width, "intermediate_size": model.blocks[0].down.weight.shape[1],
        "num_hidden_layers": len(model.blocks), "head_dim": head,
        "num_attention_heads": model.n_head, "num_key_value_heads": model.n_head,
        "max_position_embeddings": positions, "rms_norm_eps": 1e-5, "rope_theta": 10_000.0,
        "hidden_act": "silu", "bos_token_id": None, "eos_token_id": task.end, "pad_token_id": task.pad,
    }  # fmt: skip
    words = [task.words.decode([i]) for i in range(task.end)]
    special = [{"id": task.end, "content": "<end>"}, {"id": task.pad, "content": "<pad>"}]
    flags = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
    one_word = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None,
        "added_tokens": [token | flags for token in special],
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": one_word}, "behavior": "Isolated", "invert": False},
        "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": {word: i for i, word in enumerate(words)}, "unk_token": "<pad>"},
    }  # fmt: skip
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<end>", "pad_token": "<pad>"}
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in {"config": config, "tokenizer": tokenizer, "tokenizer_config": names}.items():
        (folder / f"{name}.json").write_text(json.dumps(content, indent=1))
    save_tensors(llama_weights(model), folder / "model.safetensors")
    return f"{folder}/: transformers.AutoModelForCausalLM.from_pretrained({str(folder)!r}) loads it"


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a trained model as a Llama.")
    parser.add_argument("--to", type=Path, default="out/llama", help="a new folder [%(default)s]")
    flags = read_flags(parser)
    print(write_llama(*trained(flags.run)[1:], flags.to))


if __name__ == "__main__":
    script(main)
