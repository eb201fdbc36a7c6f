"""Annotated images: read, checked, transformed together with their truth, and put into batches."""
