"""Sparse autoencoders: load them, read their features, run the model with them, patch and rank features, find words.

Public names are loaded on first use, so that importing this package loads no torch.
"""

from typing import TYPE_CHECKING

from circuitlab.lazy import homes_of, lazy_names

if TYPE_CHECKING:
    from circuitlab.features.activations import ActiveFeature, FeatureActivations, features
    from circuitlab.features.autoencoder import Autoencoder
    from circuitlab.features.descriptions import Description, Descriptions, load_descriptions, search_descriptions
    from circuitlab.features.load import load_autoencoder
    from circuitlab.features.ranking import FeatureRanking, rank_features
    from circuitlab.features.saelens import save_autoencoder
    from circuitlab.features.splicing import Quality, Splice, attached, quality, splice
    from circuitlab.features.sweep import sweep_features

_HOMES = homes_of(__name__)
__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
