"""What is not plainly as it must be is not quiet, and what cannot be asked keeps no other monitor from being asked."""

from __future__ import annotations

import gzip
import random
import re
import socket
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from fishladder import metrics, monitors, tasks
from fishladder.errors import FatalError, InputError, SpecError
from fishladder.export import export
from fishladder.monitors import FEWEST, Observed
from fishladder.page import write
from fishladder.spec import loads
from fishladder.spec_parts import Metric, Monitor
from fishladder.tasks import Desk
from tests.unit.flips import Flips
from tests.unit.metrics_server import SILENCE, TRICKLE, Pages, pages
from tests.unit.small import SPEC, Small
from tests.unit.test_approvals import Watch, desk_of

FAILED = """\
# HELP failed_total Payments that failed, by country.
# TYPE failed_total counter
failed_total{country="NZ",instance="a"} 3
failed_total{country="NZ",instance="b"} 4.5 1700000000000
failed_total{country="AU",instance="a"} 100
failed_total_of_all 999
# TYPE opened counter
opened 12
# EOF
"""


@pytest.fixture
def page() -> Iterator[Pages]:
    with pages() as found:
        found.say(FAILED)
        yield found


def read(page: Pages, **words: Any) -> float:
    return metrics.read(metrics.endpoint("shop", page.url), Metric(connection="shop", **words))


def refuses(page: Pages, words: str, **metric: Any) -> None:
    with pytest.raises(FatalError, match=f"^connection shop: {words}"):
        read(page, **(metric or {"name": "failed_total"}))


# A metric ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "value"),
    [({}, 107.5), ({"country": "NZ"}, 7.5), ({"country": "NZ", "instance": "a"}, 3), ({"instance": "a"}, 103)],
)
def test_samples_with_these_labels_are_added_up(page: Pages, labels: dict[str, str], value: float) -> None:
    assert read(page, name="failed_total", labels=labels) == value


def test_a_name_is_the_one_on_the_page(page: Pages) -> None:
    """Not the one that a library makes of it, nor the beginning of another."""
    assert read(page, name="opened") == 12
    assert read(page, name="failed_total_of_all") == 999
    refuses(page, r"/metrics: has no sample of opened_total\{\}$", name="opened_total")
    refuses(page, r"/metrics: has no sample of failed\{\}$", name="failed")


def test_labels_that_no_sample_has_are_no_data(page: Pages) -> None:
    labels = {"country": "nz", "instance": "a"}
    refuses(
        page, r"/metrics: has no sample of failed_total\{country=nz, instance=a\}$", name="failed_total", labels=labels
    )


def test_an_escaped_label(page: Pages) -> None:
    page.say('x{a="}, b=\\"c\\"\\\\"} 1e3\n')
    assert read(page, name="x", labels={"a": '}, b="c"\\'}) == 1000


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"body": "<html><p>failed_total 3</p></html>"}, r"/metrics: has no sample of failed_total"),
        ({"body": ""}, r"/metrics: has no sample of failed_total"),
        ({"body": FAILED, "status": 500}, "/metrics: answered 500$"),
        ({"body": FAILED, "status": 204}, "/metrics: "),
        ({"body": "failed_total NaN\n"}, r"/metrics: failed_total\{\} is nan$"),
        ({"body": "failed_total 1\nfailed_total NaN\n"}, r"/metrics: failed_total\{\} is nan$"),
        ({"body": "failed_total +Inf\n"}, r"/metrics: failed_total\{\} is inf$"),
        ({"body": "failed_total +Inf\nfailed_total -Inf\n"}, "/metrics: cannot be read: "),
        ({"body": "failed_total 1e308\nfailed_total 1e308\n"}, "/metrics: cannot be read: "),
        ({"body": "failed_total many\n"}, "/metrics: cannot be read: what it says of failed_total is not Prometheus'"),
        ({"body": "failed_total{ ='1'} 1\n"}, "/metrics: cannot be read: what it says of failed_total is not"),
        ({"body": f"failed_total {'9' * 400}\n"}, "/metrics: cannot be read: what it says of failed_total is not"),
        (
            {"body": f'failed_total{{a="{"x" * 10_000}"}} 1\n'},
            "/metrics: cannot be read: a line of failed_total is longer",
        ),
        ({"body": b"\xff\xfe\x00f\x00a"}, r"/metrics: has no sample of failed_total"),
        ({"body": b"no gzip", "headers": {"Content-Encoding": "gzip"}}, "/metrics: "),
        ({"body": FAILED, "headers": {"Content-Length": "9999"}}, "/metrics: "),
        ({"body": b"#" * 4_000_001}, "/metrics: is larger than 4000000 bytes$"),
        (
            {"body": gzip.compress(b"#" * 40_000_000), "headers": {"Content-Encoding": "gzip"}},
            "/metrics: is larger than",
        ),
    ],
)
def test_what_is_no_page_of_metrics_is_no_data(page: Pages, answer: dict[str, Any], words: str) -> None:
    page.say(**answer)
    refuses(page, words)


