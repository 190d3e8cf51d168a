"""`circuitlab features`: sparse autoencoders, their features on a text, and the effects of features on a task."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from circuitlab import features as library
from circuitlab.cli import display
from circuitlab.cli import options as opt
from circuitlab.cli.command import App
from circuitlab.cli.display import number
from circuitlab.cli.outputs import Output
from circuitlab.cli.progress import progress
from circuitlab.cli.sweep import numbers, strongest
from circuitlab.errors import CircuitLabError, ConfigError

if TYPE_CHECKING:
    from circuitlab.data.pairs import PairSet
    from circuitlab.data.task import Task
    from circuitlab.features import Autoencoder, Descriptions
    from circuitlab.models.bridge import BridgeModel

app = App(
    help="Sparse autoencoders: show one, list active features, sweep and rank them for a task, search descriptions.",
    no_args_is_help=True,
)

TOP = 10  # features of a table, unless --top says otherwise
_PATH = "bundled, a folder in SAELens's format, or a params.npz."
Source = Annotated[str | None, typer.Option(metavar="NAME", help="Autoencoder to use, for an export of several.")]
Top = Annotated[int, typer.Option(min=1, help="Number of features.")]


class SiteOptions(opt.Options):
    """The site of an autoencoder whose files do not name it."""

    site: Annotated[
        str | None, typer.Option(metavar="NAME", help="Its site, if its files do not name it: resid_post, ...")
    ] = None
    layer: Annotated[
        int | None, typer.Option(min=0, max=100_000, help="Layer it reads, if its files do not name it.")
    ] = None
    scaling_factor: Annotated[float | None, typer.Option(min=0, help="Of its input, for expected_average_only_in.")] = (
        None
    )

    def load(self, path: str, model: "BridgeModel | None" = None) -> "Autoencoder":
        """Load the autoencoder at a path; errors as of `load_autoencoder`.

        Returns:
            The autoencoder.
        """
        return library.load_autoencoder(
            path, model=model, site=self.site, layer=self.layer, scaling_factor=self.scaling_factor
        )

    def check(self, path: str) -> None:
        """Reject options that contradict the files of an autoencoder.

        Raises:
            ConfigError: Site or layer are others than those in the files.
        """
        if self.site is None and self.layer is None:
            return
        try:
            autoencoder = library.load_autoencoder(path)
        except CircuitLabError:  # the files do not name it, or need another option
            return
        given = (
            autoencoder.site if self.site is None else self.site,
            autoencoder.layer if self.layer is None else self.layer,
        )
        if (autoencoder.site, autoencoder.layer) != given:
            raise ConfigError(
                f"--site and --layer say {given[0]} of layer {given[1]}, but autoencoder {path!r} is of "
                f"{autoencoder.site} of layer {autoencoder.layer}. Leave them out."
            )


class FeatureOptions(SiteOptions):
    """An autoencoder and the descriptions of its features."""

    autoencoder: Annotated[str, typer.Option(metavar="PATH", help=_PATH)] = "bundled"
    descriptions: Annotated[
        str | None, typer.Option(metavar="PATH", help="A local export of descriptions for a column.")
    ] = None
    source: Source = None

    def described(self) -> "Descriptions | None":
        """Load the descriptions.

        Returns:
            The descriptions; None if none are given.

        Raises:
            ConfigError: --source without --descriptions.
        """
        if self.descriptions is None and self.source is not None:
            raise ConfigError("--source selects an autoencoder of an export; name the export with --descriptions.")
        return None if self.descriptions is None else library.load_descriptions(self.descriptions, self.source)

    def loaded(self, model: opt.ModelOptions) -> "tuple[BridgeModel, Autoencoder]":
        """Load the model, and the autoencoder on its device.

        Returns:
            Both.

        Raises:
            CircuitLabError: One cannot be loaded, or the two do not fit.
        """
        from circuitlab.features.place import check_fits

        self.check(self.autoencoder)
        found = self.load(self.autoencoder)  # files first
        loaded = model.load()
        check_fits(loaded, found)
        return loaded, found.to(loaded.device, loaded.dtype)


@app.command()
def show(
    place: SiteOptions,
    autoencoder: Annotated[str, typer.Argument(metavar="AUTOENCODER", help=_PATH)] = "bundled",
    text: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="A text to evaluate it on; may be repeated.")
    ] = None,
    *,
    model: opt.ModelOptions,
    output: Output,
) -> None:
    """Show an autoencoder: architecture, site, size; with --text also its reconstruction quality."""
    place.check(autoencoder)
    if not text and "model" not in model.given:
        if model.given:
            raise ConfigError("--device, --dtype, --bos, --fold-ln and --center-weights need --model and --text.")
        found, measured = place.load(autoencoder), None
    else:
        loaded = model.load()
        found = place.load(autoencoder, loaded)
        measured = library.quality(loaded, found, text) if text else None
    names = ("architecture", "hook", "site", "layer", "d_in", "n_features", "normalisation", "centred")
    facts = {name: getattr(found, name) for name in names}
    facts |= {"model": found.model_id, "neuronpedia_id": found.neuronpedia_id}
    quality = {} if measured is None else {"quality": measured.to_record()}
    if output.as_json({"autoencoder": autoencoder, **facts, **quality}):
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
    text: Annotated[str, typer.Option(metavar="TEXT", help="Input text.")],
    place: FeatureOptions,
    position: Annotated[int, typer.Option(help="Token position; negative: from the end.")] = -1,
    top: Top = TOP,
    *,
    model: opt.ModelOptions,
    output: Output,
) -> None:
    """List the features active at a token of a text, strongest first."""
    words = place.described()
    loaded, autoencoder = place.loaded(model)
    found = library.features(loaded, autoencoder, text)
    tokens = found.tokens[0]
    at = position % len(tokens)
    rows: list[dict[str, Any]] = [
        {"feature": each.feature, "activation": each.value, "strongest_at": int(found.of(each.feature).argmax())}
        | ({"description": words.of(each.feature)} if words else {})
        for each in found.active(position, top)
    ]
    if output.as_json({"tokens": tokens, "position": at, "token": tokens[at], "active": rows}):
        return
    display.print_line(f"{autoencoder.hook} of model {model.name}, token {at} {tokens[at]!r}")
    columns = ("feature", "activation", "strongest_at", *(["description"] if words else []))
    display.print_table([row | {"strongest_at": repr(tokens[row["strongest_at"]])} for row in rows], columns)


@app.command()
def sweep(
    task: opt.PairOptions,
    place: FeatureOptions,
    features: Annotated[str | None, typer.Option(metavar="LIST", help="Features, such as 0,3 or 4-7.")] = None,
    top: Annotated[
        int | None, typer.Option(min=1, help="Sweep only the N features with the largest attribution.")
    ] = None,
    direction: Annotated[
        str, typer.Option(metavar="NAME", help="denoise: patch the corrupted run; noise: the clean run.")
    ] = "denoise",
    axis: Annotated[str, typer.Option(metavar="NAME", help="auto, position, span or all.")] = "all",
    *,
    model: opt.ModelOptions,
    quiet: opt.Quiet = False,
    output: Output,
) -> None:
    """Patch each feature with its value from the other run, keeping the error term, and measure the effect.

    By default, sweeps every feature that differs between the runs, at all tokens at once.
    """
    wanted, chosen = task.load(), numbers(features, "--features")
    if chosen is not None and top is not None:
        raise ConfigError("--features and --top exclude each other; give one.")
    from circuitlab.patching.runs.baseline import resolve_direction
    from circuitlab.patching.sweeps.plan import CellChoice, check_sites

    resolve_direction(direction)
    check_sites(["resid_pre"], CellChoice(axis=axis))
    words = place.described()
    loaded, autoencoder, pairs, common = _prepared(wanted, task, place, model)
    with progress(quiet=quiet) as report:
        if top is not None:
            ranked = library.rank_features(loaded, autoencoder, pairs, **common, progress=report)
            chosen = list(ranked.features[:top])
        grid = library.sweep_features(
            loaded, autoencoder, pairs, features=chosen, direction=direction, axis=axis, progress=report, **common
        )
    table = grid.to_frame()
    table = table if words is None else words.join(table)
    record = {"task": wanted.label, "hook": autoencoder.hook, "features": table.to_dict(orient="records")}
    if output.as_json(record):
        return
    display.print_line(f"{autoencoder.hook}, {direction}, {grid.metric}: 0: corrupted run, 1: clean run")
    display.print_table(strongest(table, direction, TOP).drop(columns=["site", "layer"], errors="ignore"))


@app.command()
def rank(
    task: opt.PairOptions,
    place: FeatureOptions,
    at: Annotated[str, typer.Option(metavar="NAME", help="Run of the gradient: corrupt or clean.")] = "corrupt",
    steps: Annotated[int, typer.Option(min=1, max=10_000, help="Gradients to average between the runs.")] = 1,
    top: Top = TOP,
    exact: Annotated[
        bool, typer.Option("--exact", help="Also sweep all of them, and report the rank correlation.")
    ] = False,
    *,
    model: opt.ModelOptions,
    quiet: opt.Quiet = False,
    output: Output,
) -> None:
    """Rank features by attribution: their first-order effect on the metric, from one gradient."""
    wanted = task.load()
    from circuitlab.features.ranking import check_end

    check_end(at)
    words = place.described()
    loaded, autoencoder, pairs, common = _prepared(wanted, task, place, model)
    with progress(quiet=quiet) as report:
        found = library.rank_features(loaded, autoencoder, pairs, at=at, steps=steps, progress=report, **common)
        grid = library.sweep_features(loaded, autoencoder, pairs, progress=report, **common) if exact else None
    agreement = None if grid is None else found.agreement(grid)
    table = found.to_frame(words)
    sums = {"gap": found.gap, "total": float(found.total.mean()), "features": float(found.scores.sum())}
    sums |= {"error": float(found.error.mean()), "agreement": agreement}
    facts = {"task": wanted.label, "hook": autoencoder.hook, "metric": found.metric, "at": found.at, **sums}
    if output.as_json({**facts, "ranking": table.to_dict(orient="records")}):
        return
    display.print_line(
        f"{autoencoder.hook}, {found.metric}: gap between the runs {number(found.gap)} {found.unit}; "
        f"first-order effect of all features {number(sums['features'])},\nof the error term {number(sums['error'])}"
    )
    display.print_table(table.head(top).drop(columns="n"))
    if agreement is not None:
        display.print_line(f"Spearman correlation with the exact sweep: {number(agreement)}")


@app.command()
def search(
    words: Annotated[str, typer.Argument(metavar="WORDS", help="One or more words, all of which must occur.")],
    descriptions: Annotated[
        str, typer.Option(metavar="PATH", help="A local export: JSON, JSON lines, gzipped, a folder.")
    ],
    whole: Annotated[bool, typer.Option("--whole", help="Whole words only.")] = False,
    source: Source = None,
    *,
    output: Output,
) -> None:
    """Find features by words of their descriptions."""
    found = library.search_descriptions(descriptions, words, whole=whole, source=source)
    if output.as_json({"words": words, "found": [asdict(each) for each in found]}):
        return
    if not found:
        display.print_line(f"no description contains {words!r}")
        return
    display.print_table([{"feature": each.feature, "description": each.text} for each in found])


def _prepared(
    wanted: "Task", task: opt.PairOptions, place: FeatureOptions, model: opt.ModelOptions
) -> "tuple[BridgeModel, Autoencoder, PairSet, dict[str, Any]]":
    """Model, autoencoder, discovery pairs, and further arguments of `sweep_features` and `rank_features`."""
    from circuitlab.metrics import metric_of

    metric = metric_of(wanted, task["metric"])
    loaded, autoencoder = place.loaded(model)
    pairs = task.next_token_pairs(wanted, loaded)
    return loaded, autoencoder, pairs, {"metric": metric, "seed": task["seed"]}
