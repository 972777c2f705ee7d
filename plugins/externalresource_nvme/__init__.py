"""The driver of NVMe disks: each namespace that nothing on this host uses, for one process alone."""
