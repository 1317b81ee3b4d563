"""Errors and interrupts, as the person who runs the study sees them."""

import argparse
import errno
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

# What to do about the errors of a file system that are the user's to fix.
REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "make room for it"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "make its directory writable"),
}


class StudyError(Exception):
    """An error the user can fix; its message names the file or key, the value, what is allowed, and how to fix it."""


def printable(text: object) -> str:
    """Return `text` in one line that does nothing to a terminal: what cannot be printed is escaped as in Python."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def with_remedy(error: OSError) -> str | None:
    """Return what is wrong with a file and what to do about it; None if the user cannot fix it."""
    if error.filename is None or error.errno not in REMEDIES:
        return None
    remedy = f"{REMEDIES[error.errno]}, then run the same command again: what is finished is kept"
    return f"{error.filename}: {error.strerror}; {remedy}"


def prepare_streams() -> None:
    """Replace standard streams that are closed; have output escape what the locale cannot encode, such as ± in ASCII.

    Python's defaults are None and an error. Closed descriptors would be given to the next files that are opened, and
    libraries would write into those what they print.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = open(os.devnull, mode)  # noqa: SIM115 (it stays open)
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def run_stage(main: Callable[..., None], description: str, *arguments: str) -> None:
    """Run a stage's `main` as a command: `--help`, optional positional `arguments`, readable errors.

    A `StudyError` becomes one message on standard error and exit status 1, without a traceback; so do an `OSError` that
    has a remedy, and output that nobody reads. Ctrl-C and SIGTERM raise KeyboardInterrupt in `main`, and end with a
    message and status 130 or 143, as shells expect.
    """
    prepare_streams()
    parser = argparse.ArgumentParser(
        prog=f"python -m {_module_name()}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for argument in arguments:
        name, _, text = argument.partition(": ")
        parser.add_argument(name, nargs="?", help=text)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        main(**vars(options))
    except StudyError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python writes the rest when it ends
        print("error: standard output was closed by its reader; what is finished is kept", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        if (message := with_remedy(error)) is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt as interrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + (interrupt.args[0] if interrupt.args else signal.SIGINT))


def _interrupt(number: int, _: object) -> None:
    raise KeyboardInterrupt(number)


@contextmanager
def interrupts_held() -> Iterator[Callable[[], None]]:
    """Delay Ctrl-C and SIGTERM in the block until it calls the yielded function, or ends.

    An exception raised in the middle of a call into TensorFlow can crash the process. A second interrupt, after the
    message, ends the process at once, as the system does by default.
    """
    received: list[int] = []

    def hold(number: int, _: object) -> None:
        received.append(number)
        for held in handlers:
            signal.signal(held, signal.SIG_DFL)
        with suppress(OSError):
            os.write(1, b"stopping after this step; interrupt again to stop immediately\n")

    def stop_if_interrupted() -> None:
        if received:
            raise KeyboardInterrupt(*received)

    handlers = {
        number: handler
        for number in (signal.SIGINT, signal.SIGTERM)
        if (handler := signal.getsignal(number)) != signal.SIG_IGN
    }
    try:
        for number in handlers:
            signal.signal(number, hold)
        yield stop_if_interrupted
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    stop_if_interrupted()


def _module_name() -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if spec else "stages"
