"""An adapter's trainable parameters over one buffer, and their gradients over another."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from fedit import tensors
from fedit.types import Tensors


class Parameters(Mapping[str, nn.Parameter]):
    """Canonical name -> parameter; all are views of one buffer, so that a pass over it is a pass over all.

    trained: names of the factors that get gradients.
    values: the parameters' values, float32 (float64 over a float64 base), in ascending order of the names.
    """

    def __init__(self, values: tensors.Flat, named: Mapping[str, nn.Parameter] | None = None) -> None:
        self.values_flat = values
        self._named = {name: named[name] if named else nn.Parameter(view) for name, view in values.items()}
        for name, parameter in self._named.items():
            parameter.data = values[name]
        self._gradients: tensors.Flat | None = None
        self.trained: frozenset[str] = frozenset()

    @property
    def gradients(self) -> Tensor:
        """The buffer of all gradients, while something is trained; those of other factors are zero."""
        if self._gradients is None:
            raise ValueError("nothing is trained")
        return self._gradients.buffer

    def trained_gradients(self) -> list[Tensor]:
        """Return the gradients of what is trained, in one piece if that is everything."""
        if len(self.trained) == len(self._named):
            return [self.gradients]
        return [grad for name in self if name in self.trained and (grad := self._named[name].grad) is not None]

    def __getitem__(self, name: str) -> nn.Parameter:
        return self._named[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._named)

    def __len__(self) -> int:
        return len(self._named)

    def load(self, adapter: Mapping[str, Tensor]) -> None:
        """Copy ``adapter`` (the same names and shapes) into the parameters."""
        with torch.no_grad():
            if isinstance(adapter, tensors.Flat) and adapter.layout is self.values_flat.layout:
                self.values_flat.buffer.copy_(adapter.buffer)
            else:
                for name, view in self.values_flat.items():
                    view.copy_(adapter[name])

    def read(self) -> Tensors:
        """Return a copy of the values on the CPU."""
        return tensors.Flat(self.values_flat.layout, self.values_flat.buffer.to("cpu", copy=True))

    def train(self, names: Sequence[str]) -> None:
        """Let only ``names`` get gradients, which are zero and views of one buffer until `forget` is called."""
        if self._gradients is None:
            self._gradients = tensors.empty_like(self.values_flat)
        self._gradients.buffer.zero_()
        chosen = self.trained = frozenset(names)
        for name, parameter in self._named.items():
            parameter.requires_grad_(name in chosen)
            parameter.grad = self._gradients[name] if name in chosen else None

    def zero_gradients(self) -> None:
        """Set all gradients to zero."""
        if self._gradients is not None:
            self._gradients.buffer.zero_()

    def forget(self) -> None:
        """Let go of the gradients; every parameter is trainable again."""
        for parameter in self._named.values():
            parameter.requires_grad_(True)
            parameter.grad = None

    def run(self, names: Sequence[str]) -> nn.Parameter:
        """Return one parameter, with its gradient, over neighbours that the buffer holds one after the other."""
        if self._gradients is None:
            raise ValueError("nothing is trained")
        layout = self.values_flat.layout
        first, last = layout.names.index(names[0]), layout.names.index(names[-1])
        end = layout.offsets[last] + layout.shapes[last].numel()
        place = slice(layout.offsets[first], end)
        joined = nn.Parameter(self.values_flat.buffer[place])
        joined.grad = self._gradients.buffer[place]
        return joined
