"""Models behind one protocol: the only package that knows transformer_lens and spells hook names."""

from circuitlab.progress import tqdm_class

tqdm_class()  # before transformers imports tqdm, which would warn in a notebook without ipywidgets
