"""Recorded outputs of real machines, read where they lie; no copy of them is kept here."""

from pathlib import Path

RECORDED = Path(__file__).parents[2].parent / "shared/data/nvidia-smi"

H100 = "linux-x86_64_nvidia-h100-80gb-hbm3_590.48.01"
H100_MIG = "linux-x86_64_nvidia-h100-mig_590.48.01"
H200 = "linux-x86_64_nvidia-h200_590.48.01"
L40S = "linux-x86_64_nvidia-l40s_595.80"
RTX_2080 = "linux-x86_64_nvidia-geforce-rtx-2080-super_595.71.05"
RTX_2080_WINDOWS = "windows-x86_64_nvidia-geforce-rtx-2080-super_591.86"
RTX_4080 = "linux-x86_64_nvidia-geforce-rtx-4080-super_595.71.05"


def read(file: str) -> str:
    return (RECORDED / file).read_bytes().decode()
