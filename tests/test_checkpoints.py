"""Checkpoints that are not the model that their config describes, and kinds of models that are not supported."""

import copy as copylib
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from architectures import ARCHITECTURES, D_MODEL, huggingface, native, save, tokenizer
from safetensors.torch import load_file, save_file
from torch import Tensor
from toy_by_hand import publish, repository

from circuitlab import Example, Task, discover, load_run
from circuitlab.errors import ConfigError, ModelError, UnsupportedModelError
from circuitlab.models.load import load_model
from circuitlab.models.model_kinds import SUPPORTED, refuse_unsupported
from circuitlab.models.revisions import Checkpoint
from circuitlab.models.source import check_sources

Weights = dict[str, Tensor]
# Where the blocks are in a file, and how many of them the config says.
STACKS = {
    "gpt2": ("transformer.h", "n_layer"),
    "llama": ("model.layers", "num_hidden_layers"),
    "neox": ("gpt_neox.layers", "num_hidden_layers"),
    "qwen3": ("model.layers", "num_hidden_layers"),
    "gemma2": ("model.layers", "num_hidden_layers"),
    "olmo2": ("model.layers", "num_hidden_layers"),
    "granite": ("model.layers", "num_hidden_layers"),
    "mpt": ("transformer.blocks", "n_layers"),
}
# Three lines of a wide terminal, the folder's name not counted.
LONGEST_MESSAGE = 390
INTERNAL = re.compile(r"\b(Attribute|Key|Type|Index|Runtime|Assertion|Value|OS)Error\b|Traceback|safetensors_rust")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The whole checkpoint of an architecture, written once; tests change copies."""
    root, made = tmp_path_factory.mktemp("whole"), {}

    def of(name: str) -> Path:
        if name not in made:
            made[name] = save(name, root / name)
        return made[name]

    return of


@pytest.fixture
def copy(saved, tmp_path) -> Callable[..., Path]:
    """A new checkpoint, its weights passed through a function and its config updated."""

    def of(name: str, change: Callable[[Weights], Weights] | None = None, **config: Any) -> Path:
        folder = tmp_path / name
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(saved(name), folder)
        if change is not None:
            write(folder, change(weights(folder)))
        settings = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**settings, **config}))
        return folder

    return of


def weights(folder: Path) -> Weights:
    return load_file(folder / "model.safetensors")


def write(folder: Path, tensors: Weights) -> None:
    contiguous = {key: value.contiguous() for key, value in tensors.items()}
    save_file(contiguous, folder / "model.safetensors", metadata={"format": "pt"})


def without(*keys: str) -> Callable[[Weights], Weights]:
    return lambda tensors: {key: value for key, value in tensors.items() if key not in keys}


def renamed(rename: Callable[[str], str]) -> Callable[[Weights], Weights]:
    return lambda tensors: {rename(key): value for key, value in tensors.items()}


def save_as(model: Any, folder: Path, **options: Any) -> Path:
    model.save_pretrained(folder, **options)
    tokenizer().save_pretrained(folder)
    return folder


def refused(model: Any, kind: type[ModelError] = ModelError, **options: Any) -> str:
    """What loading it says, the folder's name taken out."""
    with pytest.raises(kind) as caught:
        load_model(model, **options)
    said = str(caught.value).replace(str(model), "FOLDER")
    assert len(said) <= LONGEST_MESSAGE, said
    assert "\n" not in said
    assert not INTERNAL.search(said), said
    return said


def digest(model: Any, seed: int = 0, **options: Any) -> str:
    torch.manual_seed(seed)
    return load_model(model, **options).weights_sha256()


