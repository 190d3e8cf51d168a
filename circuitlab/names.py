"""Names that users choose among, each with one line, declared once.

The registries of functions (`METHODS`, `METRICS`, `SITES`, `REPLACEMENTS`) take their names and lines from here, so
that help, lists and shell completion need none of the libraries that the functions do.
"""

METHODS = {
    "eap-ig": "integrated gradients along the input embedding",
    "eap": "one gradient, in the clean run",
    "eap-ig-activations": "integrated gradients along each sublayer's own output",
    "clean-corrupted": "two gradients, in the clean and in the corrupted run",
    "exact": "every edge patched alone, no approximation",
    "sweep": "nodes by their head_z and mlp_out patches, edges between kept nodes",
    "relp": "one backward pass that propagates relevance instead of gradients",
    "ifr": "each writer's share of a reader's input; no metric, selected greedily",
    "random": "seeded random numbers, the baseline to beat",
    "acdc": "edges removed one by one from the logits backwards, each tested given the others",
    "edge-pruning": "hard-concrete gates on edges, learned under a target sparsity",
    "ugs": "edge probabilities learned by uniform gradient sampling",
}
METRICS = {
    "logit_diff": "logit of the answer minus logit of the distractor",
    "prob_diff": "probability of the answer minus probability of the distractor",
    "log_prob": "log-probability of the answer, in nats",
    "kl": "divergence from the clean run's next-token distribution, in nats; less is better",
    "accuracy": "share of pairs on which an answer is the most likely token",
    "rank": "number of tokens that are more likely than the best answer; less is better",
    "answer_log_prob": "log-probability of the whole answer, of one or more tokens, in nats",
    "answer_log_prob_diff": "log-probability of the whole answer minus that of the whole distractor, in nats",
}
# Metrics of answers of several tokens.
WHOLE_ANSWER = ("answer_log_prob", "answer_log_prob_diff")
# What the sign of a method's scores means.
SIGNS = {
    "effect": "positive: {} helps",
    "size": "never negative: a size, which does not tell whether {} helps or hurts",
    "none": "the sign has no meaning",
}
SITES = {
    "resid_pre": "the residual stream before a block",
    "resid_mid": "the residual stream between attention and MLP",
    "resid_post": "the residual stream after a block",
    "attn_out": "output of an attention layer",
    "mlp_out": "output of an MLP",
    "head_z": "a head's weighted sum of values, before its output projection",
    "head_q": "a head's queries",
    "head_k": "a head's keys (the model's own key/value heads)",
    "head_v": "a head's values (the model's own key/value heads)",
    "pattern": "a head's attention pattern",
    "neuron": "one neuron of an MLP, before the output projection",
}
ABLATIONS = {
    "corrupt": "the other prompt's value",
    "zero": "zero",
    "mean": "the mean over all tokens of a reference set",
    "mean-position": "the mean over the reference prompts of the same length, position by position",
    "mean-span": "the mean over the reference prompts, span by span",
    "noise": "the value itself with Gaussian noise of three standard deviations",
}
SPLITS = {
    "words": "held-out prompts have words and templates of their own, where the task names some",
    "random": "discovery and held-out prompts share no text, but words",
}
BOS = {
    "auto": "if the model's own tokenizer puts one there",
    "always": "always",
    "never": "never",
    "transformer-lens": "if TransformerLens does, as versions without the setting did",
}


def judges_whole_answers(metric: object) -> bool:
    """Whether a metric, by its name or as an object, judges answers of several tokens.

    Returns:
        Whether it does.
    """
    return metric in WHOLE_ANSWER if isinstance(metric, str) else bool(getattr(metric, "whole_answer", False))


def sign_of_scores(sign: str | None, what: str) -> str:
    """What the sign of scores means, as the end of a sentence.

    Args:
        sign: A name of `SIGNS`; None where it is not known.
        what: What is scored, such as "the edge".

    Returns:
        The text, after a semicolon; empty where it is not known.
    """
    return f"; {SIGNS[sign].format(what)}" if sign in SIGNS else ""
