"""The GPUs as NVML lists them."""
