"""Similarity of all pairs: one pass over N checkpoints against loading both models of every pair.

Makes N random Llama-shaped checkpoints in bf16 (about 110 M parameters each; `--small`: 5 M) in a
temporary folder and computes the mean column-wise cosine over all attention and MLP matrices, each
way in a process of its own with one thread and a warm page cache:

- one pass: `modelglue.zoo.similarity.similarities`.
- with fingerprints: the same, and the SHA-256 of all weights (which reads the embeddings too).
- every pair: for each of the N(N−1)/2 pairs the tensors of both models are taken from their
  safetensors files (memory-mapped; only the matrices that count are touched; no transformers, whose
  import and module construction would only add to it), cast to fp32 and given to
  `torch.cosine_similarity`.
- every pair, one kept: the same, but the first model of a pair stays in memory in fp32 while the
  second goes through the others; what a careful person would write.

Printed: CPU seconds of the whole process (user and system, start-up included) and after the
imports, wall seconds, peak private memory (RssAnon as the parent samples it every 10 ms: pages of
mapped files are not counted against anybody), the bytes read, and the largest difference between
the matrices of the two.

    python benchmarks/similarity.py [--models 12] [--small] [--in FOLDER]
"""

import argparse
import itertools
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COUNTED = re.compile(r"(self_attn|mlp)\.\w+_proj\.weight$")
SIDES = {
    "one-pass": "one pass",
    "digest": "  with fingerprints",
    "pairs": "every pair",
    "kept": "every pair, one kept",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=int, default=12)
    parser.add_argument("--small", action="store_true", help="5 M parameters a model")
    parser.add_argument("--in", dest="where", type=Path, help="where to make the temporary folder")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        measure(arguments.side, sorted(arguments.folder.glob("model-*")))
        return
    with tempfile.TemporaryDirectory(dir=arguments.where) as folder:
        parameters = make_models(Path(folder), arguments.models, small=arguments.small)
        print(f"{arguments.models} models of {parameters / 1e6:.0f} M parameters, bf16")
        results = {side: run(side, folder) for side in SIDES}
    print_table(results)


def make_models(folder: Path, models: int, *, small: bool) -> int:
    """Write a base and fine-tunes of it (the base plus noise); returns the parameters of one."""
    import torch
    from safetensors.torch import save_file

    hidden, ffn, layers, vocabulary = (256, 688, 4, 8000) if small else (768, 2048, 12, 32000)
    shapes = {"model.embed_tokens.weight": (vocabulary, hidden), "model.norm.weight": (hidden,)}
    for layer in range(layers):
        at = f"model.layers.{layer}."
        shapes |= {f"{at}self_attn.{x}_proj.weight": (hidden, hidden) for x in "qkvo"}
        shapes |= {f"{at}mlp.{x}_proj.weight": (ffn, hidden) for x in ("gate", "up")}
        shapes[f"{at}mlp.down_proj.weight"] = (hidden, ffn)
        shapes |= {f"{at}{x}_layernorm.weight": (hidden,) for x in ("input", "post_attention")}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 64,
        "vocab_size": vocabulary,
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
    }
    generator = torch.Generator().manual_seed(0)
    base = {name: torch.randn(s, generator=generator) * 0.02 for name, s in shapes.items()}
    for i in range(models):
        path = folder / f"model-{i:02}"
        path.mkdir()
        tuned = {
            name: (t + 0.002 * i**0.5 * torch.randn(t.shape, generator=generator)).bfloat16()
            for name, t in base.items()
        }
        save_file(tuned, path / "model.safetensors", metadata={"format": "pt"})
        (path / "config.json").write_text(json.dumps(config))
    return sum(t.numel() for t in base.values())


