"""The driver of RDMA network adapters: InfiniBand, RoCE, iWARP.

PYTEST_DONT_REWRITE: pytest marks all packages beside its plugin, and warns of those that are imported already.
"""
