"""A file of upstreams is read, or refused with everything that is wrong."""

from pathlib import Path

import pytest

from modelglue.errors import ConfigError
from modelglue.mixture.serving.settings import Timeouts
from modelglue.mixture.serving.upstream_config import Upstreams, load_upstreams

EXPERTS = ("maths", "code")
ENVIRON = {"CODER_KEY": "sesame\n", "TWO_LINES": "open\nsesame"}


def load(tmp_path: Path, text: str) -> Upstreams:
    path = tmp_path / "upstreams.yaml"
    path.write_text(text)
    return load_upstreams(path, EXPERTS, environ=ENVIRON)


def test_a_whole_file(tmp_path: Path) -> None:
    found = load(
        tmp_path,
        """
        experts:
          - {name: maths, url: "http://10.0.0.5:8000/"}
          - name: code
            urls: ["https://a:8000/v1", "http://[::1]:8001"]
            model: org/coder
            api_key_env: CODER_KEY
            fields: [top_k]
        timeouts: {connect: 1, whole: 30, total: 60}
        probe: {path: /v1/models, every: 2.5, failures: 3}
        concurrent: 4
        """,
    )
    maths, code = found.experts
    assert (maths.urls, maths.model, maths.key) == (("http://10.0.0.5:8000/v1",), "maths", None)
    assert code.urls == ("https://a:8000/v1", "http://[::1]:8001/v1")
    assert (code.model, code.key, code.fields) == ("org/coder", "sesame", {"top_k"})
    assert found.timeouts == Timeouts(connect=1, whole=30, total=60)
    assert (found.probe.path, found.probe.every, found.probe.failures) == ("/v1/models", 2.5, 3)
    assert found.concurrent == 4
    assert "sesame" not in repr(found)


def test_an_expert_may_stay_in_the_process(tmp_path: Path) -> None:
    found = load(tmp_path, "experts: [{name: maths, local: true}, {name: code, url: 'http://a:1'}]")
    assert [upstream.name for upstream in found.experts] == ["code"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[]", ["experts: a list"]),
        ("experts: [{name: maths, url: 'http://a'}]", ["'code' is missing"]),
        (
            "experts: [{name: math, url: 'http://a'}, {name: code, url: 'ftp://a'}, {url: x}]",
            ["'math' is not in the bundle", "'maths' is missing", "is no address", "experts[2]"],
        ),
        (
            "experts: [{name: maths}, {name: code, url: 'http://a', urls: ['http://b']}]",
            ["experts[0]: needs url", "experts[1]: needs url"],
        ),
        (
            "experts: [{name: maths, url: 'http://me:key@a'}, {name: code, urls: ['http://a', "
            "'http://a/v1']}]",
            ["without a key in it", "one is there twice"],
        ),
        (
            "experts: [{name: maths, url: 'http://a', api_key_env: NOPE}, {name: code, local: "
            "true, url: 'http://a'}]",
            ["'NOPE' is not set", "is local"],
        ),
        (
            "experts: [{name: maths, url: 'http://a b:80'}, {name: code, url: 'http://a..b'}]",
            ["'http://a b:80' is no address", "'http://a..b' is no address"],
        ),
        (
            "experts: [{name: maths, local: true}, {name: code, url: 'http://a', api_key_env: "
            "TWO_LINES}]",
            ["'TWO_LINES' holds spaces, line ends"],
        ),
        (
            "experts: [{name: maths, url: 'http://a'}, {name: code, url: 'http://a', modle: x}]\n"
            "timeouts: {conect: 3, total: 0}\nprobe: {path: health, failures: 0}\n"
            "concurrent: many\nretries: 3\nca: upstreams.yaml",
            [
                "modle: unknown key; did you mean",
                "timeouts.conect: unknown key",
                "timeouts.total: must be seconds above 0",
                "probe.path",
                "probe.failures",
                "concurrent: must be a whole number",
                "retries: unknown key",
                "ca: 'upstreams.yaml' cannot be read as certificates",
            ],
        ),
    ],
)
def test_everything_that_is_wrong_is_told_at_once(
    tmp_path: Path, text: str, told: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    message = str(caught.value)
    assert all(part in message for part in told), message
    assert "upstreams.yaml" in message
    assert "sesame" not in message