class TestMissingTensors:
    @pytest.mark.parametrize("name", ARCHITECTURES)
    def test_each_kind_of_tensor(self, name, copy):
        """One by one: of every layer's tensors those of the last layer, and all others."""
        whole = weights(copy(name))
        last = f"{STACKS[name][0]}.1."
        for key in (key for key in whole if key.startswith(last) or STACKS[name][0] not in key):
            said = refused(copy(name, without(key)))
            inside = "lm_head.weight" if key == "embed_out.weight" else key  # GPT-NeoX's is called so in memory
            assert said.startswith(f"model 'FOLDER': 1 of {len(whole)} tensors is missing from its weights"), said
            assert f"random: {inside}. The file has nothing in its place" in said

    @pytest.mark.parametrize("name", ["gpt2", "llama"])
    def test_many_are_counted_and_the_list_is_cut(self, name, copy):
        whole = weights(copy(name))
        gone = [key for key in whole if key.endswith("weight") and STACKS[name][0] in key]
        said = refused(copy(name, without(*gone)))
        assert f"{len(gone)} of {len(whole)} tensors are missing" in said
        assert f" and {len(gone) - 3} more. " in said

    def test_what_the_file_has_in_their_place(self, copy):
        said = refused(copy("llama", renamed(lambda key: key.replace("up_proj", "w3"))))
        assert "2 of 21 tensors are missing" in said
        assert "The file has model.layers.0.mlp.w3.weight, model.layers.1.mlp.w3.weight in their place." in said

    @pytest.mark.parametrize("name", ["gpt2", "neox"])
    @pytest.mark.parametrize(
        ("prefix", "program"),
        [
            ("_orig_mod.", " (torch.compile)"),
            ("module.", " (DistributedDataParallel)"),
            ("_fsdp_wrapped_module.", " (FSDP)"),
            ("module._orig_mod.", " (torch.compile, DistributedDataParallel)"),
            ("base_model.model.", " (PEFT)"),
            ("student.", ""),
            ("model.model.", ""),
        ],
    )
    def test_a_common_prefix_is_recognised(self, name, prefix, program, copy):
        said = refused(copy(name, renamed(lambda key: prefix + key)))
        assert f"The file has them with '{prefix}'{program} in their names." in said
        assert f"take '{prefix}' out of the names" in said

    def test_a_piece_inside_of_the_names(self, copy):
        said = refused(copy("llama", renamed(lambda key: key.replace("layers.1.", "layers.1._orig_mod."))))
        assert "9 of 21 tensors are missing" in said
        assert "with '_orig_mod.' (torch.compile) in their names" in said

    def test_an_adapter_that_is_not_merged(self, copy):
        def wrapped(tensors: Weights) -> Weights:
            found = renamed(lambda key: key.replace("q_proj.", "q_proj.base_layer."))(tensors)
            return {**found, "model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(2, D_MODEL)}

        said = refused(copy("llama", wrapped))
        assert "has an adapter that is not merged" in said
        assert "merge_and_unload" in said

    @pytest.mark.parametrize("name", ARCHITECTURES)
    def test_more_layers_in_the_config(self, name, copy):
        said = refused(copy(name, **{STACKS[name][1]: 3, **({"layer_types": None} if name != "gpt2" else {})}))
        assert "missing" in said
        assert "Layers: 3 by config.json, 2 in the weights." in said

    def test_no_tensor_of_the_model(self, copy):
        said = refused(copy("gpt2", lambda _: {"other": torch.ones(2)}))
        assert "28 of 28 tensors are missing" in said
        assert "The file has other in their place" in said

    def test_the_twin_loads(self, copy):
        """A file that was read and written again, and one without the prefix of the base model."""
        for name, base in (("gpt2", "transformer."), ("llama", "model.")):
            first = digest(copy(name))
            assert digest(copy(name, lambda tensors: dict(reversed(tensors.items())))) == first
            assert digest(copy(name, renamed(lambda key: key.removeprefix(base)))) == first  # noqa: B023


class TestWhatIsNotMissing:
    def test_tied_heads(self, copy):
        """GPT-2 and Gemma 2 share embedding and unembedding: one of both names is enough."""
        for name, embedding in (("gpt2", "transformer.wte.weight"), ("gemma2", "model.embed_tokens.weight")):
            whole = weights(copy(name))
            assert "lm_head.weight" not in whole
            first = digest(copy(name))
            assert digest(copy(name, lambda t: {**t, "lm_head.weight": t[embedding].clone()})) == first  # noqa: B023
            swapped = renamed(lambda key: "lm_head.weight" if key == embedding else key)  # noqa: B023
            assert digest(copy(name, swapped)) == first

    def test_neither_of_both(self, copy):
        assert "1 of 28 tensors is missing" in refused(copy("gpt2", without("transformer.wte.weight")))

    def test_an_untied_head(self, copy):
        said = refused(copy("gpt2", tie_word_embeddings=False))
        assert "random: lm_head.weight. " in said
        assert "saved without its unembedding" in said

    def test_buffers_that_old_versions_saved(self, copy):
        masks = {
            "transformer.h.0.attn.bias": torch.ones(1, 1, 64, 64).tril(),
            "transformer.h.0.attn.masked_bias": torch.tensor(-1e4),
        }
        assert digest(copy("gpt2", lambda tensors: tensors | masks)) == digest(copy("gpt2"))
        rotation = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
        assert digest(copy("llama", lambda tensors: tensors | rotation)) == digest(copy("llama"))

    def test_a_head_beside_the_unembedding(self, copy):
        heads = {"score.weight": torch.ones(2, D_MODEL), "v_head.summary.bias": torch.ones(1)}
        for name in ("gpt2", "llama"):
            assert digest(copy(name, lambda tensors: tensors | heads)) == digest(copy(name))


class TestOtherModels:
    def test_another_shape(self, copy):
        def cut(tensors: Weights) -> Weights:
            return {key: value[:5] if "wpe" in key else value for key, value in tensors.items()}

        said = refused(copy("gpt2", cut))
        assert (
            "1 of 28 tensors has another shape than config.json says: transformer.wpe.weight (5, 32), not (64, 32)"
            in said
        )
        assert "2 of 21 tensors have another shape" in refused(copy("llama", vocab_size=310))

    @pytest.mark.parametrize("name", ARCHITECTURES)
    def test_layers_that_the_config_leaves_out(self, name, copy):
        said = refused(copy(name, **{STACKS[name][1]: 1, **({"layer_types": None} if name != "gpt2" else {})}))
        assert re.search(r"its weights have \d+ tensors more than the \d+ of a \w+ with this config\.json", said)
        assert "Layers: 1 by config.json, 2 in the weights." in said

    @pytest.mark.parametrize(
        ("name", "key", "size"),
        [
            ("llama", "model.layers.1.self_attn.q_proj.bias", 32),
            ("llama", "model.layers.1.self_attn.q_norm.weight", 8),
            ("llama", "model.norm.bias", 32),
            ("gpt2", "lm_head.bias", 300),
            ("gpt2", "transformer.h.0.crossattention.c_attn.weight", 64),
            ("neox", "gpt_neox.layers.0.attention.rotary.scale", 4),
        ],
    )
    def test_a_weight_inside_that_the_model_has_no_place_for(self, name, key, size, copy):
        said = refused(copy(name, lambda tensors: {**tensors, key: torch.ones(size)}))
        assert f"its weights have 1 tensor more than the {len(weights(copy(name)))} of a " in said
        assert key in said

    def test_a_base_model(self, tmp_path):
        gpt2, llama = huggingface("gpt2"), huggingface("llama")
        assert digest(save_as(gpt2.transformer, tmp_path / "tied")) == digest(save_as(gpt2, tmp_path / "whole"))
        said = refused(save_as(llama.model, tmp_path / "untied"))
        assert "1 of 21 tensors is missing from its weights, and would be random: lm_head.weight. " in said

    def test_a_classifier(self, tmp_path):
        for name, kind in (("gpt2", hf.GPT2ForSequenceClassification), ("llama", hf.LlamaForTokenClassification)):
            folder = save_as(kind(huggingface(name).config), tmp_path / name)
            said = refused(folder, UnsupportedModelError)
            assert f"(type {name}, {kind.__name__}) is a " in said
            assert "classifier: not supported (it predicts no next token)" in said

    def test_a_classifier_that_calls_itself_a_language_model(self, tmp_path):
        folder = save_as(hf.LlamaForSequenceClassification(huggingface("llama").config), tmp_path / "llama")
        settings = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**settings, "architectures": ["LlamaForCausalLM"]}))
        assert "random: lm_head.weight. The file has score.weight in its place." in refused(folder)

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
    def test_weights_that_are_no_numbers(self, value, copy):
        def spoil(tensors: Weights) -> Weights:
            tensors["transformer.h.1.mlp.c_fc.bias"][3] = value
            return tensors

        said = refused(copy("gpt2", spoil))
        assert "NaN or infinite values are in 1 of 28 tensors of its weights: transformer.h.1.mlp.c_fc.bias." in said

    def test_weights_too_large_for_the_dtype(self, copy):
        folder = copy("gpt2", lambda tensors: {**tensors, "transformer.ln_f.bias": torch.full((D_MODEL,), 1e6)})
        assert "may be too large for torch.float16: try float32" in refused(folder, dtype="float16")
        assert digest(folder)

    def test_a_booted_bridge_of_no_numbers(self):
        bridge = native()
        next(iter(bridge.original_model.parameters())).data[0] = float("nan")
        with pytest.raises(ModelError, match="NaN or infinite values are in 1 of"):
            load_model(bridge)


