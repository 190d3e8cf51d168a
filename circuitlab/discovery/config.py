"""The settings of the main job, checked before any work."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

from pydantic import ConfigDict, ValidationError, create_model

from circuitlab.declarations import OWN, Setting, options_of
from circuitlab.digests import sha256
from circuitlab.discovery.method import Method
from circuitlab.discovery.registry import METHODS, check_serves, find_method
from circuitlab.errors import CircuitLabError, ConfigError, UnknownNameError, WrongTypeError, shown
from circuitlab.graphs.selection import SelectionRule
from circuitlab.metrics.base import METRICS, Metric, resolve
from circuitlab.patching.runs.given_outputs import AblationFunction
from circuitlab.patching.runs.replacement import as_replacement
from circuitlab.patching.sweeps.sites import Site, named_site
from circuitlab.settings import LARGEST_SEED, SETTINGS
from circuitlab.summary import Summary, short

# By their names in a record; the task has no default.
RECORDED = {setting.record or name: setting for name, setting in SETTINGS.items() if setting.recorded}
_FIELDS: Any = {name: (each.field(), each.recorded_default) for name, each in RECORDED.items()}
_FIELDS["task"] = (str, ...)
# Settings that may be objects of Python, of which the names alone are recorded; and which of them were.
OBJECTS = ("method", "metric", "ablation", "sites")
_FIELDS["objects"] = (tuple[str, ...], ())
_Recorded: Any = create_model(
    "_Recorded", __config__=ConfigDict(frozen=True, extra="forbid", strict=True), **_FIELDS
)  # fmt: skip


class DiscoverConfig(Summary, _Recorded):
    """The settings of a call of `discover`, sufficient to repeat it.

    Its attributes are the settings of `circuitlab.settings` that a manifest records, `task_options` as `options`.
    `objects` names those of them that were given as objects: a function as method, metric or ablation, or a `Site`.
    What they hold is their name.

    Raises:
        UnknownNameError: No such setting, method, ablation, site or choice of `bos`.
        WrongTypeError: A value is of another type.
        ConfigError: A number is out of range, the method has no such option or cannot take the ablation, or the
            selection contradicts itself or the target.
    """

    def __init__(self, **given: Any) -> None:
        given, method, ablation = _named(given)
        held = {"ablation": given.pop("ablation")} if "ablation" in given["objects"] else {}
        try:
            super().__init__(**{name: _as_recorded(name, value) for name, value in given.items()})
        except ValidationError as error:
            raise _refusal(error) from None
        self.__dict__.update(held)
        if method is None and "method" not in self.objects:
            method = find_method(self.method)
        if method is not None and (ablation is not None or not held):
            check_serves(method, ablation or self.ablation)
        rule = SelectionRule.of(self.selection, self.target)
        # The usual target is recorded, except for a method with a circuit of its own, which it would replace.
        target = rule.target if method is None or method.own_circuit else rule.aim
        options = self.method_options if method is None else method.read(self.method_options)
        for name in self.sites or ():
            if "sites" not in self.objects:
                named_site(name)
        self.__dict__.update(method_options=options, selection=replace(rule, target=target), target=target)
        if self.seed + self.stability_seeds > LARGEST_SEED:
            raise ConfigError(
                f"stability_seeds is {self.stability_seeds}, so that the seeds after {self.seed} run past "
                f"{LARGEST_SEED}. Give fewer, or a smaller seed."
            )

    @classmethod
    def of_settings(cls, settings: Mapping[str, Any], **found: Any) -> DiscoverConfig:
        """The record of the settings of `discover`.

        Args:
            settings: By keyword; None is the default.
            found: Further values by name in the record, such as those of the loaded model.

        Returns:
            The record.
        """
        given = {name: settings.get(each.name) for name, each in RECORDED.items()} | found
        return cls(**{name: value for name, value in given.items() if value is not None})

    @classmethod
    def of_record(cls, record: Any) -> DiscoverConfig:
        """The settings in a manifest (`to_record`).

        A setting that is newer than the manifest has the value that older versions acted by: mostly its default. Older
        versions also selected a method's own circuit if there was a target. A method or a site of a package that is not
        installed now counts as an object: its name is kept and `objects` lists the setting.

        Returns:
            The settings.

        Raises:
            TypeError: A setting is missing, unknown, or of another type.
            CircuitLabError: A value is out of range.
        """
        if not isinstance(record, Mapping):
            raise TypeError(f"settings are {record!r}; they must be a mapping")
        before = {name: setting.before for name, setting in RECORDED.items() if setting.before is not OWN}
        given = before | dict(record)
        if "allow_weak_gap" not in record and given.get("method") in METHODS and METHODS[given["method"]].own_circuit:
            given["target"] = None
        if not isinstance(given.get("selection", {}), Mapping):
            raise TypeError(f"selection is {given['selection']!r}; it must be a mapping")
        if isinstance(objects := given.get("objects", ()), list | tuple):
            given["objects"] = (*objects, *_not_installed(given))
        return cls(**given)

    def replaced(self, **changes: Any) -> DiscoverConfig:
        """The same settings with some changes.

        Returns:
            New settings.
        """
        kept = tuple(name for name in self.objects if name not in changes)
        return type(self)(**dict(self) | {"objects": kept} | changes)

    def to_record(self) -> dict[str, Any]:
        """The record in `manifest.json`.

        Returns:
            Plain values.
        """
        selection = asdict(self.selection)
        del selection["target"]
        sites = None if self.sites is None else list(self.sites)
        found = {**dict(self), "selection": selection, "sites": sites, "objects": list(self.objects)}
        return {name: value for name, value in found.items() if name != "objects" or value}

    @property
    def command(self) -> str:
        """The command line with these settings."""
        objects = tuple(name for name in self.objects if name == "method")
        usual = DiscoverConfig(task=self.task, method=self.method, objects=objects)
        words = ["circuitlab", "discover", self.task]
        for name, setting in RECORDED.items():
            value = getattr(self, name)
            default = usual.target if name == "target" else setting.recorded_default
            if setting.flag and value is not None and value != default:
                words += _words(setting, value)
        for part in options_of(SelectionRule):
            value = getattr(self.selection, part.name)
            if part.flag and value != part.default:
                words += _words(part, value)
        return shlex.join(words)

    def _summary(self) -> str:
        return f"of {short(self.task, 30)} on {short(self.model, 30)}: {self.method}, n={self.n}, seed={self.seed}"

    def _facts(self) -> Iterable[tuple[str, object]]:
        return dict(self).items()


# Bytes of a task's or a model's name in the name of a run folder, which may have 255.
LONGEST_PART = 100


def _named(given: Mapping[str, Any]) -> tuple[dict[str, Any], Method | None, AblationFunction | None]:
    """Settings with objects replaced by their names, which `objects` lists; and the method and ablation among them.

    Raises:
        ConfigError: An object has the name of a built-in one, or `objects` names another setting.
    """
    objects, found = given.get("objects", ()), dict(given)
    if not isinstance(objects, list | tuple) or not set(objects) <= set(OBJECTS):
        raise ConfigError(f"objects is {shown(objects)}; it lists settings among {', '.join(OBJECTS)}.")
    method, sites = found.get("method"), found.get("sites")
    ablation: AblationFunction | None = found["ablation"] if callable(found.get("ablation")) else None
    names, own_method = set[str](objects), None
    if isinstance(method, Method) or callable(method):
        own_method = find_method(method)
        found["method"] = own_method.name
        names |= set() if own_method.name in METHODS else {"method"}
    metric = found.get("metric")
    if isinstance(metric, Metric) or callable(metric):
        found["metric"] = resolve(cast("Any", metric)).name
        names |= set() if METRICS.get(found["metric"]) is metric else {"metric"}
    if ablation is not None:
        found["ablation"] = as_replacement(ablation).kind
        names.add("ablation")
    if isinstance(sites, list | tuple) and any(isinstance(site, Site) for site in sites):
        all_of_them = [named_site(site) for site in sites]
        found["sites"] = [site.name for site in all_of_them]
        names |= {"sites"} if any(site.read for site in all_of_them) else set()
    found["objects"] = tuple(name for name in OBJECTS if name in names)
    return found, own_method, ablation


def _not_installed(given: Mapping[str, Any]) -> Iterator[str]:
    """The settings of a record with names that no installed package has."""
    asked = (("method", find_method, [given.get("method")]), ("sites", named_site, given.get("sites")))
    for setting, find, values in asked:
        if setting in given.get("objects", ()) or not isinstance(values, list | tuple):
            continue
        try:
            for name in values:
                if isinstance(name, str):
                    find(name)
        except CircuitLabError:
            yield setting


def _as_recorded(name: str, value: Any) -> Any:
    """Texts, lists and mappings of a setting in the type of its record."""
    if name == "sites" and isinstance(value, str):
        value = [part.strip() for part in value.split(",")]
    if name == "sites" and isinstance(value, list | tuple) and all(isinstance(one, str) for one in value):
        return tuple(dict.fromkeys(value))
    if name in ("device", "dtype") and type(value).__module__ == "torch":
        return str(value).removeprefix("torch.")
    return dict(value) if isinstance(value, Mapping) else value


def _refusal(error: ValidationError) -> Exception:
    """The first error of pydantic as an error of the library."""
    first = error.errors()[0]
    name, failed = str(first["loc"][0]), first["type"]
    if failed == "extra_forbidden":
        return UnknownNameError.of("setting", name, RECORDED)
    if failed == "missing":
        return WrongTypeError(f"{name} is missing. Give {name}=.")
    value = first["input"] if len(first["loc"]) == 1 else {first["loc"][1]: first["input"]}
    return RECORDED[name].refusal(value, failed)


def _words(setting: Setting, value: Any) -> list[str]:
    """The words of a setting on the command line."""
    yes, _, no = setting.flag.partition("/")
    if isinstance(value, bool):
        return [yes if value else no]
    if isinstance(value, tuple):
        return [yes, ",".join(value)] if value else ["--no-sweep"]
    if isinstance(value, Mapping):
        return [word for key, one in value.items() for word in (yes, f"{key}={one}")]
    return [yes, str(value)]


def default_folder(config: DiscoverConfig, task_label: str) -> Path:
    """The default run folder of the command line, runs/<task>-<model>-<method>-<seed>, with a chosen checkpoint.

    Returns:
        The path.
    """
    model = Path(config.model).name or "model"
    model += "".join(f"-{one}" for one in (config.revision, config.checkpoint_index) if one is not None)
    return Path("runs") / f"{_in_a_name(task_label)}-{_in_a_name(model)}-{_in_a_name(config.method)}-{config.seed}"


def _in_a_name(text: str) -> str:
    """Words of the user as a part of a file name: a slash would lead to another folder, a long text cannot be one."""
    kept = re.sub(r"[^\w.+-]+", "_", text)
    if len(kept.encode()) <= LONGEST_PART:
        return kept
    return kept.encode()[: LONGEST_PART - 9].decode(errors="ignore") + f"-{sha256(text)[:8]}"
