"""The lists of tasks, models, methods, metrics and sites."""

import json as jsonlib
from importlib.resources import files
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import circuitlab
from circuitlab.cli import display
from circuitlab.cli.options import ModelsOptions, PairOptions
from circuitlab.cli.progress import progress
from circuitlab.data.fingerprint import task_fingerprint
from circuitlab.data.registry import GROUP, load_task, task_names
from circuitlab.data.sampling import draw
from circuitlab.data.task import Task
from circuitlab.errors import CircuitLabError
from circuitlab.plugins import owner

if TYPE_CHECKING:
    from circuitlab.discovery.behaviour import TaskCheck

FEW_REASONS = 3  # why examples are dropped
# Names that TransformerLens loads over the network: the small ones that the README and the papers use most.
HUB_EXAMPLES = ("gpt2", "solu-1l", "gelu-2l", "attn-only-1l", "tiny-stories-1M", "EleutherAI/pythia-160m")


def list_tasks(*, json: bool) -> None:
    """All tasks, bundled and of other packages, one a row; then those that cannot be used, each with the reason."""
    found, broken = dict[str, dict[str, Any]](), dict[str, str]()
    for name in task_names():
        try:
            task = load_task(name)
            found[name] = _record(task) if json else _about(task)
        except CircuitLabError as error:
            broken[name] = f"of {owner(GROUP, name)}: {error}"
    if json:
        display.print_json({"tasks": list(found.values()), **({"broken": broken} if broken else {})})
        return
    for name, facts in found.items():
        display.print_facts(name, facts.items())
    if broken:
        display.print_facts("cannot be used", list(broken.items()))
    display.print_line("\nTo use your own task, pass its Python file: circuitlab discover path/to/task.py")


def show_task(task: Task, *, json: bool) -> None:
    """One task: an example first."""
    example = draw(task, Random(0)) if task.table is None else task.table.rows[0].example
    answers = example.answers or tuple(f"token {one}" for one in example.answer_ids)
    distractors = example.distractors or tuple(f"token {one}" for one in example.distractor_ids)
    if json:
        sources = [{"key": source.key, "title": source.title, "year": source.year} for source in task.sources]
        prompts = {"clean": example.clean, "corrupt": example.corrupt}
        words = {"answers": answers, "distractors": distractors}
        display.print_json({**_record(task), "sources": sources, "example": {**prompts, **words}})
        return
    facts = [
        ("", task.summary),
        ("clean", repr(example.clean)),
        ("answer", display.alternatives(answers)),
        ("corrupted", "none" if example.corrupt is None else repr(example.corrupt)),
        ("distractor", display.alternatives(distractors) or "none"),
        ("spans", ", ".join((*example.spans, *example.token_spans))),
        ("version", task.version),
        ("fingerprint", task_fingerprint(task)[:16]),
        ("metric", _metric_name(task)),
    ]
    if task.table is not None:
        facts += [("table", task.table.source), *((f"column {name}", one) for name, one in task.table.columns.items())]
        facts += [("split", task.table.split_column or "by the seed"), ("bad rows", str(task.table.n_dropped))]
    for name, values in task.options.items():
        facts.append((f"option {name}", ", ".join(f"{v} *" if v == task.settings[name] else v for v in values)))
    facts += [("source", f"{source.title} ({source.year})") for source in task.sources]
    display.print_facts(task.label, facts)


def show_checks(asked: PairOptions, models: ModelsOptions, *, quiet: bool, json: bool) -> None:
    """What models make of a task, one a row, and why some make nothing of it."""
    from circuitlab.metrics import metric_of

    task, of_task = asked.load(), {name: asked[name] for name in ("n", "seed", "metric")}
    if asked["metric"] is not None:
        metric_of(task, asked["metric"])  # rejects an unknown one before a model is loaded
    models.check()
    found: dict[str, TaskCheck] = {}
    for name, model in models.load():
        with progress(quiet=quiet) as report:
            found[name] = circuitlab.check_task(task, model, **of_task, progress=report)
    if json:
        display.print_json({"checks": [check.to_record() for check in found.values()]})
        return
    numbers = ("pairs", "right", "top 1", "clean", "corrupted", "gap, 99 % interval", "dropped")
    rows = []
    for name, check in found.items():
        means = (check.accuracy, check.top_token, check.clean, check.corrupt)
        low, mean, high = (display.number(value, 2) for value in check.gap_interval)
        gap = f"{mean} ({low} to {high})" if check.gap or check.problem else "no corrupted prompts"
        row = (str(check.n), *(display.number(value, 2) for value in means), gap, str(check.n_dropped))
        rows.append((Path(name).name, *row))
    rules = dict.fromkeys(check.rule for check in found.values() if check.rule) or ("the metric says so",)
    display.print_line(f"{task.label}: right means that {', or '.join(rules)}")
    display.print_rows(("model", *numbers), rows, right=numbers)
    for name, check in found.items():
        if check.note:
            display.print_line(f"\n{name}: {check.note}")
        if check.frame:
            display.print_line(f"\n{name}: {check.frame.sentence}")
        if check.problem:
            display.print_line(f"\n{name}: {check.problem}")
        elif check.dropped:
            reasons = sorted(check.dropped.items(), key=lambda item: -item[1])[:FEW_REASONS]
            counts = "; ".join(f"{count} x {reason}" for reason, count in reasons)
            display.print_line(f"\n{name}: dropped {counts}" + ("; ..." if len(check.dropped) > FEW_REASONS else ""))


def list_models(*, json: bool) -> None:
    """The bundled model's shape, and what else --model takes."""
    config = jsonlib.loads((files("circuitlab") / "bundled" / "config.json").read_text())
    shape = {name: config[name] for name in ("n_layer", "n_head", "n_embd", "vocab_size", "n_positions")}
    from circuitlab.models.named import INSTALLED_BY, cache_folder, named_models

    here = {name: str(path) for name, path in named_models().items()}
    if json:
        display.print_json({"bundled": shape, "named": here, "hub_examples": HUB_EXAMPLES})
        return
    missing = [(name, f"not installed; run: {command}") for name, command in INSTALLED_BY.items() if name not in here]
    size = f"GPT-2 architecture: {shape['n_layer']} layers, {shape['n_head']} heads, d_model {shape['n_embd']}"
    display.print_facts(
        "models",
        [
            ("bundled", f"{size}, {shape['vocab_size']} tokens; included, no download"),
            *((name, f"installed in {cache_folder()}") for name in here),
            *missing,
            ("FOLDER", "a checkpoint in HuggingFace format with its tokenizer, such as ./my-model"),
            ("FILE.gguf", "a GGUF file; its weights are dequantized"),
            ("NAME", f"any name that TransformerLens loads: {', '.join(HUB_EXAMPLES)}, ..."),
            ("", "--fold-ln and --center-weights rewrite its weights as HookedTransformer did by default"),
        ],
    )


def _about(task: Task) -> dict[str, Any]:
    options = [f"{name}: {', '.join(values)}" for name, values in task.options.items()]
    return {"": task.summary, "version": task.version, "options": "; ".join(options)}


def _record(task: Task) -> dict[str, Any]:
    return {
        "name": task.name,
        "version": task.version,
        "summary": task.summary,
        "options": {name: list(values) for name, values in task.options.items()},
        "settings": task.settings,
        "metric": _metric_name(task),
        "fingerprint": task_fingerprint(task),
    }


def _metric_name(task: Task) -> str:
    metric = task.metric
    if isinstance(metric, str):
        return metric
    return str(getattr(metric, "name", None) or getattr(metric, "__name__", "a function"))
