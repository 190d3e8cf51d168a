"""Fixtures that every test may use: the bundled model, two tiny checkpoints, the command line.

The jaxtyping import hook checks every annotated shape and type in circuitlab while the tests run (`shapes.py`).
"""

import os

# One thread a process: test workers and command-line subprocesses share the cores instead of fighting for them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import gc
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import shapes
from commands import Finished, run_circuitlab

shapes.install()

ROOT = Path(__file__).parent.parent
# Files that take longer than their number of tests says. They begin first, lest one worker end alone with them.
LONG = ("test_docs.py", "test_readme.py", "test_judging_commands.py", "test_cli.py", "test_reproduce.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The order in which workers are given files: long ones, then by the number of tests."""
    tests = Counter(item.path for item in items)
    items.sort(key=lambda item: (item.path.name not in LONG, -tests[item.path], item.path))


def pytest_collection_finish() -> None:
    """What stays until the end, modules and tests, is left out when garbage is looked for."""
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def _shapes_are_checked():
    """In every file of tests anew."""
    shapes.begin_anew()


@pytest.fixture(scope="session")
def circuitlab(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Finished]:
    """Run `circuitlab ARGS...`; `cwd=` and `env=` may be given."""
    return partial(run_circuitlab, cwd=tmp_path_factory.mktemp("cwd"))


@pytest.fixture(scope="session")
def bundled():
    """The bundled model, loaded once."""
    from circuitlab import load_model

    return load_model("bundled")


@pytest.fixture(scope="session")
def tokenizer():
    """The bundled model's tokenizer, reloaded from its file."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(ROOT / "circuitlab" / "bundled")


@pytest.fixture(scope="session")
def tiny_gpt2(tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder: a GPT-2 of 2 layers and 4 heads with random weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_layer=2, n_head=4, n_embd=32, n_positions=128, **_vocabulary(tokenizer))
    return _checkpoint(GPT2LMHeadModel, config, tokenizer, tmp_path_factory.mktemp("tiny-gpt2"))


@pytest.fixture(scope="session")
def tiny_llama(tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder: a Llama of 2 layers with 4 query heads on 2 key/value heads and random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        hidden_size=32,
        intermediate_size=64,
        max_position_embeddings=128,
        **_vocabulary(tokenizer),
    )
    return _checkpoint(LlamaForCausalLM, config, tokenizer, tmp_path_factory.mktemp("tiny-llama"))


def _vocabulary(tokenizer) -> dict[str, int]:
    return {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def _checkpoint(model_class, config, tokenizer, folder: Path) -> Path:
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model_class(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
