"""The settings of the main job, checked before any work."""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from circuitlab.discovery.scoring import METHODS, check_serves, find_method
from circuitlab.errors import ConfigError, UnknownNameError, shown
from circuitlab.graphs.selection import SelectionRule
from circuitlab.metrics import resolve
from circuitlab.models.bos import AUTO, TRANSFORMER_LENS, check_choice
from circuitlab.patching.runs.replacement import REPLACEMENTS
from circuitlab.patching.sweeps.sites import SITES
from circuitlab.summary import Summary, short


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class DiscoverConfig(Summary):
    """What `discover` was asked for; enough to do it again.

    Attributes:
        task: Name or file of the task.
        options: The task's options in force.
        model: Name or folder of the model.
        method: How edges are scored.
        steps: Gradients along the path, for methods that integrate.
        method_options: What the method alone is told.
        metric: Name of the metric.
        ablation: What stands in for everything outside the circuit.
        n: Pairs per split.
        seed: Of prompts, intervals and random circuits.
        target: Faithfulness that the circuit must reach on the discovery pairs; None where the selection asks for a
            number of edges or a threshold.
        selection: How the circuit is taken out of the scored edges; in a record without the target.
        min_accuracy: Share of pairs that the model must get right, or there is nothing to explain.
        device: Where the model is.
        dtype: Of its weights.
        bos: Whether a beginning-of-sequence token is put in front of every text (see `load_model`).
        fold_ln: Its norms were folded into the weights that read them.
        center_weights: What it writes to the stream was centred.
        allow_weak_gap: Pairs are taken that do not tell the clean run from the corrupted one or the empty circuit.
        stability: On how many bootstrap resamples of the discovery pairs the discovery is done again; 0 for none.
        stability_seeds: On the prompts of how many more seeds the discovery is done again; 0 for none.
        sites: What is swept; None for the usual sites, an empty tuple for none.

    Raises:
        UnknownNameError: No such method, metric, ablation, site or choice of `bos`.
        ConfigError: A number is out of range, the method has no such option or cannot take the ablation, or the
            selection contradicts itself or the target.
    """

    task: str
    model: str
    options: dict[str, str] = field(default_factory=dict)
    method: str = "eap-ig"
    steps: int = 5
    method_options: dict[str, Any] = field(default_factory=dict)
    metric: str = "logit_diff"
    ablation: str = "corrupt"
    n: int = 100
    seed: int = 0
    target: float | None = None
    selection: SelectionRule = field(default_factory=SelectionRule)
    min_accuracy: float = 0.6
    device: str = "cpu"
    dtype: str = "float32"
    bos: str = AUTO
    fold_ln: bool = False
    center_weights: bool = False
    allow_weak_gap: bool = False
    stability: int = 0
    stability_seeds: int = 0
    sites: tuple[str, ...] | None = None

    @classmethod
    def of_record(cls, record: Any) -> DiscoverConfig:
        """The settings that a manifest holds (`as_record`). A setting that is newer than it had its default.

        But for `allow_weak_gap`: older versions took any gap, and a method's own circuit whatever the target was. And
        for `bos`: older versions did as TransformerLens does.

        Raises:
            TypeError: A setting is missing, unknown, or of another kind.
            CircuitLabError: A value is out of range.
        """
        if not isinstance(record, Mapping):
            raise TypeError(f"settings are {record!r}; they must be a mapping")
        asked = {"allow_weak_gap": True, "bos": TRANSFORMER_LENS, **record}
        if "allow_weak_gap" not in record and asked.get("method") in METHODS and METHODS[asked["method"]].own_circuit:
            asked["target"] = None
        rule = asked.pop("selection", {})
        if not isinstance(rule, Mapping):
            raise TypeError(f"selection is {rule!r}; it must be a mapping")
        return cls(**asked, selection=SelectionRule.of(rule))

    def __post_init__(self) -> None:
        find_method(self.method).read(self.method_options)
        if self.ablation not in REPLACEMENTS:
            raise UnknownNameError.of("ablation", self.ablation, REPLACEMENTS)
        check_serves(find_method(self.method), self.ablation)
        check_choice(self.bos)
        rule = SelectionRule.of(self.selection, self.target)
        # What is usual is written down, but not where it would stand against a method's own circuit.
        target = rule.target if find_method(self.method).own_circuit else rule.aim
        object.__setattr__(self, "selection", replace(rule, target=target))
        object.__setattr__(self, "target", target)
        for name in ("fold_ln", "center_weights", "allow_weak_gap"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} is {getattr(self, name)!r}; it must be True or False.")
        for name in ("n", "steps"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} is {value!r}; it must be a whole number of at least 1.")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed is {self.seed!r}; it must be a whole number from 0 to {2**32 - 1}.")
        for name, what in (("stability", "resamples"), ("stability_seeds", "seeds")):
            repeats = getattr(self, name)
            if isinstance(repeats, bool) or not isinstance(repeats, int) or repeats < 0 or repeats == 1:
                raise ConfigError(f"{name} is {repeats!r}; it counts {what}: 0 for none, or at least 2.")
        if self.seed + self.stability_seeds >= 2**32:
            raise ConfigError(
                f"stability_seeds is {self.stability_seeds}, so that the seeds after {self.seed} run past {2**32 - 1}. "
                "Give fewer, or a smaller seed."
            )
        if self.sites is not None:
            object.__setattr__(self, "sites", checked_sites(self.sites))
        if not 0 <= self.min_accuracy <= 1:
            raise ConfigError(f"min_accuracy is {self.min_accuracy!r}; it is a share of pairs, 0 to 1.")

    def as_record(self) -> dict[str, Any]:
        """The settings as they stand in `manifest.json`."""
        record = asdict(self)
        del record["selection"]["target"]
        record["sites"] = None if self.sites is None else list(self.sites)
        return record

    @property
    def command(self) -> str:
        """The command line that asks for the same."""
        words = ["circuitlab", "discover", self.task]
        usual = asdict(DiscoverConfig(task=self.task, model="bundled"))
        usual["target"] = DiscoverConfig(task=self.task, model="bundled", method=self.method).target
        for name, flag in _FLAGS.items():
            value = getattr(self, name)
            if value is not None and value != usual[name]:
                words += [flag] if value is True else [flag, str(value)]
        words += _selection_flags(self.selection)
        if self.sites is not None:
            words += ["--sites", ",".join(self.sites)] if self.sites else ["--no-sweep"]
        for key, value in self.method_options.items():
            words += ["--method-option", f"{key}={value}"]
        for key, value in self.options.items():
            words += ["--option", f"{key}={value}"]
        return shlex.join(words)

    def _summary(self) -> str:
        return f"of {short(self.task, 30)} on {short(self.model, 30)}: {self.method}, n={self.n}, seed={self.seed}"


