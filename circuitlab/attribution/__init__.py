"""What each part of a model adds to a prediction: logit lens, direct logit attribution, attention patterns."""
