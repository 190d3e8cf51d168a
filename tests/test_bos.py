"""The beginning-of-sequence token: what a tokenizer does, what is asked, and where it is written down."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import BOS, D_VOCAB, booted, huggingface, save
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from typer.testing import CliRunner

from circuitlab import ConfigError, ModelError, UnknownNameError, load_model, neurons, text_log_probs
from circuitlab.discovery.config import DiscoverConfig
from circuitlab.models.text import CHOICES
from circuitlab.neurons.chosen import front_of

SPECIAL = {"<s>": 0, "</s>": 1, "[CLS]": 2, "[SEP]": 3, "[gMASK]": 4, "<sop>": 5, "<pad>": 6}
WORDS = {word: len(SPECIAL) + number for number, word in enumerate(("hello", "world", "John", "Mary"))}
TEXTS = ("hello", "hello John Mary", "world world")


def template(single: str) -> Any:
    used = [(token, number) for token, number in SPECIAL.items() if token in single.split()]
    return processors.TemplateProcessing(single=single, special_tokens=used)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A tokenizer's behaviour, and what each choice puts in front with it; None where it is refused."""

    template: Any = None
    declared: dict[str, str]
    auto: tuple[str, ...]
    always: tuple[str, ...] | None


BEGIN, BOTH = {"bos_token": "<s>"}, {"bos_token": "<s>", "eos_token": "</s>"}
KINDS = {
    "in the template": Kind(template=template("<s> $A"), declared=BOTH, auto=("<s>",), always=("<s>",)),
    "declared, not added": Kind(declared=BOTH, auto=(), always=("<s>",)),
    "none, with an end": Kind(declared={"eos_token": "</s>"}, auto=(), always=None),
    "none at all": Kind(declared={}, auto=(), always=None),
    "an end alone": Kind(template=template("$A </s>"), declared=BOTH, auto=(), always=("<s>",)),
    "both ends": Kind(template=template("<s> $A </s>"), declared=BOTH, auto=("<s>",), always=("<s>",)),
    "classifier's ends": Kind(
        template=template("[CLS] $A [SEP]"), declared={"cls_token": "[CLS]", "sep_token": "[SEP]"},
        auto=("[CLS]",), always=None,
    ),
    "two in front": Kind(
        template=template("[gMASK] <sop> $A"), declared={"bos_token": "<sop>"},
        auto=("[gMASK]", "<sop>"), always=("[gMASK]", "<sop>"),
    ),
    "another one in front": Kind(
        template=template("[gMASK] $A"), declared=BEGIN, auto=("[gMASK]",), always=("<s>", "[gMASK]")
    ),
    "the end in front": Kind(
        template=template("</s> $A"), declared={"bos_token": "</s>", "eos_token": "</s>"},
        auto=("</s>",), always=("</s>",),
    ),
    "RoBERTa's own": Kind(
        template=processors.RobertaProcessing(sep=("</s>", 1), cls_token=("<s>", 0)), declared=BOTH,
        auto=("<s>",), always=("<s>",),
    ),
}  # fmt: skip


