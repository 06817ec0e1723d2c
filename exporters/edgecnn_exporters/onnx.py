"""The float32 ONNX artifact, from torch's dynamo exporter, read back and held to what was asked for."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from edgecnn.errors import ExportError
from edgecnn.exporter import Exported, ExportRequest

if TYPE_CHECKING:
    import onnx

    from edgecnn.training.checkpoint import Checkpoint

LOWEST_OPSET = 18  # the exporter's operator library is written at 18; lower goes through a lossy converter
INPUT, OUTPUTS = "image", ("logits", "probabilities")
_INSTALL = "pip install 'edgecnn[train]'"


class OnnxExporter:
    """Exports a checkpoint to one self-contained ONNX file with a dynamic batch."""

    name = "onnx"
    artifact = "fp32"
    needs = ()
    requires = {"torch": _INSTALL, "onnx": _INSTALL, "onnxscript": _INSTALL}  # noqa: RUF012 -- a constant

    def export(self, request: ExportRequest) -> Exported:
        """Write `fp32.onnx`.

        Raises:
            ExportError: torch's exporter failed, or what it emitted has another opset, signature or layout.
        """
        import onnx

        from edgecnn.training.checkpoint import load_checkpoint

        opset = LOWEST_OPSET if request.opset is None else request.opset
        if opset < LOWEST_OPSET:
            raise ExportError(
                f"opset {opset} cannot be exported faithfully: torch's exporter starts at {LOWEST_OPSET} and its "
                f"converter gives up silently; ask for --opset {LOWEST_OPSET} or more"
            )
        checkpoint = load_checkpoint(request.checkpoint)
        model = _export(checkpoint, opset)
        strip(model)
        model.producer_name = "edgecnn"
        describe(model, checkpoint)
        check_signature(model, opset, checkpoint.preprocess.shape, len(checkpoint.labels))
        onnx.checker.check_model(model, full_check=True)
        path = request.folder / "fp32.onnx"
        path.write_bytes(model.SerializeToString())
        details = {"opset": opset, "ir_version": model.ir_version, "nodes": len(model.graph.node)}
        return Exported(path=path, format="onnx", precision="fp32", target="any", details=details)


def _export(checkpoint: Checkpoint, opset: int) -> onnx.ModelProto:
    import torch

    from edgecnn.nets import Deployed

    deployed = Deployed(checkpoint.build(), checkpoint.preprocess).eval()
    # Two examples, because torch.export takes a dimension of 1 for a constant.
    example = torch.zeros(2, *checkpoint.preprocess.shape, dtype=torch.uint8)
    try:
        with _quiet():
            program = torch.onnx.export(
                deployed,
                (example,),
                dynamo=True,
                opset_version=opset,
                input_names=[INPUT],
                output_names=list(OUTPUTS),
                dynamic_shapes={INPUT: {0: torch.export.Dim("batch")}},
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # the exporter raises whatever any of its stages raises
        raise ExportError(f"torch's ONNX exporter failed: {' '.join(str(error).split())[:400]}") from error
    if program is None:
        raise ExportError("torch's ONNX exporter returned nothing")
    return program.model_proto


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's notices off stdout, which belongs to results."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    sink = io.StringIO()
    try:
        with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def strip(model: onnx.ModelProto) -> None:
    """Remove what the exporter leaves behind: source paths and code lines of this machine, and its own notes."""
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    model.graph.doc_string = model.doc_string = ""
    for values in (
        model.graph.node,
        model.graph.input,
        model.graph.output,
        model.graph.value_info,
        model.graph.initializer,
    ):
        for value in values:
            value.doc_string = ""
            del value.metadata_props[:]


def describe(model: onnx.ModelProto, checkpoint: Checkpoint) -> None:
    """Put labels and preprocessing into the file, for whoever meets it without its bundle."""
    import msgspec
    import onnx

    onnx.helper.set_model_props(
        model,
        {
            "edgecnn.labels": json.dumps(checkpoint.labels),
            "edgecnn.preprocess": msgspec.json.encode(checkpoint.preprocess).decode(),
        },
    )


def check_signature(model: onnx.ModelProto, opset: int, shape: tuple[int, int, int], classes: int) -> None:
    """Refuse a model whose opset, inputs, outputs or storage are not what was asked for."""
    import onnx

    emitted = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    if emitted.get("ai.onnx") != opset:
        raise ExportError(f"asked for opset {opset}, the exporter emitted {emitted.get('ai.onnx')}")
    wanted = [(INPUT, onnx.TensorProto.UINT8, shape), *((name, onnx.TensorProto.FLOAT, (classes,)) for name in OUTPUTS)]
    found = [_signature(value) for value in (*model.graph.input, *model.graph.output)]
    if found != [(name, kind, "batch", trailing) for name, kind, trailing in wanted]:
        raise ExportError(f"the exporter emitted another signature than asked for: {found}")
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer):
        raise ExportError("the exporter put weights outside the file")
    unfolded = sorted({node.op_type for node in model.graph.node} & {"BatchNormalization", "Dropout"})
    if unfolded:
        raise ExportError(f"the exporter left {', '.join(unfolded)} in the graph, which belongs to training")


def check_like(data: bytes, source: onnx.ModelProto) -> None:
    """Hold the bytes of a file made from one of this exporter's to that one's signature and opset.

    Raises:
        ExportError: they differ in something.
    """
    import msgspec
    import onnx

    from edgecnn.spec import Preprocess

    properties = {entry.key: entry.value for entry in source.metadata_props}
    preprocess = msgspec.json.decode(properties["edgecnn.preprocess"], type=Preprocess)
    opset = next(entry.version for entry in source.opset_import if entry.domain in ("", "ai.onnx"))
    classes = len(json.loads(properties["edgecnn.labels"]))
    check_signature(onnx.ModelProto.FromString(data), opset, preprocess.shape, classes)


def _signature(value: Any) -> tuple[str, int, str, tuple[int, ...]]:
    tensor = value.type.tensor_type
    first, *rest = tensor.shape.dim
    batch = "batch" if first.dim_param else str(first.dim_value)
    return value.name, tensor.elem_type, batch, tuple(size.dim_value for size in rest)
