"""Path patching: the effect of a sender through a set of receivers alone."""
