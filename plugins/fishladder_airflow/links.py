"""Links from a task to the evidence that it kept, and the addresses of the pages that Airflow serves."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from airflow.sdk import BaseOperatorLink
from airflow.sdk.configuration import conf

PREFIX = "/fishladder"


def evidence_path(dag_id: str, digest: str) -> str:
    """Where the page is, seen from ``PREFIX``."""
    return f"/{dag_id}/evidence/{digest}"


def cohorts_path(dag_id: str) -> str:
    """Where the page of all cohorts is, seen from ``PREFIX``."""
    return f"/{dag_id}/cohorts"


def link_to(path: str) -> str:
    """Without a host: the browser is at Airflow already, by whatever name it knows it."""
    return urlsplit(conf.get("api", "base_url", fallback="")).path.rstrip("/") + PREFIX + path


class EvidenceLink(BaseOperatorLink):
    """To the evidence of which the operator's ``evidence`` is the digest; to nowhere if it kept none."""

    @property
    def name(self) -> str:
        return "Evidence"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        return link_to(evidence_path(ti_key.dag_id, operator.evidence)) if operator.evidence else ""
