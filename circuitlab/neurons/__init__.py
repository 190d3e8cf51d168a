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
    from circuitlab.neurons.direct_effects import importance, top_neurons, top_tokens
    from circuitlab.neurons.examples import activations, top_examples
    from circuitlab.neurons.last_token import noise_sensitivity, simplify
    from circuitlab.neurons.outlier_scores import norm_ratios, outliers
    from circuitlab.neurons.prompt_search import optimise_prompts
    from circuitlab.neurons.sentences import SENTENCES

_HOMES = homes_of(__name__)
__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
