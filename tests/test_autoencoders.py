"""Autoencoders from files: every architecture and normalisation by hand, and everything that is refused."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import D_MODEL, as_users_run_it, load
from safetensors.torch import load_file, save_file

from circuitlab import (
    ConfigError,
    FormatError,
    MissingFileError,
    OutputExistsError,
    UnknownNameError,
    load_autoencoder,
    load_model,
)
from circuitlab.features import Autoencoder, save_autoencoder
from circuitlab.features.autoencoder import Gated, JumpRelu, Standard, TopK
from circuitlab.models.hook_names import hook_of_site, site_of_hook

D_IN, WIDTH = 6, 10
GENERATOR = torch.Generator().manual_seed(0)
W_ENC, W_DEC = torch.randn(D_IN, WIDTH, generator=GENERATOR), torch.randn(WIDTH, D_IN, generator=GENERATOR)
B_DEC = torch.randn(D_IN, generator=GENERATOR)
VECTORS = {name: torch.randn(WIDTH, generator=GENERATOR) for name in ("b_enc", "threshold", "b_gate", "r_mag", "b_mag")}
VECTORS["threshold"] = VECTORS["threshold"].abs()
X = torch.randn(2, 5, D_IN, generator=GENERATOR)
NEEDS = {
    "standard": ["b_enc"],
    "topk": ["b_enc"],
    "jumprelu": ["b_enc", "threshold"],
    "gated": ["b_gate", "r_mag", "b_mag"],
}


def arrays(architecture: str) -> dict[str, torch.Tensor]:
    return {"W_enc": W_ENC, "W_dec": W_DEC, "b_dec": B_DEC} | {n: VECTORS[n] for n in NEEDS[architecture]}


def new_config(architecture: str, **changed: Any) -> dict[str, Any]:
    """As SAELens 6 writes it."""
    config = {
        "architecture": architecture,
        "d_in": D_IN,
        "d_sae": WIDTH,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"model_name": "gpt2", "hook_name": "blocks.1.hook_resid_pre", "hook_head_index": None},
    }
    return config | ({"k": 3} if architecture == "topk" else {}) | changed


def old_config(architecture: str, **changed: Any) -> dict[str, Any]:
    """As SAELens 3 to 5 wrote it: flat, with top-k as an activation function of the standard one."""
    config = {
        "architecture": "standard" if architecture == "topk" else architecture,
        "d_in": D_IN,
        "d_sae": WIDTH,
        "hook_name": "blocks.1.hook_resid_pre",
        "hook_layer": 1,
        "hook_head_index": None,
        "model_name": "gpt2",
        "apply_b_dec_to_input": True,
        "normalize_activations": False,
        "finetuning_scaling_factor": False,
        "activation_fn_str": "topk" if architecture == "topk" else "relu",
        "activation_fn_kwargs": {"k": 3} if architecture == "topk" else {},
    }
    return config | changed


def write(folder: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps(config))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "sae_weights.safetensors")
    return folder


def by_hand(architecture: str, x: torch.Tensor, k: int = 3) -> torch.Tensor:
    """Features of what the encoder reads, number by number."""
    w_enc, x = W_ENC.double().numpy(), x.double().numpy()
    vectors = {name: vector.double().numpy() for name, vector in VECTORS.items()}
    found = torch.zeros(*x.shape[:-1], WIDTH)
    for place in np.ndindex(*x.shape[:-1]):
        pre = [float(sum(x[place][i] * w_enc[i, f] for i in range(D_IN))) for f in range(WIDTH)]
        if architecture == "gated":
            for f, value in enumerate(pre):
                magnitude = value * float(np.exp(vectors["r_mag"][f])) + float(vectors["b_mag"][f])
                found[(*place, f)] = max(magnitude, 0.0) if value + float(vectors["b_gate"][f]) > 0 else 0.0
            continue
        biased = [value + float(vectors["b_enc"][f]) for f, value in enumerate(pre)]
        least = {
            "standard": [0.0] * WIDTH,
            "topk": [max(0.0, sorted(biased)[-k - 1])] * WIDTH,
            "jumprelu": vectors["threshold"].tolist(),
        }[architecture]
        for f, value in enumerate(biased):
            found[(*place, f)] = value if value > least[f] else 0.0
    return found


@pytest.mark.parametrize("config", [new_config, old_config], ids=["nested", "flat"])
@pytest.mark.parametrize("architecture", list(NEEDS))
class TestArchitectures:
    def test_encode_and_decode_by_hand(self, architecture, config, tmp_path):
        made = load_autoencoder(write(tmp_path, config(architecture), arrays(architecture)))
        assert (made.architecture, made.site, made.layer, made.d_in, made.n_features) == (
            architecture,
            "resid_pre",
            1,
            D_IN,
            WIDTH,
        )
        features = made.encode(X)
        torch.testing.assert_close(features, by_hand(architecture, X - B_DEC))
        assert (features > 0).any()
        assert (features == 0).any()
        torch.testing.assert_close(made.decode(features), features @ W_DEC + B_DEC)
        torch.testing.assert_close(made.reconstruct(X), features @ W_DEC + B_DEC)

    def test_the_decoder_bias_is_left_on_where_the_settings_say_so(self, architecture, config, tmp_path):
        told = config(architecture, apply_b_dec_to_input=False)
        made = load_autoencoder(write(tmp_path, told, arrays(architecture)))
        torch.testing.assert_close(made.encode(X), by_hand(architecture, X))
        assert not torch.allclose(made.encode(X), by_hand(architecture, X - B_DEC))


def test_sparse_entries_are_the_dense_ones(tmp_path, monkeypatch):
    made = load_autoencoder(write(tmp_path, new_config("jumprelu"), arrays("jumprelu")))
    monkeypatch.setattr("circuitlab.features.autoencoder.DENSE_AT_ONCE", 3 * WIDTH)  # three tokens at a time
    rows = X.reshape(-1, D_IN)
    found, dense = made.active(rows), made.encode(rows)
    rebuilt = torch.zeros_like(dense)
    rebuilt[found.token, found.feature] = found.value
    torch.testing.assert_close(rebuilt, dense)
    assert len(found) == int((dense > 0).sum())
    torch.testing.assert_close(made.reconstruct(X), made.decode(made.encode(X)))


class TestNormalisation:
    def test_constant_norm(self, tmp_path):
        told = new_config("standard", normalize_activations="constant_norm_rescale")
        made = load_autoencoder(write(tmp_path, told, arrays("standard")))
        factor = D_IN**0.5 / X.norm(dim=-1, keepdim=True)
        features = by_hand("standard", X * factor - B_DEC)
        torch.testing.assert_close(made.encode(X), features)
        torch.testing.assert_close(made.decode(features, like=X), (features @ W_DEC + B_DEC) / factor)
        torch.testing.assert_close(made.encode(7 * X), made.encode(X))

    def test_layer_norm(self, tmp_path):
        told = new_config("standard", normalize_activations="layer_norm")
        made = load_autoencoder(write(tmp_path, told, arrays("standard")))
        mean = X.mean(-1, keepdim=True)
        spread = ((X - mean) ** 2).sum(-1, keepdim=True).div(D_IN - 1).sqrt()
        features = by_hand("standard", (X - mean) / (spread + 1e-5) - B_DEC)
        torch.testing.assert_close(made.encode(X), features)
        torch.testing.assert_close(made.reconstruct(X), (features @ W_DEC + B_DEC) * spread + mean)

    def test_a_constant_factor_is_folded(self, tmp_path):
        told = new_config("standard", normalize_activations="expected_average_only_in")
        folder = write(tmp_path, told, arrays("standard"))
        made = load_autoencoder(folder, scaling_factor=2.5)
        features = by_hand("standard", 2.5 * X - B_DEC)
        torch.testing.assert_close(made.encode(X), features)
        torch.testing.assert_close(made.decode(features), (features @ W_DEC + B_DEC) / 2.5)
        with pytest.raises(FormatError, match="scaling_factor=: sqrt"):
            load_autoencoder(folder)

    def test_a_centred_stream(self, tmp_path):
        nested = new_config("standard")["metadata"] | {"model_from_pretrained_kwargs": {"center_writing_weights": True}}
        made = load_autoencoder(write(tmp_path, new_config("standard", metadata=nested), arrays("standard")))
        mean = X.mean(-1, keepdim=True)
        torch.testing.assert_close(made.encode(X), by_hand("standard", X - mean - B_DEC))
        torch.testing.assert_close(made.encode(X + 3), made.encode(X))
        torch.testing.assert_close(made.reconstruct(X + 3), made.reconstruct(X) + 3)
        assert not load_autoencoder(tmp_path, centred=False).relative

    def test_decoding_asks_for_what_it_needs(self, tmp_path):
        told = new_config("standard", normalize_activations="layer_norm")
        made = load_autoencoder(write(tmp_path, told, arrays("standard")))
        with pytest.raises(ConfigError, match="like=x"):
            made.decode(made.encode(X))


def test_features_in_units_of_their_decoder_norms(tmp_path):
    told = new_config("topk", rescale_acts_by_decoder_norm=True)
    made = load_autoencoder(write(tmp_path, told, arrays("topk")))
    norm = W_DEC.norm(dim=1)
    pre = ((X - B_DEC) @ W_ENC + VECTORS["b_enc"]) * norm
    largest = pre.topk(3, dim=-1)
    features = torch.zeros_like(pre).scatter(-1, largest.indices, largest.values.relu())
    torch.testing.assert_close(made.encode(X), features)
    torch.testing.assert_close(made.decode(features), (features / norm) @ W_DEC + B_DEC)
    plain = load_autoencoder(write(tmp_path / "plain", new_config("topk"), arrays("topk")))
    assert not torch.allclose(plain.encode(X), features)


def test_a_fine_tuned_factor_scales_what_features_add(tmp_path):
    factor = torch.linspace(0.5, 2, WIDTH)
    told = old_config("standard", finetuning_scaling_factor=True)
    made = load_autoencoder(write(tmp_path, told, arrays("standard") | {"scaling_factor": factor}))
    features = by_hand("standard", X - B_DEC)
    torch.testing.assert_close(made.decode(features), (features * factor) @ W_DEC + B_DEC)
    ones = arrays("standard") | {"scaling_factor": torch.ones(WIDTH)}
    same = load_autoencoder(write(tmp_path / "ones", old_config("standard"), ones))
    torch.testing.assert_close(same.decode(features), features @ W_DEC + B_DEC)
    unsaid = write(tmp_path / "unsaid", old_config("standard"), arrays("standard") | {"scaling_factor": factor})
    with pytest.raises(FormatError, match="holds a scaling_factor"):
        load_autoencoder(unsaid)


class TestGemmaScope:
    """Gemma Scope's files."""

    FOLDERS = "gemma-scope-2b-pt-{}/layer_25/width_65k/average_l0_55"

    def params(self, folder: Path, **changed: Any) -> Path:
        folder.mkdir(parents=True)
        np.savez(folder / "params.npz", **{n: t.numpy() for n, t in arrays("jumprelu").items()} | changed)
        return folder / "params.npz"

    @pytest.mark.parametrize(("release", "site"), [("res", "resid_post"), ("mlp", "mlp_out"), ("att", "head_z")])
    def test_the_path_says_where_it_belongs(self, release, site, tmp_path):
        path = self.params(tmp_path / self.FOLDERS.format(release))
        for given in (path, path.parent):
            made = load_autoencoder(given)
            assert (made.site, made.layer, made.architecture) == (site, 25, "jumprelu")
            assert made.model_id == "google/gemma-2-2b"
            features = by_hand("jumprelu", X)  # no bias is taken off
            torch.testing.assert_close(made.encode(X), features)
            torch.testing.assert_close(made.decode(features), features @ W_DEC + B_DEC)

    def test_arguments_say_what_the_path_does_not(self, tmp_path):
        path = self.params(tmp_path / "x")
        with pytest.raises(FormatError, match=r"does not say its site and layer.*site='resid_post'"):
            load_autoencoder(path)
        made = load_autoencoder(path, site="resid_post", layer=3)
        assert (made.site, made.layer) == ("resid_post", 3)

    def test_pickles_are_not_opened(self, tmp_path):
        opened = tmp_path / "opened"

        class Evil:
            def __reduce__(self):
                return Path.touch, (opened,)

        objects = np.array([Evil()], dtype=object)
        path = self.params(tmp_path / self.FOLDERS.format("res"), b_enc=objects)
        with pytest.raises(FormatError, match="pickled objects, which could run code"):
            load_autoencoder(path)
        path.write_bytes(pickle.dumps(Evil()))
        with pytest.raises(FormatError, match="is no npz file"):
            load_autoencoder(path)
        assert not opened.exists()

    def test_damage_is_told(self, tmp_path):
        path = self.params(tmp_path / self.FOLDERS.format("res"))
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(FormatError, match="damaged"):
            load_autoencoder(path)
        transcoder = self.params(tmp_path / self.FOLDERS.format("transcoders"))
        with pytest.raises(FormatError, match="transcoder"):
            load_autoencoder(transcoder)
        words = self.params(tmp_path / "words" / self.FOLDERS.format("res"), b_enc=np.array(["a"] * WIDTH))
        with pytest.raises(FormatError, match="b_enc holds"):
            load_autoencoder(words)


