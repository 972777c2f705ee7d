"""A file system as sshfs has it, which lies on another machine, and in which there is nothing.

Run as a program, with the folder to mount on; it says so when it is mounted, and then what it was asked to change, all
of which it refuses. Needs root and /dev/fuse.
"""

import ctypes
import errno
import os
import stat
import struct
import sys

_LOOKUP, _FORGET, _GETATTR, _INIT, _OPENDIR, _READDIR, _RELEASEDIR, _BATCH_FORGET = 1, 2, 3, 26, 27, 28, 29, 42
_HEADER = struct.Struct("=IIQ")  # of a request: its length, what is asked, its number; an answer has an error there
_LONGEST = 1 << 20
_WELCOME = struct.pack("=IIIIHHIIHHI28x", 7, 31, 0, 0, 12, 9, 65536, 1, 0, 0, 0)
_FOLDER = struct.pack("=QII6Q10I", 0, 0, 0, 1, *[0] * 5, *[0] * 3, stat.S_IFDIR | 0o755, 2, 0, 0, 0, 4096, 0)
_ANSWERS = {_GETATTR: _FOLDER, _INIT: _WELCOME, _OPENDIR: bytes(16), _READDIR: b"", _RELEASEDIR: b""}


def main(folder: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0"
    if libc.mount(b"me@host:/", folder.encode(), b"fuse.sshfs", 0, options.encode()):
        sys.exit(f"cannot mount on {folder}: {os.strerror(ctypes.get_errno())}")
    while True:
        _, asked, number = _HEADER.unpack_from(os.read(device, _LONGEST))
        if asked in _ANSWERS:
            os.write(device, _HEADER.pack(_HEADER.size + len(_ANSWERS[asked]), 0, number) + _ANSWERS[asked])
            _say("mounted" * (asked == _INIT))
        elif asked not in (_FORGET, _BATCH_FORGET):
            error = errno.ENOENT if asked == _LOOKUP else errno.EROFS
            os.write(device, struct.pack("=IiQ", _HEADER.size, -error, number))
            _say(f"asked to do {asked}" * (asked != _LOOKUP))


def _say(text: str) -> None:
    if text:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
