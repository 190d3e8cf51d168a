"""What single neurons of MLPs do: read off the weights, off a text, off a corpus, and by changing them.

Public names are loaded on first use; importing this package does not load torch.

Example:
    >>> from circuitlab import neurons
    >>> "importance" in dir(neurons)
    True
"""

from typing import TYPE_CHECKING

from circuitlab.lazy import homes_of, lazy_names

if TYPE_CHECKING:
    from circuitlab.neurons.ablation import ablation_effect
    from circuitlab.neurons.direct_effects import importance
    from circuitlab.neurons.examples import top_examples
    from circuitlab.neurons.noise import noise_sensitivity
    from circuitlab.neurons.norm_ratio import norm_ratios
    from circuitlab.neurons.outlier_scores import outliers
    from circuitlab.neurons.over_text import activations
    from circuitlab.neurons.prompt_search import optimise_prompts
    from circuitlab.neurons.sentences import SENTENCES
    from circuitlab.neurons.simplification import simplify
    from circuitlab.neurons.weights import top_neurons, top_tokens

_HOMES = homes_of(__name__)
__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
