"""One checkpoint behind the `LanguageModel` interface, run by transformers."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from modelglue.errors import CheckpointError, CheckpointNotFound, CorruptCheckpoint, EvaluationError
from modelglue.evaluate.encoding import Encoder
from modelglue.evaluate.generation import Sampling, generate
from modelglue.evaluate.likelihood import LikelihoodScorer
from modelglue.evaluate.model import Likelihood

BatchSize = int | Literal["auto"]
# Rows of one decoding step: beyond it a step's fixed cost no longer counts.
_MOST_ROWS = 256


class HuggingFaceModel:
    """A transformers model with its tokenizer, in evaluation mode, without gradients.

    `module` may get other weights in place at any time; nothing that depends on them is kept.

    Args:
        module: a causal language model.
        tokenizer: its tokenizer.
        device: where to run; by default where the module is.
        batch_size: rows at once; "auto" chooses by the length of the rows and the memory.
    """

    def __init__(
        self,
        module: Any,
        tokenizer: Any,
        *,
        device: str | torch.device | None = None,
        batch_size: BatchSize = "auto",
    ) -> None:
        self.module = (module if device is None else module.to(device)).eval()
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self._encoder = Encoder(tokenizer, _max_length(module, tokenizer))
        self._scorer = LikelihoodScorer(self.module)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype = "auto",
        batch_size: BatchSize = "auto",
    ) -> "HuggingFaceModel":
        """Load a model folder; nothing is fetched and no code of the folder is run.

        Args:
            dtype: "auto" is the stored one.

        Raises:
            CheckpointNotFound: there is no such folder.
            CorruptCheckpoint: the file lacks tensors that the model needs.
            CheckpointError: transformers cannot load the model or its tokenizer.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging

        if not Path(path).is_dir():
            raise CheckpointNotFound(f"{path}: there is no such folder")
        shows_progress = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        try:
            module, info = AutoModelForCausalLM.from_pretrained(
                path, dtype=dtype, local_files_only=True, output_loading_info=True
            )
            tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
            raise CheckpointError(f"{path}: transformers cannot load it: {error}") from error
        finally:
            if shows_progress:
                logging.enable_progress_bar()
        # transformers fills what is missing with random numbers and goes on.
        if missing := sorted(info["missing_keys"]):
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise CorruptCheckpoint(f"{path}: lacks {', '.join(missing[:3])}{more}")
        return cls(module, tokenizer, device=device, batch_size=batch_size)

    @property
    def parameters_stored(self) -> int:
        """Parameters kept in memory; tied ones count once."""
        return sum(parameter.numel() for parameter in self.module.parameters())

    @property
    def parameters_active(self) -> int:
        """Parameters at work on one token: of a sparse mixture's experts, the share routed to."""
        config = self.module.config.get_text_config()
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
        encoded = self._encoder.continued(contexts, continuations)
        with _memory():
            found = self._scorer.score(encoded, batch_size=self.batch_size)
        return [
            [
                Likelihood(total, tokens, len(text.encode()), greedy)
                for text, (total, tokens, greedy) in zip(texts, numbers, strict=True)
            ]
            for texts, numbers in zip(continuations, found, strict=True)
        ]

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
        encoded = self._encoder.prompts(unique, max_new_tokens)
        longest = max((len(tokens) for tokens in encoded), default=0) + max_new_tokens
        with _memory():
            answers = generate(
                self.module,
                self._encoder,
                unique,
                encoded,
                max_new_tokens=max_new_tokens,
                stop=stop,
                sampling=Sampling(temperature, top_p, seed),
                rows=self._rows(longest),
            )
        by_prompt = dict(zip(unique, answers, strict=True))
        return [by_prompt[prompt] for prompt in prompts]

    @torch.no_grad()
    def features(self, prompts: Sequence[str], *, layer: int = 0) -> Tensor:
        """The mean hidden state of each prompt at `layer`, padding left out.

        Args:
            prompts: n texts.
            layer: 0 is the input embeddings; k what layer k gives.

        Returns:
            [n, hidden], fp32, on the CPU.
        """
        encoded = self._encoder.prompts(prompts, 0)
        step = self.batch_size if isinstance(self.batch_size, int) else 64
        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
        means = torch.empty(len(encoded), self.module.config.get_text_config().hidden_size)
        for start in range(0, len(order), step):
            chosen = order[start : start + step]
            means[chosen] = self._mean_state([encoded[i] for i in chosen], layer).float().cpu()
        return means

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

    def _mean_state(self, rows: Sequence[tuple[int, ...]], layer: int) -> Tensor:
        width = max(map(len, rows))
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        mask = torch.zeros(len(rows), width)
        for place, row in enumerate(rows):
            ids[place, : len(row)] = torch.tensor(row)
            mask[place, : len(row)] = 1
        ids, mask = ids.to(self.module.device), mask.to(self.module.device)
        if layer == 0:
            states = self.module.get_input_embeddings()(ids)
        else:
            output = self.module.base_model(
                ids, attention_mask=mask.long(), output_hidden_states=True, use_cache=False
            )
            states = output.hidden_states[layer]
        weights = mask / mask.sum(dim=1, keepdim=True)
        return torch.einsum("nt,nth->nh", weights, states.float())

    def _rows(self, length: int) -> int:
        """How many rows of that length may be decoded at once."""
        if isinstance(self.batch_size, int):
            return self.batch_size
        config = self.module.config.get_text_config()
        width = config.hidden_size * 2  # keys and values; grouped heads need less
        row = length * config.num_hidden_layers * width * self.module.dtype.itemsize
        return int(max(1, min(_MOST_ROWS, _free_memory(self.module.device) // 4 // row)))


@contextmanager
def _memory() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise EvaluationError(f"out of memory; a smaller batch_size may do: {error}") from error


def _max_length(module: Any, tokenizer: Any) -> int:
    config = module.config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"):
        if isinstance(length := getattr(config, name, None), int) and length > 0:
            return length
    return min(int(tokenizer.model_max_length), 1 << 30)


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 1 << 30
