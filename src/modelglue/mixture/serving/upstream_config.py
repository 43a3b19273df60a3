"""Where experts are served, as a user writes it.

experts:
  - {name: maths, url: "http://10.0.0.5:8000"}
  - name: code
    urls: ["http://a:8000/v1", "http://b:8000/v1"]   # replicas: any of them may answer
    model: org/coder          # what the servers call it; by default as the bundle does
    api_key_env: CODER_KEY    # the environment variable that holds the servers' key
    fields: [top_k, min_p]    # what of requests they understand beyond OpenAI's fields
  - {name: chat, local: true}                        # answered inside the gateway
timeouts: {connect: 5, first_byte: 120, whole: 300, total: 600}  # seconds
probe: {path: /health, every: 5, failures: 2}
concurrent: 32                # requests at once to a replica; the others wait
ca: certificates.pem          # trusted beside the public ones, for https
"""

import os
import ssl
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from modelglue.errors import ConfigError
from modelglue.mixture.serving.settings import Timeouts, read_key
from modelglue.registry import nearest
from modelglue.yamlfile import read_yaml

KEYS = ("experts", "timeouts", "probe", "concurrent", "ca")
EXPERT_KEYS = ("name", "url", "urls", "model", "api_key_env", "fields", "local")
TIMEOUT_KEYS = ("connect", "first_byte", "whole", "total")
PROBE_KEYS = ("path", "every", "failures")


@dataclass(frozen=True)
class Upstream:
    """An expert that other servers answer for.

    Args:
        urls: of its replicas, each ending in `/v1`.
        model: its name there.
        key: for `Authorization`; None where the servers ask for none.
        fields: of requests, passed on beside OpenAI's.
    """

    name: str
    urls: tuple[str, ...]
    model: str
    key: str | None = field(default=None, repr=False)
    fields: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Probe:
    """How replicas are watched.

    Args:
        path: asked of each; any answer below 500 is a sign of life.
        every: seconds.
        failures: in a row, after which a replica gets no requests until a probe succeeds. One that
            takes no connection gets none at once.
    """

    path: str = "/health"
    every: float = 5.0
    failures: int = 2


@dataclass(frozen=True)
class Upstreams:
    """A checked file; experts that it calls local are not among `experts`.

    Args:
        trust: who may vouch for servers that speak https; None for the public authorities.
    """

    experts: tuple[Upstream, ...]
    timeouts: Timeouts
    probe: Probe = field(default_factory=Probe)
    concurrent: int = 32
    trust: ssl.SSLContext | None = field(default=None, repr=False)


