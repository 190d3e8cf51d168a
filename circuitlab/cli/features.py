"""`circuitlab features`: read a sparse autoencoder, its features on a text, and what they do for a task."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from circuitlab.cli import display
from circuitlab.cli import options as opt
from circuitlab.cli.command import App
from circuitlab.cli.display import number
from circuitlab.cli.sweep import numbers
from circuitlab.errors import CircuitLabError, ConfigError

if TYPE_CHECKING:
    from circuitlab.features import Autoencoder, Descriptions
    from circuitlab.models.bridge import BridgeModel

app = App(
    help="Sparse autoencoders: show one, list active features, sweep and rank them for a task, search descriptions.",
    no_args_is_help=True,
)

TOP = 10  # features of a table, unless --top says otherwise
AutoencoderPath = Annotated[
    str,
    typer.Option("--autoencoder", metavar="PATH", help="bundled, a folder in SAELens's format, or a params.npz."),
]
Site = Annotated[
    str | None,
    typer.Option("--site", metavar="NAME", help="Its site, if its files do not name it: resid_post, ..."),
]
Layer = Annotated[
    int | None, typer.Option("--layer", min=0, max=100_000, help="Layer it reads, if its files do not name it.")
]
Factor = Annotated[
    float | None, typer.Option("--scaling-factor", min=0, help="Of its input, for expected_average_only_in.")
]
DescriptionsPath = Annotated[
    str | None,
    typer.Option("--descriptions", metavar="PATH", help="A local export of descriptions for a column."),
]
Source = Annotated[
    str | None, typer.Option("--source", metavar="NAME", help="Autoencoder to use, for an export of several.")
]
Top = Annotated[int, typer.Option("--top", min=1, help="Number of features.")]


@app.command()
def show(
    autoencoder: Annotated[
        str, typer.Argument(metavar="AUTOENCODER", help="bundled, a folder in SAELens's format, or a params.npz.")
    ] = "bundled",
    text: Annotated[
        list[str] | None, typer.Option("--text", metavar="TEXT", help="A text to evaluate it on; may be repeated.")
    ] = None,
    site: Site = None,
    layer: Layer = None,
    scaling_factor: Factor = None,
    *,
    model: opt.ModelOptions,
    json: opt.Json = False,
) -> None:
    """Show an autoencoder: architecture, site, size; with --text also its reconstruction quality."""
    from circuitlab.features import load_autoencoder, quality

    _check_place(autoencoder, site, layer)
    given: dict[str, Any] = {"site": site, "layer": layer, "scaling_factor": scaling_factor}
    if not text and "model" not in model.given:
        if model.given:
            raise ConfigError("--device, --dtype, --bos, --fold-ln and --center-weights need --model and --text.")
        found, measured = load_autoencoder(autoencoder, **given), None
    else:
        loaded = model.load()
        found = load_autoencoder(autoencoder, model=loaded, **given)
        measured = quality(loaded, found, text) if text else None
    facts = {
        "architecture": found.architecture,
        "hook": found.hook,
        "site": found.site,
        "layer": found.layer,
        "d_in": found.d_in,
        "n_features": found.n_features,
        "normalisation": found.normalisation,
        "centred": found.centred,
        "model": found.model_id,
        "neuronpedia_id": found.neuronpedia_id,
    }
    if json:
        display.print_json(
            {"autoencoder": autoencoder, **facts, **({"quality": measured.to_record()} if measured else {})}
        )
        return
    rows = [(name.replace("_", " "), str(value)) for name, value in facts.items() if value not in (None, False)]
    if measured:
        rows += [
            ("explained", f"{number(measured.explained_variance)} of the variance of {measured.n_tokens} tokens"),
            ("active", f"{number(measured.l0, 1)} features a token; {measured.n_alive} at any of them"),
            (
                "loss",
                f"{number(measured.loss)} nats a token, {number(measured.loss_spliced)} on reconstructions, "
                f"{number(measured.loss_zero)} on zeros: {number(measured.loss_recovered)} recovered",
            ),
        ]
    display.print_facts(f"autoencoder {autoencoder}", rows)


@app.command()
def active(
    text: Annotated[str, typer.Option("--text", metavar="TEXT", help="Input text.")],
    position: Annotated[int, typer.Option("--position", help="Token position; negative: from the end.")] = -1,
    autoencoder: AutoencoderPath = "bundled",
    *,
    model: opt.ModelOptions,
    top: Top = TOP,
    descriptions: DescriptionsPath = None,
    source: Source = None,
    site: Site = None,
    layer: Layer = None,
    scaling_factor: Factor = None,
    json: opt.Json = False,
) -> None:
    """List the features active at a token of a text, strongest first."""
    from circuitlab.features import features

    words = _descriptions(descriptions, source)
    loaded, own = _loaded(model, autoencoder, site, layer, scaling_factor)
    found = features(loaded, own, text)
    here = found.active(position, top)
    tokens = found.tokens[0]
    place = position % len(tokens)
    rows: list[dict[str, Any]] = [
        {"feature": each.feature, "activation": each.value, "strongest_at": int(found.of(each.feature).argmax())}
        | ({"description": words.of(each.feature)} if words else {})
        for each in here
    ]
    if json:
        display.print_json({"tokens": tokens, "position": place, "token": tokens[place], "active": rows})
        return
    display.print_line(f"{own.hook} of model {model.name}, token {place} {tokens[place]!r}")
    for row in rows:
        row["strongest at"] = repr(tokens[row["strongest_at"]])
    _print_table(rows, ("feature", "activation", "strongest at"), right=("feature", "activation"))


@app.command()
def sweep(
    task: opt.PairOptions,
    autoencoder: AutoencoderPath = "bundled",
    *,
    model: opt.ModelOptions,
    features: Annotated[
        str | None, typer.Option("--features", metavar="LIST", help="Features, such as 0,3 or 4-7.")
    ] = None,
    top: Annotated[
        int | None, typer.Option("--top", min=1, help="Sweep only the N features with the largest attribution.")
    ] = None,
    direction: Annotated[
        str, typer.Option("--direction", metavar="NAME", help="denoise: patch the corrupted run; noise: the clean run.")
    ] = "denoise",
    axis: Annotated[str, typer.Option("--axis", metavar="NAME", help="auto, position, span or all.")] = "all",
    descriptions: DescriptionsPath = None,
    source: Source = None,
    site: Site = None,
    layer: Layer = None,
    scaling_factor: Factor = None,
    quiet: opt.Quiet = False,
    json: opt.Json = False,
) -> None:
    """Patch each feature with its value from the other run, keeping the error term, and measure the effect.

    By default, sweeps every feature that differs between the runs, at all tokens at once.
    """
    wanted = task.load()
    from circuitlab.cli.progress import progress
    from circuitlab.features import rank_features, sweep_features
    from circuitlab.metrics import metric_of

    judged_by = metric_of(wanted, task["metric"])
    chosen = numbers(features, "--features")
    if chosen is not None and top is not None:
        raise ConfigError("--features and --top exclude each other; give one.")
    words = _descriptions(descriptions, source)
    loaded, own = _loaded(model, autoencoder, site, layer, scaling_factor)
    pairs = wanted.pairs(loaded, n=task["n"], seed=task["seed"]).discovery
    common: dict[str, Any] = {"metric": judged_by, "seed": task["seed"]}
    with progress(quiet=quiet) as report:
        if top is not None:
            chosen = list(rank_features(loaded, own, pairs, **common, progress=report).features[:top])
        grid = sweep_features(
            loaded, own, pairs, features=chosen, direction=direction, axis=axis, progress=report, **common
        )
    table = grid.to_frame()
    table = table if words is None else words.join(table)
    if json:
        display.print_json({"task": wanted.label, "hook": own.hook, "features": table.to_dict(orient="records")})
        return
    neutral = 0.0 if direction == "denoise" else 1.0
    display.print_line(f"{own.hook}, {direction}, {grid.metric}: 0: corrupted run, 1: clean run")
    strongest = table.iloc[(table["value"] - neutral).abs().argsort(kind="stable")[::-1][:TOP]]
    columns = [name for name in table.columns if name not in ("site", "layer", "description")]
    right = [name for name in columns if name not in ("span", "label")]
    _print_table(strongest.to_dict(orient="records"), columns, right=right)


@app.command()
def rank(
    task: opt.PairOptions,
    autoencoder: AutoencoderPath = "bundled",
    *,
    model: opt.ModelOptions,
    at: Annotated[str, typer.Option("--at", metavar="NAME", help="Run of the gradient: corrupt or clean.")] = "corrupt",
    steps: Annotated[
        int,
        typer.Option("--steps", min=1, max=10_000, help="Gradients to average between the runs."),
    ] = 1,
    top: Top = TOP,
    exact: Annotated[
        bool, typer.Option("--exact", help="Also sweep all of them, and report the rank correlation.")
    ] = False,
    descriptions: DescriptionsPath = None,
    source: Source = None,
    site: Site = None,
    layer: Layer = None,
    scaling_factor: Factor = None,
    quiet: opt.Quiet = False,
    json: opt.Json = False,
) -> None:
    """Rank features by attribution: their first-order effect on the metric, from one gradient."""
    wanted = task.load()
    from circuitlab.cli.progress import progress
    from circuitlab.features import rank_features, sweep_features
    from circuitlab.metrics import metric_of

    judged_by = metric_of(wanted, task["metric"])
    words = _descriptions(descriptions, source)
    loaded, own = _loaded(model, autoencoder, site, layer, scaling_factor)
    pairs = wanted.pairs(loaded, n=task["n"], seed=task["seed"]).discovery
    common: dict[str, Any] = {"metric": judged_by, "seed": task["seed"]}
    with progress(quiet=quiet) as report:
        found = rank_features(loaded, own, pairs, at=at, steps=steps, progress=report, **common)
        grid = sweep_features(loaded, own, pairs, axis="all", progress=report, **common) if exact else None
    agreement = None if grid is None else found.agreement(grid)
    table = found.to_frame(words)
    sums = {
        "gap": found.gap,
        "total": float(found.total.mean()),
        "features": float(found.scores.sum()),
        "error": float(found.error.mean()),
        "agreement": agreement,
    }
    if json:
        facts = {"task": wanted.label, "hook": own.hook, "metric": found.metric, "at": found.at, **sums}
        display.print_json({**facts, "ranking": table.to_dict(orient="records")})
        return
    display.print_line(
        f"{own.hook}, {found.metric}: gap between the runs {number(sums['gap'])} {found.unit}; first-order effect "
        f"of all features {number(sums['features'])},\nof the error term {number(sums['error'])}"
    )
    columns = [name for name in table.columns if name not in ("n", "description")]
    _print_table(table.head(top).to_dict(orient="records"), columns, right=columns)
    if agreement is not None:
        display.print_line(f"Spearman correlation with the exact sweep: {number(agreement)}")


@app.command()
def search(
    words: Annotated[str, typer.Argument(metavar="WORDS", help="One or more words, all of which must occur.")],
    descriptions: Annotated[
        str, typer.Option("--descriptions", metavar="PATH", help="A local export: JSON, JSON lines, gzipped, a folder.")
    ],
    whole: Annotated[bool, typer.Option("--whole", help="Whole words only.")] = False,
    source: Source = None,
    json: opt.Json = False,
) -> None:
    """Find features by words of their descriptions."""
    from dataclasses import asdict

    from circuitlab.features import search_descriptions

    found = search_descriptions(descriptions, words, whole=whole, source=source)
    if json:
        display.print_json({"words": words, "found": [asdict(each) for each in found]})
        return
    if not found:
        display.print_line(f"no description contains {words!r}")
        return
    display.print_rows(("feature", "description"), [(str(f.feature), f.text) for f in found], right=("feature",))


def _check_place(path: str, site: str | None, layer: int | None) -> None:
    """Refuse a place that contradicts the autoencoder's own files."""
    from circuitlab.features import load_autoencoder

    if site is None and layer is None:
        return
    try:
        own = load_autoencoder(path)
    except CircuitLabError:  # the files do not say where, or need another option
        return
    given = own.site if site is None else site, own.layer if layer is None else layer
    if (own.site, own.layer) != given:
        raise ConfigError(
            f"--site and --layer say {given[0]} of layer {given[1]}, but autoencoder {path!r} is of {own.site} of "
            f"layer {own.layer}. Leave them out."
        )