def test_lines_that_something_has_spoilt_are_read_or_refused() -> None:
    """What else the parser raises never comes out."""
    rng, whole = random.Random(3), 'a{x="1",y="q\\"z"} 12.5 1700000000000'
    for _ in range(3000):
        line = list(whole)
        for _ in range(rng.randrange(1, 5)):
            line[rng.randrange(1, len(line))] = rng.choice('{}",=\\ \t_#1eN+-aé\0')
        with suppress(ValueError):
            metrics._samples("a", {}, "".join(line))


@pytest.mark.parametrize("silent", [SILENCE, TRICKLE])
def test_an_endpoint_that_never_ends_is_given_up(page: Pages, monkeypatch: pytest.MonkeyPatch, silent: str) -> None:
    """Also one that says something all the time."""
    monkeypatch.setattr(metrics, "PATIENCE", 0.3)
    page.say("", status=silent)
    refuses(page, r"/metrics: no answer within 0\.3 s$")


def test_an_address_that_is_too_long(page: Pages) -> None:
    refuses(page, "/api/v1/query: URL .*too long$", query="x" * 70_000)


def test_nobody_at_home(page: Pages) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        page.url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        refuses(page, "/metrics: .")
    page.url = "http://no..host"
    refuses(page, "/metrics: .")


def test_a_redirect_is_not_followed(page: Pages) -> None:
    with pages() as elsewhere:
        elsewhere.say(FAILED)
        page.say("", status=302, headers={"Location": elsewhere.url + "/metrics"})
        refuses(page, "/metrics: answered 302$")
        assert elsewhere.asked == []


def test_no_proxy_sees_the_account(page: Pages, monkeypatch: pytest.MonkeyPatch) -> None:
    with pages() as proxy:
        for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(variable, proxy.url)
        assert read(page, name="opened") == 12
        assert proxy.asked == []


def test_the_account_is_the_connections(page: Pages) -> None:
    basic = metrics.endpoint("shop", page.url.replace("//", "//ann:p%40ss@"))
    bearer = metrics.endpoint("shop", page.url, authorization="Bearer x")
    for place in (basic, bearer):
        assert metrics.read(place, Metric(connection="shop", name="opened")) == 12
        assert "p@ss" not in repr(place) and "Bearer" not in repr(place)
    said = [headers["Authorization"] for _, headers in page.asked]
    assert said == [f"Basic {b64encode(b'ann:p@ss').decode()}", "Bearer x"]


@pytest.mark.parametrize(
    "url",
    [
        *("", "shop", "shop:9090", "ftp://shop", "http://", "http://shop:secret/", "http://shop:99999"),
        *("http://u:12/secret@shop", "http://shop?token=secret", "http://shop#secret", "http://shop/\0"),
    ],
)
def test_a_url_that_is_none_is_refused_without_being_shown(url: str) -> None:
    with pytest.raises(InputError, match=r"^connection shop: its URL must be http://host:port or https") as refused:
        metrics.endpoint("shop", url)
    assert "secret" not in str(refused.value) and refused.value.__cause__ is None


def test_a_header_of_two_lines_is_refused_without_being_shown() -> None:
    with pytest.raises(InputError, match="its Authorization holds what no header may; write it in one") as refused:
        metrics.endpoint("shop", "http://shop", authorization="Bearer secret\r\nX: y")
    assert "secret" not in str(refused.value)


# Prometheus itself ---------------------------------------------------------------------------------------------------

VECTOR = '{"status":"success","data":{"resultType":"vector","result":[%s]}}'
SERIES = '{"metric":{"country":"NZ"},"value":[1700000000.1,"%s"]}'


