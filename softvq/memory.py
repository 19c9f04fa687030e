"""The memory that a computation takes, counted tensor by tensor.

It can be counted of tensors without contents too, where nothing is computed and no memory is taken.
"""

from collections.abc import Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Memory(TorchDispatchMode):
    """A counter of the bytes that the results of operations hold, by storage: those held now, and the most at once."""

    def __init__(self):
        super().__init__()
        self.held: dict[int, tuple[StorageWeakRef, int]] = {}
        self.now = self.peak = 0

    def hold(self, tensors: list[Tensor]) -> None:
        """Count these tensors until their storages are freed."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage._cdata not in self.held:
                self.now += storage.nbytes()
                self.held[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        if self.now > self.peak:  # only now does it matter what was freed
            self.held = {key: (ref, size) for key, (ref, size) in self.held.items() if not ref.expired()}
            self.now = sum(size for _, size in self.held.values())
            self.peak = max(self.peak, self.now)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        results = func(*args, **(kwargs or {}))
        self.hold([t for t in tree_leaves(results) if isinstance(t, Tensor)])
        return results


@contextmanager
def without_contents():
    """Open a block in which tensors have shapes, but no contents.

    In it `trunc_normal_` is a plain normal: it draws until all values are inside, which such tensors cannot say.
    """
    usual = nn.init.trunc_normal_
    nn.init.trunc_normal_ = nn.init.normal_
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            yield
    finally:
        nn.init.trunc_normal_ = usual
