"""The pieces in a SentencePiece model, read without its library.

The file is a protocol buffer: its field 1 holds a piece each, whose field 1 is the text. A piece's
number is its place.
"""


def pieces(data: bytes) -> list[str]:
    """The texts of all pieces, in order.

    Raises:
        ValueError: this is no SentencePiece model.
    """
    found = [_text(piece) for number, piece in _fields(data) if number == 1]
    if not found:
        raise ValueError("there is no piece in it")
    return found


def _text(piece: bytes) -> str:
    for number, value in _fields(piece):
        if number == 1:
            return value.decode("utf-8")
    return ""


def _fields(data: bytes) -> list[tuple[int, bytes]]:
    """Number and bytes of every field that has a length; numbers in between are skipped."""
    found = []
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        match key & 7:
            case 0:
                _, at = _varint(data, at)
            case 1:
                at += 8
            case 5:
                at += 4
            case 2:
                length, at = _varint(data, at)
                found.append((key >> 3, data[at : at + length]))
                at += length
            case kind:
                raise ValueError(f"no field is of kind {kind}")
    if at != len(data):
        raise ValueError("it ends in the middle of a field")
    return found


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 64:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise ValueError("a number does not end")
