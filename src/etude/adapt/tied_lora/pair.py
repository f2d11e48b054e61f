r"""The tied pair: which layers share one, how it is drawn, and each layer's view of it.

Dimensions: r rank, I inputs, O outputs of a bundle (of q, k and v together), L layers.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from etude.nn.adapted import Part
from etude.nn.matrices import type_of
from etude.nn.surgery import features

KINDS = ("A", "B", "u", "v")


@dataclass(frozen=True)
class Bundle:
    """Linear layers that are adapted as one map: the query, key and value projections of one attention, or a single layer.

    Attributes:
        name: of the module that holds them, or of the single layer ("model.layers.0.self_attn").
        members: (name of the layer, first row, last row + 1) in the map's outputs.
        width: inputs I.
        group: which bundles have their A and B in common: those of the same shapes.
    """

    name: str
    members: tuple[tuple[str, int, int], ...]
    width: int
    group: str

    @property
    def height(self) -> int:
        """Outputs O."""
        return self.members[-1][2]

    @property
    def key(self) -> str:
        """The name as a parameter's name."""
        return self.name.replace(".", "_")


def bundles(layers: Mapping[str, nn.Module]) -> list[Bundle]:
    """The layers as bundles, in the order of the model: q, k and v that read the same input are one, every other layer is one by itself."""
    shapes = {name: shape_of(layer) for name, layer in layers.items()}
    collected = dict[tuple[str, int], list[str]]()
    for name, (_, width) in shapes.items():
        apart = type_of(name) in ("q", "k", "v")
        collected.setdefault((name.rpartition(".")[0] if apart else name, width), []).append(name)
    found = list[Bundle]()
    for (name, width), members in collected.items():
        heights = [shapes[member][0] for member in members]
        rows = [sum(heights[:i]) for i in range(len(heights) + 1)]
        attends = type_of(members[0]) in ("q", "k", "v", "qkv")
        group = f"{'qkv_' if attends else ''}{width}x{'_'.join(map(str, heights))}"
        found.append(Bundle(name, tuple(zip(members, rows, rows[1:], strict=False)), width, group))
    return found


def shape_of(layer: nn.Module) -> tuple[int, int]:
    """(out, in), also of a layer whose stored weight has another shape (quantised)."""
    if hasattr(layer, "in_features") and hasattr(layer, "out_features"):
        return int(layer.out_features), int(layer.in_features)
    return features(layer)


def count(found: list[Bundle], rank: int, train: Collection[str], tie: Collection[str]) -> int:
    """Trained numbers: 4 d r + L (r + 3 d) for L layers of q, k, v with d inputs and outputs each, all trained, both tied."""
    sizes = {"A": lambda b: b.width * rank, "B": lambda b: b.height * rank, "u": lambda b: rank, "v": lambda b: b.height}
    total = 0
    for kind in train:
        owners = {bundle.group: bundle for bundle in found}.values() if kind in tie else found
        total += sum(sizes[kind](bundle) for bundle in owners)
    return total


# --- drawing --------------------------------------------------------------------------------------------------------------


