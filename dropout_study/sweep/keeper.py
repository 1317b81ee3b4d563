"""Run a command as long as whoever started this process lives: `python keeper.py COMMAND …`.

The process is started with a pipe as standard input and in a session of its own. The pipe ends when the other end's
holder closes it or dies, in whatever way; then the command's whole process group gets SIGTERM, which lets a training
end after its step, and after some seconds SIGKILL. A file descriptor that the command inherits, such as that of a
lock, stays open until all of them are gone.
"""

import os
import signal
import subprocess
import sys
import threading

GRACE_SECONDS = 5


def end_group() -> None:
    """End this process group, and this process with it."""
    os.killpg(0, signal.SIGTERM)
    threading.Event().wait(GRACE_SECONDS)
    os.killpg(0, signal.SIGKILL)


def main() -> int:
    """Run the command that the arguments are, and return its exit status, negative if a signal ended it."""
    if os.getpid() != os.getsid(0):
        sys.exit("keeper: needs a session of its own, for it ends its whole process group")
    signal.signal(signal.SIGTERM, lambda *_: None)  # its own is the group's
    ending = threading.Event()
    child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)

    def end() -> None:
        while os.read(0, 1024):
            pass
        ending.set()
        end_group()

    watch = threading.Thread(target=end, daemon=True)
    watch.start()
    status = child.wait()
    if ending.is_set():
        watch.join()  # DVC ends before the training that it started: that has its time, too
    elif status < 0:  # DVC was killed, and what it started trains on
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        end_group()
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main())
