"""What single neurons of MLPs do: read off the weights, off a text, off a corpus, and by changing them.

Everything is callable from here and loaded when it is first asked for; importing this package does not load torch.

Example:
    >>> from circuitlab import neurons
    >>> "importance" in dir(neurons)
    True
"""

from typing import TYPE_CHECKING

from circuitlab.lazy import lazy_names

# Public name -> the module it lives in; no module may be called like a name. The imports below tell type checkers the
# same; a test compares the two.
_HOMES: dict[str, str] = {
    "SENTENCES": "circuitlab.neurons.sentences",
    "ablation_effect": "circuitlab.neurons.ablation",
    "activations": "circuitlab.neurons.over_text",
    "importance": "circuitlab.neurons.direct_effects",
    "noise_sensitivity": "circuitlab.neurons.noise",
    "norm_ratios": "circuitlab.neurons.norm_ratio",
    "optimise_prompts": "circuitlab.neurons.prompt_search",
    "outliers": "circuitlab.neurons.outlier_scores",
    "simplify": "circuitlab.neurons.simplification",
    "top_examples": "circuitlab.neurons.examples",
    "top_neurons": "circuitlab.neurons.weights",
    "top_tokens": "circuitlab.neurons.weights",
}
__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]

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

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
