r"""vector-quantize-pytorch's ``EvoLFQ``: an autoencoder of bits, and a search for bits by a genetic algorithm.

::

    population of bits --decode--> fitness --the best stay, pairs of winners are crossed and mutated--> next population
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gmvq.compat.binary import LFQ

Fitness = Callable[[Tensor, Tensor], Any]
"""Decoded items and their bits -> a number for each, the larger the better."""


class Reconstruction(NamedTuple):
    """Return value of ``EvoLFQ``.

    Attributes:
        reconstructed: Output of the decoder.
        indices: Code of each latent.
        entropy_aux_loss: Loss ``()``.
    """

    reconstructed: Tensor
    indices: Tensor
    entropy_aux_loss: Tensor


class Generation(NamedTuple):
    """A generation of the search.

    Attributes:
        pop_bits: The next population.
        best_gene: The fittest bits so far.
        best_fitness: Their fitness.
        best_decoded: What they decode to, if asked for.
    """

    pop_bits: Tensor
    best_gene: Tensor | None
    best_fitness: float
    best_decoded: Tensor | None


class EvoLFQ(nn.Module):
    """An encoder, ``LFQ`` and a decoder, whose bits can be searched for those of the highest fitness.

    Args:
        encoder: Module that gives latents ``(B, dim)``, ``(B, N, dim)`` or ``(B, dim, *spatial)``.
        decoder: Module that takes them.
        lfq: The quantizer, by default made from the arguments that follow.
        dim: Features of a latent.
        codebook_size: Number of codes K of a codebook.
        num_codebooks: Number of codebooks.
        pop_size: Number of individuals of a population.
        mutation_rate: Probability with which a bit is flipped.
        tournament_size: Number of individuals of which the fittest becomes a parent.
        elitism_count: Number of the fittest that stay.
        generations: Number of generations.
        **lfq_kwargs: Other keyword arguments of :class:`~gmvq.compat.binary.LFQ`.

    Raises:
        ValueError: If ``pop_size`` is not above ``elitism_count``, or an option of ``LFQ`` is not supported.

    Example:
        >>> search = EvoLFQ(nn.Linear(4, 8), nn.Linear(8, 4), dim=8, pop_size=16, generations=3)
        >>> *_, last = search.evolve(lambda decoded, bits: bits.sum(-1), shape=(8,))
        >>> last.pop_bits.shape, last.best_gene.shape
        (torch.Size([16, 8]), torch.Size([8]))
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        lfq: LFQ | None = None,
        *,
        dim: int | None = None,
        codebook_size: int | None = None,
        num_codebooks: int = 1,
        pop_size: int = 64,
        mutation_rate: float = 0.02,
        tournament_size: int = 2,
        elitism_count: int = 1,
        generations: int = 50,
        **lfq_kwargs: Any,  # noqa: ANN401
    ) -> None:
        super().__init__()
        if pop_size <= elitism_count:
            raise ValueError(f"'pop_size' must be above 'elitism_count' = {elitism_count}, got {pop_size}. Raise it.")
        self.encoder = encoder
        self.decoder = decoder
        self.lfq = lfq or LFQ(dim=dim, codebook_size=codebook_size, num_codebooks=num_codebooks, **lfq_kwargs)
        self.pop_size = pop_size
        self.mutation_rate = mutation_rate
        self.tournament_size = tournament_size
        self.elitism_count = elitism_count
        self.generations = generations

    @property
    def device(self) -> torch.device:
        """Where the quantizer is."""
        return self.lfq.quantizer.training_progress.device

    def forward(self, x: Tensor, **call: Any) -> Reconstruction:  # noqa: ANN401
        """Reconstructs x; other arguments are those of the forward of ``LFQ``."""
        quantized, indices, loss = self.lfq(self.encoder(x), **call)
        return Reconstruction(self.decoder(quantized), indices, loss)

    @torch.no_grad()
    def encode(self, x: Tensor, return_signs: bool = False) -> Tensor:
        """Bits of x, the last axis: floats 0 and 1, or -1 and 1 with ``return_signs``."""
        with _evaluating(self):
            indices = self.lfq(self.encoder(x))[1]
        places = torch.arange(self.lfq.codebook_dim - 1, -1, -1, device=indices.device)
        bits = (indices[..., None] >> places) & 1
        bits = (bits.flatten(-2) if self.lfq.options.keeps_axis else bits).float()
        return 2 * bits - 1 if return_signs else bits

    @torch.no_grad()
    def decode_bits(self, bits: Tensor) -> Tensor:
        """What bits decode to: those above 0 count as 1, the last axis has the bits of all codebooks."""
        codebooks, places = self.lfq.num_codebooks, self.lfq.codebook_dim
        parts = (bits > 0).long().unflatten(-1, (codebooks, places))
        indices = (parts << torch.arange(places - 1, -1, -1, device=bits.device)).sum(-1)
        with _evaluating(self):
            return self.decoder(self.lfq.indices_to_codes(indices if self.lfq.options.keeps_axis else indices[..., 0]))

    def init_random_population(
        self,
        pop_size: int | None = None,
        shape: tuple[int, ...] = (),
        device: torch.device | None = None,
        is_sign: bool = False,
    ) -> Tensor:
        """Random bits ``(pop_size, *shape)``."""
        size = self.pop_size if pop_size is None else pop_size
        bits = torch.randint(0, 2, (size, *shape), device=self.device if device is None else device).float()
        return 2 * bits - 1 if is_sign else bits

    def init_population_from_data(
        self, x: Tensor, pop_size: int | None = None, mutation_rate: float | None = None, is_sign: bool = False
    ) -> Tensor:
        """Bits of x, repeated or cut to ``pop_size`` and mutated."""
        size = self.pop_size if pop_size is None else pop_size
        bits = self.encode(x, return_signs=is_sign)
        bits = bits.repeat(-(-size // len(bits)), *[1] * (bits.ndim - 1))[:size]
        rate = self.mutation_rate if mutation_rate is None else mutation_rate
        return self.mutate(bits, rate, is_sign) if rate > 0 else bits

    def uniform_crossover(self, parent1: Tensor, parent2: Tensor) -> Tensor:
        """Takes each bit from one of two parents."""
        return torch.where(torch.rand_like(parent1.float()) < 0.5, parent1, parent2)

    def mutate(self, population: Tensor, mutation_rate: float | None = None, is_sign: bool = False) -> Tensor:
        """Flips bits with a probability."""
        rate = self.mutation_rate if mutation_rate is None else mutation_rate
        flipped = -population if is_sign else 1 - population
        return torch.where(torch.rand_like(population.float()) < rate, flipped, population)

    def tournament_selection(self, population: Tensor, fitnesses: Tensor, tournament_size: int | None = None) -> Tensor:
        """The winners of as many tournaments as there are individuals."""
        return population[self._winners(fitnesses, (len(population),), tournament_size)]

    @torch.no_grad()
    def step(
        self,
        pop_bits: Tensor,
        fitness_fn: Fitness,
        tournament_size: int | None = None,
        mutation_rate: float | None = None,
        elitism_count: int | None = None,
        is_sign: bool = False,
        batch_size: int | None = None,
        **_: Any,  # noqa: ANN401
    ) -> tuple[Tensor, Tensor]:
        """The next population, and the fitness of each individual of this one.

        Args:
            pop_bits: Bits ``(P, *)``.
            fitness_fn: Fitness ``(P,)`` of decoded items and their bits.
            tournament_size: As in the constructor, whose value is the default; so the next two.
            mutation_rate: As in the constructor.
            elitism_count: As in the constructor.
            is_sign: True if bits are -1 and 1.
            batch_size: Number of individuals decoded at a time, all by default.
        """
        kept = self.elitism_count if elitism_count is None else elitism_count
        decoded = torch.cat([self.decode_bits(part) for part in pop_bits.split(batch_size or len(pop_bits))])
        fitnesses = torch.as_tensor(fitness_fn(decoded, pop_bits), device=pop_bits.device)
        elites = pop_bits[fitnesses.argsort(descending=True)[:kept]]
        parents = pop_bits[self._winners(fitnesses, (len(pop_bits) - kept, 2), tournament_size)]
        offspring = self.mutate(self.uniform_crossover(*parents.unbind(1)), mutation_rate, is_sign)
        return torch.cat([elites, offspring]), fitnesses

    @torch.no_grad()
    def evolve(
        self,
        fitness_fn: Fitness,
        pop_bits: Tensor | None = None,
        pop_size: int | None = None,
        shape: tuple[int, ...] | None = None,
        generations: int | None = None,
        is_sign: bool = False,
        return_best_decoded: bool = False,
        **step: Any,  # noqa: ANN401
    ) -> Iterator[Generation]:
        """Searches generation by generation.

        Args:
            fitness_fn: As in :meth:`step`.
            pop_bits: The first population, random by default.
            pop_size: Its size.
            shape: Shape of the bits of an individual, where ``pop_bits`` is not given.
            generations: Number of generations.
            is_sign: True if bits are -1 and 1.
            return_best_decoded: True to decode the fittest.
            **step: Other arguments of :meth:`step`.

        Raises:
            ValueError: If neither ``pop_bits`` nor ``shape`` is given.
        """
        if pop_bits is None and shape is None:
            raise ValueError(
                "'shape' must be given where 'pop_bits' is not, got None. Give the shape of a code's bits."
            )
        population = (
            self.init_random_population(pop_size, shape or (), is_sign=is_sign) if pop_bits is None else pop_bits
        )
        best, best_fitness = None, float("-inf")
        for _ in range(self.generations if generations is None else generations):
            following, fitnesses = self.step(population, fitness_fn, is_sign=is_sign, **step)
            fittest = int(fitnesses.argmax())
            if float(fitnesses[fittest]) > best_fitness:
                best, best_fitness = population[fittest].clone(), float(fitnesses[fittest])
            population = following
            decoded = self.decode_bits(best[None])[0] if return_best_decoded and best is not None else None
            yield Generation(population, best, best_fitness, decoded)

    def _winners(self, fitnesses: Tensor, shape: tuple[int, ...], tournament_size: int | None) -> Tensor:
        """Indices of the fittest of tournaments, ``shape``."""
        size = self.tournament_size if tournament_size is None else tournament_size
        contenders = torch.randint(0, len(fitnesses), (*shape, size), device=fitnesses.device)
        return contenders.gather(-1, fitnesses[contenders].argmax(-1, keepdim=True))[..., 0]


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Puts a module in evaluation mode for a while."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)