class TestDigest:
    @pytest.mark.parametrize("name", ARCHITECTURES)
    def test_it_depends_on_no_seed(self, name, saved):
        assert digest(saved(name), 1) == digest(saved(name), 2)

    @pytest.mark.parametrize(
        ("name", "folding"),
        [
            ("gpt2", {"fold_ln": True}),
            ("gpt2", {"center_weights": True}),
            ("gpt2", {"fold_ln": True, "center_weights": True}),
            ("llama", {"fold_ln": True}),
        ],
    )
    def test_nor_under_a_folding(self, name, folding, saved):
        assert digest(saved(name), 1, **folding) == digest(saved(name), 2, **folding) != digest(saved(name))

    @pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
    def test_nor_in_another_dtype(self, dtype, saved):
        assert digest(saved("gpt2"), 1, dtype=dtype) == digest(saved("gpt2"), 2, dtype=dtype)

    def test_it_follows_the_weights(self, copy):
        def changed(tensors: Weights) -> Weights:
            tensors["transformer.h.1.mlp.c_fc.bias"][3] += 1
            return tensors

        assert digest(copy("gpt2", changed)) != digest(copy("gpt2"))


class TestFiles:
    @pytest.fixture
    def shards(self, tmp_path) -> Path:
        return save_as(huggingface("llama"), tmp_path / "shards", max_shard_size="20KB")

    def test_shards(self, shards, saved):
        assert len(list(shards.glob("model-*.safetensors"))) == 6
        assert digest(shards) == digest(saved("llama"))

    def test_a_shard_is_not_there(self, shards):
        (shards / "model-00002-of-00006.safetensors").unlink()
        said = refused(shards)
        assert "1 of the 6 weight files that model.safetensors.index.json names are not there (5 of 21 tensors)" in said
        assert "model-00002-of-00006.safetensors" in said

    def test_a_shard_lacks_a_tensor(self, shards):
        path = shards / "model-00003-of-00006.safetensors"
        tensors = load_file(path)
        key = next(iter(tensors))
        save_file(without(key)(tensors), path, metadata={"format": "pt"})
        assert f"1 of 21 tensors is missing from its weights, and would be random: {key}. " in refused(shards)

    def test_a_shard_is_cut_short(self, shards):
        path = shards / "model-00003-of-00006.safetensors"
        path.write_bytes(path.read_bytes()[:-8])
        assert f"{path.name} is cut short" in refused(shards)

    def test_the_index_is_not_there(self, shards):
        (shards / "model.safetensors.index.json").unlink()
        assert "but no model.safetensors.index.json. Copy that file too" in refused(shards)

    @pytest.mark.parametrize("text", ["{}", '{"weight_map": {}}', '{"weight_map": {"a": 3}}'])
    def test_an_index_of_nothing(self, text, shards):
        (shards / "model.safetensors.index.json").write_text(text)
        assert "has no weight_map" in refused(shards)

    @pytest.mark.parametrize("zipped", [True, False])
    def test_bin(self, zipped, copy):
        folder, model = copy("gpt2"), huggingface("gpt2")
        (folder / "model.safetensors").unlink()
        path = folder / "pytorch_model.bin"
        torch.save(model.state_dict(), path, _use_new_zipfile_serialization=zipped)
        assert digest(folder) == digest(copy("gpt2"))
        shutil.rmtree(folder)
        folder = copy("gpt2")
        (folder / "model.safetensors").unlink()
        torch.save(without("transformer.ln_f.bias")(model.state_dict()), path, _use_new_zipfile_serialization=zipped)
        assert "random: transformer.ln_f.bias." in refused(folder)

    def test_a_bin_that_could_run_code(self, copy):
        class Runs:
            def __reduce__(self) -> Any:
                return (print, ("ran",))

        folder = copy("gpt2")
        (folder / "model.safetensors").unlink()
        torch.save({"a": Runs()}, folder / "pytorch_model.bin")
        assert "holds more than tensors, which could run code. Save safetensors" in refused(folder)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "is empty"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n", "is a git-lfs pointer and not"),
            (b"<!DOCTYPE html><html><body>Sign in</body></html>", "is a web page and not the file itself"),
            (b"\n<html><head></head></html>", "is a web page and not the file itself"),
            (b"Entry not found", "is text and no weights; it begins with 'Entry not found'"),
            (b'{"error": "Repository not found"}', "is text and no weights"),
            (b"\x00\x01", "is cut short or damaged: it has 2 bytes"),
            (b"\x00" * 100, "is damaged: its header cannot be read"),
            (b"\x02" + b"\x00" * 7 + b"{}", "holds no tensors"),
            (b"\xff" * 1000, "is cut short or damaged: it has 1,000 bytes"),
        ],
    )
    def test_something_else_than_weights(self, content, message, copy):
        folder = copy("gpt2")
        (folder / "model.safetensors").write_bytes(content)
        assert f"cannot be loaded: model.safetensors {message}" in refused(folder)

    @pytest.mark.parametrize("part", [0.3, 0.9, 0.999])
    def test_files_cut_short(self, part, copy):
        for file in ("model.safetensors", "pytorch_model.bin"):
            folder = copy("gpt2")
            if file.endswith("bin"):
                torch.save(weights(folder), folder / file)
                (folder / "model.safetensors").unlink()
            whole = (folder / file).read_bytes()
            (folder / file).write_bytes(whole[: int(len(whole) * part)])
            assert f"{file} is cut short" in refused(folder)

    @pytest.mark.parametrize("file", ["config.json", "tokenizer.json"])
    def test_pointers_in_the_place_of_other_files(self, file, copy):
        folder = copy("gpt2")
        (folder / file).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n")
        assert f"{file} is a git-lfs pointer" in refused(folder)

    @pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
    def test_a_tokenizer_that_is_no_json(self, file, copy):
        folder = copy("gpt2")
        (folder / file).write_text("nonsense")
        assert f"{file} is not valid JSON" in refused(folder)

    @pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.bool, torch.complex64])
    @pytest.mark.parametrize("zipped", [True, False, None])
    def test_weights_that_are_cast_from_something_else(self, dtype, zipped, copy):
        folder = copy("llama")
        tensors = weights(folder)
        tensors["model.layers.1.self_attn.q_proj.weight"] = torch.ones(D_MODEL, D_MODEL).to(dtype)
        if zipped is None:
            write(folder, tensors)
        else:
            (folder / "model.safetensors").unlink()
            torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
        assert "are no floating-point numbers: model.layers.1.self_attn.q_proj.weight" in refused(folder)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (lambda model: [1, 2], "holds no tensors by name"),
            (lambda model: {}, "holds no tensors by name"),
            (lambda model: {"state_dict": model.state_dict(), "epoch": 3}, "holds state_dict, epoch and no tensors"),
            (lambda model: model, "holds more than tensors, which could run code"),
        ],
    )
    def test_a_bin_of_other_things(self, content, message, copy):
        folder = copy("gpt2")
        (folder / "model.safetensors").unlink()
        torch.save(content(huggingface("gpt2")), folder / "pytorch_model.bin")
        assert message in refused(folder)

    def test_a_folder_of_checkpoints(self, saved, tmp_path):
        shutil.copytree(saved("gpt2"), tmp_path / "run" / "checkpoint-500")
        assert "has no config.json" in (said := refused(tmp_path / "run"))
        assert "It has folders with one: checkpoint-500. Give one of them." in said

    def test_a_link_to_nothing(self, copy):
        path = copy("gpt2") / "model.safetensors"
        path.unlink()
        path.symlink_to("nowhere")
        assert "model.safetensors is a broken link, or no file" in refused(path.parent)

    @pytest.mark.parametrize(
        ("file", "message"),
        [
            ("model.gguf", "a GGUF file"),
            ("tf_model.h5", "TensorFlow weights"),
            ("flax_model.msgpack", "Flax weights"),
            ("consolidated.00.pth", "their author's own format"),
            ("consolidated.safetensors", "under the names that transformers reads"),
            ("training_args.bin", "it has training_args.bin"),
            ("__0_0.distcp", "a distributed checkpoint"),
        ],
    )
    def test_weights_of_other_programs(self, file, message, copy):
        folder = copy("gpt2")
        (folder / "model.safetensors").rename(folder / file)
        assert message in refused(folder)

    @pytest.mark.parametrize("whole", [True, False])
    def test_an_adapter(self, whole, copy):
        folder = copy("gpt2")
        (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "gpt2", "peft_type": "LORA"}')
        if not whole:
            (folder / "config.json").unlink()
            (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
        said = refused(folder)
        assert "holds an adapter (adapter_config.json" in said
        assert "merge_and_unload" in said

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "config.json is empty"),
            ("{ nonsense", "config.json is not valid JSON"),
            ("[" * 100_000, "config.json is not valid JSON"),
            ("[]", "config.json holds no JSON object"),
            ("{}", "config.json has no model_type"),
            ('{"model_type": 3}', "config.json has no model_type"),
            ('{"model_type": "nope"}', "model_type 'nope', which transformers"),
            ('{"model_type": "gpt2", "n_embd": "wide"}', "does not fit model type 'gpt2'"),
            ('{"model_type": "gpt2", "n_embd": 32, "n_head": 5}', "must be divisible"),
            ('{"model_type": "gpt2", "activation_function": "nope"}', "make no model of its files"),
            ('{"model_type": "mine", "auto_map": {"AutoConfig": "a.B"}}', "needs Python code from its own repository"),
        ],
    )
    def test_configs(self, text, message, copy):
        folder = copy("gpt2")
        (folder / "config.json").write_text(text)
        said = refused(folder)
        assert message in said
        assert "cannot be loaded" in said


