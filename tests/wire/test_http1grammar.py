"""proxykit.wire.http1grammar: names of hosts and fields, and where whole lines end."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from proxykit.wire.http1grammar import (
    bare_at,
    block_fault,
    host_name,
    is_block,
    is_neat_block,
    looks_like_framing,
)


class GrammarTests(SynchronousTestCase):
    def test_bare_at(self):
        for data, start, at in (
            (b"", 0, 0),
            (b"abc", 0, 3),
            (b"a\r\nb\r\n", 0, 6),
            (b"a\nb", 0, 1),
            (b"a\r\n\nb", 0, 3),
            (b"a\rb", 0, 1),
            (b"a\r\r\n", 0, 1),
            (b"a\r", 0, 1),
            (b"a\x00", 0, 1),
            (b"\nab", 1, 3),
        ):
            with self.subTest(data=data, start=start):
                self.assertEqual(bare_at(data, start, len(data)), at)
                self.assertEqual(bare_at(bytearray(data + b"\n"), start, len(data)), at)

    def test_host_name(self):
        for host, name in (
            (b"a.Example", "a.example"),
            (b"a.example.:80", "a.example"),
            (b"a..", "a."),
            (b"[::1]", "[::1]"),
            (b"", None),
            (b"[::1]a", None),
            (b"[" + b"1:" * 23 + b"]", None),
            (b"a:99999", None),
            (b"a\n", None),
        ):
            with self.subTest(host=host):
                self.assertEqual(host_name(host), name)

    def test_looks_like_framing(self):
        for name, looks in (
            (b"content-length", False),
            (b"transfer-encoding", False),
            (b"content_length", True),
            (b"contentlength", True),
            (b"content-length-", True),
            (b"-transfer.encoding", True),
            (b"transfer-encoding2", True),
            (b"content-lengths", False),
            (b"x-content-length", False),
            (b"te", False),
        ):
            with self.subTest(name=name):
                self.assertIs(looks_like_framing(name), looks)

    def test_blocks(self):
        for block, is_one, is_neat in (
            (b"", True, True),
            (b"A: b\r\n", True, True),
            (b"A: b c\td\r\nA: e\r\n", True, True),
            (b"A:b\r\n", True, False),
            (b"A:  b\r\n", True, False),
            (b"A:\tb\r\n", True, False),
            (b"A: b \r\n", True, False),
            (b"A: b\t\r\n", True, False),
            (b"A: \r\n", True, False),
            (b"A:\r\n", True, False),
            (b"A: b", False, False),
            (b"A : b\r\n", False, False),
            (b"A: b\r\n\r\n", False, False),
        ):
            with self.subTest(block=block):
                self.assertIs(is_block(block) is not None, is_one)
                self.assertIs(is_neat_block(block) is not None, is_neat)

    def test_no_whole_lines(self):
        """Readers never ask this; what they do ask is in the tables of their own tests."""
        for block, rule in (
            (b"A: b", "a line ends with CRLF"),
            (b"A: b\n", "no bare LF"),
            (b"A: b\r", "no bare CR"),
        ):
            self.assertIn(rule, block_fault(block).rule)