def words(kind: Kind, more: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    made = Tokenizer(models.WordLevel(SPECIAL | WORDS, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens([token for token in SPECIAL if token != "<pad>"])
    if kind.template is not None:
        made.post_processor = kind.template
    made.add_tokens(list(more))
    return PreTrainedTokenizerFast(tokenizer_object=made, **kind.declared)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One small Llama with every kind of tokenizer."""
    weights = tmp_path_factory.mktemp("weights")
    huggingface("llama").save_pretrained(weights)
    found = {}
    for number, (name, kind) in enumerate(KINDS.items()):
        found[name] = tmp_path_factory.mktemp(f"kind-{number}")
        shutil.copytree(weights, found[name], dirs_exist_ok=True)
        words(kind).save_pretrained(found[name])
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_each_choice_with_each_kind_of_tokenizer(kind, checkpoints):
    folder, wanted = str(checkpoints[kind]), KINDS[kind]
    model = load_model(folder)
    assert (model.bos.choice, model.bos.tokens) == ("auto", wanted.auto)
    assert [SPECIAL[token] for token in model.bos.tokens] == list(model.bos.ids)
    called = AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        ids = called(text)["input_ids"]
        assert list(model.text.encode(text).ids) == ids[: len(ids) - (ids[-1] in (1, 3))]
    if wanted.always is None:
        with pytest.raises(ModelError, match="bos='always', but its tokenizer has no BOS token"):
            load_model(folder, bos="always")
    else:
        assert load_model(folder, bos="always").text.encode("hello").tokens == (*wanted.always, "hello")


def test_never_takes_off_what_the_template_adds(checkpoints):
    for kind in ("in the template", "two in front", "classifier's ends"):
        model = load_model(str(checkpoints[kind]), bos="never")
        assert model.text.encode("hello John").tokens == ("hello", "John")
        assert model.bos.ids == ()


def test_a_text_that_begins_with_the_token_does_not_get_two(checkpoints):
    for kind, choice in (("in the template", "auto"), ("declared, not added", "always"), ("both ends", "auto")):
        encoded = load_model(str(checkpoints[kind]), bos=choice).text.encode("<s> hello")
        assert encoded.tokens == ("<s>", "hello")
        assert encoded.offsets == ((0, 3), (4, 9))
    kept = load_model(str(checkpoints["in the template"]), bos="never").text.encode("<s> hello")
    assert kept.tokens == ("<s>", "hello")


def test_what_the_model_reads_is_what_was_asked(checkpoints):
    """The probabilities differ, and are those of the HuggingFace model on the same tokens."""
    folder, found = str(checkpoints["declared, not added"]), {}
    for choice in ("auto", "always"):
        model = load_model(folder, bos=choice, dtype="float64")
        found[choice] = model.whole_logits(torch.tensor([model.text.encode("hello John").ids]))[0, -1]
    hf = huggingface("llama").double()
    for choice, ids in (("auto", [7, 9]), ("always", [0, 7, 9])):
        assert torch.allclose(found[choice], hf(torch.tensor([ids])).logits[0, -1], atol=1e-5)
    assert not torch.allclose(found["auto"], found["always"], atol=1e-2)


@pytest.mark.parametrize("name", ["gpt2", "neox", "qwen3", "gemma2"])
def test_no_architecture_decides_by_itself(name, tmp_path):
    """Its weights with a tokenizer that adds the token, and with one that does not."""
    save(name, tmp_path)
    for kind in ("in the template", "declared, not added"):
        words(KINDS[kind]).save_pretrained(tmp_path)
        assert load_model(tmp_path).bos.tokens == KINDS[kind].auto


def test_what_transformerlens_does_is_there_to_be_asked_for(checkpoints, tmp_path):
    """Llama: always; and the end of sequence where there is no beginning. Qwen: never."""
    for kind, token in (("in the template", "<s>"), ("declared, not added", "<s>"), ("none, with an end", "</s>")):
        model = load_model(str(checkpoints[kind]), bos="transformer-lens")
        assert model.bos.tokens == (token,)
        assert list(model.text.encode("hello").ids) == model.bridge.to_tokens("hello")[0].tolist()
    save("qwen3", tmp_path)
    assert load_model(tmp_path, bos="transformer-lens").bos.tokens == ()
    assert load_model(tmp_path).bos.tokens == (BOS,)


@pytest.mark.parametrize("wrong", ["yes", "", "Always", True, 1])
def test_a_choice_that_does_not_exist_is_refused(wrong, checkpoints):
    from architectures import as_users_run_it

    rule = "bos is .*; it must be str or None"
    if isinstance(wrong, str):
        rule = f"unknown bos .*Allowed: {', '.join(CHOICES)}"
    with as_users_run_it(), pytest.raises(ConfigError if rule.startswith("bos") else UnknownNameError, match=rule):
        load_model(str(checkpoints["both ends"]), bos=wrong)
    with as_users_run_it(), pytest.raises(UnknownNameError, match="unknown bos"):
        DiscoverConfig(task="name-throw", model="bundled", bos=wrong)


def test_a_loaded_model_keeps_its_choice(checkpoints):
    model = load_model(str(checkpoints["in the template"]), bos="never")
    assert load_model(model) is model
    assert load_model(model, bos="never") is model
    with pytest.raises(ConfigError, match=r"bos='always' is asked for, .* loaded with bos='never'. Load it again"):
        load_model(model, bos="always")


class TestBridges:
    def test_its_checkpoint_s_tokenizer_is_asked(self, checkpoints):
        from transformer_lens.model_bridge import TransformerBridge

        bridge = TransformerBridge.boot_transformers(str(checkpoints["declared, not added"]), device="cpu")
        assert bridge.to_tokens("hello")[0].tolist() == [0, 7]
        assert load_model(bridge).text.encode("hello").ids == (7,)
        assert load_model(bridge, bos="always").text.encode("hello").ids == (0, 7)
        assert load_model(bridge, bos="transformer-lens").text.encode("hello").ids == (0, 7)

    def test_where_it_is_gone_nothing_is_guessed(self):
        """The bridge serves for tokens; for texts it has to be said."""
        bridge = booted("gpt2")
        model = load_model(bridge)
        assert model.whole_logits(torch.tensor([[0, 1]])).shape == (1, 2, D_VOCAB)
        for ask in (lambda: model.text, lambda: load_model(bridge, bos="always")):
            with pytest.raises(ModelError, match=r"changed when the bridge was booted .* Use bos='never' or"):
                ask()
        assert load_model(bridge, bos="never").bos.ids == ()
        assert load_model(bridge, bos="transformer-lens").bos.tokens == (BOS,)


class TestVocabulary:
    @pytest.mark.parametrize("more", [D_VOCAB - 11, D_VOCAB - 10, D_VOCAB])
    def test_tokens_without_an_embedding_are_refused(self, more, tmp_path):
        """11 tokens and as many more as are said: up to 300 the model has rows."""
        huggingface("llama").save_pretrained(tmp_path)
        words(KINDS["in the template"], tuple(f"new{i}" for i in range(more))).save_pretrained(tmp_path)
        above = 11 + more - D_VOCAB
        if above == 0:
            assert load_model(tmp_path).text.encode(f"new{more - 1}").ids == (0, D_VOCAB - 1)
            return
        first = f"first 'new{more - above}' with id {D_VOCAB}"
        with pytest.raises(ModelError, match=f"{above} tokens without one, the {first}"):
            load_model(tmp_path)

    def test_a_special_token_counts_too(self, tmp_path):
        """As in checkpoints that were given a padding token without a row for it."""
        save("gpt2", tmp_path)
        bigger = AutoTokenizer.from_pretrained(tmp_path)
        bigger.add_special_tokens({"pad_token": "[PAD]"})
        bigger.save_pretrained(tmp_path)
        with pytest.raises(ModelError, match=r"1 tokens? without one, the first '\[PAD\]' with id 300"):
            load_model(tmp_path)


class TestRecords:
    def test_the_bundled_model_reads_what_it_was_trained_on(self, bundled, tokenizer):
        assert bundled.bos.tokens == ("<|bos|>",)
        assert list(bundled.text.encode("Anna is").ids) == tokenizer("Anna is")["input_ids"]

    def test_older_settings_are_those_of_transformerlens(self):
        record = DiscoverConfig(task="name-throw", model="bundled").to_record()
        assert record["bos"] == "auto"
        del record["bos"]
        old = DiscoverConfig.of_record(record)
        assert old.bos == "transformer-lens"
        assert old.command.endswith("--bos transformer-lens")

    def test_every_command_that_runs_a_model_takes_it(self):
        from circuitlab.cli.app import app

        run = CliRunner()
        single = [["discover"], ["sweep"], ["evaluate"], ["attribute"], ["predict"]]
        neurons = ("importance", "top-tokens", "top-neurons", "activations", "examples", "sensitivity", "simplify")
        many = [["neurons", name] for name in (*neurons, "ablate", "optimise", "outliers")]
        many += [["features", name] for name in ("show", "active", "sweep", "rank")]
        for words_ in single + many:
            told = run.invoke(app, [*words_, "--help"], terminal_width=200).output
            assert "--bos" in told, words_
            assert ("--fold-ln" in told) == ("--bos" in told)

    def test_the_command_line_passes_it_on(self, checkpoints):
        from circuitlab.cli.app import app

        asked = ["predict", "hello", "--model", str(checkpoints["declared, not added"]), "--json", "-k", "1"]
        found = {}
        for choice in ("auto", "always"):
            done = CliRunner().invoke(app, [*asked, "--bos", choice])
            assert done.exit_code == 0, done.output
            found[choice] = json.loads(done.stdout)["top"]
        assert found["auto"] != found["always"]


@pytest.fixture(scope="module")
def two_in_front(tmp_path_factory):
    """A model whose tokenizer puts two tokens in front, as that of GLM-4 does."""
    folder = save("llama", tmp_path_factory.mktemp("two") / "llama")
    words = AutoTokenizer.from_pretrained(folder)
    front = [(token, words.convert_tokens_to_ids(token)) for token in (BOS, "h")]
    words.backend_tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} h $A", special_tokens=front)
    words.save_pretrained(folder)
    model = load_model(folder, dtype="float64")
    assert model.bos.ids == tuple(number for _, number in front)
    return model


class TestTwoTokensInFront:
    """Neither is text: no log-probability, loss or reconstruction counts the second one."""

    TEXT = "hello world John left;"

    def losses(self, model):
        ids = torch.tensor([model.text.encode(self.TEXT).ids])
        log_probs = model.bridge(ids, return_type="logits", use_cache=False)[0, :-1].log_softmax(-1)
        return ids, -log_probs.gather(1, ids[0, 1:, None])[1:, 0]

    @torch.no_grad()
    def test_log_probs_are_of_the_text(self, two_in_front):
        found = text_log_probs(two_in_front, self.TEXT)
        ids, losses = self.losses(two_in_front)
        assert found.ids == tuple(ids[0].tolist())
        assert found.total == pytest.approx(-losses.sum().item())
        assert found.mean == pytest.approx(-losses.mean().item())
        assert found.ranks[:2].tolist() == [-1, -1]
        assert found.best[:2] == ("", "")
        assert len(found.best) == len(found.ids)

    @torch.no_grad()
    def test_outliers(self, two_in_front):
        found = neurons.outliers(two_in_front, [self.TEXT], layer=1).prompts[0]
        assert found.loss == pytest.approx(self.losses(two_in_front)[1].mean().item())
        assert np.isnan(found.losses[:, :2]).all()
        assert np.isfinite(found.ablation_loss).all()

    def test_autoencoders_leave_both(self, two_in_front):
        assert len(front_of(two_in_front)) == 2
