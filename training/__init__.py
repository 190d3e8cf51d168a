"""How the bundled model was made: its text, its tokenizer, its training and its measurements.

Not part of the installed package. ``python -m training.train --out DIR`` does the whole of it.
"""
