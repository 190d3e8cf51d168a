"""Names on the hub, and the toy models that older versions of TransformerLens saved there.

`solu-1l`, `attn-only-1l` and `gelu-2l` are short for repositories without a HuggingFace architecture: their weights are
`*.pth` files by TransformerLens's old names, and go into one of its own models.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from circuitlab.models.huggingface import boot_huggingface
from circuitlab.models.loaded_weights import check_finite
from circuitlab.models.surgery import attributes


def boot_from_hub(source: str, name: str, device: torch.device, dtype: torch.dtype) -> Any:
    """Boot a bridge for any name that TransformerLens knows, or any HuggingFace model it can wrap.

    Args:
        source: The name on the hub, or one that is short for it.
        name: What the user calls the model.
        device: Where the weights go.
        dtype: What they are cast to.

    Raises:
        ModelError: It is not supported, or its weights are not complete.
        Exception: Whatever TransformerLens, transformers and the hub's client raise.
    """
    from transformer_lens.model_bridge.sources.tl_legacy import TL_LEGACY_PREFIXES, boot
    from transformer_lens.tools.model_registry.registry_io import resolve_model_alias

    # TransformerLens resolves short names too, but warns through the root logger, which then gets a handler.
    official = resolve_model_alias(source) or source
    if not official.startswith(TL_LEGACY_PREFIXES):
        return boot_huggingface(official, name, device, dtype)
    with _files_listed_from_cache():
        bridge = boot(official, device=str(device), dtype=dtype)
    check_finite(bridge.original_model, name)
    return bridge


@contextmanager
def _files_listed_from_cache() -> Iterator[None]:
    """Offline, answer from the cache which files a repository has: TransformerLens asks the hub whatever is cached."""
    from huggingface_hub import HfApi, constants, snapshot_download

    def cached(_api: HfApi, repo_id: str, **_options: Any) -> list[str]:
        folder = Path(snapshot_download(repo_id, local_files_only=True))
        found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        if not any(path.endswith(".pth") for path in found):
            raise FileNotFoundError(f"the weights of {repo_id} are not in the local cache, and the hub is offline")
        return found

    with attributes(HfApi, **({"list_repo_files": cached} if constants.HF_HUB_OFFLINE else {})):
        yield
