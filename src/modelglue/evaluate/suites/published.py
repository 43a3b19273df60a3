"""Files of published datasets, in a folder of the user's or from the Hugging Face hub.

A user's folder holds one folder a dataset, and in it the files as they were published, under their
published names: those of the original release, or those of the dataset's repository on the hub
(`huggingface-cli download --repo-type dataset` with `--local-dir` writes them so).
"""

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelglue.errors import TaskError


@dataclass(frozen=True)
class Published:
    """One split of a dataset.

    Attributes:
        folder: what its folder is called in the user's.
        hub: the dataset's repository on the hub.
        names: patterns of file names under which it was published; the first with a file counts.
    """

    folder: str
    hub: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """A record, a name for it where it has none, and where it stands, for messages."""

    name: str
    place: str
    record: Mapping[str, Any]

    def text(self, *keys: str) -> str:
        """The text under these keys.

        Raises:
            TaskError: there is none.
        """
        value = self.value(*keys)
        if not isinstance(value, str) or not value:
            raise TaskError(f"{self.place}: {'.'.join(keys)}: must be text, not {value!r:.60}")
        return value

    def texts(self, *keys: str) -> list[str]:
        """The list of texts under these keys.

        Raises:
            TaskError: there is none.
        """
        value = self.value(*keys)
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            raise TaskError(
                f"{self.place}: {'.'.join(keys)}: must be a list of texts, not {value!r:.60}"
            )
        return value

    def value(self, *keys: str) -> Any:
        """Whatever stands under these keys, one within the other.

        Raises:
            TaskError: nothing does.
        """
        value: Any = self.record
        for depth, key in enumerate(keys, start=1):
            if not isinstance(value, Mapping) or key not in value:
                raise TaskError(f"{self.place}: {'.'.join(keys[:depth])}: is missing")
            value = value[key]
        return value

    def one_of(self, options: Sequence[str], *keys: str) -> int:
        """The index in `options` of what stands under these keys.

        Raises:
            TaskError: it is none of them.
        """
        value = str(self.value(*keys))
        if value not in options:
            raise TaskError(
                f"{self.place}: {'.'.join(keys)}: must be one of {', '.join(options)}, "
                f"not {value!r:.60}"
            )
        return list(options).index(value)


def on_the_hub(config: str, split: str) -> tuple[str, ...]:
    """The names of a split in a dataset's repository, and of a conversion of it to JSON Lines."""
    return (f"{config}/{split}-*.parquet", f"{config}/{split}.jsonl", f"{split}.jsonl")


def find_files(published: Published, data: Path | None) -> list[Path]:
    """The files of a split: one, or its shards in order.

    Args:
        data: the user's folder; None for the hub, or what was fetched from there before.

    Raises:
        TaskError: there are none; says where they were looked for and where to get them.
    """
    source = f"https://huggingface.co/datasets/{published.hub}"
    if data is None:
        folder = _fetched(published, source)
        looked = f"from {source}"
    else:
        folder = data / published.folder
        looked = f"in {folder}{'' if folder.is_dir() else ', which is no folder'}"
    for name in published.names:
        if found := sorted(folder.glob(name)):
            return found
    raise TaskError(
        f"{published.folder}: there is no {' or '.join(published.names)} {looked}; it is "
        f"published at {source}"
    )


def read_rows(published: Published, data: Path | None) -> list[Row]:
    """The records of a split: JSON Lines, plain or gzipped, or Parquet.

    Raises:
        TaskError: a file is not there or cannot be read, or holds none; says which and where.
    """
    files = find_files(published, data)
    rows: list[Row] = []
    for path in files:
        records = _parquet(path) if path.suffix == ".parquet" else _json_lines(path)
        for place, record in records:
            if not isinstance(record, Mapping):
                raise TaskError(f"{place}: must be an object, {{…}}")
            rows.append(Row(f"{published.folder}/{len(rows)}", place, record))
    if not rows:
        raise TaskError(f"{', '.join(map(str, files))}: holds no records")
    return rows


def _fetched(published: Published, source: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(
            snapshot_download(
                published.hub, repo_type="dataset", allow_patterns=list(published.names)
            )
        )
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = str(error).strip().split("\n")[0]
        raise TaskError(
            f"{published.folder}: cannot be fetched from {source}: {reason}. Fetch it where there "
            f"is a network, and give the folder that holds {published.folder}/ as data"
        ) from error


def _json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield f"{path}:{number}", json.loads(line)
    except json.JSONDecodeError as error:
        raise TaskError(f"{path}:{number}: is not JSON: {error.msg}") from error
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise TaskError(f"{path}: cannot be read: {error}") from error


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import read_table
    except ImportError as error:
        raise TaskError(
            f"{path}: reading Parquet needs pyarrow: pip install 'modelglue[harness]'"
        ) from error
    try:
        records = read_table(path).to_pylist()
    except (OSError, ArrowException) as error:
        raise TaskError(f"{path}: cannot be read: {error}") from error
    for number, record in enumerate(records, start=1):
        yield f"{path}, record {number}", record
