"""GGUF files and LoRA adapters: what is loaded or written has the numbers of plain arithmetic."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from architectures import huggingface, save, tokenizer
from safetensors.torch import load_file, save_file
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor

from circuitlab import OutputExistsError, load_model
from circuitlab.errors import ModelError
from circuitlab.models.adapter import merge_adapter
from circuitlab.models.conversion import RECORD
from circuitlab.models.gguf import convert_gguf

# Words of the tokenizer in a GGUF file.
N_WORDS, N_HEADS, N_KV_HEADS, D_MODEL = 300, 4, 2, 32


@pytest.fixture(scope="module")
def llama() -> Any:
    """A random Llama with grouped queries."""
    config = hf.LlamaConfig(
        vocab_size=N_WORDS, hidden_size=D_MODEL, intermediate_size=64, num_hidden_layers=2, num_attention_heads=N_HEADS,
        num_key_value_heads=N_KV_HEADS, max_position_embeddings=64, tie_word_embeddings=True, rms_norm_eps=1e-5,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = hf.LlamaForCausalLM(config)
        with torch.no_grad():
            for weight in model.parameters():
                weight += 0.2 * torch.randn_like(weight)
    return model.eval()


@pytest.fixture(scope="module")
def gguf_file(llama, tmp_path_factory) -> tuple[Path, dict[str, Tensor]]:
    """A GGUF file of it as llama.cpp's converter writes it, projections in Q8_0, and the weights it stands for."""
    gguf = pytest.importorskip("gguf")
    path = tmp_path_factory.mktemp("gguf") / "tiny.Q8_0.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(D_MODEL)
    writer.add_block_count(2)
    writer.add_feed_forward_length(64)
    writer.add_head_count(N_HEADS)
    writer.add_head_count_kv(N_KV_HEADS)
    writer.add_rope_dimension_count(D_MODEL // N_HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(N_WORDS)
    bytes_as_letters = sorted(ByteLevel.alphabet())
    words = ["<|endoftext|>", *bytes_as_letters, "ab", *(f"w{i}" for i in range(N_WORDS - 2 - len(bytes_as_letters)))]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_types([3] + [1] * (N_WORDS - 1))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    stands_for = {}
    for key, value in llama.state_dict().items():
        if key == "lm_head.weight":
            continue
        stem = key.removesuffix(".weight")
        name, array = f"{names.get_name(stem)}.weight", value.numpy()
        for slot, n_heads in (("q_proj", N_HEADS), ("k_proj", N_KV_HEADS)):
            if slot in key:
                array = _interleaved(array, n_heads)
        if array.ndim == 2:
            blocks = gguf.quants.quantize(array, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(name, blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
            # One scale, half precision, for 32 numbers of a row, each a whole number from -127 to 127.
            rows = value.reshape(-1, 32)
            scale = (rows.abs().max(1, keepdim=True).values / 127).half().float()
            stands_for[key] = scale, rows
        else:
            writer.add_tensor(name, array)
            stands_for[key] = None, value
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, stands_for


def _interleaved(weight: np.ndarray, n_heads: int) -> np.ndarray:
    """The order of a head's rows in llama.cpp, where the two numbers that a rotation turns stand side by side."""
    halves = weight.reshape(n_heads, 2, -1, weight.shape[-1])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))


class TestGguf:
    def test_weights_are_those_that_the_blocks_stand_for(self, gguf_file, llama):
        path, stands_for = gguf_file
        found = load_model(path).bridge.original_model.state_dict()
        found = {key.replace("._original_component", ""): value for key, value in found.items()}
        for key, (scale, rows) in stands_for.items():
            value = next(value for name, value in found.items() if name.endswith(key))
            if scale is None:
                assert torch.equal(value, rows)
            else:  # within half a step of the true weight (the scale is rounded), a whole number of steps
                assert ((value.reshape(-1, 32) - rows).abs() <= 0.6 * scale).all(), key
                steps = value.reshape(-1, 32) / scale
                assert (steps - steps.round()).abs().max() < 1e-3
        tokens = torch.arange(1, 13)[None]
        with torch.no_grad():
            exact = llama(tokens).logits
        ours = load_model(path).whole_logits(tokens)
        assert (ours - exact).norm() < 0.1 * exact.norm()  # rounded weights
        assert (ours.roll(1, -1) - exact).norm() > exact.norm()  # and no other words'

    def test_a_converted_folder_is_the_same_model(self, gguf_file, tmp_path):
        path, _ = gguf_file
        made = convert_gguf(path, tmp_path / "out")
        one, other = load_model(path), load_model(tmp_path / "out")
        assert one.weights_sha256() == other.weights_sha256()
        assert one.bos == other.bos
        assert one.text.encode("abba").ids == other.text.encode("abba").ids
        assert one.spec.n_kv_heads == N_KV_HEADS
        record = json.loads((tmp_path / "out" / RECORD).read_text())
        assert (record["source"], record["sha256"]) == (path.name, made.sha256)
        assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
        plain = hf.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
        tokens = torch.arange(1, 13)[None]
        with torch.no_grad():
            assert torch.allclose(plain(tokens).logits, one.whole_logits(tokens), atol=1e-4)

    def test_a_folder_is_replaced_only_if_it_was_converted(self, gguf_file, tmp_path):
        path, _ = gguf_file
        convert_gguf(path, tmp_path / "out")
        with pytest.raises(OutputExistsError, match="exists. Name another, or replace it with --force"):
            convert_gguf(path, tmp_path / "out")
        convert_gguf(path, tmp_path / "out", force=True)
        mine = tmp_path / "mine"
        mine.mkdir()
        (mine / "notes.txt").write_text("mine")
        with pytest.raises(OutputExistsError, match="was not written by a conversion"):
            convert_gguf(path, mine, force=True)
        assert (mine / "notes.txt").read_text() == "mine"

    def test_a_damaged_file_leaves_nothing(self, gguf_file, tmp_path):
        path, _ = gguf_file
        cut = tmp_path / "cut.gguf"
        cut.write_bytes(path.read_bytes()[:-2000])
        for refuses in (lambda: convert_gguf(cut, tmp_path / "out"), lambda: load_model(cut)):
            with pytest.raises(ModelError, match="cut.gguf' cannot be read by transformers: .*It may be damaged"):
                refuses()
        assert sorted(one.name for one in tmp_path.iterdir()) == ["cut.gguf"]

    def test_what_is_no_gguf_file(self, tmp_path):
        (tmp_path / "page.gguf").write_text("<html>")
        for name, message in (
            ("page.gguf", r"is no GGUF file: it begins with b'<htm', not b'GGUF'"),
            ("gone.gguf", "does not exist. Give the path of a .gguf file"),
        ):
            with pytest.raises(ModelError, match=message):
                load_model(tmp_path / name)

    def test_without_the_package(self, tmp_path, monkeypatch):
        (tmp_path / "a.gguf").write_bytes(b"GGUF\3\0\0\0")
        monkeypatch.setattr("transformers.utils.import_utils.is_gguf_available", lambda: False)
        with pytest.raises(ModelError, match="cannot be read without the package 'gguf'. Run: pip install gguf"):
            load_model(tmp_path / "a.gguf")


# What an adapter changes.
MODULES = {
    "gpt2": ("transformer.h.0.attn.c_attn", "transformer.h.1.mlp.c_proj"),
    "llama": ("model.layers.0.self_attn.k_proj", "model.layers.1.mlp.down_proj"),
}


class TestAdapter:
    """LoRA: W + alpha / rank * B A."""

    @pytest.fixture
    def made(self, tmp_path):
        """An adapter folder, its base model's folder and its tensors by module."""

        def make(name: str, *, rank: int = 2, embedding: bool = False, **settings: Any) -> tuple[Path, Path, dict]:
            base, folder = save(name, tmp_path / "base"), tmp_path / "adapter"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            model = huggingface(name)
            generator = torch.Generator().manual_seed(1)
            tensors, pieces = {}, {}
            for module in MODULES[name]:
                weight = model.get_submodule(module).weight
                n_in, n_out = weight.shape if name == "gpt2" else weight.shape[::-1]
                a, b = (0.2 * torch.randn(*shape, generator=generator) for shape in ((rank, n_in), (n_out, rank)))
                pieces[module] = a, b
                tensors |= {
                    f"base_model.model.{module}.lora_A.weight": a,
                    f"base_model.model.{module}.lora_B.weight": b,
                }
            if embedding:
                module = "transformer.wte" if name == "gpt2" else "model.embed_tokens"
                words, width = model.get_submodule(module).weight.shape
                a, b = (0.2 * torch.randn(*shape, generator=generator) for shape in ((rank, words), (width, rank)))
                pieces[module] = a, b
                tensors |= {
                    f"base_model.model.{module}.lora_embedding_A": a,
                    f"base_model.model.{module}.lora_embedding_B": b,
                    f"base_model.model.{module}.base_layer.weight": model.get_submodule(module).weight.detach().clone(),
                }
            save_file(tensors, folder / "adapter_model.safetensors")
            config = {"peft_type": "LORA", "r": rank, "lora_alpha": 6, "base_model_name_or_path": str(base), **settings}
            (folder / "adapter_config.json").write_text(json.dumps(config))
            return folder, base, pieces

        return make

    @pytest.mark.parametrize("name", MODULES)
    @pytest.mark.parametrize(
        ("settings", "scale"), [({}, 3), ({"use_rslora": True}, 6 / math.sqrt(2)), ({"lora_alpha": 1}, 0.5)]
    )
    def test_weights_are_the_sum(self, name, settings, scale, made, tmp_path):
        folder, base, pieces = made(name, embedding=settings == {}, **settings)
        merge_adapter(folder, tmp_path / "merged")
        before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "merged" / "model.safetensors")
        changed = {f"{module}.weight" for module in pieces}
        for key, value in before.items():
            if key not in changed:
                assert torch.equal(after[key], value), key
        for module, (a, b) in pieces.items():
            change = np.einsum("or,ri->oi", b.double().numpy(), a.double().numpy()) * scale
            conv1d_or_embedding = name == "gpt2" or "embed" in module
            expected = before[f"{module}.weight"].double().numpy() + (change.T if conv1d_or_embedding else change)
            assert np.abs(after[f"{module}.weight"].numpy() - expected).max() < 1e-4, module
        merged, plain = load_model(tmp_path / "merged"), load_model(base)
        assert merged.weights_sha256() != plain.weights_sha256()

    def test_logits_are_those_of_the_adapter_beside_the_model(self, made, tmp_path):
        """The base model with B A x added to what each changed projection computes."""
        folder, base, pieces = made("llama")
        model = hf.AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")
        for module, (a, b) in pieces.items():
            model.get_submodule(module).register_forward_hook(
                lambda _module, inputs, output, a=a, b=b: output + 3 * inputs[0] @ a.T @ b.T
            )
        tokens = torch.arange(1, 11)[None]
        with torch.no_grad():
            expected = model(tokens).logits
        merge_adapter(folder, tmp_path / "merged")
        assert torch.allclose(load_model(tmp_path / "merged").whole_logits(tokens), expected, atol=1e-3)
        assert not torch.allclose(load_model(base).whole_logits(tokens), expected, atol=1e-1)

    def test_patterns_of_modules(self, made, tmp_path):
        folder, base, pieces = made(
            "llama", r=7, rank_pattern={"k_proj": 2, "down_proj": 2}, alpha_pattern={"1.mlp.down_proj": 10}
        )
        merge_adapter(folder, tmp_path / "merged")
        before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "merged" / "model.safetensors")
        for (module, (a, b)), scale in zip(pieces.items(), (3, 5), strict=True):
            change = after[f"{module}.weight"] - before[f"{module}.weight"]
            assert torch.allclose(change, scale * b @ a, atol=1e-4)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"peft_type": "IA3"}, "is of type 'IA3'; only LORA is merged here"),
            ({"use_dora": True}, "has use_dora, which are not merged here. Load what peft's"),
            ({"modules_to_save": ["lm_head"]}, "has modules_to_save"),
            ({"bias": "all"}, "has bias"),
            ({"r": 3}, r"has rank 2, and adapter_config.json says rank 3 and alpha 6"),
            ({"lora_alpha": None}, "says rank 2 and alpha None"),
            ({"base_model_name_or_path": None}, "does not name its base model. Give it: --base NAME"),
            ({"base_model_name_or_path": "./gone"}, "model folder './gone' does not exist"),
        ],
    )
    def test_refusals(self, settings, message, made, tmp_path):
        folder, _, _ = made("llama", **settings)
        with pytest.raises(ModelError, match=message):
            merge_adapter(folder, tmp_path / "merged")
        assert not (tmp_path / "merged").exists()

    def test_another_base_model(self, made, tmp_path):
        folder, _, _ = made("llama")
        with pytest.raises(ModelError, match="k_proj', which the base model does not have"):
            merge_adapter(folder, tmp_path / "merged", base=save("gpt2", tmp_path / "other"))

    def test_loading_the_folder_says_what_to_do(self, made):
        folder, _, _ = made("llama")
        with pytest.raises(ModelError, match="circuitlab models convert adapter MERGED --base BASE, and load"):
            load_model(folder)


def test_the_command(tmp_path, capsys):
    from circuitlab.cli import main

    assert tokenizer().vocab_size <= N_WORDS
    assert main(["models", "convert", str(tmp_path / "gone"), str(tmp_path / "out")]) == 2
    assert "has no adapter_config.json. Give the folder of a LoRA adapter, or a GGUF file" in capsys.readouterr().err
    assert main(["models", "convert", str(tmp_path / "gone.gguf"), "out", "--base", "gpt2"]) == 2
    assert "--base is the base model of an adapter" in capsys.readouterr().err
