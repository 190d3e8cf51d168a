"""Prompts as messages of a chat: the text, the tokens and the places of words, and what is refused."""

import json
from dataclasses import replace

import pytest
from chats import TASK, TEMPLATES, chat_checkpoint, chat_tokenizer

from circuitlab import Example, check_task, discover, load_model, load_run, load_task, reproduce, score_edges, sweep
from circuitlab.cli import main
from circuitlab.data.encoded import Rejection
from circuitlab.data.fingerprint import task_fingerprint
from circuitlab.data.framing import Shot, framing_of
from circuitlab.data.pair import Pair
from circuitlab.data.prompting import Prompting
from circuitlab.errors import ConfigError, ModelError, TooFewPromptsError
from circuitlab.models.recording import Bos
from circuitlab.models.text import TokenizerText
from circuitlab.outputs.records import from_plain
from circuitlab.runs.judging import judging

CHAT = Prompting(chat=True)
EXAMPLE = Example("Anna is kind.", "Anna is kind;", " She", " she", spans={"name": (0, 4), "stop": (12, 13)})
SHOTS = tuple(Shot(prompt=f"{name} is kind.", answer=" He", at=13) for name in ("John", "Paul"))
QUICK = {"n": 4, "method": "eap", "selection": {"n_edges": 3}, "sites": (), "min_accuracy": 0, "allow_weak_gap": True}


def encoder(template, bos=None):
    return TokenizerText(chat_tokenizer(template), bos or Bos(choice="auto", ids=(0,), tokens=("<|bos|>",)))


