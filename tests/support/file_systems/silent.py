"""A file system that never answers: whoever opens a file in it hangs in the kernel, where SIGKILL does not end it.

That is what a broken NVIDIA driver does to its callers. Run as a program, with the folder to mount on; it says so when
it is mounted, and lets all go when it ends. Needs root and /dev/fuse.
"""

import ctypes
import os
import struct
import sys

_INIT = 26
_VERSION = 7, 31
_MAX_WRITE = 65536
_DETACH = 2


def main(folder: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0"
    if libc.mount(b"silent", folder.encode(), b"fuse", 0, options.encode()):
        sys.exit(f"cannot mount on {folder}: {os.strerror(ctypes.get_errno())}")
    try:
        _take_requests(device)
    finally:
        libc.umount2(folder.encode(), _DETACH)


def _take_requests(device: int) -> None:
    """Read each request, so that its process cannot give up any more, and answer none but the first."""
    while True:
        _, operation, number = struct.unpack_from("=IIQ", os.read(device, 1 << 20))
        if operation == _INIT:
            limits = struct.pack("=IIHHIIHHI28x", 0, 0, 12, 9, _MAX_WRITE, 1, 0, 0, 0)
            answer = struct.pack("=II", *_VERSION) + limits
            os.write(device, struct.pack("=IiQ", 16 + len(answer), 0, number) + answer)
            sys.stdout.write("mounted\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
