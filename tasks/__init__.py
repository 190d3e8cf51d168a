"""The tasks that come with the library, one module each.

A task module says what behaviour it is about, makes pairs of a clean and a corrupted prompt, and names the
work it comes from. The modules stand on their own: none imports another, and each can be read, copied,
changed and run by its path.
"""