def test_prometheus_is_asked_a_query(page: Pages) -> None:
    page.url += "/prometheus"
    page.say(VECTOR % ",".join(SERIES % value for value in ("1.5", "2")), path="/prometheus/api/v1/query")
    query = 'rate(failed_total{country="NZ"}[5m]) + 0'
    assert read(page, query=query) == 3.5
    assert page.asked[0][0].startswith("/prometheus/api/v1/query?query=rate%28failed_total%7Bcountry%3D%22NZ%22%7D")
    assert "+0" in page.asked[0][0] and "%2B" in page.asked[0][0]
    page.say(
        '{"status":"success","data":{"resultType":"scalar","result":[1700000000,"7"]}}', path="/prometheus/api/v1/query"
    )
    assert read(page, query="7") == 7


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (200, VECTOR % "", "has no sample of x$"),
        (200, VECTOR % SERIES % "NaN", "x is nan$"),
        (200, VECTOR % SERIES % "+Inf", "(x is inf|cannot be read)"),
        (200, VECTOR % SERIES % "many", "cannot be read: it is no instant vector or scalar of Prometheus"),
        (200, VECTOR % '{"metric":{},"histogram":[1,{}]}', "cannot be read"),
        (200, '{"status":"success","data":{"resultType":"matrix","result":[]}}', "cannot be read"),
        (200, '{"status":"error","error":"no"}', "cannot be read"),
        (200, "<html>", "cannot be read"),
        (200, "[" * 100_000, "cannot be read"),
        (400, '{"status":"error","errorType":"bad_data","error":"parse error: x"}', "answered 400: parse error: x$"),
        (503, "<html>", "answered 503$"),
    ],
)
def test_what_is_no_answer_of_prometheus_is_no_data(page: Pages, status: int, body: str, words: str) -> None:
    page.say(body, path="/api/v1/query", status=status)
    refuses(page, f"/api/v1/query: {words}", query="x")


# The words of the file -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("monitor", "words"),
    [
        ("{must_be: zero}", "asks nothing; write source: or target: with a query, or metric:"),
        (
            "{must_be: zero, source: select 1, metric: {connection: m, name: x}}",
            "asks a metric and a store; make two monitors of it",
        ),
        (
            "{must_be: as_before, source: select 1}",
            "must_be: must be 'zero', 'positive', 'no_more_than_before' or 'no_less_than_before', not 'as_before'",
        ),
        ("{must_be: no_more_than_before, source: select 1}", "no_more_than_before needs within:, such as 1.5"),
        (
            "{must_be: zero, source: select 1, within: 2}",
            "within: and window: belong to no_more_than_before and no_less",
        ),
        (
            "{must_be: zero, source: select 1, window: 1d}",
            "within: and window: belong to no_more_than_before and no_less",
        ),
        (
            "{must_be: no_less_than_before, source: select 1, within: 0.9}",
            "within: must be greater than or equal to 1",
        ),
        (
            "{must_be: no_less_than_before, source: select 1, within: 1001}",
            "within: must be less than or equal to 1000",
        ),
        ("{must_be: no_less_than_before, source: select 1, within: .nan}", "within: must be "),
        ("{must_be: no_less_than_before, source: select 1, within: half}", "within: must be a number"),
        (
            "{must_be: no_more_than_before, source: select 1, within: 2, window: 91d}",
            "window: goes back further than 90d",
        ),
        (
            "{must_be: no_more_than_before, source: select 1, within: 2, window: 999999d}",
            "window: is longer than ten years",
        ),
        ("{must_be: zero, metrics: {connection: m, name: x}}", "metrics: unknown word; did you mean 'metric'?"),
        ("{must_be: zero, metric: {connection: m, label: x}}", "metric.label: unknown word; did you mean 'labels'?"),
        ("{must_be: zero, metric: {name: x}}", "metric.connection: is missing"),
        (
            '{must_be: zero, metric: {connection: "http://u:p@m:9090/metrics", name: x}}',
            "metric.connection: must be the id of a connection (letters, digits, _ . -), not a URL",
        ),
        ("{must_be: zero, metric: {connection: m}}", "metric: write either name: with a metric's name, or query: with"),
        ("{must_be: zero, metric: {connection: m, name: x, query: y}}", "metric: write either name: with a metric's"),
        ("{must_be: zero, metric: {connection: m, query: y, path: /x}}", "metric: path: and labels: belong to name:"),
        ("{must_be: zero, metric: {connection: m, query: y, labels: {a: b}}}", "metric: path: and labels: belong to"),
        (
            "{must_be: zero, metric: {connection: m, name: 'x{a=\"b\"}'}}",
            "metric.name: must be a metric's name alone, such as payments_failed_total; write labels: {…} for its",
        ),
        *(
            (
                f"{{must_be: zero, metric: {{connection: m, name: x, path: '{path}'}}}}",
                "metric.path: must be a path such",
            )
            for path in ("metrics", "//elsewhere/metrics", "http://elsewhere", "/a b", "")
        ),
    ],
)
def test_a_wrong_monitor_says_what_where_and_what_to_write(monitor: str, words: str) -> None:
    with pytest.raises(SpecError) as error:
        loads(f"{SPEC}monitors:\n  doubt: {monitor}\n", name="small.yaml", environment={})
    assert re.search(rf"^small\.yaml:14: monitors\.doubt[.:] ?{re.escape(words)}", str(error.value), re.M), error.value


