"""Statistics of a live model on calibration text, as a checkpoint beside the model's own.

As many tensors at a time as fit into `memory`: the text is run through the model once for each such
group, so that beyond the model only one group's statistics are held. A finished group is kept on
disk, and a run that was killed goes on at the group where it stopped.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from modelglue.calibrate.fisher import Labels
from modelglue.calibrate.parts import Parts, work_folder
from modelglue.calibrate.targets import Target, groups
from modelglue.calibrate.texts import SHORTEST, read_texts, sequences
from modelglue.calibrate.work import Work, fisher_work, gram_work
from modelglue.checkpoint.lora import LoraCheckpoint
from modelglue.checkpoint.reader import Checkpoint
from modelglue.checkpoint.source import materialise, open_checkpoint
from modelglue.errors import (
    CheckpointError,
    ConfigError,
    EvaluationError,
    OutOfSpace,
    OutputExists,
)
from modelglue.evaluate.encoding import Encoder
from modelglue.evaluate.huggingface import HuggingFaceModel, embedding_rows
from modelglue.evaluate.threads import threads_for

Kind = Literal["fisher", "gram"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Progress = Callable[[int, int], None]


def compute_statistics(
    model: str | Path,
    texts: str | Path | Sequence[str],
    out: str | Path,
    *,
    kind: Kind,
    labels: Labels = "model",
    seed: int = 0,
    tokens: int | None = None,
    max_length: int = 512,
    batch_size: int = 8,
    memory: int = 4 << 30,
    device: str = "cpu",
    dtype: Dtype = "auto",
    progress: Progress | None = None,
) -> Path:
    """Compute what `fisher` or `regmean` needs of one model, and write it as a checkpoint.

    "fisher" is the diagonal Fisher information of every parameter (arXiv 2111.09832): a tensor of
    the weight's own name and shape. "gram" is XᵀX / tokens of the inputs of every linear layer
    (arXiv 2212.09849): for a weight [out, in] a tensor of its name and [in, in]. All fp32; see
    `diagonal_fisher` and `input_grams` for the formulas.

    `config.json` of the result says what it was computed from: `kind`, the fingerprint of the
    `model`, the digest of the `texts`, `sequences` and `tokens`, and for "fisher" `labels` and
    `seed`. `skipped` there names the tensors that have no statistic, by reason; `unreached` those
    whose statistic is zero, since the text never led there (to an expert, to a token's embedding);
    `transposed` the weights that are stored [in, out] (GPT-2's), whose matrix is still [in, in].

    Args:
        model: a folder, org/name@revision, or base+adapter.
        texts: a file (see `read_texts`), or the documents themselves.
        out: the folder to make.
        kind: "fisher" or "gram".
        labels: for "fisher": "model" draws them from the model (the Fisher information), "text"
            takes the text's tokens (the empirical Fisher).
        seed: of the drawn labels.
        tokens: where to stop; None for all text.
        max_length: of a sequence, in tokens; never more than the model's positions.
        batch_size: sequences at once, for "gram"; "fisher" squares gradients sequence by sequence.
        memory: bytes for statistics, beyond the model. With more of it, fewer passes.
        device: where the model runs.
        dtype: of the model while it runs; "auto" is the stored one. Half precision is slow
            backwards on a CPU.
        progress: told (steps done, steps in all); a step is one forward pass.

    Returns:
        `out`. Started again after a kill, the same call goes on and gives the same bytes.

    Raises:
        InputError: an argument out of range, no text, a model that transformers cannot load.
        OutputExists: `out` is there already.
        RunConflict: another process is at work there, or began with other inputs.
        EvaluationError: a statistic is not finite, or memory ran out.
        OutOfSpace: the disk cannot hold the parts and the result.
    """
    _check(
        {"kind": (kind, Kind), "labels": (labels, Labels), "dtype": (dtype, Dtype)},
        {
            "tokens": (SHORTEST if tokens is None else tokens, SHORTEST),
            "max_length": (max_length, SHORTEST),
            "batch_size": (batch_size, 1),
            "memory": (memory, 1),
        },
    )
    out = Path(out).absolute()
    if os.path.lexists(out) and not work_folder(out).exists():
        raise _taken(out)
    documents = read_texts(texts) if isinstance(texts, str | Path) else list(texts)
    with open_checkpoint(model) as checkpoint:
        live = HuggingFaceModel.load(_plain(checkpoint, out), device=device, dtype=dtype)
        cut = sequences(documents, _encoder(live, max_length), tokens=tokens)
        options = (
            {"labels": labels, "seed": seed} if kind == "fisher" else {"batch_size": batch_size}
        )
        asked = {
            "kind": kind,
            "model": checkpoint.fingerprint(),
            "texts": _digest(documents),
            "sequences": len(cut),
            "tokens": sum(len(sequence) for sequence in cut),
            "token_ids": _digest(cut),
            **options,
            "device": device,
            "dtype": str(live.module.dtype).removeprefix("torch."),
        }
        with Parts(out, asked) as parts:
            if not os.path.lexists(out):
                job: Callable[..., Work] = fisher_work if kind == "fisher" else gram_work
                work = job(live.module, checkpoint, cut, **options)
                with threads_for(live.parameters_stored), _out_of_memory():
                    _run(work, parts, out, memory, progress or (lambda done, total: None))
                parts.assemble(out, checkpoint.tensors, {**asked, **_notes(work, parts)})
            elif not _finished(out, asked):
                raise _taken(out)
            # A kill just here leaves the result and its parts; the next call comes here again.
            parts.remove()
    return out


def _run(work: Work, parts: Parts, out: Path, memory: int, progress: Progress) -> None:
    """Compute what does not stand yet, group by group."""
    if not work.targets.found:
        raise CheckpointError("no tensor of the model can be given statistics")
    standing = parts.tensors
    left = [target for target in work.targets.found if target.names[0] not in standing]
    _require_space(out, left=_nbytes(left), whole=_nbytes(work.targets.found))
    grouped = groups(left, memory)
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        progress(done, len(grouped) * work.steps)

    for group in grouped:
        tensors = work.compute(group, step)
        _require_finite(tensors)
        parts.add(tensors)


def _notes(work: Work, parts: Parts) -> dict[str, Any]:
    """For config.json: what a reader of the statistics has to know of single tensors."""
    skipped: dict[str, list[str]] = {}
    for name, why in work.targets.skipped.items():
        skipped.setdefault(why, []).append(name)
    transposed = [n for target in work.targets.found if target.transposed for n in target.names]
    return {"transposed": transposed, "unreached": parts.zeros, "skipped": skipped}


def _plain(checkpoint: Checkpoint, out: Path) -> Path:
    """A folder that transformers loads; with an adapter, written among the parts."""
    if not isinstance(checkpoint, LoraCheckpoint):
        return checkpoint.path
    # By its content: what an earlier call left for another adapter must not be taken for it.
    folder = work_folder(out) / f"model-{checkpoint.fingerprint()[:16]}"
    return folder if folder.exists() else materialise(checkpoint, folder)


def _encoder(live: HuggingFaceModel, max_length: int) -> Encoder:
    positions = getattr(live.module.config.get_text_config(), "max_position_embeddings", None)
    rows = embedding_rows(live.module)
    return Encoder(live.tokenizer, min(max_length, positions or max_length), rows=rows)


def _check(
    choices: Mapping[str, tuple[object, Any]], numbers: Mapping[str, tuple[int, int]]
) -> None:
    problems = [
        f"{name}: {value!r} is none of {', '.join(get_args(known))}"
        for name, (value, known) in choices.items()
        if value not in get_args(known)
    ]
    problems += [
        f"{name}: {value} is below {least}"
        for name, (value, least) in numbers.items()
        if value < least
    ]
    if problems:
        raise ConfigError(problems)


def _require_space(out: Path, *, left: int, whole: int) -> None:
    """Both for the parts that are still to come and for the result made of all parts."""
    free = shutil.disk_usage(out.parent).free
    if left + whole > free:
        raise OutOfSpace(
            f"{out}: the statistics take {whole:,} bytes and as many again for the parts while "
            f"they are computed; {left + whole:,} are needed, {free:,} are free. Make room or "
            "write elsewhere."
        )


def _nbytes(targets: Sequence[Target]) -> int:
    return sum(target.nbytes * len(target.lives) for target in targets)


def _require_finite(tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise EvaluationError(
                f"{name}: its statistic is not finite. A model in half precision may overflow: "
                'try dtype "float32"; else look for NaN in the weights.'
            )


@contextmanager
def _out_of_memory() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise EvaluationError(
            f"out of memory; a smaller max_length, batch_size or memory may do: {error}"
        ) from error


def _finished(out: Path, asked: Mapping[str, Any]) -> bool:
    with Checkpoint.open(out) as whole:
        return {key: whole.config.get(key) for key in asked} == asked


def _taken(out: Path) -> OutputExists:
    return OutputExists(f"{out} is there already. Remove it or choose another name.")


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
