"""A number out of the application's metrics: a page in Prometheus' text format, or an answer of Prometheus itself.

One GET, bounded in time and size. Whatever is not a plain number ends as FatalError, which says why there is no data.
The formats: https://prometheus.io/docs/instrumenting/exposition_formats/ (text, version 0.0.4) and
https://prometheus.io/docs/prometheus/latest/querying/api/ (instant queries).
"""

from __future__ import annotations

import asyncio
import math
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, Literal

import httpx
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel, Field, ValidationError

from fishladder.errors import FatalError, InputError
from fishladder.spec_parts import Metric
from fishladder.yaml_lines import shown

PATIENCE = 5.0
"""Seconds from the connect to the last byte. A server that takes longer is as good as away.

A look-up of the host's name that hangs is given up, too, but keeps its thread until the system's own limit.
"""
LARGEST = 4_000_000
"""Bytes of an answer: some 40,000 samples."""
LONGEST = 10_000
"""Characters of a sample's line: the parser's work grows with their square."""
QUERY_PATH = "/api/v1/query"


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where metrics are asked for: ``url`` without a slash at its end, and who asks."""

    connection: str
    url: str
    account: tuple[str, str] | None = field(default=None, repr=False)
    authorization: str = field(default="", repr=False)
    """The header's value, such as ``Bearer …``."""


def endpoint(connection: str, url: str, *, account: tuple[str, str] | None = None, authorization: str = "") -> Endpoint:
    """The endpoint at ``http://user:password@host:port/prefix``. Raises InputError without showing the URL."""
    try:
        parts = httpx.URL(url)
    except httpx.InvalidURL:
        parts = httpx.URL("")
    named = parts.scheme in ("http", "https") and parts.host and (parts.port or 0) < 2**16
    if not named or "@" in parts.path or parts.query or parts.fragment:
        raise InputError(
            f"connection {connection}: its URL must be http://host:port or https://host:port, with a prefix of the path"
            " or without; percent-encode what is special in user and password"
        )
    if not (authorization.isascii() and authorization.isprintable()):
        raise InputError(f"connection {connection}: its Authorization holds what no header may; write it in one line")
    if parts.userinfo:
        account = (parts.username, parts.password)
    plain = str(parts.copy_with(userinfo=b"")).rstrip("/")
    return Endpoint(connection=connection, url=plain, account=account, authorization=authorization)


def read(place: Endpoint, metric: Metric) -> float:
    """The metric's value now; several samples are added up.

    Raises FatalError for everything that is no data: no answer within ``PATIENCE``, another status than 200 (so a
    redirect too), more than ``LARGEST`` bytes, nothing that can be read, no such sample, NaN or an infinity.
    """
    status, body = asyncio.run(_get(place, metric))
    if status != httpx.codes.OK:
        why = f": {reason}" if metric.query is not None and (reason := _refusal(body)) else ""
        raise FatalError(f"{_where(place, metric)}: answered {status}{why}")
    try:
        values = _answer(body) if metric.name is None else _samples(metric.name, metric.labels, body)
        value = math.fsum(values) if values else math.nan
    except (ValueError, OverflowError) as error:
        raise FatalError(f"{_where(place, metric)}: cannot be read: {error}") from error
    if not values:
        raise FatalError(f"{_where(place, metric)}: has no sample of {_wanted(metric)}")
    if not math.isfinite(value):
        raise FatalError(f"{_where(place, metric)}: {_wanted(metric)} is {value}")
    return value


def _where(place: Endpoint, metric: Metric) -> str:
    return f"connection {place.connection}: {metric.path if metric.query is None else QUERY_PATH}"


def _wanted(metric: Metric) -> str:
    labels = ", ".join(f"{name}={value}" for name, value in metric.labels.items())
    return shown(metric.query or f"{metric.name}{{{labels}}}")


@cache
def _trusted() -> ssl.SSLContext:
    """The certificates that this machine trusts; to read them takes longer than to ask."""
    return ssl.create_default_context()


async def _get(place: Endpoint, metric: Metric) -> tuple[int, str]:
    """Status and body."""
    path, parameters = (metric.path, None) if metric.query is None else (QUERY_PATH, {"query": metric.query})
    headers = {"Authorization": place.authorization} if place.authorization else {}
    # Neither a proxy nor a redirect gets to see the account.
    client = httpx.AsyncClient(auth=place.account, headers=headers, verify=_trusted(), trust_env=False, timeout=None)
    body = bytearray()
    try:
        # A timeout of httpx would begin again at every byte.
        async with (
            asyncio.timeout(PATIENCE),
            client,
            client.stream("GET", place.url + path, params=parameters) as response,
        ):
            async for piece in response.aiter_bytes():
                body += piece
                if len(body) > LARGEST:
                    raise FatalError(f"{_where(place, metric)}: is larger than {LARGEST} bytes")
    except TimeoutError as error:
        raise FatalError(f"{_where(place, metric)}: no answer within {PATIENCE:g} s") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise FatalError(f"{_where(place, metric)}: {shown(str(error)) or type(error).__name__}") from error
    return response.status_code, body.decode("utf-8", "replace")


def _samples(name: str, labels: Mapping[str, str], page: str) -> list[float]:
    """The values of the samples of this name with these labels. Raises ValueError."""
    # Of the page only these lines: the parser renames counters by their comments, and is slow.
    lines = [line for line in page.split("\n") if line.startswith(name) and line[len(name) :][:1] in ("{", " ", "\t")]
    if any(len(line) > LONGEST for line in lines):
        raise ValueError(f"a line of {name} is longer than {LONGEST} characters")
    try:
        families = text_string_to_metric_families("\n".join(lines))
        samples = [sample for family in families for sample in family.samples]
        return [float(sample.value) for sample in samples if labels.items() <= sample.labels.items()]
    except (ValueError, IndexError, OverflowError) as error:  # what the parser raises for lines that are none
        raise ValueError(f"what it says of {name} is not Prometheus' text format") from error


Value = tuple[float, float]
"""A time, in seconds, and the number."""


class _Series(BaseModel):
    value: Value


class _Vector(BaseModel):
    resultType: Literal["vector"]
    result: list[_Series]


class _Scalar(BaseModel):
    resultType: Literal["scalar"]
    result: Value


class _Success(BaseModel):
    status: Literal["success"]
    data: Annotated[_Vector | _Scalar, Field(discriminator="resultType")]


class _Refusal(BaseModel):
    error: str


def _answer(body: str) -> list[float]:
    """The numbers of a vector or a scalar. Raises ValueError."""
    try:
        data = _Success.model_validate_json(body).data
    except ValidationError as error:
        raise ValueError("it is no instant vector or scalar of Prometheus' query API") from error
    return [data.result[1]] if isinstance(data, _Scalar) else [series.value[1] for series in data.result]


def _refusal(body: str) -> str:
    """What Prometheus says about a query that it refuses, if it says so."""
    try:
        return shown(_Refusal.model_validate_json(body).error)
    except ValidationError:
        return ""