def _loaded(
    model: opt.ModelOptions,
    autoencoder: str,
    site: str | None,
    layer: int | None,
    scaling_factor: float | None,
) -> "tuple[BridgeModel, Autoencoder]":
    from circuitlab.features import load_autoencoder
    from circuitlab.features.place import check_fits

    _check_place(autoencoder, site, layer)
    found = load_autoencoder(autoencoder, site=site, layer=layer, scaling_factor=scaling_factor)  # files first
    loaded = model.load()
    check_fits(loaded, found)
    return loaded, found.to(loaded.device, loaded.dtype)


def _descriptions(path: str | None, source: str | None) -> "Descriptions | None":
    from circuitlab.features import load_descriptions

    if path is None and source is not None:
        raise ConfigError("--source selects an autoencoder of an export; name the export with --descriptions.")
    return None if path is None else load_descriptions(path, source)


def _print_table(rows: Sequence[dict[str, Any]], columns: Sequence[str], *, right: Sequence[str]) -> None:
    """A table with the description last, if there is one."""
    names = [*columns, *(["description"] if rows and "description" in rows[0] else [])]
    display.print_rows(names, [[_cell(name, row[name]) for name in names] for row in rows], right=right)


def _cell(column: str, value: Any) -> str:
    if column == "p_value" and value < 0.001:
        return "<0.001"
    if column == "label":
        return repr(value)
    return number(value) if isinstance(value, float) else str(value or "") if column == "description" else str(value)
