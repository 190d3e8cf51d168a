"""What the declaration of a setting or of a method's option holds, and how pydantic reads values by it.

>>> Setting(name="steps", kind=int, default=5, what="Gradients along the path.", least=1).read("10")
10
"""

import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from inspect import signature, unwrap
from typing import Annotated, Any, get_args, get_origin

from circuitlab.arguments import resolved
from circuitlab.errors import ConfigError, UnknownNameError, WrongTypeError, shown

OWN = object()  # as declared: the type, the default, the name
_KINDS = {int: "a whole number", float: "a number", bool: "True or False", str: "a text"}
_OUT_OF_RANGE = ("greater_than", "greater_than_equal", "less_than", "less_than_equal", "finite_number", "value_error")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One setting, or one option of a scoring method.

    Attributes:
        what: Its documentation.
        help: Its line in the help of the command line, without the default; `what` by default.
        flag: Its option on the command line, such as "--steps" or "--signed/--absolute"; empty for none.
        metavar: Placeholder of the value in help.
        shown: The default in help, if not `recorded_default`.
        kind: Type of the recorded value; by default the declared type.
        given: Annotation in the signature of `discover`; by default the declared type.
        default: Its default.
        usual: What is recorded where the default, None, is given.
        least: Smallest value.
        most: Largest value.
        above: Bound below all values.
        below: Bound above all values.
        refused: A value within the bounds that is refused all the same.
        rule: The rule in words, for the message; by default made from type and bounds.
        allowed: The names that it can take.
        known: Names for help and completion, where others are possible.
        group: Which entry points add to these, such as "methods" (`circuitlab.plugins.added`).
        recorded: Whether the manifest has it.
        record: Its name there; by default its own.
        before: The value in manifests written before the setting existed; by default `recorded_default`.
        of_model: Whether it is an argument of `load_model`.
        name: The keyword, from the declaration.
    """

    what: str
    help: str = ""
    flag: str = ""
    metavar: str = ""
    shown: str = ""
    kind: Any = OWN
    given: str = ""
    default: Any = None
    usual: Any = OWN
    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    refused: Any = OWN
    rule: str = ""
    allowed: Collection[str] = ()
    known: Collection[str] = ()
    group: str = ""
    recorded: bool = True
    record: str = ""
    before: Any = OWN
    of_model: bool = False
    name: str = ""

    @property
    def plain(self) -> Any:
        """The type of its values other than None."""
        inner = [one for one in get_args(self.kind) if one is not type(None)]
        return self.kind if get_origin(self.kind) in (list, tuple, dict) or not inner else inner[0]

    @property
    def recorded_default(self) -> Any:
        """What is recorded where nothing is given."""
        return self.default if self.usual is OWN else self.usual

    def field(self) -> Any:
        """The type with its bounds, as pydantic takes it.

        Returns:
            An annotation.
        """
        from pydantic import AfterValidator, Field

        bounds: dict[str, Any] = {"ge": self.least, "le": self.most, "gt": self.above, "lt": self.below}
        bounds |= {"allow_inf_nan": False if self.plain is float else None}
        read: Any = Annotated[self.plain, Field(**{name: value for name, value in bounds.items() if value is not None})]
        if self.allowed or self.refused is not OWN:
            read = Annotated[read, AfterValidator(self._permitted)]
        return read if self.recorded_default is not None else read | None

    def read(self, value: Any, owner: str = "") -> Any:
        """The value in its own type, from itself or from the text of a command line.

        Args:
            value: What was given; the text "none" means None where that is the default.
            owner: Whose option it is, such as "method 'eap-ig'"; empty for a setting.

        Returns:
            The value.

        Raises:
            WrongTypeError: It is of another type.
            ConfigError: It is out of range.
            UnknownNameError: It is not one of the allowed names.
        """
        from pydantic import TypeAdapter, ValidationError

        if self.recorded_default is None and value == "none":
            return None
        reader: TypeAdapter[Any] = TypeAdapter(self.field())
        try:
            if isinstance(value, str):
                return reader.validate_strings(value)
            given = value.item() if type(value).__module__ == "numpy" else value
            return reader.validate_python(given, strict=True)
        except ValidationError as error:
            raise self.refusal(value, error.errors()[0]["type"], owner) from None

    def refusal(self, value: Any, failed: str, owner: str = "") -> ConfigError | UnknownNameError:
        """The error for a value that was refused.

        Args:
            value: What was given.
            failed: pydantic's name of what is wrong, such as "int_type" or "greater_than_equal".
            owner: Whose option it is.

        Returns:
            The error, to be raised.
        """
        if self.allowed and (failed == "value_error" or self.plain is str):
            wrong = next(one for one in value if one not in self.allowed) if isinstance(value, tuple) else value
            kind = f"value of option {self.name!r}" if owner else self.name if wrong is value else self.name[:-1]
            return UnknownNameError.of(kind, wrong, self.allowed, owner=owner)
        label = f"option {self.name!r} of {owner}" if owner else self.name
        what = f": {self.what.rstrip('.')}" if owner else ""
        error = ConfigError if failed in _OUT_OF_RANGE else WrongTypeError
        return error(f"{label} is {shown(value)}; {self.rule or f'it must be {self._range()}{what}'}.")

    def _permitted(self, value: Any) -> Any:
        each = {value} if isinstance(value, str) or not self.allowed else set(value)
        if value == self.refused or (self.allowed and not each <= set(self.allowed)):
            raise ValueError
        return value

    def _range(self) -> str:
        words = _KINDS.get(self.plain, str(self.plain))
        if self.least is not None:
            words += f" of at least {self.least}" if self.most is None else f" from {self.least} to {self.most}"
        if self.above is not None:
            words += f" above {self.above}" if self.below is None else f" between {self.above} and {self.below}"
        return words


def declared(hints: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> dict[str, Setting]:
    """The settings among annotations, `Annotated[type, Setting(...)]`, with their names, types and defaults.

    Returns:
        The declarations by name.

    Raises:
        WrongTypeError: A `Setting` is the annotation itself.
    """
    found = {}
    for name, hint in hints.items():
        if isinstance(hint, Setting):
            raise WrongTypeError(
                f"{name} is annotated with a Setting alone, which has no type. Write Annotated[type, Setting(...)]."
            )
        kind, *notes = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        for setting in notes:
            if isinstance(setting, Setting):
                kind = setting.kind if setting.kind is not OWN else kind
                default = setting.default if defaults is None else defaults[name]
                found[name] = replace(setting, name=name, kind=kind, default=default)
    return found


def options_of(place: Any) -> tuple[Setting, ...]:
    """The settings in the signature of a function or of a dataclass.

    Returns:
        The declarations, in the order of the signature.
    """
    place = unwrap(place)
    known = getattr(place, "__globals__", None) or vars(sys.modules[place.__module__])
    given = signature(place).parameters.values()
    hints = {one.name: resolved(one.annotation, known) for one in given}
    return tuple(declared(hints, {one.name: one.default for one in given}).values())
