"""Model level: whole checkpoints behind a router on the prompt, kept as they are.

    mixture.json  router.safetensors  experts/<i>/

Experts may differ in architecture, tokenizer and chat template, and each folder in `experts/`
stays a stock checkpoint that other programs can serve. A prompt is routed once, to one expert,
which then answers it exactly as it would alone; a batch is split by expert. A conversation is
routed by its opening and stays with its expert.

With top_k above 1 the likeliest experts answer together, as a mixture of their distributions; see
`together`. They must then share a vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from modelglue.checkpoint.reader import Checkpoint
from modelglue.errors import MixtureError
from modelglue.evaluate.huggingface import HuggingFaceModel
from modelglue.evaluate.model import Likelihood
from modelglue.evaluate.passes import BatchSize
from modelglue.journal import write_json
from modelglue.mixture.features import Encoder, Feature, open_encoder
from modelglue.mixture.folder import copy_files, model_files, whole_folder
from modelglue.mixture.manifest import FILE, ExpertEntry, Manifest, read_manifest
from modelglue.mixture.router_file import PromptRouter, kind_of, read_router, write_router
from modelglue.mixture.together import Together, shares, vocabularies_differ

Answer = TypeVar("Answer")
Respondent = HuggingFaceModel | Together


@dataclass(frozen=True)
class Expert:
    """A checkpoint that goes into a bundle: a local folder, and in words why it is in."""

    name: str
    path: Path
    reason: str = ""


@dataclass(frozen=True)
class Route:
    """Where a prompt goes.

    Args:
        expert: the place of the chosen expert in `Bundle.experts`; ties go to the first.
        probabilities: of every expert; they sum to 1.
    """

    expert: int
    probabilities: tuple[float, ...]


def write_bundle(
    out: Path,
    experts: Sequence[Expert],
    router: PromptRouter,
    *,
    encoder: int,
    feature: Feature,
    top_k: int = 1,
    details: Mapping[str, Any] | None = None,
) -> None:
    """Write a bundle, whole or not at all; the experts are copied byte for byte.

    Args:
        encoder: which expert the router's features were taken from, its place in `experts`.
        top_k: how many experts answer a prompt together.
        details: how the router was made and how it fared, noted in `mixture.json`.

    Raises:
        OutputExists: `out` is taken.
        OutOfSpace: the disk can't hold the experts.
        MixtureError: the router is for another number of experts, two share a name, or they are to
            answer together and share no vocabulary.
    """
    names = [expert.name for expert in experts]
    if len(set(names)) < len(names):
        raise MixtureError(f"experts must have different names, and are {', '.join(names)}")
    if router.experts != len(experts):
        raise MixtureError(f"the router knows {router.experts} experts of {len(experts)}")
    require_top_k(top_k, {expert.name: expert.path for expert in experts})
    entries = []
    for i, expert in enumerate(experts):
        with Checkpoint.open(expert.path) as checkpoint:
            fingerprint = checkpoint.fingerprint()
        entries.append(ExpertEntry(expert.name, f"experts/{i}", fingerprint, expert.reason))
    files = [model_files(expert.path) for expert in experts]
    nbytes = sum(
        (expert.path / name).stat().st_size
        for expert, names_of in zip(experts, files, strict=True)
        for name in names_of
    )
    with whole_folder(out, nbytes=nbytes) as folder:
        for expert, entry, names_of in zip(experts, entries, files, strict=True):
            copy_files(names_of, expert.path, folder / entry.path)
        write_router(router, folder)
        manifest = Manifest(
            tuple(entries), encoder, feature, dict(details or {}), kind_of(router), top_k
        )
        write_json(folder / FILE, manifest.to_json())


def require_top_k(top_k: int, folders: Mapping[str, Path]) -> None:
    """Refuse to let more experts answer together than there are, or such as share no vocabulary.

    Args:
        folders: expert → its checkpoint.

    Raises:
        MixtureError: with the reason.
    """
    if not 1 <= top_k <= len(folders):
        raise MixtureError(f"top_k: {top_k} of {len(folders)} experts; use 1 to {len(folders)}")
    if top_k > 1 and (reason := vocabularies_differ(folders)) is not None:
        raise MixtureError(reason)


class Bundle:
    """A mixture that answers like any other model; made by `Bundle.load`.

    Experts are loaded when the first prompt goes to them, and stay.
    """

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        router: PromptRouter,
        encoder: Encoder,
        load_expert: Callable[[Path], HuggingFaceModel],
    ) -> None:
        self.path = path
        self.manifest = manifest
        self.router = router
        self._encoder = encoder
        self._load_expert = load_expert
        self._loaded: dict[int, HuggingFaceModel] = {}
        self._sizes = []
        for entry in manifest.experts:
            with Checkpoint.open(path / entry.path) as checkpoint:
                self._sizes.append(checkpoint.parameters)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        device: str = "cpu",
        gpus: int = 1,
        dtype: str = "auto",
        batch_size: BatchSize = "auto",
    ) -> "Bundle":
        """Open the bundle in the folder `path`; no expert is loaded yet.

        Args:
            gpus: over how many to spread each expert; see `HuggingFaceModel`.

        Raises:
            MixtureError: `mixture.json` or the router is damaged, an expert is missing or lies
                outside the folder, or experts that answer together share no vocabulary.
            CheckpointError: an expert's files are damaged.
        """
        folder = Path(path)
        manifest = read_manifest(folder)
        require_top_k(manifest.top_k, {e.name: folder / e.path for e in manifest.experts})
        encoder = open_encoder(
            folder / manifest.experts[manifest.encoder].path, manifest.feature, device=device
        )
        router = read_router(
            folder,
            manifest.router_kind,
            experts=len(manifest.experts),
            features=encoder.hidden_size,
        )

        def load_expert(place: Path) -> HuggingFaceModel:
            return HuggingFaceModel.load(
                place, device=device, gpus=gpus, dtype=dtype, batch_size=batch_size
            )

        return cls(folder, manifest, router, encoder, load_expert)

    @property
    def experts(self) -> tuple[str, ...]:
        """The experts' names, in the order that routes refer to."""
        return tuple(entry.name for entry in self.manifest.experts)

    @property
    def parameters_stored(self) -> int:
        """Of all experts and the router; the encoder is one of the experts."""
        return sum(self._sizes) + self._router_size

    @property
    def parameters_active(self) -> int:
        """What the dearest prompt takes: the encoder's part, the router, the largest experts."""
        largest = sorted(self._sizes)[-self.top_k :]
        return sum(largest) + self._encoder.parameters + self._router_size

    @property
    def top_k(self) -> int:
        """How many experts answer a prompt together."""
        return self.manifest.top_k

    def route(self, prompts: Sequence[str]) -> list[Route]:
        """The expert for each prompt; a prompt's route does not depend on the others."""
        probabilities = self.router.probabilities(self.features(prompts))
        return [
            Route(int(row.argmax()), tuple(float(value) for value in row)) for row in probabilities
        ]

    def features(self, prompts: Sequence[str]) -> Tensor:
        """What the router sees of each prompt, fp32 [prompts, features]."""
        return self._encoder.features(prompts)

    def expert(self, index: int) -> HuggingFaceModel:
        """An expert by its place, loaded if it is not yet."""
        if index not in self._loaded:
            folder = self.path / self.manifest.experts[index].path
            self._loaded[index] = self._load_expert(folder)
        return self._loaded[index]

    def loglikelihoods(
        self, contexts: Sequence[str], continuations: Sequence[Sequence[str]]
    ) -> list[list[Likelihood]]:
        """The likelihood of each continuation by the experts that its context goes to."""

        def ask(expert: Respondent, chosen: Sequence[int]) -> list[list[Likelihood]]:
            return expert.loglikelihoods(
                [contexts[i] for i in chosen], [continuations[i] for i in chosen]
            )

        return self._by_experts(contexts, ask)

    def text_likelihoods(self, texts: Sequence[str]) -> list[float]:
        """The log-likelihood of each text by the expert that an empty prompt goes to."""

        def ask(expert: Respondent, chosen: Sequence[int]) -> list[float]:
            return expert.text_likelihoods([texts[i] for i in chosen])

        return self._by_experts([""] * len(texts), ask)

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
        """Complete each prompt by the experts that it goes to; see `LanguageModel.generate`."""

        def ask(expert: Respondent, chosen: Sequence[int]) -> list[str]:
            return expert.generate(
                [prompts[i] for i in chosen],
                max_new_tokens=max_new_tokens,
                stop=stop,
                temperature=temperature,
                top_p=top_p,
                seed=seed,
            )

        return self._by_experts(prompts, ask)

    def chat(
        self,
        messages: Sequence[dict[str, str]],
        *,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> str:
        """The next turn of a conversation.

        Routed on what was said up to and including the first message of the user, without roles or
        markup (experts' templates differ), so that a conversation keeps its expert as it grows. The
        expert sees all of it, through its own template and tokenizer. Several experts that answer
        together see it through the template of the likeliest.

        Args:
            messages: `{"role": …, "content": …}`, oldest first.

        Raises:
            MixtureError: the chosen expert has no chat template.
        """
        route = self.route([opening(messages)])[0]
        expert, name = self.expert(route.expert), self.experts[route.expert]
        if not expert.tokenizer.chat_template:
            raise MixtureError(
                f"the conversation goes to expert {name!r}, whose tokenizer has no "
                "chat template; complete its text with `generate`, or add a chat_template.jinja"
            )
        prompt, own = expert.chat(messages), shares(route.probabilities, self.top_k)
        return self._respondent(own.experts, {prompt: own.weights}).generate(
            [prompt],
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
        )[0]

    def verify(self) -> None:
        """Compare every expert's content with what was bundled; reads every byte.

        Raises:
            MixtureError: an expert was changed.
        """
        for entry in self.manifest.experts:
            with Checkpoint.open(self.path / entry.path) as checkpoint:
                if checkpoint.fingerprint() != entry.fingerprint:
                    raise MixtureError(
                        f"{self.path}: expert {entry.name!r} is not what was bundled; "
                        f"{entry.path} was changed. Make the mixture again"
                    )

    @property
    def _router_size(self) -> int:
        return sum(tensor.numel() for tensor in self.router.tensors().values())

    def _by_experts(
        self,
        prompts: Sequence[str],
        ask: Callable[[Respondent, Sequence[int]], Sequence[Answer]],
    ) -> list[Answer]:
        """Let experts answer their share at once; answers come back in the prompts' order."""
        routes = [shares(route.probabilities, self.top_k) for route in self.route(prompts)]
        answers: dict[int, Answer] = {}
        for experts in sorted({route.experts for route in routes}):
            chosen = [i for i, route in enumerate(routes) if route.experts == experts]
            weights = {prompts[i]: routes[i].weights for i in chosen}
            answers.update(
                zip(chosen, ask(self._respondent(experts, weights), chosen), strict=True)
            )
        return [answers[i] for i in range(len(prompts))]

    def _respondent(
        self, experts: Sequence[int], weights: Mapping[str, Sequence[float]]
    ) -> Respondent:
        """An expert, or several together with the weights that each prompt gives them."""
        models = [self.expert(index) for index in experts]
        return models[0] if len(models) == 1 else Together(models, weights)


def opening(messages: Sequence[Mapping[str, str]]) -> str:
    """What a conversation is routed on; all of it where no user has spoken."""
    users = (place for place, message in enumerate(messages, 1) if message["role"] == "user")
    return "\n".join(message["content"] for message in messages[: next(users, len(messages))])