class TestHub:
    """The same for names on the hub, from its cache."""

    @pytest.fixture
    def cache(self, tmp_path, monkeypatch) -> Path:
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        return tmp_path

    def test_a_whole_model(self, cache, saved):
        save("llama", repository(cache, "somebody/llama"))
        assert digest("somebody/llama") == digest(saved("llama"))

    @pytest.mark.parametrize("name", ["somebody/gpt2", "tiny-stories-1M"])
    def test_one_that_lacks_a_tensor(self, name, cache):
        folder = repository(cache, "roneneldan/TinyStories-1M" if name == "tiny-stories-1M" else name)
        save("gpt2", folder)
        write(folder, without("transformer.ln_f.bias")(weights(folder)))
        assert refused(name).startswith("model 'FOLDER': 1 of 28 tensors is missing from its weights")

    def test_one_with_a_prefix(self, cache):
        folder = save("llama", repository(cache, "somebody/llama"))
        write(folder, renamed(lambda key: f"_orig_mod.{key}")(weights(folder)))
        assert "'_orig_mod.' (torch.compile)" in refused("somebody/llama")

    def test_a_shard_that_was_not_downloaded(self, cache):
        folder = repository(cache, "somebody/llama")
        save_as(huggingface("llama"), folder, max_shard_size="20KB")
        (folder / "model-00002-of-00006.safetensors").unlink()
        assert "model-00002-of-00006.safetensors" in refused("somebody/llama")

    def test_a_kind_that_is_not_supported(self, cache):
        folder = repository(cache, "somebody/experts")
        (folder / "config.json").write_text('{"model_type": "mixtral", "architectures": ["MixtralForCausalLM"]}')
        assert "is a mixture of experts: not supported (8 experts" in refused("somebody/experts", UnsupportedModelError)

    def test_an_adapter(self, cache):
        (repository(cache, "somebody/lora") / "adapter_config.json").write_text('{"peft_type": "LORA"}')
        assert "is an adapter (LoRA or the like) without its model" in refused("somebody/lora")

    def test_a_file_cut_short(self, cache):
        path = save("gpt2", repository(cache, "somebody/gpt2")) / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-9])
        assert "model.safetensors is cut short" in refused("somebody/gpt2")

    def test_an_old_toy_model_of_no_numbers(self, cache):
        path = publish("solu-1l", cache) / "model_final.pth"
        tensors = torch.load(path, weights_only=True)
        tensors["blocks.0.mlp.W_in"][0, 0] = float("nan")
        torch.save(tensors, path)
        assert "NaN or infinite values are in 1 of" in refused("solu-1l")

    def test_an_old_toy_model_that_lacks_a_tensor(self, cache):
        path = publish("solu-1l", cache) / "model_final.pth"
        torch.save(without("blocks.0.mlp.W_in")(torch.load(path, weights_only=True)), path)
        assert "cannot be loaded" in refused("solu-1l")

    def published(self, cache: Path, commits: dict[str, int]) -> dict[str, Path]:
        """A repository with a branch for each checkpoint; their folders."""
        found, base = {}, repository(cache, "EleutherAI/pythia-tiny").parents[1]
        for number, (branch, seed) in enumerate(commits.items()):
            folder = save("neox", base / "snapshots" / f"{number:040d}")
            changed = {key: value + seed for key, value in weights(folder).items() if "embed_in" in key}
            write(folder, weights(folder) | changed)
            (base / "refs" / branch).write_text(folder.name)
            found[branch] = folder
        return found

    def test_a_revision_and_a_checkpoint_index(self, cache):
        name, folders = "EleutherAI/pythia-tiny", self.published(cache, {"main": 0, "step16": 1, "step143000": 2})
        found = {branch: load_model(name, revision=branch) for branch in folders}
        for number, (branch, model) in enumerate(found.items()):
            assert model.weights_sha256() == digest(folders[branch])
            assert model.checkpoint.to_record() == {"revision": branch, "commit": f"{number:040d}"}
        assert len({model.weights_sha256() for model in found.values()}) == len(folders)
        assert load_model(name).checkpoint.to_record() == {"commit": "0" * 40}
        for index, branch in ((5, "step16"), (-1, "step143000")):  # 0, 1, 2, 4, 8, 16, ... , 143000
            model = load_model(name, checkpoint_index=index)
            assert model.weights_sha256() == found[branch].weights_sha256()
            assert model.checkpoint.to_record()["revision"] == branch
            assert copy_of(model).weights_sha256() == model.weights_sha256()
        assert load_model(found["step16"], revision="step16") is found["step16"]
        with pytest.raises(ConfigError, match="revision='main' is asked for, but the given model is loaded already"):
            load_model(found["step16"], revision="main")

    def test_a_run_records_and_repeats_its_checkpoint(self, cache, tmp_path):
        self.published(cache, {"main": 0, "step16": 1})
        out, how = tmp_path / "run", {"n": 2, "min_accuracy": 0, "allow_weak_gap": True, "sites": (), "method": "eap"}
        run = discover(
            short_task(), model="EleutherAI/pythia-tiny", revision="step16", out=out, minimality=False,
            selection={"n_edges": 20}, **how,
        )  # fmt: skip
        manifest = json.loads((out / "manifest.json").read_text())
        assert (manifest["config"]["revision"], manifest["config"]["checkpoint_index"]) == ("step16", None)
        assert manifest["config"]["minimality"] is False
        assert manifest["model"]["revision"] == "step16"
        assert manifest["model"]["commit"] == f"{1:040d}"
        assert "--revision step16" in manifest["command"]
        assert "--no-minimality" in manifest["command"]
        assert run.evaluation.minimality is None
        assert load_run(out).checkpoint == run.checkpoint == {"revision": "step16", "commit": f"{1:040d}"}

    @pytest.mark.parametrize(
        ("name", "chosen", "message"),
        [
            ("EleutherAI/pythia-tiny", {"revision": "step7"}, "cannot be reached"),
            ("EleutherAI/pythia-tiny", {"checkpoint_index": 154}, "has 154 checkpoints, 0 to 153 .steps 0 to 143000"),
            (
                "somebody/llama",
                {"checkpoint_index": 3},
                "has no list of checkpoints of model 'somebody/llama'. Give rev",
            ),
            ("EleutherAI/pythia-tiny", {"revision": "main", "checkpoint_index": 1}, "exclude each other"),
            ("solu-1l", {"revision": "main"}, "Its training checkpoints have numbers: checkpoint_index="),
            ("solu-1l", {"checkpoint_index": 0}, "has its final weights only"),
            ("bundled", {"revision": "main"}, "revision='main' chooses a checkpoint of a repository on the hub, and"),
            ("bundled", {"checkpoint_index": 2}, "checkpoint_index=2 chooses a checkpoint of a repository on the hub"),
        ],
    )
    def test_a_checkpoint_that_there_is_not(self, name, chosen, message, cache):
        self.published(cache, {"main": 0})
        publish("solu-1l", cache)
        with pytest.raises((ConfigError, ModelError), match=message):
            load_model(name, **chosen)
        with pytest.raises((ConfigError, ModelError), match=message):
            check_sources([name], Checkpoint(revision=chosen.get("revision"), index=chosen.get("checkpoint_index")))

    def test_names_are_checked_before_the_first_is_loaded(self, cache, monkeypatch):
        save("llama", repository(cache, "somebody/llama"))
        publish("solu-1l", cache)
        check_sources(["somebody/llama", "bundled", "solu-1l"])
        (repository(cache, "somebody/lora") / "adapter_config.json").write_text('{"peft_type": "LORA"}')
        (repository(cache, "somebody/experts") / "config.json").write_text('{"model_type": "mixtral"}')
        for name, message in (
            ("somebody/gone", "is not in the local cache and the hub cannot be reached"),
            ("./gone", "model folder './gone' does not exist"),
            ("somebody/lora", "is an adapter"),
            ("somebody/experts", "mixture of experts"),
        ):
            with pytest.raises(ModelError, match=message):
                check_sources(["somebody/llama", name])


