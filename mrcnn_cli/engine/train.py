"""The training loop, in plain sight: a generator of steps. The terminal, tests and scripts are its consumers."""

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mrcnn_cli import config as recipes
from mrcnn_cli.data.loader import stream, training_batches, training_images
from mrcnn_cli.engine import compiling, layers, numerics, start, stopping
from mrcnn_cli.engine.accumulation import losses_in_parts
from mrcnn_cli.engine.checkpoint import step_of, write_weights
from mrcnn_cli.engine.detective import Rewind
from mrcnn_cli.engine.dump import stop
from mrcnn_cli.engine.evaluate import evaluate, validation_losses
from mrcnn_cli.engine.files import append_row, claimed, make_folder, read_rows, write_bytes
from mrcnn_cli.engine.gradients import FILE as GRADIENTS
from mrcnn_cli.engine.gradients import add_histograms, draw_histograms
from mrcnn_cli.engine.memory import peak_memory_mb
from mrcnn_cli.engine.optimizer import WeightAverage, build_optimizer, learning_rate, set_learning_rate
from mrcnn_cli.engine.pretrained import load_backbone
from mrcnn_cli.engine.resume import read_state, write_state
from mrcnn_cli.engine.run import Run, RunConfig, open_folder
from mrcnn_cli.errors import UserError
from mrcnn_cli.models import build_model
from mrcnn_cli.views.curves import loss_curves


class Interrupted(Exception):
    """Training was asked to stop and has saved everything; `step` is the number of steps done."""

    def __init__(self, step: int):
        super().__init__(f"stopped after step {step}")
        self.step = step


@dataclass(frozen=True)
class Step:
    """What happened: a training step, an evaluation after one, or a picture that was skipped before one.

    Attributes:
        kind: "train", "evaluation" or "skipped".
        step: steps done, 1..steps; of a skipped picture that of the next step.
        values: train: loss, its terms, learning_rate, seconds, data_seconds, memory_mb. evaluation: the metrics.
            skipped: fault, which names the picture, and count, of the pictures skipped so far.
    """

    kind: str
    step: int
    values: dict[str, Any]

    def row(self) -> dict[str, Any]:
        """The line of metrics.jsonl."""
        return {"kind": self.kind, "step": self.step, **self.values}


