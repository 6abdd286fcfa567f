"""The shapes that are timed: decoders of the Llama architecture and the matrix products in them."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Shape:
    """The dimensions of a Llama-architecture decoder."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocab: int
    tied: bool

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    def matrices(self) -> dict[str, tuple[int, int]]:
        """(n, k) of every matrix by its GGUF name, embedding first."""
        kv = self.kv_heads * self.head_dim
        found = {"token_embd.weight": (self.vocab, self.hidden)}
        if not self.tied:
            found["output.weight"] = (self.vocab, self.hidden)
        for layer in range(self.layers):
            found |= {
                f"blk.{layer}.attn_q.weight": (self.hidden, self.hidden),
                f"blk.{layer}.attn_k.weight": (kv, self.hidden),
                f"blk.{layer}.attn_v.weight": (kv, self.hidden),
                f"blk.{layer}.attn_output.weight": (self.hidden, self.hidden),
                f"blk.{layer}.ffn_gate.weight": (self.intermediate, self.hidden),
                f"blk.{layer}.ffn_up.weight": (self.intermediate, self.hidden),
                f"blk.{layer}.ffn_down.weight": (self.hidden, self.intermediate),
            }
        return found


SHAPES: Final = {
    "1.1b": Shape(22, 2048, 5632, 32, 4, 32000, tied=False),
    "135m": Shape(30, 576, 1536, 9, 3, 49152, tied=True),
}
CONTEXT: Final = 8192


@dataclass(frozen=True, slots=True)
class Product:
    """c[m][n] = sum over k of a[m][k] * b[n][k]."""

    m: int
    n: int
    k: int

    def __str__(self) -> str:
        return f"{self.m} x {self.k} -> {self.n}"


# The products of a token in the 1.1b shape, and one of a prompt.
PRODUCTS: Final = (
    Product(1, 2048, 2048),
    Product(1, 5632, 2048),
    Product(1, 2048, 5632),
    Product(1, 32000, 2048),
    Product(256, 5632, 2048),
)
