"""The driver of AMD's GPUs.

PYTEST_DONT_REWRITE: pytest marks all packages beside its plugin, and warns of those that are imported already.
"""
