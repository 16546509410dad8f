"""The description of the admin listener's API: it says what is so."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from proxykit.ops.openapi import description
from tests.ops.admins import TOKEN, AdminCase

_KINDS: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
    "null": (type(None),),
}


def faults(value: Any, schema: dict[str, Any], root: dict[str, Any], at: str = "") -> Iterator[str]:
    """What is wrong with a value, by as much of JSON Schema as the description uses."""
    unknown = schema.keys() - {
        *("type", "properties", "required", "items", "enum", "description", "minimum", "allOf"),
        *("anyOf", "$ref", "additionalProperties", "maxItems", "minLength", "pattern"),
    }
    if unknown:
        yield f"{at}: nobody looks at {unknown}"
    if "$ref" in schema:
        yield from faults(value, root["components"]["schemas"][schema["$ref"][21:]], root, at)
    for each in schema.get("allOf", ()):
        yield from faults(value, each, root, at)
    any_of = schema.get("anyOf", ())
    if any_of and all(any(faults(value, each, root, at)) for each in any_of):
        yield f"{at}: fits none"
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and not any(
        isinstance(value, _KINDS[kind]) and (kind == "boolean" or not isinstance(value, bool))
        for kind in kinds
    ):
        yield f"{at}: {value!r} is no {kinds}"
        return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{at}: {value!r} is not in {schema['enum']}"
    if isinstance(value, int | float) and value < schema.get("minimum", value):
        yield f"{at}: {value!r} is too small"
    if isinstance(value, list):
        if len(value) > schema.get("maxItems", len(value)):
            yield f"{at}: too long"
        for number, each in enumerate(value):
            yield from faults(each, schema.get("items", {}), root, f"{at}[{number}]")
    if isinstance(value, dict):
        yield from _table_faults(value, schema, root, at)


def _table_faults(
    value: dict[str, Any], schema: dict[str, Any], root: dict[str, Any], at: str
) -> Iterator[str]:
    for name in schema.get("required", ()):
        if name not in value:
            yield f"{at}: there is no {name}"
    others = schema.get("additionalProperties", {})
    for name, each in value.items():
        more = schema.get("properties", {}).get(name, others)
        if more is False:
            yield f"{at}: there is a {name}"
        else:
            yield from faults(each, more, root, f"{at}.{name}")


class CheckerTests(SynchronousTestCase):
    """What looks at answers here can find something."""

    def test_bad(self) -> None:
        root = description(False)
        for value, schema in (
            (1, {"type": "string"}),
            (True, {"type": "integer"}),
            (-1, {"type": "integer", "minimum": 0}),
            ({}, {"$ref": "#/components/schemas/Error"}),
            ({"error": 1}, {"$ref": "#/components/schemas/Error"}),
            ({"state": "up", "a": 1}, {"$ref": "#/components/schemas/Wanted"}),
            (["a", 1], {"type": "array", "items": {"type": "string"}}),
            ([1, 2], {"type": "array", "maxItems": 1}),
            ("a", {"enum": ["b"]}),
            ("a", {"anyOf": [{"type": "null"}, {"type": "integer"}]}),
            ("a", {"allOf": [{"type": "string"}, {"type": "integer"}]}),
            ("a", {"format": "date"}),
        ):
            self.assertTrue(list(faults(value, schema, root)), (value, schema))


class DescriptionTests(SynchronousTestCase):
    def test_every_reference_is_to_something(self) -> None:
        for token in (False, True):
            whole = description(token)
            text = repr(whole)
            for name in re.findall(r"#/components/schemas/(\w+)", text):
                self.assertIn(name, whole["components"]["schemas"])
            for each in whole["paths"].values():
                for operation in each.values():
                    for needs in operation.get("security", whole["security"]):
                        self.assertLessEqual(
                            needs.keys(), whole["components"]["securitySchemes"].keys()
                        )

    def test_the_token(self) -> None:
        without, with_one = description(False), description(True)
        self.assertEqual(without["security"], [])
        self.assertNotIn("bearer", without["components"]["securitySchemes"])
        self.assertEqual(with_one["security"], [{"bearer": []}, {"basic": []}])
        self.assertEqual(with_one["paths"]["/healthz"]["get"]["security"], [])
        reload = ("/api/reload", "post", "security")
        self.assertEqual(without["paths"][reload[0]][reload[1]][reload[2]], [{"proof": []}])
        self.assertNotIn({"proof": []}, with_one["paths"][reload[0]][reload[1]][reload[2]])


class AnswerTests(AdminCase):
    """Every answer is as it is described."""

    async def setUp(self) -> None:  # type: ignore[override]
        await self.start()
        self.root = (await self.ask("/api/openapi.json")).json

    def schema(self, path: str, status: int, method: str = "get") -> dict[str, Any]:
        said = self.root["paths"][path][method]["responses"][str(status)]
        found: dict[str, Any] = said["content"]["application/json"]["schema"]
        return found

    def fits(self, value: Any, schema: dict[str, Any]) -> None:
        self.assertEqual(list(faults(value, schema, self.root)), [])

    async def test_it_is_the_one(self) -> None:
        self.assertEqual(self.root, description(False))
        self.fits(self.root, self.schema("/api/openapi.json", 200))

    async def test_every_path(self) -> None:
        admin: Any = self.proxy.service._site.admin  # type: ignore[union-attr]
        pages = set(admin._pages)
        described = set(self.root["paths"])
        self.assertEqual(set(admin._paths) - pages, {each for each in described if "{" not in each})
        listed = (await self.ask("/")).json["paths"]
        self.assertEqual(len(listed), len(described) - 1)

    async def test_reads(self) -> None:
        client = await self.proxy.connect()
        await self.proxy.side()
        client.send(b"up")
        for path in self.root["paths"]:
            if "{" in path or path in ("/api/events", "/metrics", "/api/reload"):
                continue
            answer = await self.ask(path)
            self.fits(answer.json, self.schema(path, answer.status))
        explained = await self.ask("/api/explain/1")
        self.fits(explained.json, self.schema("/api/explain/{id}", 200))

    async def test_events(self) -> None:
        await self.proxy.connect()
        end = await self.talk(b"GET /api/events HTTP/1.0\r\n\r\n")
        await end._until(lambda: end.received.endswith(b"}\n\n"))
        admin: Any = self.proxy.service._site.admin  # type: ignore[union-attr]
        self.fits(json.loads(admin._state()), self.root["components"]["schemas"]["State"])

    async def test_errors(self) -> None:
        backend = "/api/clusters/{name}/backends/{address}"
        at = backend.format(name="web", address="x")
        for described, path, method, expected, header in (
            ("/api/explain/{id}", "/api/explain/9", "get", 404, {}),
            ("/api/listeners", "/api/listeners", "get", 421, {"host": "a.example"}),
            ("/api/listeners", "/api/listeners", "get", 400, {"host": None}),
            ("/api/listeners", "/api/listeners", "get", 403, {"origin": "http://a.example"}),
            ("/api/listeners", "/api/listeners", "delete", 405, {}),
            (backend, at, "post", 403, {}),
            (backend, at, "post", 404, {"x_proxykit": "write"}),
            ("/api/reload", "/api/reload", "post", 409, {"x_proxykit": "write"}),
        ):
            answer = await self.ask(path, method.upper(), **header)
            self.assertEqual(answer.status, expected)
            said = method if method != "delete" else "get"
            self.fits(answer.json, self.schema(described, expected, said))

    async def test_a_write(self) -> None:
        path = "/api/clusters/{name}/backends/{address}"
        answer = await self.ask(
            path.format(name="web", address=self.backend.address),
            "POST",
            b'{"state": "drain"}',
            x_proxykit="write",
        )
        self.fits(answer.json, self.schema(path, 200, "post"))

    async def test_without_the_token(self) -> None:
        await self.start(token=TOKEN)
        answer = await self.ask("/api/ports")
        self.assertEqual(answer.status, 401)
        self.fits(answer.json, self.schema("/api/ports", 401))
