"""Weights of other systems: read without running their code, and brought into our form. One table of names each."""