# Bytes of a task's or a model's name in the name of a run folder, which may have 255.
LONGEST_PART = 100

_FLAGS = {
    "model": "--model",
    "method": "--method",
    "steps": "--steps",
    "metric": "--metric",
    "ablation": "--ablation",
    "n": "-n",
    "seed": "--seed",
    "target": "--target",
    "min_accuracy": "--min-accuracy",
    "device": "--device",
    "dtype": "--dtype",
    "bos": "--bos",
    "fold_ln": "--fold-ln",
    "center_weights": "--center-weights",
    "allow_weak_gap": "--allow-weak-gap",
    "stability": "--stability",
    "stability_seeds": "--stability-seeds",
}


def _selection_flags(rule: SelectionRule) -> list[str]:
    """What the command line says of a selection, but for its target."""
    words = [] if rule.n_edges is None else ["--n-edges", str(rule.n_edges)]
    words += [] if rule.threshold is None else ["--threshold", str(rule.threshold)]
    words += ["--signed"] if rule.signed else []
    return words if rule.greedy is None else [*words, "--greedy" if rule.greedy else "--no-greedy"]


def checked_sites(sites: object) -> tuple[str, ...]:
    """Names of sites, each once; one text may hold several, separated by commas.

    Raises:
        ConfigError: They are no list of names.
        UnknownNameError: One is no site.
    """
    if isinstance(sites, str):
        sites = [name.strip() for name in sites.split(",")]
    if not isinstance(sites, list | tuple) or not all(isinstance(name, str) for name in sites):
        raise ConfigError(f"sites is {shown(sites)}; it must be a list of names, such as ['head_z'], or empty.")
    for name in sites:
        if name not in SITES:
            raise UnknownNameError.of("site", name, SITES)
    return tuple(dict.fromkeys(sites))


def metric_name(metric: Any) -> str:
    """Name of a metric given in any form."""
    return resolve(metric).name


def default_folder(config: DiscoverConfig, task_label: str) -> Path:
    """Where the command line writes when it is not told: runs/<task>-<model>-<method>-<seed>."""
    model = Path(config.model).name or "model"
    return Path("runs") / f"{_in_a_name(task_label)}-{_in_a_name(model)}-{config.method}-{config.seed}"


def _in_a_name(text: str) -> str:
    """Words of the user as a part of a file name: a slash would lead to another folder, a long text cannot be one."""
    kept = re.sub(r"[^\w.+-]+", "_", text)
    if len(kept.encode()) <= LONGEST_PART:
        return kept
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return kept.encode()[: LONGEST_PART - 9].decode(errors="ignore") + f"-{digest}"
