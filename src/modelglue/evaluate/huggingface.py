"""One checkpoint behind the `LanguageModel` interface, run by transformers."""

import json
import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from modelglue.errors import (
    CheckpointError,
    CheckpointNotFound,
    CorruptCheckpoint,
    EvaluationError,
    InputError,
)
from modelglue.evaluate.devices import devices_of, spread
from modelglue.evaluate.encoding import Encoder
from modelglue.evaluate.generation import Sampling, generate
from modelglue.evaluate.likelihood import LikelihoodScorer, likelihoods
from modelglue.evaluate.model import Likelihood
from modelglue.evaluate.passes import BatchSize
from modelglue.machine import memory_of

# Rows of one decoding step: beyond it a step's fixed cost no longer counts.
_MOST_ROWS = 256
# Architectures of our own, by model type: transformers knows one when its module is imported. They
# stand on a floor above this one, hence by name.
_OWN = {"modelglue_mixture": "modelglue.mixture.modeling_modelglue"}
# What transformers lets through when a folder is damaged or does not fit together.
LOADING_ERRORS = (
    OSError,
    ValueError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    ImportError,
    TypeError,
    AttributeError,
    SafetensorError,
    StrictDataclassError,
    pickle.UnpicklingError,
)


class HuggingFaceModel:
    """A transformers model with its tokenizer, in evaluation mode, without gradients.

    `module` may get other weights in place at any time; nothing that depends on them is kept.

    Args:
        module: a causal language model.
        tokenizer: its tokenizer.
        device: where to run; by default where the module is.
        gpus: over how many, the first in sight, to spread it where the device is a GPU: whole
            layers on each. It has not been run on several yet.
        batch_size: rows at once; "auto" chooses by the length of the rows and the memory that the
            machine, or the container, has in all, so that a repeated run has the same batches
            whatever else runs.
        sharers: how many processes run such a model there side by side, each of which gets an
            equal share of that memory.

    Raises:
        InputError: there is no such device, or not so many GPUs.
    """

    def __init__(
        self,
        module: Any,
        tokenizer: Any,
        *,
        device: str | torch.device | None = None,
        gpus: int = 1,
        batch_size: BatchSize = "auto",
        sharers: int = 1,
    ) -> None:
        placed = module if device is None else on_device(module, device, gpus=gpus)
        self.module = placed.eval()
        if hasattr(module, "set_experts_implementation"):
            from modelglue.evaluate.experts import use_by_expert

            use_by_expert(self.module)
        self.tokenizer = tokenizer
        self.gpus = gpus
        self.batch_size = batch_size
        self.sharers = sharers
        self.encoder = Encoder(
            tokenizer, _max_length(module, tokenizer), rows=embedding_rows(module)
        )
        self._scorer = LikelihoodScorer(self.module)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        device: str | torch.device = "cpu",
        gpus: int = 1,
        dtype: str | torch.dtype = "auto",
        batch_size: BatchSize = "auto",
        sharers: int = 1,
    ) -> "HuggingFaceModel":
        """Load a model folder; nothing is fetched and no code of the folder is run.

        Args:
            dtype: "auto" is the stored one.
            gpus, sharers: see the class.

        Raises:
            CheckpointNotFound: there is no such folder.
            CorruptCheckpoint: the file lacks tensors that the model needs.
            CheckpointError: transformers cannot load the model or its tokenizer.
            InputError: there is no such device, or not so many GPUs.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging

        if not Path(path).is_dir():
            raise CheckpointNotFound(f"{path}: there is no such folder")
        _learn(Path(path))
        shows_progress = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        try:
            module, info = AutoModelForCausalLM.from_pretrained(
                path, dtype=dtype, local_files_only=True, output_loading_info=True
            )
            tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        except LOADING_ERRORS as error:
            raise CheckpointError(f"{path}: transformers cannot load it: {error}") from error
        finally:
            if shows_progress:
                logging.enable_progress_bar()
        # transformers fills what is missing with random numbers and goes on.
        if missing := sorted(info["missing_keys"]):
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise CorruptCheckpoint(f"{path}: lacks {', '.join(missing[:3])}{more}")
        return cls(
            module, tokenizer, device=device, gpus=gpus, batch_size=batch_size, sharers=sharers
        )

    @property
    def parameters_stored(self) -> int:
        """Parameters kept in memory; tied ones count once."""
        return sum(parameter.numel() for parameter in self.module.parameters())

    @property
    def parameters_active(self) -> int:
        """Parameters at work on one token: of a sparse mixture's experts, the share routed to."""
        config = self.module.config
        if not hasattr(config, "num_experts_per_tok"):
            config = config.get_text_config()
        experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
        chosen = getattr(config, "num_experts_per_tok", None)
        if not experts or not chosen:
            return self.parameters_stored
        share = min(1.0, chosen / experts)
        return sum(
            round(parameter.numel() * (share if ".experts." in name else 1.0))
            for name, parameter in self.module.named_parameters()
        )

    def loglikelihoods(
        self, contexts: Sequence[str], continuations: Sequence[Sequence[str]]
    ) -> list[list[Likelihood]]:
        """See `LanguageModel.loglikelihoods`."""
        encoded = self.encoder.continued(contexts, continuations)
        with _memory():
            found = self._scorer.score(encoded, batch_size=self.batch_size)
        return [
            likelihoods(texts, numbers) for texts, numbers in zip(continuations, found, strict=True)
        ]

    def text_likelihoods(self, texts: Sequence[str]) -> list[float]:
        """See `LanguageModel.text_likelihoods`."""
        windows = [self.encoder.windows(text) for text in texts]
        with _memory():
            return self._scorer.score_texts(windows, batch_size=self.batch_size)

    def generate(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int,
        stop: Sequence[str] = (),
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> list[str]:
        """See `LanguageModel.generate`."""
        # Equal prompts have equal answers, greedy or sampled, so each is answered once.
        unique = list(dict.fromkeys(prompts))
        encoded = self.encoder.prompts(unique, max_new_tokens)
        longest = max((len(tokens) for tokens in encoded), default=0) + max_new_tokens
        with _memory():
            answers = generate(
                self.module,
                self.encoder,
                unique,
                encoded,
                max_new_tokens=max_new_tokens,
                stop=stop,
                sampling=Sampling(temperature, top_p, seed),
                rows=self.rows_at_once(longest),
            )
        by_prompt = dict(zip(unique, answers, strict=True))
        return [by_prompt[prompt] for prompt in prompts]

    def chat(self, messages: Sequence[dict[str, str]]) -> str:
        """The prompt that the tokenizer's own template makes of a conversation.

        Raises:
            EvaluationError: the tokenizer has no chat template.
        """
        if not self.tokenizer.chat_template:
            raise EvaluationError("the tokenizer has no chat template")
        return str(
            self.tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=True
            )
        )

    def rows_at_once(self, length: int) -> int:
        """How many rows of that length may be decoded at once."""
        if isinstance(self.batch_size, int):
            return self.batch_size
        config = self.module.config.get_text_config()
        width = config.hidden_size * 2  # keys and values; grouped heads need less
        row = length * config.num_hidden_layers * width * self.module.dtype.itemsize
        # Memory free at the moment would change the batches, and with them the last bits.
        memory = sum(map(memory_of, devices_of(self.module)))
        room = (memory // self.sharers - self._weights) // 8
        return int(max(1, min(_MOST_ROWS, room // row)))

    @cached_property
    def _weights(self) -> int:
        """Bytes."""
        return sum(p.numel() * p.itemsize for p in self.module.parameters())


def on_device(module: Any, device: str | torch.device, *, gpus: int = 1) -> Any:
    """The module, moved to `device`, or spread over so many GPUs.

    Raises:
        InputError: there is no such device, or not so many GPUs.
        EvaluationError: its memory is too small.
    """
    with _memory():
        if gpus > 1:
            return spread(module, gpus)
        try:
            return module.to(device)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, AssertionError) as error:
            reason = str(error).partition("\n")[0]
            raise InputError(f"device {str(device)!r} cannot be used: {reason}") from error


def embedding_rows(module: Any) -> int | None:
    """How many tokens the model has an input embedding for; None if it does not say."""
    weight = getattr(module.get_input_embeddings(), "weight", None)
    return None if weight is None else int(weight.shape[0])


@contextmanager
def _memory() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise EvaluationError(f"out of memory; a smaller batch_size may do: {error}") from error


def _learn(folder: Path) -> None:
    """Let transformers know the folder's architecture, if it is one of our own."""
    try:
        kind = json.loads((folder / "config.json").read_bytes()).get("model_type")
    except (OSError, ValueError, AttributeError, RecursionError):
        return  # transformers says what is wrong with it
    if isinstance(kind, str) and kind in _OWN:
        import_module(_OWN[kind])


def _max_length(module: Any, tokenizer: Any) -> int:
    config = module.config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"):
        if isinstance(length := getattr(config, name, None), int) and length > 0:
            return length
    return min(int(tokenizer.model_max_length), 1 << 30)