def said(tokenizer, prompt, shots=()):
    """The tokens of the template's own tokenization."""
    turns = [({"role": "user", "content": shot.prompt}, {"role": "assistant", "content": "He"}) for shot in shots]
    messages = [*(one for turn in turns for one in turn), {"role": "user", "content": prompt}]
    return tuple(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True)["input_ids"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return chat_checkpoint(tmp_path_factory.mktemp("chat") / "tiny", TEMPLATES["qwen2"])


@pytest.fixture(scope="module")
def model(folder):
    return load_model(str(folder))


@pytest.mark.parametrize("shots", [(), SHOTS], ids=["alone", "shots"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_tokens_are_those_of_the_template(name, shots):
    text = encoder(TEMPLATES[name])
    framing = framing_of(text, CHAT, shots)
    pair = framing.encode(EXAMPLE)
    assert not isinstance(pair, Rejection), pair.message
    tokenizer = chat_tokenizer(TEMPLATES[name])
    assert pair.clean_ids == said(tokenizer, EXAMPLE.clean, shots)
    assert pair.corrupt_ids == said(tokenizer, EXAMPLE.corrupt, shots)
    # Another way to put a prompt there gives other tokens: one BOS token more, or the template left out.
    assert text.encode(pair.clean).ids != pair.clean_ids or pair.clean_ids[0] == 0
    assert text.encode(EXAMPLE.clean).ids != pair.clean_ids
    assert pair.prompts == {EXAMPLE.clean, EXAMPLE.corrupt}
    for span, (start, end) in pair.spans.items():
        if span in EXAMPLE.spans:
            words = EXAMPLE.clean[slice(*EXAMPLE.spans[span])]
            assert words in "".join(pair.clean_tokens[start:end])
    assert [i for i, (a, b) in enumerate(zip(pair.clean_ids, pair.corrupt_ids, strict=True)) if a != b] == [
        pair.spans["stop"][0]
    ]


@pytest.mark.parametrize(
    ("name", "answer"), [("qwen2", "She"), ("llama3", "She"), ("mistral", "She"), ("llama2", " She")]
)
def test_an_answer_begins_a_reply_as_the_template_writes_it(name, answer):
    tokenizer = chat_tokenizer(TEMPLATES[name])
    pair = framing_of(encoder(TEMPLATES[name]), CHAT, ()).encode(EXAMPLE)
    assert pair.answers == (answer,)
    messages = [{"role": "user", "content": EXAMPLE.clean}, {"role": "assistant", "content": "She"}]
    whole = tokenizer.apply_chat_template(messages, tokenize=True)["input_ids"]
    assert whole[: len(pair)] == list(pair.clean_ids)
    assert whole[len(pair)] == pair.answer_ids[0]


@pytest.mark.parametrize("shots", [(), SHOTS], ids=["alone", "shots"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_prompt_may_begin_the_reply(name, shots):
    tokenizer = chat_tokenizer(TEMPLATES[name])
    asked = {"role": "user", "content": "Go on."}
    turns = [one for shot in shots for one in (asked, {"role": "assistant", "content": shot.solved})]
    pair = framing_of(encoder(TEMPLATES[name]), replace(CHAT, reply_to="Go on."), shots).encode(EXAMPLE)
    assert not isinstance(pair, Rejection), pair.message
    for ids, prompt in ((pair.clean_ids, EXAMPLE.clean), (pair.corrupt_ids, EXAMPLE.corrupt)):
        messages = [*turns, asked, {"role": "assistant", "content": prompt}]
        written = tokenizer.apply_chat_template(messages, continue_final_message=True, tokenize=True)
        assert tuple(written["input_ids"]) == ids
    assert pair.answers == (" She",)
    assert pair.clean.endswith(EXAMPLE.clean)
    assert "reply" not in pair.spans
    longer = replace(EXAMPLE, clean="Anna is kind. left", corrupt="Anna is kind; left", answer_at=13)
    inside = framing_of(encoder(TEMPLATES[name]), replace(CHAT, reply_to="Go on."), shots).encode(longer)
    assert inside.clean_ids[: len(pair)] == pair.clean_ids
    assert inside.judged_at == pair.judged_at == len(pair) - 1


def test_a_message_is_replied_to_in_a_chat_only(model):
    task = TASK.with_prompting(chat=True, reply_to="Go on.")
    assert task.label == "kind-chat-reply"
    assert task.with_prompting(chat=False) == TASK
    assert task_fingerprint(task) != task_fingerprint(TASK.with_prompting(chat=True))
    assert "\nGo on.<|im_end|>\n<|im_start|>assistant\n" in task.pairs(model, n=2).frame.before
    for given in ({"reply_to": "Go on."}, {"reply_to": " ", "chat": True}):
        with pytest.raises(ConfigError, match="reply_to is .* must be the text of a message, and goes with chat"):
            TASK.with_prompting(**given)


def test_white_space_that_a_template_removes_moves_the_spans():
    padded = Example("  Anna is kind. ", "  Anna is kind; ", " She", " she", spans={"name": (2, 6), "all": (0, 16)})
    pair = framing_of(encoder(TEMPLATES["llama3"]), CHAT, ()).encode(padded)
    assert "".join(pair.clean_tokens[slice(*pair.spans["name"])]) == "Anna"
    assert "".join(pair.clean_tokens[slice(*pair.spans["all"])]) == "Anna is kind."
    kept = framing_of(encoder(TEMPLATES["qwen2"]), CHAT, ()).encode(padded)
    assert "".join(kept.clean_tokens[slice(*kept.spans["all"])]) == padded.clean
    gone = framing_of(encoder(TEMPLATES["llama3"]), CHAT, ()).encode(replace(padded, spans={"end": (15, 16)}))
    assert "span 'end' covers white space at an end" in gone.message


def test_spans_of_tokens_move_along():
    example = Example("Anna is kind.", "Anna is kind;", " She", " she", token_spans={"stop": (3, 4)})
    plain = encoder(None).encode(example.clean)
    pair = framing_of(encoder(TEMPLATES["gemma"]), CHAT, ()).encode(example)
    assert plain.tokens[1 + 3] == "".join(pair.clean_tokens[slice(*pair.spans["stop"])])
    beyond = framing_of(encoder(TEMPLATES["gemma"]), CHAT, ()).encode(replace(example, token_spans={"stop": (3, 99)}))
    assert "span 'stop' is at tokens 3 to 99" in beyond.message


def test_a_template_with_a_date_gives_the_same_text_every_day():
    dated = """{%- if strftime_now is defined %}{{ strftime_now("%d %b %Y") }}{%- endif %}""" + TEMPLATES["qwen2"]
    assert framing_of(encoder(dated), CHAT, ()).frame.before.startswith("26 Jul 2024<|im_start|>")
    other = "{% set form = '%H' %}{{ strftime_now('%Y-%m-%d') }} {{ strftime_now(form) }}" + TEMPLATES["qwen2"]
    assert framing_of(encoder(other), CHAT, ()).frame.before.startswith("2024-07-26 2024-07-26<|im_start|>")


def test_what_is_no_chat_is_refused_in_one_line(model, folder, tmp_path, capsys):
    with pytest.raises(ModelError, match="this model's tokenizer has no chat template. Use a checkpoint"):
        framing_of(encoder(None), CHAT, ())
    with pytest.raises(ModelError, match="refuses the message 'circuitlab-prompt': TemplateError: No chats today"):
        framing_of(encoder("{{ raise_exception('No chats today') }}"), CHAT, ())
    picky = TEMPLATES["qwen2"] + "{% if 'kind' in messages[-1]['content'] %}{{ raise_exception('unkind') }}{% endif %}"
    with pytest.raises(ModelError, match="refuses the message 'Anna is kind.': TemplateError: unkind"):
        framing_of(encoder(picky), CHAT, ()).encode(EXAMPLE)
    for twice in ("{{ messages[0]['content'] * 2 }}", "nothing"):
        with pytest.raises(ModelError, match="writes the user's message . times"):
            framing_of(encoder(twice), CHAT, ())
    loud = framing_of(encoder("{{ messages[0]['content'] | replace('kind', 'KIND') }}"), CHAT, ()).encode(EXAMPLE)
    assert "does not write 'Anna is kind.' as it is" in loud.message
    inside = framing_of(encoder(TEMPLATES["qwen2"]), CHAT, ()).encode(replace(EXAMPLE, answer_at=4, spans={}))
    assert "goes on after the place of its answer" in inside.message
    always = Bos(choice="always", ids=(0,), tokens=("<|bos|>",))
    assert framing_of(encoder(TEMPLATES["gemma"], always), CHAT, ()).frame
    with pytest.raises(ModelError, match="bos is 'always', but this model's chat template begins without"):
        framing_of(encoder(TEMPLATES["qwen2"], always), CHAT, ())
    with pytest.raises(ConfigError, match="chat is 'user', of type str; it must be bool or None"):
        TASK.with_prompting(chat="user")
    with pytest.raises(ConfigError, match="shots is -1; it must be a whole number from 0 to 1000"):
        TASK.with_prompting(shots=-1)
    plain = chat_checkpoint(tmp_path / "plain", None)
    (tmp_path / "kind.py").write_text("from chats import TASK\n")
    (tmp_path / "pairs.csv").write_text(TABLE)
    assert main(["discover", str(tmp_path / "pairs.csv"), "--chat", "--model", str(plain), "--no-sweep"]) == 2
    assert capsys.readouterr().err.endswith(
        "save a template with its tokenizer (tokenizer.chat_template), or leave chat (--chat) out.\n"
    )
    assert "has no chat template" in check_task(TASK, load_model(str(plain)), n=2, chat=True).problem


def test_any_text_may_be_a_prompt():
    for text in ("circuitlab-prompt", "user", "{{ x }} [prompt]", "<|im_end|>", "Grüße 你好"):
        example = Example(f"{text}.", f"{text};", " She", " she", spans={"text": (0, len(text))})
        shots = (Shot(prompt=text, answer=" circuitlab-prompt", at=len(text)),)
        pair = framing_of(encoder(TEMPLATES["qwen2"]), CHAT, shots).encode(example)
        assert pair.prompts == {example.clean, example.corrupt}
        assert "".join(pair.clean_tokens[slice(*pair.spans["text"])]).startswith(text[0])


def test_a_template_runs_in_a_sandbox():
    for code in ("''.__class__.__mro__[1].__subclasses__()", "messages.append(1)", "cycler.__init__.__globals__"):
        with pytest.raises(ModelError, match="SecurityError|ImmutableSandbox|unsafe"):
            framing_of(encoder("{{ " + code + " }}" + TEMPLATES["qwen2"]), CHAT, ())


def test_answers_that_are_no_token_of_a_reply_are_named(model):
    only_spaced = replace(TASK, draw=lambda rng, split="any": replace(TASK.draw(rng, split), answer=" Johnathan"))
    with pytest.raises(TooFewPromptsError.__mro__[1], match="'Johnathan' is not one token after the prompt"):
        only_spaced.pairs(model, n=2, chat=True)


TABLE = "clean,corrupt,answer,distractor\n" + "".join(
    f"{name} is {word}.,{name} is {word};, {is_}, {is_.lower()}\n"
    for is_, names in {"He": ("John", "Paul", "Mark"), "She": ("Mary", "Anna", "Lisa")}.items()
    for name in names
    for word in ("kind", "left")
)


def test_a_run_repeats_byte_for_byte_and_says_what_stands_around_prompts(folder, model, tmp_path, capsys):
    table = tmp_path / "pairs.csv"
    table.write_text(TABLE)
    run = discover(table, model=model, chat=True, shots=2, out=tmp_path / "run", **QUICK)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    before = run.pairs.frame.before
    assert manifest["dataset"]["around"] == {"before": before, "after": "<|im_end|>\n<|im_start|>assistant\n"}
    assert before.startswith("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n")
    assert "--chat --shots 2" in manifest["command"]
    assert manifest["task"]["label"] == "pairs-chat-2-shots"
    assert "<|im_start|>assistant" not in (tmp_path / "run" / "report.html").read_text()
    assert "&lt;|im_start|&gt;assistant↵" in (tmp_path / "run" / "report.html").read_text()
    found = load_run(tmp_path / "run")
    assert found.pairs.frame == run.pairs.frame
    assert found.pairs.fingerprint == run.pairs.fingerprint
    assert found.task.prompting == Prompting(chat=True, shots=2)
    table.unlink()
    replied = discover(found.task, model=model, reply_to="Go on.", out=tmp_path / "replied", **QUICK)
    assert replied.pairs.discovery[0].clean.endswith(("kind.", "left."))
    assert load_run(tmp_path / "replied").task.prompting == Prompting(chat=True, shots=2, reply_to="Go on.")
    assert "--reply-to 'Go on.'" in replied.config.command
    same = judging(tmp_path / "replied", model=model, n=2)
    assert same.frame == replied.pairs.frame
    assert not same.held_out.texts & replied.pairs.discovery.texts
    assert "reply_to None" in judging(tmp_path / "replied", model=model, n=2, chat=False).notes[0]
    again = reproduce(tmp_path / "run")
    assert again.ok, again
    assert {check.name for check in again.files if check.status != "same bytes"} == {"report.html", "manifest.json"}
    judged = judging(tmp_path / "run", model=model, n=2, seed=1)
    assert judged.held_out[0].clean.startswith("<|im_start|>system\n")
    assert not judged.held_out.texts & run.pairs.discovery.texts
    assert not any("Not judged as" in note for note in judged.notes)
    plain = judging(tmp_path / "run", model=model, n=2, chat=False, shots=0)
    assert not plain.held_out.texts & run.pairs.discovery.texts
    assert "chat False (the run: True)" in plain.notes[0]


def test_the_text_is_shown_by_commands(folder, tmp_path, capsys):
    table = tmp_path / "pairs.csv"
    table.write_text(TABLE)
    shown = "written as '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n<|im_start|>user\\n[prompt]"
    check = ["tasks", "check", str(table), "--chat", "--model", str(folder), "-n", "3", "--quiet"]
    assert main(check) == 0
    assert shown.replace(" ", "") in "".join(capsys.readouterr().out.split())
    assert main([*check, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["checks"][0]["around"]["after"].endswith("assistant\n")
    where = [str(table), "--model", str(folder), "-n", "3", "--quiet"]
    assert main(["sweep", *where, "--chat", "--site", "resid_pre", "--json"]) == 0
    assert shown in capsys.readouterr().err
    assert (
        main(["discover", *where, "--chat", "--no-sweep", "--method", "eap", "--out", str(tmp_path / "refused")]) == 2
    )
    err = capsys.readouterr().err
    assert 0 < err.index(shown) < err.index("error: ")  # before the behaviour is checked
    assert main(["sweep", *where, "--site", "resid_pre", "--json"]) == 0
    assert "every prompt" not in capsys.readouterr().err


def test_fingerprints_cover_it(model):
    tasks = [TASK, *(TASK.with_prompting(chat=chat, shots=n) for chat, n in ((True, 0), (False, 2), (True, 2)))]
    assert len({task_fingerprint(task) for task in tasks}) == len(tasks)
    assert len({task.pairs(model, n=2).fingerprint for task in tasks}) == len(tasks)
    assert task_fingerprint(TASK) == task_fingerprint(TASK.with_prompting(chat=False, shots=0))
    assert [task.label for task in tasks] == ["kind", "kind-chat", "kind-2-shots", "kind-chat-2-shots"]


def test_a_sweep_names_the_text_around_the_prompt(model):
    pairs = TASK.pairs(model, n=3, chat=True).discovery
    grid = sweep(model, pairs, "resid_pre", axis="span")
    assert grid.columns[0] == "chat"
    assert grid.columns[-1] == "reply"
    assert (grid.per_example[:, 0] == grid.corrupt).all()
    assert (grid.per_example[1, -1] != grid.corrupt).all()
    assert load_task("ioi").prompting == Prompting()


@pytest.mark.parametrize("around", [{"chat": True}, {"shots": 2}, {"chat": True, "shots": 1, "reply_to": "Go on."}])
def test_prompts_alone_are_framed_as_those_of_pairs(model, around):
    """Without corrupted prompts: the same text around them, and the same numbers under an ablation that needs none."""
    without = replace(
        TASK, draw=lambda rng, split="any": replace(TASK.draw(rng, split), corrupt=None, corrupt_spans={})
    )
    paired, alone = (task.with_prompting(**around).pairs(model, n=3) for task in (TASK, without))
    nothing = dict.fromkeys(("corrupt", "corrupt_ids", "corrupt_tokens"))
    assert alone.frame == paired.frame
    for pairs, others in ((paired.discovery, alone.discovery), (paired.held_out, alone.held_out)):
        assert [replace(pair, **nothing) for pair in pairs] == list(others)
    record = json.loads(json.dumps(alone.discovery[0].to_record("discovery")))
    del record["split"]
    assert from_plain(Pair, record) == alone.discovery[0]
    assert not {line for line in alone.frame.before.splitlines() if "; " in line}  # solved by their clean prompts
    one, other = (score_edges(model, some.discovery, "eap", ablation="zero").values for some in (paired, alone))
    assert other == pytest.approx(one, rel=1e-5, abs=1e-6)
    bare = score_edges(model, without.pairs(model, n=3).discovery, "eap", ablation="zero").values
    assert other != pytest.approx(bare, rel=1e-2)
    cells, expected = (sweep(model, some.discovery, "head_z", ablation="zero").per_example for some in (alone, paired))
    assert cells == pytest.approx(expected, rel=1e-5, abs=1e-6)
    with pytest.raises(ConfigError, match="no corrupted prompts"):
        score_edges(model, alone.discovery, "eap")


def test_a_run_of_prompts_alone_keeps_the_text_around_them(model, tmp_path):
    table = tmp_path / "alone.csv"
    rows = [line.split(",") for line in TABLE.splitlines()]
    table.write_text("".join(f"{clean},{answer},{distractor}\n" for clean, _, answer, distractor in rows))
    run = discover(table, model=model, chat=True, shots=1, ablation="zero", out=tmp_path / "run", **QUICK)
    assert run.pairs.frame.before.count("<|im_start|>user\n") == 2
    found = load_run(tmp_path / "run")
    assert (found.pairs, found.pairs.frame) == (run.pairs, run.pairs.frame)
    judged = judging(tmp_path / "run", model=model, n=2, seed=1)
    assert judged.held_out[0].corrupt is None
    assert judged.held_out[0].clean.startswith("<|im_start|>system\n")
    assert not judged.held_out.texts & run.pairs.discovery.texts