def draw(rows: int, columns: int, bound: float, seed: int, name: str) -> Float[Tensor, "rows columns"]:
    """Uniform numbers within +-bound, float32: of the seed and the name alone, from a generator of their own on the CPU."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    dice = torch.Generator(device="cpu").manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.empty(rows, columns, device="cpu", dtype=torch.float32).uniform_(-bound, bound, generator=dice)


def digest_of(tensor: Tensor) -> str:
    """By which a frozen matrix that is drawn again is known to be the same."""
    return hashlib.sha256(tensor.detach().cpu().contiguous().numpy().tobytes()).hexdigest()[:16]


class Table(nn.Module):
    """Tensors by name: trained ones are parameters, and saved; frozen ones are drawn again and not saved."""

    def put(self, name: str, tensor: Tensor, trained: bool) -> None:
        """Hold a tensor."""
        if trained:
            self.register_parameter(name, nn.Parameter(tensor))
        else:
            self.register_buffer(name, tensor, persistent=False)

    def __getitem__(self, name: str) -> Tensor:
        return getattr(self, name)


class Store(nn.Module):
    r"""All tensors of one adapter, in one place: \(A\) and \(B\) by group (tied) or by bundle, \(u\) and \(v\) by bundle.

    The update is zero at the start: \(B = 0\) where B is trained, else \(v = 0\). A frozen u or v is all ones, and absent.

    Attributes:
        frozen: name -> digest of the matrices that are not stored.
    """

    def __init__(self, found: list[Bundle], rank: int, train: Collection[str], tie: Collection[str], seed: int) -> None:
        super().__init__()
        self.tie, self.frozen = frozenset(tie), dict[str, str]()
        self.etude_A, self.etude_B, self.etude_u, self.etude_v = (Table() for _ in KINDS)
        for bundle in found:
            self._matrices(bundle, rank, train, seed)
            if "u" in train:
                self.etude_u.put(bundle.key, torch.ones(rank), trained=True)
            if "v" in train:
                self.etude_v.put(bundle.key, (torch.ones if "B" in train else torch.zeros)(bundle.height), trained=True)

    def _matrices(self, bundle: Bundle, rank: int, train: Collection[str], seed: int) -> None:
        """Trained: A as LoRA's (Kaiming uniform with a = sqrt 5), B zero. Frozen: Kaiming uniform, as VeRA's."""
        for kind, table, (rows, columns) in (("A", self.etude_A, (rank, bundle.width)), ("B", self.etude_B, (bundle.height, rank))):
            key = self.key(kind, bundle)
            if hasattr(table, key):
                continue
            trained = kind in train
            if trained and kind == "B":
                tensor = torch.zeros(rows, columns)
            else:
                tensor = draw(rows, columns, math.sqrt((1.0 if trained else 6.0) / columns), seed, f"{kind}.{key}")
            if not trained:
                self.frozen[f"{kind}.{key}"] = digest_of(tensor)
            table.put(key, tensor, trained)

    def key(self, kind: str, bundle: Bundle) -> str:
        """Under which name a bundle finds its A or B."""
        return bundle.group if kind in self.tie else bundle.key


class TiedPart(Part):
    r"""One linear layer's rows of \(z = W x + \frac{\alpha}{r}\,\mathrm{diag}(v) B\,\mathrm{diag}(u) A x\) (section 3), looked up in the store."""

    def __init__(self, store: Store, bundle: Bundle, start: int, end: int, scale: float, dropout: float) -> None:
        super().__init__()
        self.store = (store,)  # looked up, not held: a module in a tuple is no child
        self.bundle, self.start, self.end, self.scale = bundle, start, end, scale
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def factors(self) -> tuple[Float[Tensor, "r in"], Float[Tensor, "out r"]]:
        """A, and this layer's rows of B with u, v and the scaling multiplied into them: they are smaller than what flows through them."""
        (store,) = self.store
        A, B = store.etude_A[store.key("A", self.bundle)], store.etude_B[store.key("B", self.bundle)]
        B = B[self.start : self.end]
        if self.scale != 1:
            B = B * self.scale
        if hasattr(store.etude_u, self.bundle.key):
            B = B * store.etude_u[self.bundle.key]
        if hasattr(store.etude_v, self.bundle.key):
            B = B * store.etude_v[self.bundle.key][self.start : self.end, None]
        return A, B

    def forward(self, x: Float[Tensor, "*B in"], y: Float[Tensor, "*B out"]) -> Float[Tensor, "*B out"]:
        A, B = self.factors()
        z = F.linear(F.linear(self.dropout(x.to(A.dtype)), A.to(x.device)), B.to(x.device))
        return (y + z).to(y.dtype)

    def delta(self) -> Float[Tensor, "out in"]:
        A, B = self.factors()
        return B @ A

    def extra_repr(self) -> str:
        return f"group={self.bundle.group}, rows={self.start}:{self.end}, scale={self.scale:g}"
