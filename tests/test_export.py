"""A checkpoint that leaves. Docstrings name the mistake guarded against."""

import json
import struct
import sys

import numpy as np
import pytest
import torch
from test_train import flags

from notebooks.ask import trained
from notebooks.export import main as export
from notebooks.export import write_llama
from train import main


def written(run, to) -> None:
    sys.argv = ["export.py", "--run", str(run), "--to", str(to)]
    export()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    main([*flags(folder / "base", out=folder / "job", steps=1, layers=2, test=0), "--method", "sft"])
    written(folder / "job/sft", folder / "llama")
    return folder / "llama", *trained(folder / "job/sft")[1:]


def test_files_say_what_the_model_is(exported):
    """Bytes that do not fit their header; a matrix under another's name; a tied output that is not declared."""
    folder, task, model = exported
    content = (folder / "model.safetensors").read_bytes()
    (n,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + n])
    assert header.pop("__metadata__") and max(x["data_offsets"][1] for x in header.values()) == len(content) - 8 - n
    found = {}
    for name, x in header.items():
        start, end = x["data_offsets"]
        found[name] = np.frombuffer(content[8 + n :][start:end], np.float32).reshape(x["shape"])
    assert sum(x.size for x in found.values()) == sum(p.numel() for p in model.parameters())
    for names, ours in {
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"): model.blocks[1].qkv,
        ("mlp.gate_proj", "mlp.up_proj"): model.blocks[1].gate_up,
    }.items():
        theirs = np.concatenate([found[f"model.layers.1.{name}.weight"] for name in names])
        assert (theirs == ours.weight.detach().numpy()).all()
    config = json.loads((folder / "config.json").read_text())
    assert config["tie_word_embeddings"] and config["num_hidden_layers"] == 2 and config["eos_token_id"] == task.end


def test_it_is_not_written_over_something(exported):
    with pytest.raises(ValueError, match="there is something in it already; choose another folder"):
        written(exported[0].parent / "job/sft", exported[0])


def test_transformers_computes_the_same(exported, tmp_path):
    """Rotary pairs, norms, head sizes or words that differ from Llama's."""
    transformers = pytest.importorskip("transformers")
    _, task, model = exported
    model.init_weights(torch.Generator().manual_seed(0))
    for p in model.parameters():
        p.data.mul_(5 if p.dim() == 2 else 1)  # so that attention is far from uniform, and positions matter
    write_llama(task, model, folder := tmp_path / "llama")
    llama = transformers.AutoModelForCausalLM.from_pretrained(folder)
    words = transformers.AutoTokenizer.from_pretrained(folder)
    for problem in task.split("test", 50, 0):
        text = problem.prompt + "".join(problem.demo)
        ids = task.encode(text)
        assert words(text)["input_ids"] == ids and words.decode(ids) == text
        with torch.no_grad():
            ours, theirs = model(torch.tensor([ids])), llama(torch.tensor([ids])).logits
        assert torch.allclose(ours, theirs, atol=1e-4) and ours.abs().max() > 0.5
