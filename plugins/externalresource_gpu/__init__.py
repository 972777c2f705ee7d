"""The GPU driver of externalresource, with the discovery script that it runs.

PYTEST_DONT_REWRITE: pytest marks all packages beside its plugin, and warns of those that are imported already.
"""