def load_upstreams(
    path: Path,
    experts: Sequence[str],
    *,
    timeouts: Timeouts | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Upstreams:
    """Read where the experts of a bundle are served.

    Args:
        experts: the bundle's.
        timeouts: what holds where the file says nothing.

    Raises:
        ConfigError: with everything that is wrong; an expert that is not named is.
    """
    value = read_yaml(path)
    problems: list[str] = []
    found = _parse(value, experts, timeouts or Timeouts(), environ, problems, root=path.parent)
    if problems:
        raise ConfigError(problems, where=str(path))
    return found


def _parse(
    value: object,
    experts: Sequence[str],
    timeouts: Timeouts,
    environ: Mapping[str, str],
    problems: list[str],
    *,
    root: Path,
) -> Upstreams:
    if not isinstance(value, dict) or not isinstance(value.get("experts"), list):
        problems.append("experts: a list of {name, url} is needed")
        return Upstreams((), timeouts)
    _refuse_unknown(value, KEYS, "", problems)
    entries = []
    for i, entry in enumerate(value["experts"]):
        if isinstance(entry, dict) and isinstance(entry.get("name"), str):
            entries.append((f"experts[{i}]", entry))
        else:
            problems.append(f"experts[{i}]: must be a mapping with name and url")
    for name, times in Counter(entry["name"] for _, entry in entries).items():
        if name not in experts:
            problems.append(f"experts: {name!r} is not in the bundle{nearest(name, experts)}")
        elif times > 1:
            problems.append(f"experts: {name!r} is there {times} times; give it several urls")
    known = {entry["name"] for _, entry in entries}
    problems += [
        f"experts: {name!r} is missing; give its url, or {{name: {name}, local: true}} to answer "
        "inside the gateway"
        for name in experts
        if name not in known
    ]
    upstreams = [_upstream(entry, where, environ, problems) for where, entry in entries]
    times_of = _section(value, "timeouts", TIMEOUT_KEYS, problems)
    probe = _section(value, "probe", PROBE_KEYS, problems)
    if not str(path := probe.get("path", "/health")).startswith("/"):
        problems.append(f"probe.path: must begin with /, is {path!r}")
    return Upstreams(
        tuple(upstream for upstream in upstreams if upstream is not None),
        replace(
            timeouts,
            **{key: _seconds(times_of[key], f"timeouts.{key}", problems) for key in times_of},
        ),
        Probe(
            str(path),
            _seconds(probe.get("every", 5.0), "probe.every", problems),
            _count(probe.get("failures", 2), "probe.failures", problems),
        ),
        _count(value.get("concurrent", 32), "concurrent", problems),
        _trust(value.get("ca"), root, problems),
    )


def _trust(ca: object, root: Path, problems: list[str]) -> ssl.SSLContext | None:
    """The public authorities, and those of a file."""
    if ca is None:
        return None
    trust = httpx.create_ssl_context(trust_env=False)
    try:
        trust.load_verify_locations(cafile=root / str(ca))
    except OSError as error:  # ssl's own errors are such, too
        problems.append(f"ca: {ca!r} cannot be read as certificates in PEM: {error}")
    return trust


def _upstream(
    entry: dict[str, Any], where: str, environ: Mapping[str, str], problems: list[str]
) -> Upstream | None:
    _refuse_unknown(entry, EXPERT_KEYS, f"{where}.", problems)
    if entry.get("local"):
        if more := [key for key in entry if key not in ("name", "local")]:
            problems.append(f"{where}: is local, and so has no {', '.join(map(str, more))}")
        return None
    given = entry.get("urls", [entry["url"]] if "url" in entry else [])
    if ("url" in entry) == ("urls" in entry) or not isinstance(given, list) or not given:
        problems.append(f"{where}: needs url, or urls with one at least")
        given = []
    urls = tuple(_base(url, where, problems) for url in given)
    if len(set(urls)) < len(urls):
        problems.append(f"{where}.urls: one is there twice")
    texts = entry.get("fields", [])
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        problems.append(f"{where}.fields: must be a list of names")
        texts = []
    name, key = entry["name"], None
    if (variable := entry.get("api_key_env")) is not None:
        try:
            key = read_key(str(variable), environ)
        except ValueError as error:
            problems.append(f"{where}.api_key_env: {error}")
    return Upstream(name, urls, str(entry.get("model") or name), key, frozenset(texts))


def _base(url: object, where: str, problems: list[str]) -> str:
    try:
        parts = urlsplit(str(url))
        fits = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        httpx.URL(str(url)).host.encode("idna")  # what will ask it, and how names are looked up
    except (ValueError, httpx.InvalidURL):
        fits = False
    if (
        not fits
        or len(str(url).split()) != 1
        or parts.query
        or parts.fragment
        or parts.username
        or parts.password
    ):
        problems.append(
            f"{where}: {url!r} is no address; write http://host:port, without a key in it"
        )
        return ""
    base = str(url).rstrip("/")
    return base if base.endswith("/v1") else f"{base}/v1"


def _section(
    value: dict[str, Any], name: str, keys: Sequence[str], problems: list[str]
) -> dict[str, Any]:
    section = value.get(name, {})
    if not isinstance(section, dict):
        problems.append(f"{name}: must be a mapping of {', '.join(keys)}")
        return {}
    _refuse_unknown(section, keys, f"{name}.", problems)
    return {key: found for key, found in section.items() if key in keys}


def _refuse_unknown(
    value: dict[str, Any], keys: Sequence[str], where: str, problems: list[str]
) -> None:
    problems += [
        f"{where}{key}: unknown key{nearest(str(key), keys)}" for key in value if key not in keys
    ]


def _seconds(value: Any, where: str, problems: list[str]) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
        problems.append(f"{where}: must be seconds above 0, is {value!r}")
        return 1.0
    return float(value)


def _count(value: Any, where: str, problems: list[str]) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        problems.append(f"{where}: must be a whole number from 1, is {value!r}")
        return 1
    return value
