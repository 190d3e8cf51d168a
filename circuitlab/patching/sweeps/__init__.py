"""Sites patched cell by cell: by layer, head, position, span or neuron."""