class Trainer:
    """Everything that changes from step to step, and how it is saved and restored."""

    def __init__(self, run: Run, resume: bool = False):
        config = run.config
        numerics.make_deterministic(config.train.deterministic, run.device)
        torch.manual_seed(config.train.seed)
        self.run = run
        self.model = build_model(config.model, len(run.train.classes))
        if not resume:  # what is restored has seen its start weights
            load_backbone(self.model, config)
            start.fill(self.model, config)
        self.model.to(run.device).to(memory_format=torch.channels_last)
        self.resting = layers.restrict(self.model, config.train.layers)
        self.set_training()
        self.network = run.world.parallel(self.model)
        self.optimizer = build_optimizer(config.train, self.model)
        self.scaler = numerics.gradient_scaler(config.train.precision, run.device)
        self.average = WeightAverage(self.model, config.train.average) if config.train.average is not None else None
        if config.train.compile:
            compiling.compile_parts(self.model, config.train.compile_step)
        self.rewind = Rewind(self.model, run.device)
        self.step = 0
        self.evaluations: list[dict[str, Any]] = []  # rows of metrics.jsonl

    @property
    def evaluated(self) -> nn.Module:
        """The model that is evaluated and saved for prediction."""
        return self.model if self.average is None else self.average.model

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        config = self.run.config.train
        return learning_rate(config, self.step, stopping.decays(config, self.evaluations))

    def autocast(self) -> AbstractContextManager[object]:
        """The recipe's precision, while it is entered."""
        return numerics.autocast(self.run.config.train.precision, self.run.device)

    def set_training(self) -> None:
        """Training mode, but for the batch norms of layers that do not learn."""
        self.model.train()
        for norm in self.resting:
            norm.eval()

    def save(self) -> None:
        """state.safetensors to go on from, last.safetensors to predict with."""
        run = self.run
        if run.world.is_first:
            about = {"recipe": recipes.dumps(run.config), "scaler": json.dumps(self.scaler.state_dict())}
            write_state(run.folder, self.tensors(), about, self.step, run.config.train.keep_states)
            self.write_weights("last.safetensors")

    def tensors(self) -> dict[str, torch.Tensor]:
        """What state.safetensors holds."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        if self.average is not None:
            tensors |= {f"average.{name}": tensor for name, tensor in self.average.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                if value is not None:
                    tensors[f"optimizer.{name}.{key}"] = torch.as_tensor(value)
        return tensors

    def write_weights(self, name: str, former: Path | None = None) -> None:
        """The weights to predict with, as a file of the run's folder; what it was before is kept as `former`."""
        run = self.run
        path = run.folder / name
        write_weights(path, self.evaluated, run.config, run.categories, self.step, former=former)

    def keep_best(self) -> None:
        """best.safetensors, and the next best weights as best-<step>.safetensors."""
        config, folder = self.run.config.train, self.run.folder
        kept = stopping.ranking(config, self.evaluations)[: config.keep_best]
        best = folder / "best.safetensors"
        if kept[0] == self.step or not best.exists():
            before = step_of(best)
            keeps_it = config.keep_best > 1 and before is not None and before != self.step
            self.write_weights(best.name, folder / f"best-{before}.safetensors" if keeps_it else None)
        elif self.step in kept:
            self.write_weights(f"best-{self.step}.safetensors")
        for path in folder.glob("best-*.safetensors"):
            if path.stem not in [f"best-{step}" for step in kept[1:]]:
                path.unlink()

    def restore(self) -> None:
        """Go on from the newest state that is whole.

        Raises:
            UserError: there is none, or it is of another recipe.
        """
        folder = self.run.folder
        tensors, about = self.run.world.spread(lambda: _newest_state(folder))
        parts: dict[str, dict[str, torch.Tensor]] = {"model": {}, "average": {}, "optimizer": {}}
        try:
            for name, tensor in tensors.items():
                part, _, rest = name.partition(".")
                parts[part][rest] = tensor
            self.model.load_state_dict(parts["model"])
            if self.average is not None:
                # The average of a run that had none so far begins with its weights.
                self.average.model.load_state_dict(parts["average"] or parts["model"])
            self._restore_optimizer(parts["optimizer"])
            scaler = json.loads(about.get("scaler", "{}"))
            if scaler and self.scaler.is_enabled():  # else the precision is another one now
                self.scaler.load_state_dict(scaler)
        except (RuntimeError, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{about['path']}: does not fit the recipe beside it ({reason}); train anew") from None
        self.step = int(about["step"])
        recipe = recipes.dumps(self.run.config)
        if about.get("recipe") != recipe or step_of(self.run.folder / "last.safetensors") != self.step:
            self.save()  # the changes that were asked for; or weights that a stop in between has kept from being saved

    def _restore_optimizer(self, tensors: dict[str, torch.Tensor]) -> None:
        """What the optimiser remembers of each parameter that learns; nothing of one that did not learn before."""
        parameters = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        for name, tensor in tensors.items():
            of, _, key = name.rpartition(".")
            if of in parameters:
                parameter = parameters[of]
                if tensor.shape == parameter.shape:
                    # In the parameter's memory format, which the fused optimiser takes for granted.
                    tensor = torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)
                self.optimizer.state[parameter][key] = tensor.to(parameter.device)


