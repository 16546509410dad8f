"""The access logs of one service."""

from __future__ import annotations

import os
from pathlib import Path

from proxykit.ops.accesslog import AccessLogs
from tests.ops.test_accesslog import LogCase, entry


class AccessLogsTests(LogCase):
    def setUp(self) -> None:
        super().setUp()
        self.logs = AccessLogs(self.clock)
        self.addCleanup(self.logs.close_all)

    def test_one_for_each_file(self) -> None:
        path = str(self.path)
        first = self.logs.log(path, "combined")
        for other in (path, os.path.abspath(path), f"{self.directory}/./none/../access.log"):
            self.assertIs(self.logs.log(other, "combined"), first)
        self.assertIs(self.logs.log("-", "json"), self.logs.log("-", "json"))

    def test_formats(self) -> None:
        path = str(self.path)
        raised = self.assertRaises(ValueError, self.logs.log, path, "common")
        self.assertEqual(str(raised), "expected combined or json, not 'common'")
        self.assertFalse(self.path.exists())
        self.assertIsNot(self.logs.log(path, "combined"), self.logs.log(path, "json"))

    def test_keep_only(self) -> None:
        kept, gone = (self.logs.log(str(self.path), each) for each in ("combined", "json"))
        self.logs.keep_only([(kept.path, "combined")])
        for log in (kept, gone):
            log.write(entry(target="/1"))
            log.flush()
        self.assertEqual((kept.lost, gone.lost), (0, 1))
        self.assertIs(self.logs.log(str(self.path), "combined"), kept)

    def test_one_that_cannot_be_opened(self) -> None:
        path = self.directory / "none" / "access.log"
        self.assertRaises(FileNotFoundError, self.logs.log, str(path), "combined")
        path.parent.mkdir()
        self.logs.log(str(path), "combined")

    def test_all_of_them(self) -> None:
        paths = [self.directory / name for name in ("a", "b")]
        logs = [self.logs.log(str(path), "combined") for path in paths]
        for path, log in zip(paths, logs, strict=True):
            log.write(entry(target="/1"))
            path.rename(f"{path}.1")
        self.logs.reopen_all()
        for log in logs:
            log.write(entry(target="/2"))
        self.logs.close_all()
        for path in paths:
            self.assertEqual((self.lines(Path(f"{path}.1")), self.lines(path)), (["/1"], ["/2"]))
        self.assertIsNot(self.logs.log(str(paths[0]), "json"), logs[0])