def copy_of(model: Any) -> Any:
    return copylib.copy(model)


def short_task() -> Task:
    """A task of words that the tokenizer of the tests has."""

    def draw_one(rng: Any) -> Example:
        end = rng.choice([" left.", " smiled", " left. He", " smiled;"])
        return Example(clean=f"hello{end} John", corrupt=f"hello{end} Mary", answer=" He", distractor=" she")

    return Task(name="short", version="1", summary="Continue with a pronoun.", draw=draw_one)


class TestDispatched:
    def test_one_device_is_as_usual(self, copy):
        folder = copy("gpt2")
        assert digest(self.booted(folder, device_map={"": "cpu"})) == digest(folder)

    def test_several_devices(self, copy, tmp_path):
        parts = dict.fromkeys(("transformer.wte", "transformer.wpe", "transformer.h.0", "lm_head"), "cpu")
        parts |= {"transformer.h.1": "disk", "transformer.ln_f": "cpu"}
        said = refused(self.booted(copy("gpt2"), device_map=parts, offload_folder=tmp_path), UnsupportedModelError)
        assert "is on several devices (cpu, disk; device_map): not supported" in said
        assert "Boot it without device_map" in said

    @staticmethod
    def booted(folder: Path, **options: Any) -> Any:
        from transformer_lens.model_bridge import TransformerBridge

        model = hf.AutoModelForCausalLM.from_pretrained(folder, **options)
        return TransformerBridge.boot_transformers(str(folder), hf_model=model)


