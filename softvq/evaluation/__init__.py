"""Measurements of models: reconstruction, generation, probing, latent spaces and cost, with reports of the results."""
