"""Which checkpoint of a repository on the hub: a revision, or a number in TransformerLens's list of checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circuitlab.errors import ConfigError

# Families with a branch for each training checkpoint, and how it is called.
BRANCHES = {"EleutherAI/pythia": "step{}", "stanford-crfm/": "checkpoint-{}"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint of a repository.

    Attributes:
        revision: Branch, tag or commit; None for the default branch.
        index: Its number in the list of training checkpoints; negative numbers count from the end.
        branch: What was loaded: the revision, or the branch of the number.
        commit: The commit that was loaded, where it is known.
    """

    revision: str | None = None
    index: int | None = None
    branch: str | None = None
    commit: str | None = None

    def __post_init__(self) -> None:
        if self.revision is not None and self.index is not None:
            raise ConfigError(
                f"revision={self.revision!r} and checkpoint_index={self.index} exclude each other. Give one of them."
            )

    @property
    def settings(self) -> dict[str, Any]:
        """The keywords of `load_model` that choose it."""
        return {"revision": self.revision, "checkpoint_index": self.index}

    def to_record(self) -> dict[str, str]:
        """What a manifest has of it: revision and commit, as far as they are known.

        Returns:
            The record.
        """
        found = {"revision": self.branch, "commit": self.commit}
        return {name: value for name, value in found.items() if value is not None}

    def branch_of(self, repository: str, name: str) -> str | None:
        """The revision, or the branch of the number in a repository that has a branch for each checkpoint.

        Args:
            repository: On the hub.
            name: What the user calls the model.

        Returns:
            The revision; None for the default branch.

        Raises:
            ConfigError: The family has no list of checkpoints, or a shorter one.
        """
        if self.index is None:
            return self.revision
        branch = next((branch for prefix, branch in BRANCHES.items() if repository.startswith(prefix)), None)
        if branch is None:
            raise ConfigError(
                f"checkpoint_index={self.index}: TransformerLens has no list of checkpoints of model {name!r}. "
                "Give revision= (--revision) with a branch, tag or commit of its repository."
            )
        return branch.format(self.label(_steps(repository), name))

    def label(self, labels: Sequence[int], name: str) -> int:
        """The training step, or number of tokens, of the number.

        Args:
            labels: Those of all checkpoints.
            name: What the user calls the model.

        Returns:
            The label.

        Raises:
            ConfigError: There are fewer.
        """
        assert self.index is not None
        if not -len(labels) <= self.index < len(labels):
            raise ConfigError(
                f"checkpoint_index={self.index} is out of range: model {name!r} has {len(labels)} checkpoints, 0 to "
                f"{len(labels) - 1} (steps {labels[0]} to {labels[-1]})."
            )
        return labels[self.index]


AT_HEAD = Checkpoint()


def _steps(repository: str) -> Sequence[int]:
    """The training steps of a family's checkpoints; `get_checkpoint_labels` warns through the root logger."""
    from transformer_lens.tools.model_registry import checkpoints

    if repository.startswith("stanford-crfm/"):
        return checkpoints.STANFORD_CRFM_CHECKPOINTS
    return checkpoints.PYTHIA_V0_CHECKPOINTS if "v0" in repository else checkpoints.PYTHIA_CHECKPOINTS


def commit_of(repository: str, revision: str | None) -> str | None:
    """The commit of a revision in the hub's cache.

    Args:
        repository: On the hub.
        revision: Branch, tag or commit.

    Returns:
        The commit; None where the cache has no config of it.
    """
    from huggingface_hub import try_to_load_from_cache

    try:
        found: Any = try_to_load_from_cache(repository, "config.json", revision=revision)
    except Exception:  # no name of a repository
        return None
    return Path(found).parent.name if isinstance(found, str) else None
