"""Training of tokenizers and generators: recipes, tasks, the loop that runs them, and their checkpoints."""
