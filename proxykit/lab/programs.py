"""Programs that the lab starts: found, talked to in lines of JSON, and ended with it.

Whatever becomes of the lab, nothing that it has started outlives it: the kernel kills each program
when its parent ends (PR_SET_PDEATHSIG), even where the parent was killed itself.
"""

from __future__ import annotations

import json
import os
import resource
import select
import shutil
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import proxykit

#: Seconds for what takes no time: a program that starts, or ends.
PATIENCE = 20.0
#: Bytes of what a program has said that an error repeats.
TOLD = 600

#: Ends what is started by it with its parent; where the parent has ended before this was in force,
#: there is nothing to start. Behind it come the parent's id, and the program.
_ENDS_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL", "--")
_IF_PARENT_LIVES = ("sh", "-c", '[ "$PPID" = "$0" ] && exec "$@"')

#: Which Debian package, and others by the same name, has a program.
_PACKAGES = {"ip": "iproute2", "ss": "iproute2"}
_DEFAULT_PACKAGE = "util-linux"


class LabError(Exception):
    """The lab cannot go on; the message says why, in one line."""


def require(name: str) -> str:
    """The path of a program, wherever the system keeps it.

    :raises LabError: it is not installed.
    """
    path = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if path is None:
        package = _PACKAGES.get(name, _DEFAULT_PACKAGE)
        raise LabError(f"there is no program {name!r} here: install {package}")
    return path


def raise_descriptors() -> int:
    """Let this process, and those it starts, open as many files as it may; gives that number."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def environment() -> dict[str, str]:
    """This process's environment, and this proxykit for those that are started: it may not be
    installed."""
    tree = str(Path(proxykit.__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, (tree, os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


def within(enter: Sequence[str]) -> tuple[str, ...]:
    """What to start a program by, so that it ends when this process does.

    :param enter: where it is to run: ``nsenter`` and its arguments, or nothing.
    """
    ends = (require(_ENDS_WITH_PARENT[0]), *_ENDS_WITH_PARENT[1:])
    lives = (require(_IF_PARENT_LIVES[0]), *_IF_PARENT_LIVES[1:], str(os.getpid()))
    return (*enter, *ends, *lives)


def run(argv: Sequence[str], text: str = "") -> str:
    """Run a program to its end; gives its output.

    :param text: its input.
    :raises LabError: it has failed.
    """
    try:
        ended = subprocess.run(
            argv, input=text, capture_output=True, text=True, timeout=PATIENCE, process_group=0
        )
    except subprocess.TimeoutExpired:
        raise LabError(f"{' '.join(argv)}: no end after {PATIENCE:.0f} s") from None
    if ended.returncode:
        why = ended.stderr.strip() or f"exit status {ended.returncode}"
        raise LabError(f"{os.path.basename(argv[0])}: {why.splitlines()[-1]}")
    return ended.stdout


class Program:
    """A process. It does not hear of a Ctrl-C that is meant for the lab.

    :param name: for messages.
    :param log: where its standard error goes; with ``talks=False`` its output as well.
    :param talks: whether its input and output are lines of JSON.
    :param cwd: where it is to run.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        log: Path,
        *,
        talks: bool = True,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self._log = log
        self._lines: deque[str] = deque()
        self._partial = b""
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE if talks else subprocess.DEVNULL,
                stdout=subprocess.PIPE if talks else file,
                stderr=file,
                cwd=cwd,
                env=environment() if env is None else env,
                process_group=0,
            )

    @property
    def pid(self) -> int:
        """Of the program itself, whatever it was started by."""
        return self.process.pid

    @property
    def log(self) -> str:
        """What it has said so far, beside its lines."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def tell(self, what: Mapping[str, Any]) -> None:
        """Send it a line.

        :raises LabError: it has ended.
        """
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(what).encode() + b"\n")
            self.process.stdin.flush()
        except OSError:
            raise self._ended() from None

    def hear(self, timeout: float = PATIENCE) -> dict[str, Any]:
        """Its next line, whenever that comes.

        :param timeout: seconds.
        :raises LabError: it ends without, or time is up.
        """
        until = time.monotonic() + timeout
        while not self._lines:
            if not self._wait(until - time.monotonic()):
                raise LabError(f"{self.name} has said nothing for {timeout:.0f} s")
        heard: dict[str, Any] = json.loads(self._lines.popleft())
        return heard

    def speaks(self) -> bool:
        """Whether there is a line that :meth:`hear` would give at once."""
        return bool(self._lines) or (self._wait(0) and bool(self._lines))

    def _wait(self, seconds: float) -> bool:
        """Read once; tells whether there was anything."""
        out = self.process.stdout
        assert out is not None
        poll = select.poll()
        poll.register(out, select.POLLIN)
        if not poll.poll(max(0.0, seconds) * 1000):
            return False
        if not (data := os.read(out.fileno(), 65536)):
            raise self._ended()
        *whole, self._partial = (self._partial + data).split(b"\n")
        self._lines += (line.decode() for line in whole)
        return True

    def until(self, true: Callable[[], bool], what: str, timeout: float = PATIENCE) -> None:
        """Look again and again until something is true.

        :raises LabError: the process ends before, or time is up.
        """
        given_up = time.monotonic() + timeout
        while not true():
            if self.process.poll() is not None:
                raise self._ended()
            if time.monotonic() > given_up:
                raise LabError(f"{self.name}: not {what} after {timeout:.0f} s")
            time.sleep(0.02)

    def _ended(self) -> LabError:
        try:
            status: object = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            status = "its output is closed"
        said = " | ".join(self.log[-TOLD:].strip().splitlines())
        return LabError(f"{self.name} has ended ({status}): {said}")

    def stop(self) -> None:
        """Ask it to end (SIGTERM), and wait; one that does not is killed."""
        self.process.terminate()
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
        self._close()

    def kill(self) -> None:
        """End it at once (SIGKILL)."""
        self.process.kill()
        self.process.wait()
        self._close()

    def _close(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:  # what was still to be written to it
                    continue
