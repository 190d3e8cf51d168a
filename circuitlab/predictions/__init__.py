"""What a model predicts: rank, logit and probability of answers, continuations, log-probabilities of a text."""
