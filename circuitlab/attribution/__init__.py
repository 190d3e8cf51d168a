"""What the parts of a model add to a prediction: logit lens, direct logit attribution, attention patterns."""
