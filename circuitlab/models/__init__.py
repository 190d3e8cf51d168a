"""Models behind one protocol: the only package that knows transformer_lens and spells hook names."""