def test_a_metric_comes_back_from_the_ledger() -> None:
    part = "{must_be: no_more_than_before, within: 1.5, metric: {connection: m, name: x, labels: {a: '1'}}}"
    spec = loads(f"{SPEC}monitors: {{doubt: {part}}}", name="small.yaml", environment={})
    assert type(spec).from_json(spec.to_json()) == spec
    assert spec.monitors["doubt"].window == timedelta(days=7)


# All monitors together -----------------------------------------------------------------------------------------------

MORE = Monitor(must_be="no_more_than_before", within=1.5, metric=Metric(connection="shop", name="failed"))
LESS = MORE.model_copy(update={"must_be": "no_less_than_before", "within": 2.0})


def watched(small: Small, page: Pages, **asked: Monitor) -> Desk:
    """A desk with these monitors, and a clock that the test sets."""
    clock = Watch()
    small.ledger._clock = clock.now
    spec = small.spec.model_copy(update={"monitors": asked})
    measure: monitors.Measure = lambda metric: metrics.read(metrics.endpoint(metric.connection, page.url), metric)  # noqa: E731
    return replace(desk_of(small, clock), spec=spec, measure=measure)


def values(desk: Desk, page: Pages, *numbers: float) -> list[Observed]:
    """What the monitors say when the metric ``failed`` has these values, five minutes after each other."""
    found: list[Observed] = []
    for number in numbers:
        page.say(f"failed {number}\n")
        found = tasks.observe(desk)
        desk.clock.sleep(300)
    return found


def test_one_that_fails_keeps_no_other_from_being_asked(small: Small, page: Pages) -> None:
    def metric(**words: Any) -> Monitor:
        return Monitor(must_be="positive", metric=Metric(connection="shop", **words))

    desk = watched(
        small,
        page,
        wrong=Monitor(must_be="zero", target="select count(*) from nowhere"),
        infinite=Monitor(must_be="positive", source="select 9e999"),
        away=metric(name="x", path="/away"),
        garbage=metric(query="x"),
        unknown=metric(name="x"),
        counted=Monitor(must_be="positive", source="select count(*) from item"),
        opened=metric(name="opened"),
    )
    found = {one.name: one for one in tasks.observe(desk)}
    assert {name for name, one in found.items() if one.quiet} == {"counted", "opened"}
    assert str(found["away"]) == "away must be positive: metric no data: connection shop: /away: answered 404"
    assert "no data: " in found["wrong"].values["target"] and "nowhere" in found["wrong"].values["target"]
    assert found["infinite"].values == {"source": "no data"}
    kept = desk.ledger.latest_evidence("monitor", "opened")
    assert kept is not None and kept.genuine and kept.passed and kept.body["values"] == {"metric": "12"}


def test_a_desk_without_metrics_says_so(small: Small, page: Pages) -> None:
    (found,) = tasks.observe(replace(watched(small, page, failed=MORE), measure=monitors.no_metrics))
    assert not found.quiet and found.values["metric"] == "no data: connection shop: metrics cannot be asked here"


