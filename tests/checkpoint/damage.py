"""Seeded damage to a model folder: what disks, downloads and liars do."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


def damage(folder: Path, random: Random) -> str:
    """Damage the folder in one way, chosen from those that apply; says which."""
    ways: list[Callable[[Path, Random], Any]] = [truncate, extend, flip_anywhere, replace_file]
    ways += [lose_file, empty_file, break_config, zero_block]
    if list(folder.glob("*.safetensors")):
        ways += [flip_header, flip_length, lie, lie, lie, rename_tensor] * 2
    else:
        ways += [flip_pickle, flip_directory] * 3
    if any((folder / name).exists() for name in INDEXES):
        ways += [lie_in_index] * 3
    way = random.choice(ways)
    way(folder, random)
    return way.__name__


def weights(folder: Path, random: Random) -> Path:
    found = sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")])
    return random.choice(found)


def any_file(folder: Path, random: Random) -> Path:
    return random.choice(sorted([*folder.iterdir()]))


def truncate(folder: Path, random: Random) -> None:
    path = any_file(folder, random)
    os.truncate(path, random.choice([random.randrange(path.stat().st_size), 8, 7]))


def extend(folder: Path, random: Random) -> None:
    with weights(folder, random).open("ab") as file:
        file.write(random.randbytes(random.choice([1, 8, 4096])))


def flip(path: Path, random: Random, start: int, end: int) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(random.choice([1, 1, 2, 5, 20])):
        data[random.randrange(start, min(end, len(data)))] = random.randrange(256)
    path.write_bytes(data)


def flip_anywhere(folder: Path, random: Random) -> None:
    flip(any_file(folder, random), random, 0, 1 << 40)


def flip_header(folder: Path, random: Random) -> None:
    path = weights(folder, random)
    flip(path, random, 8, 8 + int.from_bytes(path.read_bytes()[:8], "little"))


def flip_length(folder: Path, random: Random) -> None:
    path = weights(folder, random)
    data = path.read_bytes()
    length = random.choice([0, 1, 2**31, 2**40, 2**63, 2**64 - 1, random.randrange(len(data))])
    path.write_bytes(length.to_bytes(8, "little") + data[8:])


def flip_pickle(folder: Path, random: Random) -> None:
    flip(weights(folder, random), random, 0, 1500)


def flip_directory(folder: Path, random: Random) -> None:
    path = weights(folder, random)
    size = path.stat().st_size
    flip(path, random, max(size - 1500, 0), size)


def zero_block(folder: Path, random: Random) -> None:
    path = weights(folder, random)
    data = bytearray(path.read_bytes())
    start = random.randrange(len(data))
    data[start : start + 512] = bytes(len(data[start : start + 512]))
    path.write_bytes(data)


def replace_file(folder: Path, random: Random) -> None:
    path = any_file(folder, random)
    path.unlink()
    way = random.choice(["folder", "pipe", "noise", "link"])
    if way == "folder":
        path.mkdir()
    elif way == "pipe":
        os.mkfifo(path)
    elif way == "link":
        path.symlink_to(path)
    else:
        path.write_bytes(random.randbytes(random.choice([9, 100, 5000])))


def lose_file(folder: Path, random: Random) -> None:
    any_file(folder, random).unlink()


def empty_file(folder: Path, random: Random) -> None:
    any_file(folder, random).write_bytes(b"")


def break_config(folder: Path, random: Random) -> None:
    texts = ["", "null", "[]", "{", '{"a": NaN}', '{"a": 1, "a": 2}', "[" * 10**5, "9" * 10**4]
    (folder / "config.json").write_text(random.choice(texts))


HUGE = [-1, 1 << 31, 1 << 62, 1 << 64, 10**30, 0, 1, None, "4", 1.5, True]


def lie(folder: Path, random: Random) -> None:
    """A header that is sound JSON and wrong."""

    def change(header: dict[str, Any], name: str) -> None:
        entry = header[name]
        key = random.choice(["dtype", "shape", "data_offsets"])
        if random.random() < 0.15:
            del entry[key]
        elif key == "dtype":
            entry[key] = random.choice(["F32", "F64", "BF16", "F4", "F6_E2M3", "F128", "", 3, None])
        elif entry[key]:
            at = random.randrange(len(entry[key]))
            old = entry[key][at]
            entry[key][at] = random.choice([*HUGE, old + 4, old - 4, old * 2])

    edit_header(weights(folder, random), random, change)


def rename_tensor(folder: Path, random: Random) -> None:
    def change(header: dict[str, Any], name: str) -> None:
        header[random.choice(["", "\0", "../x", "model.norm.weight", "é", "x" * 5000])] = (
            header.pop(name)
        )

    edit_header(weights(folder, random), random, change)


def edit_header(path: Path, random: Random, change: Callable[[dict[str, Any], str], None]) -> None:
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    change(header, random.choice([name for name in header if name != "__metadata__"]))
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[end:])


def lie_in_index(folder: Path, random: Random) -> None:
    path = next(folder / name for name in INDEXES if (folder / name).exists())
    index = json.loads(path.read_text())
    places = index["weight_map"]
    name, other = random.choice(sorted(places)), random.choice(sorted(set(places.values())))
    way = random.randrange(5)
    if way == 0:
        del places[name]
    elif way == 1:
        places[name] = random.choice(["../" + other, "/etc/hostname", "", ".", None, 3, "x" * 300])
    elif way == 2:
        places[name] = next((shard for shard in places.values() if shard != places[name]), "none")
    elif way == 3:
        places["ghost.weight"] = other
    else:
        index["weight_map"] = random.choice([None, [], {}, list(places)])
    path.write_text(json.dumps(index))


def make_damaged(
    models: list[Path], root: Path, *, count: int, seed: int
) -> dict[Path, tuple[Path, str]]:
    """That many damaged copies of the models; folder → the model, and what was done to it."""
    made = {}
    for i in range(count):
        model, random = models[i % len(models)], Random(f"{seed} {i}")
        folder = shutil.copytree(model, root / f"{i:03d}")
        made[folder] = (model, damage(folder, random))
    return made
