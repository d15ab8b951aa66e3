"""Record what passes through a model, inside any training or generation loop."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import nn

from entropy_probe.hooks import (
    HooksSkipped,
    ResidualReader,
    find_blocks,
    read_residuals,
    resolve_layers,
    watch_passes,
)
from entropy_probe.kvcache import columns_held
from entropy_probe.models.fingerprint import library_versions, model_name, model_revision
from entropy_probe.rollout import Provenance, Rollouts
from entropy_probe.storage.run import Run
from entropy_probe.storage.saving import save_run
from entropy_probe.storage.writing import find_run, require_writable

from .passes import Passing, entered, own_forward, read_piece
from .recorded import Recorded, join_rows
from .reservoir import Keeping, Reservoir

RANKS = ("first", "all")

# Batches whose numbers wait on their device: fetching each at once would make the device wait.
_WAITING = 8


class Recorder:
    """A context manager for somebody's own loop: entropies, and states, of what passes.

    Every forward pass of the model inside it is read, in training, scoring and generation: the
    exact entropies of its distributions, detached, and where the pass was given token ids the
    tokens and their log-probabilities. The model, its gradients and the global random state
    stay bit-identical; what gradient checkpointing runs again is not read twice. Memory is
    bounded by ``keep``: a text takes 17 bytes a token, and its states besides.

    It hooks the model's own forward, also inside DistributedDataParallel or PEFT, so it sees
    what calls the model, not what calls only its body. TRL's fused head gives no logits but
    entropies of its own, at the trainer's temperature, which are taken: state that temperature.
    Generation is put together from its passes; its last token never enters the model and is not
    recorded. Beam search reorders rows between passes, and is not supported. A compiled model is
    compiled again with the hooks inside, and its graph breaks there.

    >>> from entropy_probe.training import Recorder
    >>> with Recorder(model, tokenizer=tokenizer) as recorder:  # doctest: +SKIP
    ...     train(model)
    >>> recorder.save("runs/passed")  # doctest: +SKIP
    """

    def __init__(
        self,
        model,
        layers: Sequence[int] = (),
        *,
        tokenizer=None,
        temperature: float = 1.0,
        every: int = 1,
        keep: int = 256,
        choose: str = "sample",
        residual_positions: str = "forks",
        fraction: float = 0.2,
        seed: int = 0,
        ranks: str = "first",
        out: str | Path | None = None,
        overwrite: bool = False,
    ) -> None:
        """Prepare; nothing is hooked before the recorder is entered.

        Args:
            model: a Hugging Face decoder, or what wraps it.
            layers: blocks whose output stream to keep, negatives from the end; the default keeps
                none.
            tokenizer: gives the texts of the tokens, for `rollouts` and `save`.
            temperature: entropies are of softmax(logits / temperature).
            every: look at each such batch of texts; others cost a count.
            keep: texts kept at most.
            choose: which, once there are more: "sample" is a uniform sample of all that were
                looked at, "latest" the last ones.
            residual_positions: "forks" keeps the states of each batch's top ``fraction`` by
                entropy and of as many random other tokens, "all" those of every valid token.
            fraction: share of a batch's tokens that are forks.
            seed: of the sample of texts and of the random other tokens.
            ranks: "first" records in the first process of a distributed run only, "all" in each.
            out: a run directory to write on leaving, whatever has happened by then.
            overwrite: replace the run that is there.

        Raises:
            ValueError: an argument that makes no sense.
            RunConflict: ``out`` is taken.
        """
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ValueError(f"every must be a whole number of 1 or more, got {every!r}")
        if ranks not in RANKS:
            raise ValueError(f"ranks must be one of {RANKS}, got {ranks!r}")
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        self.model, self.tokenizer, self.temperature = own_forward(model), tokenizer, temperature
        blocks = len(find_blocks(self.model)) if layers else 0
        resolved = resolve_layers(layers, blocks) if layers else []
        self._kept = Reservoir(Keeping(keep, choose, resolved, residual_positions, fraction, seed))
        self.every, self.ranks = every, ranks
        self.out, self.overwrite = None if out is None else Path(out), overwrite
        if self.out is not None:
            find_run(self.out, resume=False, overwrite=overwrite)
            require_writable(self.out)
        self.batches = 0  # that passed, looked at or not
        self._waiting: list[Passing] = []
        self._open: Passing | None = None
        self._looking = self._training = False
        self._reader: ResidualReader | None = None
        self._stack = ExitStack()

    def __enter__(self) -> "Recorder":
        """Hook the model."""
        layers = self._kept.keeping.layers
        with ExitStack() as stack:
            if layers:
                self._reader = stack.enter_context(read_residuals(self.model, layers))
                self._reader.paused = True
            stack.enter_context(watch_passes(self.model, self._before, self._after))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        """Take the hooks off; write the run where one was asked for."""
        self._stack.close()
        self._close()
        if self.out is not None and self._mine() and (kind is None or self.batches):
            self.save(self.out, overwrite=self.overwrite)

    def records(self) -> list[Recorded]:
        """Give the texts that are kept so far, in the order in which they passed.

        Texts that were generated last may still be going on; what passed of them is given when
        the next batch begins, or the recorder is left.
        """
        self._fetch()
        return sorted(self._kept.rows, key=lambda row: row.batch)

    def rollouts(self) -> Rollouts:
        """Give the texts whose tokens are known as one record.

        ``valid`` are the tokens that take part: generated ones; with labels, those in the loss;
        else all but the first.

        Raises:
            HooksSkipped: nothing has passed through the model.
            ValueError: texts have passed, but as embeddings.
        """
        rows = [row for row in self.records() if row.tokens is not None]
        if not self.batches:
            raise HooksSkipped(
                f"nothing has passed through this {type(self.model).__name__}: the loop runs "
                "another model, only its body, or a graph that was compiled before"
            )
        if not rows:
            raise ValueError(
                "no text with tokens has been kept: the model was given embeddings, or no batch "
                f"of the {self.batches} that passed was looked at; see records()"
            )
        return join_rows(rows, self._provenance(), self.tokenizer)

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Run | None:
        """Write `rollouts` as a run directory, which `probe report` opens.

        Processes that record nothing write nothing, and get None.

        Raises:
            RunConflict: the folder is taken.
        """
        if not self._mine():
            return None
        rollouts = self.rollouts()
        rows = (row for row in self.records() if row.tokens is not None)
        facts = [{"batch": row.batch, "training": row.training} for row in rows]
        return save_run(rollouts, folder, facts=facts, overwrite=overwrite)

    def _before(self, arguments: Mapping[str, object]) -> None:
        """Decide, before a pass, whether to look at it."""
        self._training = torch.is_grad_enabled()
        held = columns_held(arguments)
        if held:
            # What goes on with other texts, or with some whose beginning was not looked at, is not
            # looked at either. Recurrent states do not tell how many tokens they have seen.
            batch = self._open
            rows = batch is not None and batch.rows == len(entered(arguments))
            self._looking = rows and held in (batch.width, -1)
        else:
            self._close()
            self._looking = self.batches % self.every == 0 and self._mine()
            self.batches += 1
        if not self._looking:
            self._close()
        if self._reader is not None:
            self._reader.clear()
            self._reader.paused = not self._looking

    def _after(self, arguments: Mapping[str, object], output: object) -> None:
        """Read a pass."""
        if not self._looking:
            return
        self._looking = False
        states = {}
        if self._reader is not None:
            self._reader.paused = True
            states = self._reader.take(tokens=entered(arguments)[..., :1].numel())
        cached = columns_held(getattr(output, "__dict__", {})) is not None
        may_go_on = cached and not self._training
        piece = read_piece(
            arguments, output, temperature=self.temperature, may_go_on=may_go_on, states=states
        )
        if self._open is None:
            self._open = Passing(
                self.batches - 1, self._training, piece, temperature=self.temperature
            )
        else:
            self._open.follow(piece)
        if not may_go_on:
            self._close()

    def _close(self) -> None:
        """Take the batch that was passing as whole."""
        if self._open is not None:
            self._waiting.append(self._open)
            self._open = None
        if self._reader is not None or len(self._waiting) >= _WAITING:
            self._fetch()

    def _fetch(self) -> None:
        """Bring the texts that wait to the CPU, and choose among them."""
        waiting, self._waiting = self._waiting, []
        for batch in waiting:
            self._kept.take(batch, _stops(self.model))

    def _mine(self) -> bool:
        """Tell whether this process records."""
        distributed = torch.distributed
        if self.ranks == "all" or not distributed.is_available():
            return True
        return not distributed.is_initialized() or distributed.get_rank() == 0

    def _provenance(self) -> Provenance:
        """Say where the numbers come from; the weights may have changed on the way."""
        return Provenance(
            model=model_name(self.model),
            source="record",
            revision=model_revision(self.model),
            dtype=str(self.model.dtype).removeprefix("torch."),
            temperature=None,
            entropy_basis="logits / temperature, full vocabulary",
            entropy_temperature=self.temperature,
            capture=self._kept.keeping.words,
            libraries=library_versions(),
            origin=f"recorded in a loop: {len(self._kept.rows)} of {self._kept.seen} texts looked "
            f"at, one in {self.every} of {self.batches} batches",
        )


def _stops(model: nn.Module) -> set[int]:
    """Give the tokens that end a text, by the model's generation configuration."""
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return set(ends if isinstance(ends, list | tuple) else [] if ends is None else [ends])