# Before and after ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("monitor", "value", "quiet", "words"),
    [
        (MORE, 6, True, "at most 6, 1.5 times the median 4 of 12 values"),
        (MORE, 0, True, "at most 6"),
        (MORE, 6.01, False, "at most 6"),
        (LESS, 2, True, "at least 2, 1/2 of the median 4 of 12 values"),
        (LESS, 900, True, "at least 2"),
        (LESS, 1.99, False, "at least 2"),
    ],
)
def test_more_and_less_than_before(
    small: Small, page: Pages, monitor: Monitor, value: float, quiet: bool, words: str
) -> None:
    """Half of the values may be wild."""
    desk = watched(small, page, failed=monitor)
    values(desk, page, *([4] * 7 + [1000, 0, 1e9, 0, 5]))
    (found,) = values(desk, page, value)
    assert found.quiet is quiet and found.before["metric"].startswith(words), str(found)
    kept = desk.ledger.latest_evidence("monitor", "failed")
    assert kept is not None and kept.passed is quiet and kept.body["before"] == found.before
    assert str(found).endswith(f"metric {value:g} ({found.before['metric']})")


def test_too_few_values_are_no_baseline(small: Small, page: Pages) -> None:
    desk = watched(small, page, failed=MORE)
    (found,) = values(desk, page, *[4] * FEWEST)
    assert not found.quiet
    assert found.before["metric"] == "no baseline: 11 values of 7d before the last flip, it takes 12"
    (found,) = values(desk, page, 4)
    assert found.quiet


def test_no_data_is_no_value(small: Small, page: Pages) -> None:
    desk = watched(small, page, failed=MORE)
    values(desk, page, *[4] * 11)
    page.say("", status=500)
    assert not tasks.observe(desk)[0].quiet
    assert not values(desk, page, 4)[0].quiet
    assert values(desk, page, 4)[0].quiet


@pytest.mark.parametrize(
    ("monitor", "past", "words"),
    [
        (LESS, 0, "no baseline: its median is 0, of which no factor makes sense"),
        (LESS, -3, "no baseline: its median is -3"),
        (MORE, -3, "no baseline: its median is -3"),
    ],
)
def test_a_median_that_no_factor_fits_is_no_baseline(
    small: Small, page: Pages, monitor: Monitor, past: float, words: str
) -> None:
    (found,) = values(watched(small, page, failed=monitor), page, *[past] * 14)
    assert not found.quiet and found.before["metric"].startswith(words)


def test_a_median_of_zero_allows_none(small: Small, page: Pages) -> None:
    desk = watched(small, page, failed=MORE)
    assert values(desk, page, *[0] * 13)[0].quiet
    assert not values(desk, page, 1)[0].quiet


def test_values_grow_too_old(small: Small, page: Pages) -> None:
    desk = watched(small, page, failed=MORE.model_copy(update={"window": timedelta(hours=2)}))
    assert values(desk, page, *[4] * 13)[0].quiet
    desk.clock.sleep(7200)
    assert "0 values of 2h before" in values(desk, page, 4)[0].before["metric"]


def test_both_stores_have_pasts_of_their_own(small: Small, page: Pages) -> None:
    small.load()
    query = "select count(*) from item"
    desk = watched(small, page, items=Monitor(must_be="no_less_than_before", within=1.1, source=query, target=query))
    assert values(desk, page, *[0] * 13)[0].quiet
    small.damage("DELETE FROM item WHERE id = 10")
    (found,) = tasks.observe(desk)
    assert found.values == {"source": "3", "target": "2"} and not found.quiet


def test_another_question_has_no_past(small: Small, page: Pages) -> None:
    desk = watched(small, page, failed=MORE)
    assert values(desk, page, *[4] * 13)[0].quiet
    assert MORE.metric is not None
    other = MORE.model_copy(update={"metric": MORE.metric.model_copy(update={"path": "/metrics?all"})})
    asked = replace(desk, spec=desk.spec.model_copy(update={"monitors": {"failed": other}}))
    assert "no baseline: 0 values" in tasks.observe(asked)[0].before["metric"]
    wider = MORE.model_copy(update={"within": 3.0})
    asked = replace(desk, spec=desk.spec.model_copy(update={"monitors": {"failed": wider}}))
    assert tasks.observe(asked)[0].quiet


