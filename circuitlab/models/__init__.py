"""Models under one protocol: the only package that uses transformer_lens and its hook names."""

from circuitlab.progress import tqdm_class

tqdm_class()  # before transformers imports tqdm, which would warn in a notebook without ipywidgets
