"""The tokenizer: byte-level BPE that never splits the words the tasks are about.

Text is cut into words, marks and spaces first, in a way that keeps a tag name the same token after ``<`` and
after ``</`` (``h1`` too), and keeps ``</`` and ``/>`` whole. Merges are then learnt from the training text
and from a list of the words that must come out as one token.
"""

from collections.abc import Iterable, Iterator

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from training import lexicon

BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"

_PIECES = Regex(r"</|/>| ?<!--| ?-->|[<>]|=\"| ?[A-Za-z]+[1-6]?| ?[0-9]+|\n+| ?[^\sA-Za-z0-9<>/]|\s|/")
_MARKS = (".", ";", ",", ":", "</", "/>", "<", ">", '="', '"', "<!--", " -->")
_PRONOUNS = (" He", " he", " She", " she", " his", " her", " back", " to", " is")
_REPEATS = 300


def required_tokens() -> tuple[str, ...]:
    """Texts that must be one token each."""
    names = [form for name in lexicon.NAMES for form in (name, f" {name}")]
    tags = [*lexicon.TAGS, *lexicon.VOID_TAGS]
    words = [*lexicon.PEOPLE, *lexicon.TRAITS, *lexicon.THINGS, *lexicon.THROWS, *lexicon.TEXT_ADJECTIVES]
    words += [*lexicon.TEXT_NOUNS, *lexicon.ATTRIBUTES, "really", "such", "very"]
    return tuple(dict.fromkeys([*_MARKS, *_PRONOUNS, *names, *tags, *lexicon.VALUES, *(f" {word}" for word in words)]))


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Learns the merges.

    Args:
        texts: Training text.
        vocabulary: Number of tokens, the special ones among them.

    Returns:
        A tokenizer that puts the beginning-of-sequence token in front of a text, and nothing after it.

    Raises:
        ValueError: A required token did not come out as one.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_PIECES, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_with_required(texts), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS}:1 $B:1", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
    )
    split = [text for text in required_tokens() if len(wrapped.tokenize(text)) != 1]
    if split:
        raise ValueError(
            f"{len(split)} required tokens are split, {split[:8]} among them; raise the vocabulary above {vocabulary}."
        )
    return wrapped


def token_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    """The number of one token, given in the tokenizer's own spelling."""
    found = tokenizer.convert_tokens_to_ids(token)
    assert isinstance(found, int)
    return found


def _with_required(texts: Iterable[str]) -> Iterator[str]:
    yield from texts
    for text in required_tokens():
        yield from (text for _ in range(_REPEATS))
