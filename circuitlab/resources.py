"""What a call may use and to whom it reports: one value that is handed down instead of two arguments.

Public functions take `budget=` and `progress=`; everything below them takes a `Resources`, or an `Experiment` that has
one.
"""

from __future__ import annotations

from dataclasses import dataclass

from circuitlab.progress import Progress, silent


@dataclass(frozen=True, slots=True)
class Resources:
    """What a call may use.

    Attributes:
        budget: Bytes that a packed run may take; None for a share of what is free.
        progress: Called with (step, done, total).
    """

    budget: int | None = None
    progress: Progress = silent

    def part(self, number: int, n_parts: int) -> Resources:
        """The same for one of several equal parts of a step: what it reports counts as its share of the whole.

        Returns:
            New resources.
        """

        def share(step: str, done: int, total: int) -> None:
            self.progress(step, number * total + done, n_parts * total)

        return Resources(self.budget, share)


DEFAULT = Resources()
