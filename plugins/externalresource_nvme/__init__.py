"""The driver of NVMe disks: each namespace that nothing on this host uses, for one process alone.

PYTEST_DONT_REWRITE: pytest marks all packages beside its plugin, and warns of those that are imported already.
"""
