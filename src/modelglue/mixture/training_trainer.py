"""transformers' Trainer, for routers alone: small checkpoints, torn ones passed over."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from modelglue.errors import InputError, NonFiniteOutput
from modelglue.journal import read_json, write_json
from modelglue.mixture.training_rows import Row, batch_of, takes_routing_mask

if TYPE_CHECKING:
    from modelglue.mixture.training_layers import LayerSettings

_ROUTERS = "routers.safetensors"


def train_routers(
    module: Any,
    routers: Mapping[str, nn.Parameter],
    rates: Mapping[str, float],
    rows: Sequence[Row],
    work: Path,
    asked: Mapping[str, Any],
    settings: "LayerSettings",
    *,
    device: str,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Train in place; everything but the routers is frozen.

    Args:
        rates: for each of the routers' parameters, what the learning rate is multiplied by.
        work: where the Trainer's checkpoints go, and from where a killed training goes on.
        asked: what is trained how on what; checkpoints of something else are thrown away.

    Returns:
        The step from which it went on.

    Raises:
        InputError: there is nothing to train on, or accelerate is not installed.
        NonFiniteOutput: a router became NaN.
    """
    if not rows:
        raise InputError("the texts give no sequence of 2 tokens or more; give more text")
    try:
        from transformers import Trainer, TrainerCallback, TrainingArguments
        from transformers.trainer_callback import PrinterCallback

        arguments = _arguments(TrainingArguments, work, settings, device)
    except ImportError as error:
        raise InputError(
            f"training needs accelerate: pip install 'modelglue[train]' ({error})"
        ) from error

    class RouterTrainer(Trainer):  # type: ignore[misc]
        """Saves and loads routers in the place of whole models; each has its own rate."""

        def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
            groups = [
                {"params": [parameter], "lr": settings.rate * rates[name]}
                for name, parameter in routers.items()
            ]
            made = torch.optim.AdamW(groups, weight_decay=0.0)
            self.optimizer = made
            return made

        def _save(self, output_dir: Any = None, state_dict: Any = None) -> None:
            folder = Path(output_dir or self.args.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            tensors = {name: p.detach().cpu().contiguous() for name, p in routers.items()}
            save_file(tensors, folder / _ROUTERS)

        def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
            with torch.no_grad():
                for name, tensor in load_file(Path(resume_from_checkpoint) / _ROUTERS).items():
                    routers[name].copy_(tensor)

    class Told(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if progress is not None:
                progress(state.global_step, state.max_steps)

    last = _last_checkpoint(work, asked)
    takes_mask = takes_routing_mask(module)
    trained = {id(parameter) for parameter in routers.values()}
    for parameter in module.parameters():
        parameter.requires_grad_(id(parameter) in trained)
    _balance(module, settings.balance)
    trainer = RouterTrainer(
        model=module,
        args=arguments,
        train_dataset=list(rows),
        data_collator=lambda batch: batch_of(batch, routing_mask=takes_mask),
        callbacks=[Told()],
    )
    trainer.remove_callback(PrinterCallback)
    try:
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
    finally:
        module.eval()
        for parameter in module.parameters():
            parameter.requires_grad_(True)
    if not all(bool(parameter.isfinite().all()) for parameter in routers.values()):
        raise NonFiniteOutput("a router became NaN in training; lower the learning rate")
    return 0 if last is None else int(last.name.rpartition("-")[2])


def _arguments(made: Any, work: Path, settings: "LayerSettings", device: str) -> Any:
    return made(
        output_dir=str(work),
        per_device_train_batch_size=settings.rows,
        max_steps=settings.steps,
        learning_rate=settings.rate,
        lr_scheduler_type="cosine",
        warmup_steps=round(settings.warmup * settings.steps),
        weight_decay=0.0,
        max_grad_norm=1.0,
        save_strategy="steps",
        save_steps=settings.save_every,
        save_total_limit=2,
        logging_strategy="no",
        report_to=[],
        seed=settings.seed,
        data_seed=settings.seed,
        use_cpu=device == "cpu",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )


def _balance(module: Any, weight: float) -> None:
    """Set the weight of the load-balancing loss, wherever the class looks for it."""
    for config in {id(c): c for c in (module.config, module.config.get_text_config())}.values():
        config.router_aux_loss_coef = weight
        config.output_router_logits = weight > 0
    if hasattr(module, "router_aux_loss_coef"):
        module.router_aux_loss_coef = weight


def _last_checkpoint(work: Path, asked: Mapping[str, Any]) -> Path | None:
    """The newest whole checkpoint of this very training; what else lies there is removed."""
    note = work / "asked.json"
    try:
        same = read_json(note) == json.loads(json.dumps(asked))
    except (OSError, ValueError):
        same = False
    if not same:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        write_json(note, dict(asked))
        return None
    whole = []
    for folder in work.glob("checkpoint-*"):
        try:
            read_json(folder / "trainer_state.json")  # written last
            whole.append(folder)
        except (OSError, ValueError):
            shutil.rmtree(folder)
    return max(whole, key=lambda folder: int(folder.name.rpartition("-")[2]), default=None)
