"""Autoencoders in other libraries' formats: written, read, described, and as SAEBench's evaluations want them."""