class TestKinds:
    @staticmethod
    def said(config: Any) -> str:
        with pytest.raises(UnsupportedModelError) as caught:
            refuse_unsupported(config, "it")
        assert str(caught.value).endswith(SUPPORTED)
        assert len(str(caught.value)) <= LONGEST_MESSAGE
        return str(caught.value)

    @pytest.mark.parametrize(
        "model_type",
        [
            *("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "phimoe", "gpt_oss", "deepseek_v3", "glm4_moe"),
            *("granitemoe", "jamba", "dbrx", "llama4_text", "ernie4_5_moe", "jetmoe", "minimax_m2"),
        ],
    )
    def test_mixtures_of_experts(self, model_type):
        said = self.said(hf.CONFIG_MAPPING[model_type]())
        assert f"model 'it' (type {model_type}) is a mixture of experts: not supported" in said

    def test_experts_of_a_model_that_transformers_does_not_know(self):
        assert "mixture of experts: not supported (16 experts" in self.said({"model_type": "new", "num_experts": 16})

    @pytest.mark.parametrize("model_type", ["t5", "mt5", "bart", "marian", "m2m_100", "led", "whisper", "pegasus"])
    def test_encoder_decoders(self, model_type):
        assert "is an encoder-decoder model: not supported" in self.said(hf.CONFIG_MAPPING[model_type]())

    @pytest.mark.parametrize("model_type", ["bert", "roberta", "distilbert", "electra", "modernbert", "deberta-v2"])
    def test_encoders(self, model_type):
        assert "is an encoder: not supported" in self.said(hf.CONFIG_MAPPING[model_type]())

    @pytest.mark.parametrize("model_type", ["mamba", "mamba2", "falcon_mamba", "rwkv", "recurrent_gemma"])
    def test_state_spaces(self, model_type):
        assert "is a state-space or recurrent model: not supported" in self.said(hf.CONFIG_MAPPING[model_type]())

    @pytest.mark.parametrize(("model_type", "layer"), [("lfm2", "conv"), ("olmo_hybrid", "linear_attention")])
    def test_hybrids(self, model_type, layer):
        said = self.said(hf.CONFIG_MAPPING[model_type](layer_types=[layer, "full_attention"], num_hidden_layers=2))
        assert f"is a hybrid model: not supported (it has layers that are not attention: {layer})" in said

    @pytest.mark.parametrize("model_type", ["vit", "dinov2", "resnet", "deit", "wav2vec2", "hubert"])
    def test_models_that_read_no_tokens(self, model_type):
        assert ": not supported (" in self.said(hf.CONFIG_MAPPING[model_type]())

    def test_latent_attention(self):
        assert "multi-head latent attention" in self.said(hf.MiniCPM3Config())

    @pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "fp8"])
    def test_quantized_weights(self, method):
        config = {"model_type": "llama", "quantization_config": {"quant_method": method}}
        assert f"is quantized ({method}): not supported" in self.said(config)

    @pytest.mark.parametrize("ending", ["SequenceClassification", "TokenClassification", "QuestionAnswering"])
    def test_task_heads(self, ending):
        assert "it predicts no next token" in self.said({"model_type": "qwen2", "architectures": [f"Qwen2For{ending}"]})

    @pytest.mark.parametrize(
        "model_type",
        [
            *("gpt2", "llama", "gpt_neox", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "gemma3_text", "gpt_neo"),
            *("gptj", "mistral", "phi", "phi3", "olmo", "stablelm", "starcoder2", "granite", "codegen", "smollm3"),
        ],
    )
    def test_the_others_are_not_refused_by_their_config(self, model_type):
        refuse_unsupported(hf.CONFIG_MAPPING[model_type](), "it")

    def test_a_checkpoint_is_refused_before_its_weights_are_read(self, copy):
        folder = copy("llama", model_type="mixtral", architectures=["MixtralForCausalLM"], num_local_experts=4)
        assert "mixture of experts: not supported (4 experts a layer)" in refused(folder, UnsupportedModelError)

    def test_an_architecture_that_transformer_lens_does_not_wrap(self, copy):
        folder = copy("llama", model_type="helium", architectures=["HeliumForCausalLM"])
        said = refused(folder, UnsupportedModelError)
        assert "(type helium, HeliumForCausalLM) is not supported: TransformerLens does not wrap" in said

    @pytest.mark.parametrize(
        ("name", "measured", "reason"),
        [
            ("opt", "does not run the MLP", "In models of type opt the MLPs are not modules of their own."),
        ],
    )
    def test_models_that_do_not_add_up(self, name, measured, reason, saved):
        with pytest.raises(UnsupportedModelError) as caught:
            load_model(saved(name))
        assert measured in str(caught.value)
        assert reason in str(caught.value)

    def test_a_booted_bridge(self):
        class Inner(torch.nn.Linear):
            config = hf.MixtralConfig()

        class Bridge:
            cfg = object()
            original_model = Inner(1, 1)

        with pytest.raises(UnsupportedModelError, match="is a mixture of experts: not supported"):
            load_model(Bridge())

    def test_nothing_is_installed_for_images(self, tmp_path, monkeypatch):
        """TransformerLens would run pip for the processor of a model that reads images beside its text."""
        asked: list[Any] = []
        monkeypatch.setattr(subprocess, "check_call", lambda *args, **_: asked.append(args))
        text = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
        text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64}
        vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
        vision |= {"image_size": 28, "patch_size": 14}
        config = hf.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
        model = load_model(save_as(hf.Gemma3ForConditionalGeneration(config), tmp_path / "gemma3"))
        assert (model.spec.n_layers, asked) == (2, [])


def test_a_tokenizer_without_a_fast_version(tmp_path):
    save("llama", tmp_path / "m")
    (tmp_path / "m" / "tokenizer.json").unlink()
    hf.ByT5Tokenizer().save_pretrained(tmp_path / "m")
    assert "Tokenizers without a fast version (tokenizer.json) are not supported" in refused(tmp_path / "m")
