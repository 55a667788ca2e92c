"""Matrices of an ONNX graph as eight-bit numbers, with one scale a column.

Weights are unsigned with 128 as zero: sums of their products with unsigned activations are exact on every processor,
while signed weights overflow in the sixteen-bit sums of older ones. So a graph gives the same numbers everywhere.
A table of embeddings that is the output matrix too stays one tensor.
"""

from __future__ import annotations

from typing import Any

import numpy as np

LEAST = 4096  # numbers of a matrix that is worth it
ZERO = 128


class _Rewriter:
    """Replaces the multiplications by constant matrices of one graph."""

    def __init__(self, model: Any):
        from onnx import numpy_helper

        self._to_array, self._from_array = numpy_helper.to_array, numpy_helper.from_array
        self.graph = model.graph
        self.weights = {tensor.name: tensor for tensor in self.graph.initializer}
        self.transposes = {
            node.output[0]: node.input[0]
            for node in self.graph.node
            if node.op_type == "Transpose" and node.input[0] in self.weights and self._swaps(node)
        }
        self.nodes: list[Any] = []
        self.added: dict[str, Any] = {}
        self.turned: set[str] = set()
        self.activations: dict[str, tuple[str, str, str]] = {}  # names of (rounded, scale, zero) of each

    @staticmethod
    def _swaps(node: Any) -> bool:
        return not node.attribute or list(node.attribute[0].ints) == [1, 0]

    def run(self) -> None:
        """Rewrite the graph."""
        for node in self.graph.node:
            if not (self._matmul(node) or self._gemm(node) or self._gather(node)):
                self.nodes.append(node)
        used = {name for node in self.nodes for name in node.input} | {value.name for value in self.graph.output}
        kept = [node for node in self.nodes if node.op_type != "Transpose" or set(node.output) & used]
        used = {name for node in kept for name in node.input}
        tensors = [tensor for tensor in [*self.graph.initializer, *self.added.values()] if tensor.name in used]
        del self.graph.node[:], self.graph.initializer[:]
        self.graph.node.extend(kept)
        self.graph.initializer.extend(tensors)

    def _matmul(self, node: Any) -> bool:
        if node.op_type != "MatMul":
            return False
        name = node.input[1]
        stored = self.transposes.get(name, name)
        return self._multiply(node, stored, stored != name, None)

    def _gemm(self, node: Any) -> bool:
        if node.op_type != "Gemm":
            return False
        given = {a.name: (a.f if a.type == 1 else a.i) for a in node.attribute}
        if given.get("alpha", 1.0) != 1.0 or given.get("beta", 1.0) != 1.0 or given.get("transA", 0):
            return False
        name = node.input[1]
        stored = self.transposes.get(name, name)
        bias = node.input[2] if len(node.input) > 2 else None
        return self._multiply(node, stored, (stored != name) != bool(given.get("transB", 0)), bias)

    def _gather(self, node: Any) -> bool:
        """Rows of a table: of its eight-bit numbers and of their scales."""
        if node.op_type != "Gather" or not self._large(node.input[0]):
            return False
        if any(a.name == "axis" and a.i != 0 for a in node.attribute):
            return False
        table, scale = self._rounded(node.input[0], by_row=True)
        rows, out = node.input[1], node.output[0]
        self._node("Gather", [table, rows], f"{out}.rows")
        self._node("Cast", [f"{out}.rows"], f"{out}.numbers", to=1)
        self._node("Sub", [f"{out}.numbers", self._constant("int8.zero.float", np.float32(ZERO))], f"{out}.centred")
        self._node("Unsqueeze", [scale, self._constant("int8.last", np.array([-1], np.int64))], f"{out}.column")
        self._node("Gather", [f"{out}.column", rows], f"{out}.scale")
        self._node("Mul", [f"{out}.centred", f"{out}.scale"], out)
        return True

    def _multiply(self, node: Any, stored: str, transposed: bool, bias: str | None) -> bool:
        """activation [.., K] times a matrix [K, N], which is stored so or transposed."""
        if not self._large(stored) or len(self.weights[stored].dims) != 2:
            return False
        out = node.output[0]
        matrix, scale = self._rounded(stored, by_row=transposed)
        if transposed:
            turned = f"{stored}.int8.turned"
            if turned not in self.turned:
                self.turned.add(turned)
                self._node("Transpose", [matrix], turned, perm=[1, 0])
            matrix = turned
        rounded, own_scale, zero = self._activation(node.input[0])
        of_matrix = self._constant("int8.zero", np.array(ZERO, np.uint8))
        self._node("MatMulInteger", [rounded, matrix, zero, of_matrix], f"{out}.whole")
        self._node("Cast", [f"{out}.whole"], f"{out}.float", to=1)
        self._node("Mul", [own_scale, scale], f"{out}.scale")
        last = out if bias is None else f"{out}.product"
        self._node("Mul", [f"{out}.float", f"{out}.scale"], last)
        if bias is not None:
            self._node("Add", [last, bias], out)
        return True

    def _activation(self, name: str) -> tuple[str, str, str]:
        if name not in self.activations:
            self.activations[name] = (f"{name}.int8", f"{name}.int8.scale", f"{name}.int8.zero")
            self._node("DynamicQuantizeLinear", [name], *self.activations[name])
        return self.activations[name]

    def _rounded(self, name: str, by_row: bool) -> tuple[str, str]:
        """Names of a matrix's eight-bit numbers and of its scales, one a row or one a column."""
        numbers, scales = f"{name}.int8.{by_row:d}", f"{name}.int8.{by_row:d}.scale"
        if numbers not in self.added:
            values = self._to_array(self.weights[name]).astype(np.float32)
            scale = np.abs(values).max(axis=1 if by_row else 0) / 127  # [N]
            scale = np.where(scale > 0, scale, 1).astype(np.float32)
            steps = np.rint(values / (scale[:, None] if by_row else scale))
            self.added[numbers] = self._from_array((steps + ZERO).astype(np.uint8), numbers)
            self.added[scales] = self._from_array(scale, scales)
        return numbers, scales

    def _large(self, name: str) -> bool:
        tensor = self.weights.get(name)
        return tensor is not None and tensor.data_type == 1 and int(np.prod(list(tensor.dims))) >= LEAST

    def _constant(self, name: str, value: Any) -> str:
        if name not in self.added:
            self.added[name] = self._from_array(np.asarray(value), name)
        return name

    def _node(self, kind: str, inputs: list[str], *outputs: str, **attributes: Any) -> None:
        from onnx import helper

        self.nodes.append(helper.make_node(kind, inputs, list(outputs), **attributes))


def round_to_int8(model: Any) -> None:
    """Round the matrices of a graph to eight bits, in place; convolutions and small matrices stay as they are.

    Args:
        model: an `onnx.ModelProto`.
    """
    _Rewriter(model).run()
