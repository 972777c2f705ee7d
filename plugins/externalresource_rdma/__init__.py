"""The driver of RDMA network adapters: InfiniBand, RoCE, iWARP."""