@pytest.mark.parametrize(
    "change",
    [
        "body = replace(body, '\"4\"', '\"400\"')",
        "body = replace(body, '\"4\"', '\"no number\"')",
        "body = 'no JSON'",
        "subject = 'failed', passed = NOT passed",
        "began = datetime(began, '+1 hours')",
    ],
)
def test_evidence_that_somebody_changed_does_not_count(small: Small, page: Pages, change: str) -> None:
    desk = watched(small, page, failed=MORE)
    assert values(desk, page, *[4] * 13)[0].quiet
    desk.clock.sleep(3600)
    with small.ledger.engine.begin() as connection:
        statement = f"UPDATE ledger_evidence SET {change} WHERE id <= (SELECT min(id) + 1 FROM ledger_evidence)"
        assert connection.execute(text(statement)).rowcount == 2
    (found,) = values(desk, page, 300)
    assert not found.quiet and "no baseline: 11 values" in found.before["metric"]


def test_before_is_before_the_last_flip(flips: Flips, page: Pages) -> None:
    small = flips.small
    desk = watched(small, page, failed=MORE)
    values(desk, page, *[4] * 13)
    assert flips.move().outcome == "done"
    desk.clock.sleep(300)
    (found,) = values(desk, page, *[40] * 20)
    assert not found.quiet and found.before["metric"] == "at most 6, 1.5 times the median 4 of 13 values"
    assert values(desk, page, 5)[0].quiet


@pytest.mark.parametrize("what", ["aborted", "rolled back"])
def test_what_did_not_move_or_moved_back_is_no_flip(flips: Flips, page: Pages, what: str) -> None:
    small = flips.small
    desk = watched(small, page, failed=MORE)
    values(desk, page, *[4] * 13)
    if what == "aborted":
        number = flips.verified()
        flips.until(number, "drain")
        small.ledger.abort(small.ledger.attempt(number), "enough")
        assert flips.cutover.run(number).outcome == "aborted"
        counted = 18
    else:
        assert flips.move().outcome == "done"
        counted = 13
    desk.clock.sleep(300)
    values(desk, page, *[4] * 5)
    if what == "rolled back":
        assert flips.move("rollback").outcome == "done"
        desk.clock.sleep(300)
    (found,) = values(desk, page, 4)
    assert found.before["metric"].endswith(f"the median 4 of {counted} values")


# Whoever approves and whoever audits ---------------------------------------------------------------------------------


@pytest.fixture
def approving(small: Small, page: Pages) -> Callable[..., tuple[Desk, int]]:
    def make(**asked: Monitor) -> tuple[Desk, int]:
        desk = watched(small, page, **asked)
        attempt = small.ledger.begin_attempt("NZ", "flip", actor="ann", reason="", deadline=60)
        body = {"gates": [{"name": "monitors", "found": "quiet"}]}
        desk.keep("gates", f"attempt {attempt.id}", body, True, desk.clock.now())
        return desk, attempt.id

    return make


def test_whoever_approves_sees_the_newest_values_and_the_past(
    approving: Callable[..., tuple[Desk, int]], page: Pages
) -> None:
    items = Monitor(must_be="positive", source="select count(*) from item")
    desk, attempt = approving(failed=MORE, items=items, away=Monitor(must_be="zero", target="select * from `a|b`"))
    shown = write(desk.spec, desk.ledger, desk.ledger.attempt(attempt), [], desk.clock.now()).split("\n")
    assert "| items | positive | - | - |" in shown
    values(desk, page, *[4] * 12, 5, 6)
    lines = write(desk.spec, desk.ledger, desk.ledger.attempt(attempt), [], desk.clock.now()).split("\n")
    assert "| items | positive | source 3 · source 3 · source 3 | - |" in lines
    (line,) = (line for line in lines if line.startswith("| failed "))
    assert line.startswith("| failed | no_more_than_before | metric 6 · metric 5 · metric 4 | metric at most 6,")
    (line,) = (line for line in lines if line.startswith("| away "))
    assert len(re.findall(r"(?<!\\)\|", line)) == 5  # nobody's words make cells


def test_an_auditor_finds_values_and_past(
    approving: Callable[..., tuple[Desk, int]], page: Pages, tmp_path: Path
) -> None:
    desk, attempt = approving(failed=MORE)
    values(desk, page, *[4] * 13)
    made = tmp_path / "export"
    export(desk.ledger, attempt, made, actor="auditor")
    assert "at most 6, 1.5 times the median 4 of 12 values" in (made / "evidence.jsonl").read_text()
    assert "at most 6, 1.5 times the median 4 of 12 values" in (made / "page.html").read_text()
