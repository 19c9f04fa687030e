"""The recipes that ship with the package, by name: the paper's tokenizers and generators, and those on emoji."""
