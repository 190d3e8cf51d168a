"""Chat templates of well-known models, a small tokenizer that has their special tokens, and a task that it serves."""

from pathlib import Path
from random import Random
from typing import Any

from architectures import BOS, WORDS

from circuitlab import Example, Task, words_of

ALTERNATE = (
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
)
TEMPLATES = {
    "qwen2": (
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
        "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "llama3": (
        "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + "
        "'<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
        "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    ),
    "gemma": (
        "{{ bos_token }}{% for message in messages %}" + ALTERNATE + "{% if message['role'] == 'assistant' %}"
        "{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}"
        "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
    ),
    "mistral": (
        "{{ bos_token }}{% for message in messages %}" + ALTERNATE + "{% if message['role'] == 'user' %}"
        "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
        "{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
    ),
    "llama2": (
        "{% for message in messages %}" + ALTERNATE + "{% if message['role'] == 'user' %}"
        "{{ bos_token + '[INST] ' + message['content'].strip() + ' [/INST]' }}{% else %}"
        "{{ ' ' + message['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
    ),
}
SPECIAL = (
    "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<start_of_turn>",
    "<end_of_turn>",
)  # fmt: skip
NAMES = {
    "He": ("John", "Paul", "Mark", "Luke", "Adam", "Noah"),
    "She": ("Mary", "Anna", "Lisa", "Emma", "Ruth", "Kate"),
}
TEXTS = [f"{name} is kind. {is_} left; {is_.lower()}" for is_, names in NAMES.items() for name in names]
TEXTS += ["she\nhe\nShe\nHe"] * 6 + WORDS[:1]


def chat_tokenizer(template: str | None) -> Any:
    """A byte-level tokenizer of the task's words, which puts its BOS token in front, with a chat template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=[BOS], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator([text for text in TEXTS for _ in range(9)], trainer)
    made.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    made.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token=BOS, eos_token=BOS, pad_token=BOS, chat_template=template
    )


def chat_checkpoint(folder: Path, template: str | None) -> Path:
    """A folder with a GPT-2 of 2 layers and random weights, and the tokenizer."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = chat_tokenizer(template)
    config = GPT2Config(
        n_layer=2, n_head=2, n_embd=16, n_positions=256, vocab_size=len(tokenizer), initializer_range=0.2,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def draw(rng: Random, split: str = "any") -> Example:
    """A name and how the next sentence begins."""
    pronoun = rng.choice(sorted(NAMES))
    first, second = rng.sample(words_of(NAMES[pronoun], split), 2) if split != "any" else rng.sample(NAMES[pronoun], 2)
    return Example.from_template(
        "{first} or {second} is kind{stop}", {"first": first, "second": second, "stop": "."}, corrupt={"stop": ";"},
        answer=f" {pronoun}", distractor=f" {pronoun.lower()}",
    )  # fmt: skip


TASK = Task(name="kind", version="1", summary="Begins a sentence.", draw=draw, held_out="names", metric="logit_diff")
