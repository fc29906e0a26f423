"""Many samples of one prompt, or of many prompts that share what they begin with."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from .. import _arguments as arguments
from ._decode_graph import Decoder
from ._kv_cache import KvCache, KvStep
from ._model import forward, model_shape, through_pando
from ._prompts import pages_needed, prompts_of, stops_of
from ._sampling import Sampler, log_probabilities


@dataclass
class Generated:
    """What :func:`generate` returns."""

    #: ``tokens[p][s]``: new tokens of sample ``s`` of prompt ``p``, a stop token included.
    tokens: list[list[list[int]]]
    #: ``logprobs[p][s]``: sum of the natural logarithms of their probabilities under the model,
    #: before temperature and the like; None without ``return_logprobs``.
    logprobs: list[list[float]] | None
    prompt_tokens: int = 0  #: of all prompts
    computed_prompt_tokens: int = 0  #: those whose KV was not there yet
    prefill_seconds: float = 0.0  #: until the first new token of each prompt
    decode_seconds: float = 0.0  #: for all others
    kv_bytes: int = 0  #: KV memory in use at the most, with what is kept for later

    @property
    def new_tokens(self) -> int:
        """Of all samples."""
        return sum(len(sample) for samples in self.tokens for sample in samples)


@dataclass
class _Sample:
    prompt: int
    sequence: int
    length: int  # of the sequence
    tokens: list[int] = field(default_factory=list)
    logprob: float = 0.0


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    prompts: Any,
    *,
    max_new_tokens: int,
    num_samples: int = 1,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    stop_tokens: Sequence[int] | None = None,
    return_logprobs: bool = False,
    generator: torch.Generator | None = None,
    batch_size: int = 256,
    prefill_tokens: int = 2048,
    cache: KvCache | None = None,
    cuda_graph: bool = True,
    kv_dtype: Any = None,
    k_scale: Any = None,
    v_scale: Any = None,
) -> Generated:
    """Samples continuations of prompts; KV of what they share is computed, kept and read once.

    That is the whole prompt for the samples of one, and the whole pages that several prompts begin
    with, such as the shots of a few-shot evaluation. A step of all samples is one forward pass.

    Args:
        model: a decoder of Transformers with full or sliding-window attention, in eval mode; the
            ``attn_implementation`` that it has is back afterwards.
        prompts: token ids of one prompt, or a list of such.
        max_new_tokens: at most so many for each sample.
        num_samples: of each prompt.
        temperature: 0 takes the most probable token; otherwise logits are divided by it.
        top_k, top_p, min_p: as in Transformers; 0, 1.0 and 0.0 leave them out.
        stop_tokens: a sample ends with the first of these; by default the model's ``eos_token_id``.
        return_logprobs: add up log-probabilities, one more pass over the logits.
        generator: of random numbers; by default the global one of PyTorch.
        batch_size: at most so many samples at once; the others follow.
        prefill_tokens: at most so many tokens of prompts in one forward pass.
        cache: keeps KV for later calls; by default there is one for this call alone.
        cuda_graph: on CUDA, capture the decode step of a batch once and replay it.
        kv_dtype: "fp8" keeps K and V in one byte an element; by default they are of the model's
            dtype. A ``cache`` has its own.
        k_scale, v_scale: of fp8 K and V, as for :class:`KvCache`; by default the first pass over
            the prompts fixes them. A ``cache`` has its own.

    Returns:
        A :class:`Generated`.

    Raises:
        ValueError, TypeError or NotImplementedError that names the argument;
        :class:`pando_attn.OutOfPages` when ``cache`` is too small.
    """
    shape = model_shape(model)
    ids = prompts_of(prompts, shape.vocab_size)
    for name, value in (
        ("max_new_tokens", max_new_tokens),
        ("num_samples", num_samples),
        ("batch_size", batch_size),
        ("prefill_tokens", prefill_tokens),
    ):
        if arguments.integer(name, value) < 1:
            raise ValueError(f"{name}: got {value}, want 1 or more")
    cuda_graph = arguments.flag("cuda_graph", cuda_graph)
    sampler = Sampler(temperature, top_k, top_p, min_p, generator)
    stops = stops_of(model, stop_tokens)
    jobs = [p for p in range(len(ids)) for _ in range(num_samples)]
    batches = [jobs[i : i + batch_size] for i in range(0, len(jobs), batch_size)]
    if cache is None:
        size = 16
        pages = max(
            pages_needed([ids[p] for p in batch], max_new_tokens, size) for batch in batches
        )
        cache = KvCache(
            model,
            pages * size,
            page_tokens=size,
            kv_dtype=kv_dtype,
            k_scale=k_scale,
            v_scale=v_scale,
        )
    elif not isinstance(cache, KvCache):
        raise TypeError(f"cache: got {arguments.kind_name(cache)}, want a KvCache")
    elif cache.shape != shape:
        raise ValueError(f"cache: got one of a model of {cache.shape}, want {shape}")
    else:
        cache.check_kv(kv_dtype, k_scale, v_scale)
    result = Generated(
        tokens=[[] for _ in ids],
        logprobs=[[] for _ in ids] if return_logprobs else None,
        prompt_tokens=sum(map(len, ids)),
    )
    with through_pando(model):
        for batch in batches:
            run = _Batch(model, cache, sampler, stops, max_new_tokens, return_logprobs, cuda_graph)
            run.run(ids, batch, prefill_tokens, result)
    return result


class _Batch:
    """Samples that are decoded together."""

    def __init__(
        self,
        model: PreTrainedModel,
        cache: KvCache,
        sampler: Sampler,
        stops: frozenset[int],
        max_new_tokens: int,
        logprobs: bool,
        cuda_graph: bool,
    ) -> None:
        self._model = model
        self._cache = cache
        self._sampler = sampler
        self._stops = stops
        self._max_new_tokens = max_new_tokens
        self._logprobs = logprobs
        self._decoder = Decoder(model, cache, cuda_graph)
        self._sequences: set[int] = set()  # those to release

    def run(
        self, ids: list[np.ndarray], jobs: list[int], prefill_tokens: int, result: Generated
    ) -> None:
        """Decodes one sample for each prompt index in ``jobs``, which are in order."""
        try:
            start = time.perf_counter()
            prompts = list(dict.fromkeys(jobs))
            added = []
            for p in prompts:
                added.append(self._cache.tree.add(ids[p]))
                self._sequences.add(added[-1].sequence)
            logits = self._prefill([ids[p] for p in prompts], added, prefill_tokens, result)
            result.kv_bytes = max(result.kv_bytes, self._cache.used_bytes)
            rows = [prompts.index(p) for p in jobs]
            samples: list[_Sample] = []
            for row in rows:
                sequence = added[row].sequence
                if samples and samples[-1].prompt == prompts[row]:
                    sequence = self._cache.tree.fork(sequence)
                    self._sequences.add(sequence)
                samples.append(_Sample(prompts[row], sequence, len(ids[prompts[row]])))
            logits = logits[rows]
            live = self._sample(samples, logits)
            prefilled = time.perf_counter()
            while live:
                logits = self._decode(live)
                result.kv_bytes = max(result.kv_bytes, self._cache.used_bytes)
                live = self._sample(live, logits)
            result.prefill_seconds += prefilled - start
            result.decode_seconds += time.perf_counter() - prefilled
        except BaseException:
            for sequence in self._sequences:
                self._cache.tree.release(sequence)
            self._cache.clear()  # pages of these sequences may hold no KV yet
            raise
        for sample in samples:
            result.tokens[sample.prompt].append(sample.tokens)
            if result.logprobs is not None:
                result.logprobs[sample.prompt].append(sample.logprob)

    def _prefill(
        self, prompts: list[np.ndarray], added: list[Any], most: int, result: Generated
    ) -> torch.Tensor:
        """Logits of the last token of each prompt; computes what is not there yet, and these."""
        pieces = []  # (prompt, first position, end)
        for i, (tokens, new) in enumerate(zip(prompts, added)):
            begin = min(new.cached_tokens, len(tokens) - 1)
            result.computed_prompt_tokens += len(tokens) - begin
            pieces.append((i, begin, len(tokens)))
        logits = []
        while pieces:
            now, room = [], most
            while pieces and room:
                i, begin, end = pieces[0]
                stop = min(end, begin + room)
                now.append((i, begin, stop))
                room -= stop - begin
                if stop == end:
                    pieces.pop(0)
                else:
                    pieces[0] = (i, stop, end)
            ends = np.cumsum([stop - begin for _, begin, stop in now])
            wanted = [int(e) - 1 for e, (i, _, stop) in zip(ends, now) if stop == len(prompts[i])]
            logits.append(
                self._forward(
                    [added[i].sequence for i, _, _ in now],
                    [prompts[i][begin:stop] for i, begin, stop in now],
                    [stop for _, _, stop in now],
                    [added[i].cached_tokens for i, _, _ in now],
                    wanted,
                )
            )
        return torch.cat(logits)

    def _decode(self, live: list[_Sample]) -> torch.Tensor:
        """Logits after the last token of each sample."""
        copies = []
        for sample in live:
            appended = self._cache.tree.append(sample.sequence, sample.tokens[-1])
            sample.length += 1
            if appended.copy is not None:
                copies.append(appended.copy)
        self._cache.copy(copies)
        layout = self._cache.layout(
            [s.sequence for s in live], [s.length for s in live], [1] * len(live)
        )
        steps_left = self._max_new_tokens - len(live[0].tokens)
        return self._decoder.run([s.tokens[-1] for s in live], layout, steps_left)

    def _forward(
        self,
        sequences: list[int],
        tokens: list[np.ndarray],
        ends: list[int],
        kept: list[int],
        wanted: list[int],
    ) -> torch.Tensor:
        layout = self._cache.layout(sequences, ends, [len(t) for t in tokens], kept)
        device = self._cache.shape.device
        inputs = np.stack([np.concatenate(tokens), layout.positions, layout.slots])
        ids, positions, slots = torch.from_numpy(inputs).to(device)
        step = KvStep(self._cache, self._cache.plans, layout.tables, slots)
        logits = forward(
            self._model,
            ids,
            positions,
            torch.tensor(wanted, dtype=torch.int64, device=device),
            step,
        )
        step.check()
        return logits

    def _sample(self, samples: list[_Sample], logits: torch.Tensor) -> list[_Sample]:
        """Gives each sample its next token; those that go on."""
        chosen = self._sampler(logits)
        logprobs = log_probabilities(logits, chosen) if self._logprobs else [0.0] * len(samples)
        live = []
        for sample, token, logprob in zip(samples, chosen.tolist(), logprobs):
            sample.tokens.append(token)
            sample.logprob += logprob
            if token in self._stops or len(sample.tokens) == self._max_new_tokens:
                self._sequences.discard(sample.sequence)
                self._cache.tree.release(sample.sequence)
            else:
                live.append(sample)
        return live
