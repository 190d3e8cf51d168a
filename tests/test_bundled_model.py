"""The bundled model: its files, its tokenizer, and how well it does the tasks on prompts it never saw."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from training.abilities import closed_at_depth
from training.measure import TASKS, measure, variants
from training.recipe import Recipe, checkpoint_times, learning_rate
from training.tokenizer import required_tokens
from training.train import CHECKPOINTS, LOG_NAME, main, prepare, train

FOLDER = Path(__file__).parent.parent / "circuitlab" / "bundled"
CASES = [
    pytest.param(task, options, id="-".join([task.name, *options.values()]))
    for task in TASKS
    for options in variants(task)
]


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(FOLDER).eval()


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(FOLDER)


def test_the_folder_is_a_small_checkpoint_of_a_known_kind() -> None:
    assert {file.name for file in FOLDER.iterdir() if file.is_file()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= 8_000_000
    config = json.loads((FOLDER / "config.json").read_text())
    assert config["architectures"] == ["GPT2LMHeadModel"]
    assert config["activation_function"] == "gelu_pytorch_tanh"
    assert config["n_positions"] >= 256


def test_special_tokens_agree_in_model_and_tokenizer(model: PreTrainedModel, words: PreTrainedTokenizerBase) -> None:
    assert model.config.bos_token_id == words.bos_token_id
    assert model.config.eos_token_id == words.eos_token_id
    assert model.config.vocab_size == len(words)
    assert len({words.bos_token_id, words.eos_token_id, words.pad_token_id}) == 3
    assert words.encode("Mary") == [words.bos_token_id, *words.encode("Mary", add_special_tokens=False)]


def test_the_words_of_the_tasks_are_one_token_each(words: PreTrainedTokenizerBase) -> None:
    assert [text for text in required_tokens() if len(words.tokenize(text)) != 1] == []


def test_a_tag_name_is_the_same_token_wherever_it_stands(words: PreTrainedTokenizerBase) -> None:
    opened, closed = words.tokenize("<h1>"), words.tokenize("</h1>")
    assert opened[1] == closed[1]
    assert closed[0] == words.tokenize("x</")[-1]
    assert words.tokenize("<br/>")[-1] == words.tokenize("/>")[0]


@pytest.mark.parametrize("text", ["Zoë said: 3 + 4 = 7!\n\n\tOk?", '<a href="x">y</a>', "don't  stop", "日本"])
def test_any_text_comes_back_from_its_tokens(text: str, words: PreTrainedTokenizerBase) -> None:
    assert words.decode(words.encode(text), skip_special_tokens=True) == text


@pytest.mark.parametrize(("task", "options"), CASES)
def test_quality_on_prompts_that_were_not_trained_on(
    task: object, options: dict[str, str], model: PreTrainedModel, words: PreTrainedTokenizerBase
) -> None:
    found = measure(model, words, task, options, count=500, seed=99)
    assert found.above >= 0.99
    assert found.first >= 0.95
    assert found.turned >= 0.95


def test_an_untrained_model_of_the_same_shape_fails_the_same_measurement(
    model: PreTrainedModel, words: PreTrainedTokenizerBase
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        untrained = type(model)(model.config).eval()
    for task in TASKS:
        found = measure(untrained, words, task, next(variants(task)), count=100, seed=99)
        assert found.first < 0.2


def test_nested_tags_are_closed_one_after_the_other(model: PreTrainedModel, words: PreTrainedTokenizerBase) -> None:
    assert closed_at_depth(model, words, 3, count=50, seed=1) >= 0.9


# The script that made it.


def test_the_script_leaves_a_model_folder_and_a_log(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    recipe = Recipe(minutes=0.05, documents=400, layers=1, heads=2, width=16, tokens_per_batch=256, check_prompts=5)
    before = torch.random.get_rng_state()
    train(prepare(recipe, folder))
    assert torch.equal(torch.random.get_rng_state(), before)
    log = [json.loads(line) for line in (folder / LOG_NAME).read_text().splitlines()]
    assert [entry["event"] for entry in log][:2] == ["recipe", "text"]
    assert log[-1]["event"] == "check"
    assert log[-1]["step"] > 0
    made = AutoModelForCausalLM.from_pretrained(folder)
    assert made.config.n_layer == 1
    assert {file.name for file in folder.iterdir()} == {
        *(file.name for file in FOLDER.iterdir() if file.is_file()),
        LOG_NAME,
        CHECKPOINTS,
    }
    kept = sorted((folder / CHECKPOINTS).iterdir())
    assert [one.name for one in kept] == [f"step-{entry['step']:06}" for entry in log if entry["event"] == "checkpoint"]
    assert (kept[0].name, kept[-1].name) == ("step-000000", f"step-{log[-1]['step']:06}")
    first, last = (AutoModelForCausalLM.from_pretrained(one).lm_head.weight for one in (kept[0], kept[-1]))
    assert torch.equal(last, made.lm_head.weight)
    assert not torch.equal(first, last)
    assert len(AutoTokenizer.from_pretrained(folder)) == made.config.vocab_size


def test_the_script_never_writes_over_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--out", str(tmp_path)])
    assert "exists; give a folder that does not" in capsys.readouterr().err


def test_checkpoints_are_kept_from_the_start_to_the_end() -> None:
    times = checkpoint_times(12)
    assert len(times) == 12
    assert (times[0], times[-1]) == (0, 1)
    assert sorted(b - a for a, b in pairwise(times)) == [b - a for a, b in pairwise(times)]


def test_the_learning_rate_rises_and_falls() -> None:
    recipe = Recipe(warmup=10, learning_rate=1.0)
    rates = [learning_rate(recipe, step, spent) for step, spent in ((0, 0.0), (9, 0.0), (100, 0.5), (200, 1.0))]
    assert rates == pytest.approx([0.1, 1.0, 0.51, 0.02])
