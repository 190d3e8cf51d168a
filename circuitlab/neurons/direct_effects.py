"""What each neuron adds to a prediction by itself."""


def importance() -> None:
    """To be written."""
    raise NotImplementedError
