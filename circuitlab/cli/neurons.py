"""`circuitlab neurons ...`: what single neurons of a model do.

A command that needs a page of its own lives in a module beside this one and is registered at the end.
"""

import typer

from circuitlab.cli import probing

neurons_app = typer.Typer(
    help="What single neurons do: what they add to a prediction, what makes them fire.", no_args_is_help=True
)


@neurons_app.callback()
def neurons() -> None:
    """What single neurons do: what they add to a prediction, what makes them fire."""


# Commands of other modules: neurons_app.command("name")(function)
for command in (probing.sensitivity, probing.simplify, probing.ablate, probing.optimise, probing.outliers):
    neurons_app.command(command.__name__)(command)