def _newest_state(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    state = read_state(folder)
    return state.tensors, {**state.about, "path": str(state.path)}


def train(run: Run, resume: bool = False, should_stop: Callable[[], bool] = lambda: False) -> Iterator[Step]:
    """Train, save and evaluate; yields after each step and each evaluation.

    The run's folder holds: config.toml, environment.txt, metrics.jsonl, last.safetensors and best.safetensors (weights
    with the recipe inside), state.safetensors (optimiser and the rest, to go on from), losses.png.

    Args:
        run: made by `prepare`.
        resume: go on from the folder's state.safetensors.
        should_stop: asked after each step; True saves and ends with `Interrupted`.

    Raises:
        UserError: a loss or a gradient that is not finite (see `engine.dump`); a folder that cannot be written; faulty
            images.
        Interrupted: `should_stop` said so; everything is saved.
    """
    if run.world.is_first:
        make_folder(run.folder)
    with claimed(run.folder) if run.world.is_first else nullcontext():
        yield from _train(run, resume, should_stop)


def _train(run: Run, resume: bool, should_stop: Callable[[], bool]) -> Iterator[Step]:
    """`train`, in a folder that is this process's."""
    config, folder, world = run.config, run.folder, run.world
    trainer = Trainer(run, resume)
    if resume:
        trainer.restore()
    skipped: set[str] = set()
    if world.is_first:
        if resume:
            for name in ("metrics.jsonl", GRADIENTS):
                _forget_rows_after(folder / name, trainer.step)
            trainer.evaluations = evaluations(folder)
            rows = read_rows(folder / "metrics.jsonl")
            skipped = {row["fault"] for row in rows if row["kind"] == "skipped"}
        open_folder(run)
        if not resume:  # of a run that was stopped before it saved anything
            (folder / "metrics.jsonl").unlink(missing_ok=True)
            (folder / GRADIENTS).unlink(missing_ok=True)
    trainer.evaluations = world.tell(trainer.evaluations)
    faults: list[str] = []
    batches = training_batches(
        run.train,
        config.data,
        batch_size=config.train.batch_size,
        seed=config.train.seed,
        first_step=trainer.step,
        steps=config.train.steps,
        part=world.rank,
        parts=world.size,
        skipped=faults.append,
    )
    try:
        evaluated = [row["step"] for row in trainer.evaluations]
        if resume and evaluation_is_due(run, trainer.step) and trainer.step not in evaluated:
            yield _evaluate(trainer, should_stop)  # it was stopped before or in this evaluation
        started = time.perf_counter()
        world.at(trainer.step + 1)
        over = stopping.is_over(config.train, trainer.evaluations)
        for images, targets in () if over else batches:
            waited = time.perf_counter() - started
            if config.data.skip_broken:
                yield from _skipped(run, trainer.step + 1, faults, skipped)
            values = training_step(trainer, images.to(run.device), [target.to(run.device) for target in targets])
            seconds = time.perf_counter() - started
            values |= {"seconds": seconds, "data_seconds": waited, "memory_mb": memory_mb(run.device)}
            step = Step("train", trainer.step, values)
            if world.is_first:
                append_row(folder / "metrics.jsonl", step.row())
            yield step
            if world.any(should_stop()):
                trainer.save()
                raise Interrupted(trainer.step)
            evaluates = evaluation_is_due(run, trainer.step)
            if evaluates or trainer.step == config.train.steps or trainer.step % config.train.save_every == 0:
                trainer.save()
            if evaluates:
                yield _evaluate(trainer, should_stop)
                if stopping.is_over(config.train, trainer.evaluations):
                    break
            world.at(trainer.step + 1)
            started = time.perf_counter()
    finally:
        batches.close()
        if world.is_first:
            with suppress(UserError):  # a picture for which there is no room must not hide what ended the training
                _draw(folder)
    if run.val is None and world.is_first:
        trainer.write_weights("best.safetensors")


def _skipped(run: Run, step: int, faults: list[str], known: set[str]) -> Iterator[Step]:
    """The pictures that any process has skipped for this step and that were not told yet, in the first process."""
    for fault in [fault for theirs in run.world.gather(faults) for fault in theirs]:
        if fault not in known:
            known.add(fault)
            told = Step("skipped", step, {"fault": fault, "count": len(known)})
            append_row(run.folder / "metrics.jsonl", told.row())
            yield told
    faults.clear()


def training_step(trainer: Trainer, images: Any, targets: Any, rate: float | None = None) -> dict[str, Any]:
    """One optimiser step, of the schedule's learning rate unless one is given; the losses before it."""
    config: RunConfig = trainer.run.config
    world = trainer.run.world
    rate = trainer.learning_rate if rate is None else rate
    set_learning_rate(trainer.optimizer, rate)
    torch.manual_seed(stream(config.train.seed, "model", trainer.step))  # of layers that draw, such as dropout
    trainer.rewind.keep()
    trainer.optimizer.zero_grad(set_to_none=True)
    accumulate = config.train.accumulate
    parts = losses_in_parts(
        world, trainer.model, trainer.network, images, targets, accumulate, autocast=trainer.autocast
    )
    done: torch.Tensor | float = 0.0  # the sum of the parts' terms
    for losses in parts:
        terms = torch.stack(list(losses.values()))
        done = done + world.sum(terms.detach().clone())
        trainer.scaler.scale(terms.sum() * world.size).backward()  # see World.parallel
    assert isinstance(done, torch.Tensor)
    trainer.scaler.unscale_(trainer.optimizer)
    gradients = [p.grad for p in trainer.model.parameters() if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients, foreach=True)
    *values, total, size = torch.stack([*done, done.sum(), norm.to(done)]).tolist()
    # A scaler whose gradients overflow leaves the step out and takes a smaller scale by itself, while it can.
    scaled = not math.isfinite(size) and trainer.scaler.is_enabled() and trainer.scaler.get_scale() > 1
    checked = (*values, total) if scaled else (*values, total, size)
    if not all(map(math.isfinite, checked)):
        compiling.undo(trainer.model)  # what is compiled cannot be watched
        raise stop(trainer.run, trainer.model, trainer.rewind, trainer.tensors(), images, targets, trainer.step)
    if world.is_first and config.train.histograms and (trainer.step + 1) % config.train.histograms == 0:
        add_histograms(trainer.run.folder, trainer.step + 1, trainer.model.named_parameters())
    if config.train.clip_norm is not None:
        nn.utils.clip_grads_with_norm_(trainer.model.parameters(), config.train.clip_norm, norm, foreach=True)
    trainer.scaler.step(trainer.optimizer)
    trainer.scaler.update()
    trainer.step += 1
    if trainer.average is not None:
        trainer.average.update(trainer.model, trainer.step)
    return {"loss": total, **dict(zip(losses, values, strict=True)), "learning_rate": rate}


def _evaluate(trainer: Trainer, should_stop: Callable[[], bool]) -> Step:
    """Metrics on the validation images; the best weights so far are kept."""
    run, config, world = trainer.run, trainer.run.config, trainer.run.world
    assert run.val is not None
    shared: dict[str, Any] = {"should_stop": should_stop, "world": world}
    metrics, _ = evaluate(trainer.evaluated, config, run.val, run.device, **shared)
    if metrics is not None and config.train.needs_validation_loss:
        losses = validation_losses(trainer.evaluated, config, run.val, run.device, **shared)
        metrics = None if losses is None else metrics | losses
    trainer.set_training()
    if metrics is None:
        raise Interrupted(trainer.step)  # saved before the evaluation
    step = Step("evaluation", trainer.step, metrics)
    stopping.check_metric(config.train, metrics)
    trainer.evaluations.append(step.row())
    if world.is_first:
        trainer.keep_best()
        # After the weights: an evaluation that no row tells of is done again.
        append_row(run.folder / "metrics.jsonl", step.row(), durable=True)
    return step


def evaluation_is_due(run: Run, step: int) -> bool:
    """Whether the model is evaluated after this step."""
    config = run.config.train
    if run.val is None:
        return False
    if step == config.steps:
        return True
    if config.evaluate_epochs is not None:
        images = len(training_images(run.train, run.config.data)) * config.evaluate_epochs
        return step * config.batch_size // images > (step - 1) * config.batch_size // images
    return config.evaluate_every is not None and step % config.evaluate_every == 0


def evaluations(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's evaluations, in order."""
    return [row for row in read_rows(folder / "metrics.jsonl") if row["kind"] == "evaluation"]


def learning_parameters(run: Run) -> tuple[int, int]:
    """How many parameters of a run's model learn, and of how many; a model without memory is enough for it."""
    with torch.device("meta"):
        model = build_model(run.config.model, len(run.train.classes))
    layers.restrict(model, run.config.train.layers)
    return layers.learning(model)


def memory_mb(device: torch.device) -> float:
    """The most memory that this process has held so far: on the GPU where it trains on one, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return peak_memory_mb()


def _forget_rows_after(path: Path, step: int) -> None:
    """Drops the rows of steps that are about to be done again."""
    rows = [row for row in read_rows(path) if row["step"] <= step]
    if path.exists():
        write_bytes(path, "".join(json.dumps(row) + "\n" for row in rows).encode())


def _draw(folder: Path) -> None:
    rows = read_rows(folder / "metrics.jsonl")
    if any(row["kind"] == "train" for row in rows):
        loss_curves(rows, folder / "losses.png")
    draw_histograms(folder)