def run(side: str, folder: str) -> dict:
    """One side in a process of its own, its private memory watched from here."""
    command = [sys.executable, __file__, "--side", side, "--folder", folder]
    # Fingerprints are cached in the user's folder; here they must neither be found nor stay.
    environment = {**os.environ, "XDG_CACHE_HOME": f"{folder}/cache"}
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    status = Path(f"/proc/{child.pid}/status")
    peak = 0
    while child.poll() is None:
        found = re.search(r"RssAnon:\s+(\d+) kB", status.read_text())
        peak = max(peak, int(found[1]) << 10 if found else 0)
        time.sleep(0.01)
    if child.returncode:
        sys.exit(f"{side} failed")
    return {**json.loads(child.stdout.read()), "private": peak}


def measure(side: str, paths: list[Path]) -> None:
    """Run one side in this process and print its figures as JSON."""
    start = time.perf_counter()
    import torch

    torch.set_num_threads(1)
    if side in ("one-pass", "digest"):
        from modelglue.checkpoint.reader import Checkpoint
        from modelglue.zoo.similarity import similarities

        imported = time.process_time()
        before = bytes_through_read()
        models = [Checkpoint.open(path) for path in paths]
        matrix = similarities(models, fingerprint=side == "digest").matrix.tolist()
        read = bytes_through_read() - before
    else:
        import safetensors.torch  # noqa: F401

        imported = time.process_time()
        matrix, read = all_pairs(paths, keep=side == "kept")
    spent = resource.getrusage(resource.RUSAGE_SELF)
    result = {
        "cpu": spent.ru_utime + spent.ru_stime,
        "cpu_after_imports": time.process_time() - imported,
        "wall": time.perf_counter() - start,
        "read": read,
        "matrix": matrix,
    }
    print(json.dumps(result))


def bytes_through_read() -> int:
    """What this process has read through system calls since it began."""
    return int(re.search(r"rchar: (\d+)", Path("/proc/self/io").read_text())[1])


def all_pairs(paths: list[Path], *, keep: bool) -> tuple[list[list[float]], int]:
    """The baseline: the matrix, and the bytes of all the tensors that were taken from files."""
    matrix = [[1.0] * len(paths) for _ in paths]
    read = 0
    kept: tuple[int, dict] = (-1, {})
    for i, j in itertools.combinations(range(len(paths)), 2):
        if not keep:
            a, size = load(paths[i])
            read += size
        else:
            if kept[0] != i:
                a, size = load(paths[i])
                read += size
                kept = (i, {name: tensor.float() for name, tensor in a.items()})
            a = kept[1]
        b, size = load(paths[j])
        read += size
        matrix[i][j] = matrix[j][i] = similarity(a, b)
    return matrix, read


def load(path: Path) -> tuple[dict, int]:
    from safetensors import safe_open

    with safe_open(path / "model.safetensors", framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys() if COUNTED.search(name)}  # noqa: SIM118
    return tensors, sum(tensor.nbytes for tensor in tensors.values())


def similarity(a: dict, b: dict) -> float:
    import torch

    cosines = [torch.cosine_similarity(a[n].float(), b[n].float(), dim=0).mean() for n in a]
    return torch.stack(cosines).mean().item()


def print_table(results: dict[str, dict]) -> None:
    ours = results["one-pass"]
    print(
        f"{'':22}{'CPU s':>8}{'ratio':>8}{'without imports':>17}{'ratio':>8}"
        f"{'wall s':>8}{'private':>10}{'read':>10}{'difference':>12}"
    )
    for side, label in SIDES.items():
        it = results[side]
        difference = max(
            abs(x - y)
            for row, mine in zip(it["matrix"], ours["matrix"], strict=True)
            for x, y in zip(row, mine, strict=True)
        )
        print(
            f"{label:22}{it['cpu']:8.2f}{it['cpu'] / ours['cpu']:8.1f}"
            f"{it['cpu_after_imports']:17.2f}"
            f"{it['cpu_after_imports'] / ours['cpu_after_imports']:8.1f}"
            f"{it['wall']:8.1f}{it['private'] / 2**20:6.0f} MiB{it['read'] / 1e9:7.2f} GB"
            f"{difference:12.1e}"
        )


if __name__ == "__main__":
    main()
