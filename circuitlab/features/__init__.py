"""Sparse autoencoders: load them, read their features, run the model with them, patch and rank features, find words.

What is public is loaded when it is first asked for, so that importing this package loads no torch.
"""

from typing import TYPE_CHECKING

from circuitlab.lazy import lazy_names

_HOMES = {
    "ActiveFeature": "circuitlab.features.activations",
    "Autoencoder": "circuitlab.features.autoencoder",
    "Description": "circuitlab.features.descriptions",
    "Descriptions": "circuitlab.features.descriptions",
    "FeatureActivations": "circuitlab.features.activations",
    "FeatureRanking": "circuitlab.features.ranking",
    "Quality": "circuitlab.features.splicing",
    "Splice": "circuitlab.features.splicing",
    "attached": "circuitlab.features.splicing",
    "features": "circuitlab.features.activations",
    "load_autoencoder": "circuitlab.features.load",
    "load_descriptions": "circuitlab.features.descriptions",
    "quality": "circuitlab.features.splicing",
    "rank_features": "circuitlab.features.ranking",
    "save_autoencoder": "circuitlab.features.saelens",
    "search_descriptions": "circuitlab.features.descriptions",
    "splice": "circuitlab.features.splicing",
    "sweep_features": "circuitlab.features.sweep",
}
__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]

if TYPE_CHECKING:
    from circuitlab.features.activations import ActiveFeature, FeatureActivations, features
    from circuitlab.features.autoencoder import Autoencoder
    from circuitlab.features.descriptions import Description, Descriptions, load_descriptions, search_descriptions
    from circuitlab.features.load import load_autoencoder
    from circuitlab.features.ranking import FeatureRanking, rank_features
    from circuitlab.features.saelens import save_autoencoder
    from circuitlab.features.splicing import Quality, Splice, attached, quality, splice
    from circuitlab.features.sweep import sweep_features

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
