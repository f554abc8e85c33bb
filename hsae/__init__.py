"""Two-level hierarchical sparse autoencoders for interpretable features in language models."""
