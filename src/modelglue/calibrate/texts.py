"""Calibration text: from a file to documents, from documents to sequences of tokens."""

import json
from collections.abc import Sequence
from pathlib import Path

from modelglue.errors import InputError
from modelglue.evaluate.encoding import Encoder, Tokens
from modelglue.evaluate.items import shown
from modelglue.registry import nearest

_AT_ONCE = 256
SHORTEST = 2
"""Tokens below which nothing is predicted from anything."""


def read_texts(path: str | Path, *, whole: bool = False) -> list[str]:
    """The documents of a text file.

    Args:
        path: `.txt` in UTF-8, a document a line; or `.jsonl`, a document in each line's "text".
        whole: a `.txt` file is one document.

    Raises:
        InputError: there is no such file, it holds no document, or lines that are none.
    """
    path = Path(path)
    if path.suffix not in (".txt", ".jsonl"):
        raise InputError(f"{path}: calibration text is a .txt or a .jsonl file")
    try:
        text = path.read_bytes().decode("utf-8").removeprefix("\ufeff")
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file{_near(path)}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    if path.suffix == ".jsonl":
        documents = _from_json_lines(path, text)
    else:
        # Not splitlines(), which also ends a line at a form feed and at U+2028.
        documents = [text] if whole else [line.rstrip("\r") for line in text.split("\n")]
    documents = [document for document in documents if document.strip()]
    if not documents:
        raise InputError(f"{path}: holds no text")
    return documents


def sequences(
    documents: Sequence[str], encoder: Encoder, *, tokens: int | None = None
) -> list[Tokens]:
    """Documents cut into sequences of at most `encoder.max_length` tokens, none of a single one.

    Args:
        documents: the texts, in the order in which they are used.
        encoder: puts the model's opening token before each document; a document that is longer
            than its `max_length` goes on in further sequences.
        tokens: where to stop, counted over all sequences; None for all text.

    Raises:
        InputError: there is not even one sequence.
        EvaluationError: a token has no row in the model's embedding.
    """
    found: list[Tokens] = []
    room, length = tokens, encoder.max_length
    for first in range(0, len(documents), _AT_ONCE):
        for document in encoder.encode(documents[first : first + _AT_ONCE]):
            for start in range(0, len(document), length):
                piece = document[start : start + length][:room]
                if len(piece) < SHORTEST:
                    continue
                found.append(piece)
                room = None if room is None else room - len(piece)
        if room is not None and room < SHORTEST:
            break
    if not found:
        raise InputError(
            f"the calibration text gives no sequence of {SHORTEST} tokens or more; give more text"
        )
    return found


def _from_json_lines(path: Path, text: str) -> list[str]:
    documents, problems = [], []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            problems.append(f"{path}:{number}: is not JSON: {error}")
            continue
        document = record.get("text") if isinstance(record, dict) else None
        if not isinstance(document, str):
            problems.append(f'{path}:{number}: must be an object with a text in "text"')
        elif any("\ud800" <= character <= "\udfff" for character in document):
            problems.append(f"{path}:{number}: holds half of a surrogate pair, which is no text")
        else:
            documents.append(document)
    if problems:
        raise InputError(shown(problems))
    return documents


def _near(path: Path) -> str:
    siblings = path.parent.iterdir() if path.parent.is_dir() else ()
    return nearest(path.name, [sibling.name for sibling in siblings])