def without(tensors: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    return {key: tensor for key, tensor in tensors.items() if key != name}


@pytest.mark.parametrize(
    ("config", "tensors", "kind", "said"),
    [
        (new_config("standard"), without(arrays("standard"), "b_enc"), FormatError, "has no b_enc"),
        (new_config("jumprelu"), arrays("standard"), FormatError, "has no threshold"),
        (new_config("standard"), arrays("standard") | {"extra": B_DEC.clone()}, FormatError, "holds extra too"),
        (
            new_config("standard"),
            arrays("standard") | {"W_dec": W_ENC.clone()},
            FormatError,
            r"W_dec has the shape \(6, 10\)",
        ),
        (
            new_config("standard"),
            arrays("standard") | {"W_enc": B_DEC.clone()},
            FormatError,
            r"it must be \(d_in, d_sae\)",
        ),
        (new_config("standard"), arrays("standard") | {"b_dec": B_DEC * torch.nan}, FormatError, "b_dec holds NaN"),
        (new_config("standard", d_sae=11), arrays("standard"), FormatError, "say d_sae = 11, its W_enc 10"),
        (new_config("standard", d_in="6"), arrays("standard"), FormatError, "d_in is '6'"),
        (new_config("topk", k=11), arrays("topk"), FormatError, "k is 11"),
        (new_config("topk", k=None), arrays("topk"), FormatError, "no whole number k"),
        (new_config("transcoder"), arrays("standard"), UnknownNameError, "writes at another"),
        (new_config("matryoshka_batchtopk"), arrays("standard"), UnknownNameError, "save it for inference"),
        (new_config("jumpreul"), arrays("jumprelu"), UnknownNameError, "Did you mean 'jumprelu'"),
        (old_config("standard", activation_fn_str="tanh-relu"), arrays("standard"), FormatError, "tanh-relu"),
        (new_config("standard", normalize_activations="odd"), arrays("standard"), FormatError, "by 'odd'"),
        (new_config("standard", metadata={}), arrays("standard"), FormatError, "names no hook point"),
        (new_config("standard", metadata={"hook_name": "a.b"}), arrays("standard"), UnknownNameError, "site= and lay"),
        (old_config("standard", hook_head_index=2), arrays("standard"), FormatError, "reads head 2 alone"),
        (new_config("standard", reshape_activations="hook_z"), arrays("standard"), FormatError, "reshapes resid_pre"),
    ],
)
def test_what_does_not_add_up_is_refused_by_name(config, tensors, kind, said, tmp_path):
    with pytest.raises(kind, match=said):
        load_autoencoder(write(tmp_path, config, tensors))


def test_files_that_are_not_there_or_damaged(tmp_path):
    folder = write(tmp_path / "a", new_config("standard"), arrays("standard"))
    with pytest.raises(ConfigError, match=r"no autoencoder at .*none"):
        load_autoencoder(tmp_path / "none")
    (folder / "sae_weights.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(FormatError, match="safetensors file .* is damaged"):
        load_autoencoder(folder)
    (folder / "sae_weights.safetensors").unlink()
    with pytest.raises(FormatError, match=r"has no sae_weights\.safetensors"):
        load_autoencoder(folder)
    (folder / "cfg.json").write_text("[1]")
    with pytest.raises(FormatError, match="holds a list"):
        load_autoencoder(folder)
    (folder / "cfg.json").write_text("{")
    with pytest.raises(FormatError, match="is not valid JSON"):
        load_autoencoder(folder)
    (folder / "cfg.json").unlink()
    with pytest.raises(MissingFileError, match=r"cfg\.json' does not exist"):
        load_autoencoder(folder)
    (tmp_path / "x.bin").write_bytes(b"x")
    with pytest.raises(FormatError, match="neither a folder"):
        load_autoencoder(tmp_path / "x.bin")


def test_arguments_that_do_not_go_with_the_file(tmp_path):
    folder = write(tmp_path / "a", new_config("standard"), arrays("standard"))
    for wrong, said in [
        ({"site": "resid"}, "Did you mean 'resid_p"),
        ({"layer": -1}, "layer -1 is negative"),
        ({"scaling_factor": 2.0}, "expected_average_only_in"),
        ({"dtype": "int7"}, "unknown dtype"),
        ({"device": "gpu 1"}, "unknown device"),
    ]:
        with pytest.raises((ConfigError, UnknownNameError), match=said):
            load_autoencoder(folder, **wrong)


class TestFitting:
    def test_it_follows_the_model(self, tmp_path):
        model = load("gpt2")
        wide = {"W_enc": torch.randn(D_MODEL, 5), "W_dec": torch.randn(5, D_MODEL), "b_dec": torch.zeros(D_MODEL)}
        config = new_config("standard", d_in=D_MODEL, d_sae=5)
        folder = write(tmp_path, config, wide | {"b_enc": torch.zeros(5)})
        made = load_autoencoder(folder, model=model)
        assert made.w_enc.dtype == made.encoder.bias.dtype == model.dtype == torch.float64
        assert load_autoencoder(folder, model=model, dtype="float32").w_enc.dtype == torch.float32
        assert load_autoencoder(folder).w_enc.dtype == torch.float32

    def test_another_model_is_refused(self, tmp_path):
        folder = write(tmp_path, new_config("standard"), arrays("standard"))
        with pytest.raises(ConfigError, match=f"reads 6 numbers a token; resid_pre of model .* has {D_MODEL}"):
            load_autoencoder(folder, model=load("gpt2"))
        with pytest.raises(ConfigError, match="reads layer 40; model .* has"):
            load_autoencoder(folder, model=load("gpt2"), layer=40)
        with pytest.raises(UnknownNameError, match="no site 'resid_mid'"):
            load_autoencoder(folder, model=load("neox"), site="resid_mid")

    def test_heads_whose_values_lost_their_bias_are_refused(self, tmp_path, bundled):
        width = bundled.spec.d_model
        wide = {"W_enc": torch.zeros(width, 5), "W_dec": torch.zeros(5, width), "b_dec": torch.zeros(width)}
        told = new_config("standard", d_in=width, d_sae=5, metadata={"hook_name": "blocks.1.attn.hook_z"})
        folder = write(tmp_path, told, wide | {"b_enc": torch.zeros(5)})
        assert load_autoencoder(folder, model=bundled).site == "head_z"
        with pytest.raises(ConfigError, match="the values' bias, which fold_ln moves"):
            load_autoencoder(folder, model=load_model(fold_ln=True))


@pytest.mark.parametrize("architecture", list(NEEDS))
def test_what_is_written_reads_the_same(architecture, tmp_path):
    meta = {"hook_name": "blocks.2.attn.hook_z", "neuronpedia_id": "gpt2/2", "model_name": "gpt2"}
    told = new_config(architecture, reshape_activations="hook_z", metadata=meta)
    made = load_autoencoder(write(tmp_path / "a", told, arrays(architecture)))
    again = load_autoencoder(save_autoencoder(made, tmp_path / "b"))
    assert (again.site, again.layer, again.model_id, again.neuronpedia_id) == ("head_z", 2, "gpt2", "gpt2/2")
    assert torch.equal(again.encode(X), made.encode(X))
    assert torch.equal(again.reconstruct(X), made.reconstruct(X))
    assert set(load_file(tmp_path / "b" / "sae_weights.safetensors")) == set(arrays(architecture))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a", "b"]
    with pytest.raises(OutputExistsError, match="exists"):
        save_autoencoder(made, tmp_path / "b")
    save_autoencoder(made, tmp_path / "b", force=True)


def test_shapes_are_checked_where_a_record_is_made():
    with as_users_run_it(), pytest.raises(ConfigError, match="do not go together"):
        Autoencoder(
            name="x", site="resid_pre", layer=0, encoder=Standard(bias=VECTORS["b_enc"]), w_enc=W_ENC, w_dec=W_ENC,
            b_dec=B_DEC,
        )  # fmt: skip


def test_the_encoders_never_give_negative_features():
    pre = torch.randn(50, WIDTH, generator=torch.Generator().manual_seed(1))
    bias = VECTORS["b_enc"]
    for encoder in (
        Standard(bias=bias),
        TopK(bias=bias - 3, k=WIDTH),
        JumpRelu(bias=bias, threshold=torch.full((WIDTH,), -5.0)),
        Gated(gate_bias=bias + 9, log_scale=bias, magnitude_bias=bias),
    ):
        assert float(encoder(pre).min()) == 0.0


def test_hook_points_and_sites_go_both_ways():
    for site in ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "head_z", "neuron"):
        assert site_of_hook(hook_of_site(site, 7)) == (site, 7)
    assert site_of_hook("blocks.3.hook_out") == ("resid_post", 3)
    with pytest.raises(UnknownNameError, match=r"hook 'blocks\.0\.hook_q' is none"):
        site_of_hook("blocks.0.hook_q")
    with pytest.raises(UnknownNameError, match="site of an autoencoder"):
        hook_of_site("pattern", 0)
